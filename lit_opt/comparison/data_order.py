"""Batches that do not depend on the arm, and the hash that proves it.

With Lightning 2.6 and a plain `DataLoader(shuffle=True)` an optimizer that draws a random number, another dropout or one
layer more changes the order of the data from the second epoch on, since all draw from one global generator. Here the
loader gets a generator of its own, and the global ones are seeded before each batch is fetched: what the module draws when
the batch is brought to its device follows from there. Before each pass they are put right again (`Observer.before_pass`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, Sampler

from lit_opt.comparison.ranks import Place, place
from lit_opt.comparison.seeds import seed_all, stream, streams
from lit_opt.errors import RecipeError

# Of each tensor of a batch at most so many bytes are hashed, in pieces that are spread evenly over it.
SAMPLED = 16_384
_PIECES = 16
_PIECE = SAMPLED // _PIECES
# So many batches are hashed at once: in every step the hash would find the caches cold.
_TOGETHER = 32


class OrderedLoader:
    """A training loader whose batches and random numbers follow from a seed alone.

    `digest` is the running hash of all batches. Every other attribute is the loader's.

    Args:
        loader: What `train_dataloader` returned.
        seed: Of the run.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> one = OrderedLoader(DataLoader(range(8), batch_size=2, shuffle=True), seed=1)
        >>> first = [batch.tolist() for batch in one]
        >>> other = OrderedLoader(DataLoader(range(8), batch_size=2, shuffle=True), seed=1)
        >>> first == [(batch.tolist(), torch.rand(1))[0] for batch in other], one.digest() == other.digest()
        (True, True)
    """

    def __init__(self, loader: Any, seed: int) -> None:
        if isinstance(loader, Mapping | list | tuple):
            raise RecipeError(
                [
                    f"train_dataloader: {type(loader).__name__} of {len(loader)} loaders; a comparison takes one, so that its "
                    "batches can be put in order and hashed. Join them in one Dataset (torch.utils.data.ConcatDataset)."
                ]
            )
        self._loader, self._seed = loader, seed
        self._epoch = 0
        self._seeds = streams(seed, place().name("batch"))
        self._seed_of_next = next(self._seeds)
        self._hash = hashlib.sha256()
        self._sampled: list[bytes] = []
        inject_generator(loader, stream(seed, "data"))
        self._part = shared(loader, seed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return len(self._part)

    def __iter__(self) -> Iterator[Any]:
        seed_all(stream(self._seed, "epoch", self._epoch))
        self._epoch += 1
        batches = iter(self._part)
        while True:
            seed_all(self._seed_of_next)
            try:
                batch = next(batches)
            except StopIteration:
                return  # and the first batch of the next epoch gets the seed
            self._seed_of_next = next(self._seeds)
            self._sampled.append(sampled_bytes(batch))
            if len(self._sampled) == _TOGETHER:
                self.digest()
            yield batch

    def digest(self) -> str:
        """Of all batches so far."""
        self._hash.update(b"".join(self._sampled))
        self._sampled.clear()
        return self._hash.hexdigest()[:16]


def inject_generator(loader: Any, seed: int) -> None:
    """Give a loader and its samplers one generator of their own; an own one that they have is seeded.

    Args:
        loader: A DataLoader; others have no generator to give, and are left alone.
        seed: Of the generator.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> loader = DataLoader(range(8), shuffle=True)
        >>> inject_generator(loader, 1)
        >>> loader.sampler.generator is loader.generator
        True
    """
    generator = torch.Generator().manual_seed(seed)
    batch_sampler = getattr(loader, "batch_sampler", None)
    parts: tuple[Any, ...] = (loader, getattr(loader, "sampler", None), batch_sampler)
    for part in (*parts, getattr(batch_sampler, "sampler", None)):
        if not hasattr(part, "generator"):
            continue
        if isinstance(part.generator, torch.Generator):
            part.generator.manual_seed(seed)
        elif part.generator is None:
            part.generator = generator


def shared(loader: Any, seed: int) -> Any:
    """The loader of this process: of every so many batches the one of its rank, the order being the same for all.

    Args:
        loader: A DataLoader over a map-style dataset is divided; others, and one with a DistributedSampler, do it themselves.
        seed: Of the run.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> loader = DataLoader(range(8))
        >>> shared(loader, 1) is loader  # in a single process
        True
    """
    here = place()
    if here.world == 1 or type(loader) is not DataLoader or loader.batch_sampler is None:
        return loader
    if isinstance(loader.dataset, IterableDataset) or isinstance(loader.sampler, DistributedSampler):
        return loader
    # Workers draw their seeds from the loader's generator: other noise in each process.
    generator = torch.Generator().manual_seed(stream(seed, here.name("data")))
    kept = ("num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context")
    more = ("prefetch_factor", "persistent_workers")
    return DataLoader(
        loader.dataset,
        batch_sampler=EveryNth(loader.batch_sampler, here, loader.generator),
        generator=generator,
        **{name: getattr(loader, name) for name in (*kept, *more)},
    )


class EveryNth(Sampler[list[int]]):
    """The batches of one rank; the last ones are left out where not every rank would get one.

    Args:
        batches: A batch sampler, in the same order in all processes.
        place: Which are taken.
        generator: Of a loader over all batches. It draws from it for its workers before the order is drawn, so here that
            number is drawn as well, and the order is that of a single process.

    Example:
        >>> list(EveryNth([[0], [1], [2], [3], [4]], Place(1, 2)))
        [[1], [3]]
    """

    def __init__(self, batches: Any, place: Place, generator: torch.Generator | None = None) -> None:
        self.batches, self.place, self.generator = batches, place, generator

    def __iter__(self) -> Iterator[list[int]]:
        if self.generator is not None:
            torch.empty((), dtype=torch.int64).random_(generator=self.generator)
        one_each = [iter(self.batches)] * self.place.world
        return (batches[self.place.rank] for batches in zip(*one_each, strict=False))

    def __len__(self) -> int:
        return len(self.batches) // self.place.world


def sampled_bytes(batch: Any) -> bytes:
    """What is hashed of a batch: keys, shapes, types and contents, of large tensors evenly spread pieces.

    Example:
        >>> sampled_bytes({"x": torch.zeros(2, 3)}) == sampled_bytes({"x": torch.zeros(3, 2)})
        False
    """
    return b"".join(_parts(batch))


def _parts(batch: Any) -> list[Any]:
    """On the path of every step, so few calls."""
    if isinstance(batch, Tensor):
        return [_header(batch.shape, batch.dtype), *_content(batch)]
    if isinstance(batch, list | tuple):
        return [str(len(batch)).encode(), *(part for value in batch for part in _parts(value))]
    if isinstance(batch, Mapping):
        return [part for key, value in batch.items() for part in (str(key).encode(), *_parts(value))]
    if hasattr(batch, "__dict__") and not callable(batch):
        return _parts(vars(batch))
    return [str(batch).encode()[:SAMPLED]]


@lru_cache
def _header(shape: torch.Size, dtype: torch.dtype) -> bytes:
    return f"{tuple(shape)}{dtype}".encode()


def _content(tensor: Tensor) -> list[Any]:
    """Of a tensor of numbers its bytes, without a copy where it lies in memory in one piece, and of a large one pieces."""
    try:
        content = tensor.numpy().data.cast("B")
    except (TypeError, ValueError, RuntimeError):
        # On an accelerator, with a gradient or strides, empty, or of a type that Python's memoryview does not have.
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
            return [str(tensor).encode()]
        content = tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data
    size = len(content)
    return [content] if size <= SAMPLED else [content[piece] for piece in _spread(size)]


@lru_cache
def _spread(size: int) -> tuple[slice, ...]:
    """The pieces that are hashed of so many bytes."""
    starts = (i * (size - _PIECE) // (_PIECES - 1) for i in range(_PIECES))
    return tuple(slice(start, start + _PIECE) for start in starts)


def first_dimension(batch: Any) -> int:
    """Samples in a batch: the first dimension of the first tensor in it, 1 where there is none.

    Example:
        >>> first_dimension([torch.zeros(4, 3), torch.zeros(4)])
        4
    """
    if isinstance(batch, Tensor):
        return batch.shape[0] if batch.ndim else 1
    inner = batch if isinstance(batch, list | tuple) else batch.values() if isinstance(batch, Mapping) else ()
    for value in inner:
        if _has_tensor(value):
            return first_dimension(value)
    return 1


def _has_tensor(value: Any) -> bool:
    if isinstance(value, Tensor):
        return True
    if isinstance(value, list | tuple):
        return any(map(_has_tensor, value))
    return isinstance(value, Mapping) and any(map(_has_tensor, value.values()))
