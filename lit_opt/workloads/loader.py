"""Batches as a pure function of (seed, position): the same after a resume and on any number of devices.

A `torch.utils.data.DataLoader` with `shuffle=True` draws its order from the global random generator, so a
resumed run sees other batches than the uninterrupted one, and two processes see other batches than one. Here
the k-th micro-batch of a run depends on nothing but the seed and k:

- the sample order of an epoch is a permutation seeded by (seed, epoch);
- each draw of a sample is seeded by (seed, number of the draw), so random augmentation repeats as well;
- with W processes, the batches of all ranks at position k together are the batch of one process with
  W times the batch size;
- the position counts the batches that were handed out, not those that workers have fetched ahead.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lit_opt.errors import RecipeError
from lit_opt.workloads.require import whole_number_problems


class ResumableLoader:
    """An endless shuffled stream of batches that knows its position and can be set to any other.

    `for batch in loader` gives `len(loader)` batches from the position on, one epoch. Leaving the loop early
    and entering it again continues the stream. The last samples of a permutation that do not fill a global
    batch are left out of that epoch.

    It is on purpose no subclass of `DataLoader`: Lightning would re-create one with a `DistributedSampler`
    under DDP, which shuffles anew.

    Args:
        dataset: Anything with a length and an item for each index. Randomness in it must come from torch's
            global CPU generator, as in torchvision's transforms; it is seeded for each draw and put back.
        batch_size: Samples in a batch of this process.
        seed: Decides the order and the augmentation.
        rank: Which of the data-parallel processes this is.
        world_size: Number of data-parallel processes.
        num_workers: Worker processes; the batches do not depend on it.

    Raises:
        RecipeError: The data are fewer than one global batch, or an argument is out of range.

    Example:
        >>> loader = ResumableLoader(range(10), batch_size=4, seed=1)
        >>> passed = [next(iter(loader)).tolist() for _ in range(3)]
        >>> state = loader.state_dict()
        >>> resumed = ResumableLoader(range(10), batch_size=4, seed=1)
        >>> resumed.load_state_dict(state)
        >>> next(iter(resumed)).tolist() == next(iter(loader)).tolist()
        True
    """

    def __init__(
        self,
        dataset: Dataset[Any] | Sequence[Any],
        *,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
    ) -> None:
        problems = whole_number_problems(1, batch_size=batch_size, world_size=world_size)
        problems += whole_number_problems(0, seed=seed, rank=rank, num_workers=num_workers)
        if not problems and rank >= world_size:
            problems = [f"rank={rank}: less than world_size={world_size} is needed."]
        samples = len(dataset)  # type: ignore[arg-type]
        if not problems and samples < batch_size * world_size:
            problems = [
                f"batch_size={batch_size} on {world_size} process(es) takes {batch_size * world_size} samples"
                f" at a time, and the training data have {samples}."
                f" Choose batch_size={samples // world_size} or less."
            ]
        if problems:
            raise RecipeError(problems)
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        self.rank, self.world_size, self.num_workers = rank, world_size, num_workers
        self.samples = samples
        self.global_batch_size = batch_size * world_size
        self.position = 0

    def __len__(self) -> int:
        """Batches of one process in one epoch."""
        return self.samples // self.global_batch_size

    def draws(self, position: int) -> list[tuple[int, int]]:
        """What this process draws at a position: pairs of (index of the sample, seed of the draw).

        Args:
            position: Batches before it, over all epochs.
        """
        epoch, batch = divmod(position, len(self))
        return self._draws(_permutation(self.samples, self.seed, epoch), batch, position)

    def _draws(self, order: Tensor, batch: int, position: int) -> list[tuple[int, int]]:
        first = batch * self.global_batch_size + self.rank * self.batch_size
        draw = position * self.global_batch_size + self.rank * self.batch_size
        indices = order[first : first + self.batch_size].tolist()
        return [(index, _mix(self.seed, "draw", draw + i)) for i, index in enumerate(indices)]

    def _one_pass(self) -> Iterator[list[tuple[int, int]]]:
        epoch = -1
        for position in range(self.position, self.position + len(self)):
            if position // len(self) != epoch:
                epoch = position // len(self)
                order = _permutation(self.samples, self.seed, epoch)
            yield self._draws(order, position % len(self), position)

    def __iter__(self) -> Iterator[Any]:
        for batch in _batches(_SeededDraws(self.dataset), self._one_pass(), self.num_workers):
            self.position += 1  # before the yield: the loop that saves a checkpoint has been given this batch
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The position and what it means: the seed, the global batch size and the number of samples."""
        return {
            "position": self.position,
            "seed": self.seed,
            "global_batch_size": self.global_batch_size,
            "samples": self.samples,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where `state` was taken; the number of processes may differ, the global batch may not.

        Raises:
            RecipeError: Seed, global batch size or data differ, so the position would mean other batches.
        """
        own = self.state_dict()
        advice = {
            "seed": "Give the data module the seed of the first run",
            "global_batch_size": "Choose batch_size so that batch_size x processes is the same",
            "samples": "Give the same data",
        }
        problems = [
            f"resume: the checkpoint's data have {key}={state[key]}, this run's have {own[key]}, so it would"
            f" not continue with the same batches. {text}, or start a new run from the checkpoint's weights."
            for key, text in advice.items()
            if key in state and state[key] != own[key]
        ]
        if problems:
            raise RecipeError(problems)
        self.position = state.get("position", 0)


class EvaluationLoader:
    """Every sample exactly once over all processes, in order, without padding.

    Each process gets the same number of batches (otherwise collectives in a model's forward would wait for
    ever), so their sizes may differ by one sample. Log with `batch_size=` and `sync_dist=True`: the mean over
    processes is then the mean over samples. A `DistributedSampler` would count repeated samples twice.

    Args:
        dataset: As for `ResumableLoader`; each sample's randomness is seeded by its index.
        batch_size: Samples in a batch of this process, at most one more.
        rank: Which of the data-parallel processes this is.
        world_size: Number of data-parallel processes.
        num_workers: Worker processes.

    Raises:
        RecipeError: Fewer samples than processes, or an argument is out of range.

    Example:
        >>> [batch.tolist() for batch in EvaluationLoader(range(5), batch_size=2)]
        [[0], [1, 2], [3, 4]]
    """

    def __init__(
        self,
        dataset: Dataset[Any] | Sequence[Any],
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
    ) -> None:
        problems = whole_number_problems(1, batch_size=batch_size, world_size=world_size)
        problems += whole_number_problems(0, rank=rank, num_workers=num_workers)
        samples = len(dataset)  # type: ignore[arg-type]
        if not problems and samples < world_size:
            problems = [f"the validation data have {samples} samples for {world_size} process(es). Give more data."]
        if problems:
            raise RecipeError(problems)
        self.dataset, self.batch_size, self.num_workers = dataset, batch_size, num_workers
        mine = range(rank, samples, world_size)
        smallest_share = samples // world_size
        batches = -(-smallest_share // batch_size)
        edges = [len(mine) * b // batches for b in range(batches + 1)]
        self.indices = [list(mine[a:b]) for a, b in pairwise(edges)]

    def __len__(self) -> int:
        """Batches of one process."""
        return len(self.indices)

    def __iter__(self) -> Iterator[Any]:
        draws = ([(index, _mix("evaluation", index)) for index in batch] for batch in self.indices)
        yield from _batches(_SeededDraws(self.dataset), draws, self.num_workers)


class _SeededDraws(Dataset[Any]):
    """The sample of an (index, seed) pair, with torch's CPU generator seeded for it and put back."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, draw: tuple[int, int]) -> Any:
        index, seed = draw
        before = torch.get_rng_state()
        # torch.manual_seed would also reseed the accelerator, and with it the model's dropout
        torch.default_generator.manual_seed(seed)
        try:
            return self.dataset[index]
        finally:
            torch.set_rng_state(before)

    def __getitems__(self, draws: list[tuple[int, int]]) -> list[Any]:
        # A dataset whose samples are pure functions of their index may give a batch at once.
        samples_at = getattr(self.dataset, "samples_at", None)
        return samples_at([index for index, _ in draws]) if samples_at else [self[draw] for draw in draws]


def _batches(dataset: _SeededDraws, draws: Iterator[list[tuple[int, int]]], num_workers: int) -> Iterator[Any]:
    # a generator of its own, since a DataLoader otherwise takes one number from the global one at each iter()
    generator = torch.Generator().manual_seed(0)
    yield from DataLoader(dataset, batch_sampler=draws, num_workers=num_workers, generator=generator)


def _permutation(samples: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(samples, generator=torch.Generator().manual_seed(_mix(seed, "order", epoch)))


def _mix(*parts: int | str) -> int:
    """A seed from several: hashed, so that neighbours (seed 0 epoch 1, seed 1 epoch 0) share nothing."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()) >> 1
