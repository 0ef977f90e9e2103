"""The hash of batches: what it sees, and that it is the one that the first ledgers were written with."""

from __future__ import annotations

import hashlib
from typing import Any, cast

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from lit_opt.comparison.data_order import SAMPLED, OrderedLoader, first_dimension, sampled_bytes
from lit_opt.comparison.seeds import stream

PIECES = 16


def hashed(batch: Any) -> str:
    return hashlib.sha256(sampled_bytes(batch)).hexdigest()


def ordered(batches: list[Any]) -> OrderedLoader:
    return OrderedLoader(DataLoader(cast(Any, batches), batch_size=None), 1)


def by_definition(tensor: torch.Tensor) -> str:
    """Shape, type, and at most 16 KB of the bytes in 16 pieces from the first to the last."""
    content = bytes(tensor.detach().clone().contiguous().reshape(-1).view(torch.uint8).tolist())
    piece = SAMPLED // PIECES
    starts = [i * (len(content) - piece) // (PIECES - 1) for i in range(PIECES)]
    sampled = content if len(content) <= SAMPLED else b"".join(content[start : start + piece] for start in starts)
    return hashlib.sha256(f"{tuple(tensor.shape)}{tensor.dtype}".encode() + sampled).hexdigest()


TENSORS = {
    "float32": torch.randn(7, 3),
    "large": torch.randn(100, 77),
    "transposed": torch.randn(100, 77).t(),
    "strided": torch.randn(50, 20)[::2, ::3],
    "bfloat16": torch.randn(9).bfloat16(),
    "float16, large": torch.randn(99, 101).half(),
    "int64": torch.arange(11),
    "bool": torch.tensor([True, False, True]),
    "uint8, large": torch.arange(40_000).to(torch.uint8),
    "one number": torch.tensor(3.5),
    "wants a gradient": torch.randn(4, requires_grad=True),
    "none": torch.zeros(0, 3),
    "negated view": torch.randn(100, 77, dtype=torch.complex64).conj().imag,
    "negated and in one piece": torch.view_as_real(torch.randn(3, dtype=torch.complex64)).neg(),
    "float8": torch.randn(9).to(torch.float8_e4m3fn),
    "from the middle": torch.randn(5000)[7:4900],
}


@pytest.mark.parametrize("name", TENSORS)
def test_the_hash_of_a_tensor_is_that_of_its_bytes(name):
    """Another hash, and a comparison that was begun with an earlier version would be refused when it goes on."""
    assert hashed(TENSORS[name]) == by_definition(TENSORS[name])


def test_what_the_hash_tells_apart():
    x = torch.arange(20_000.0)
    last = x.clone()
    last[-1] += 1
    first = x.clone()
    first[0] += 1
    batches = [
        *(x, last, first, x[None], x.double(), x.int(), [x], [x, x], {"x": x}, {"y": x}, [x, "a"], [x, "b"]),
        *(torch.zeros(2, dtype=torch.complex64), torch.ones(2, dtype=torch.complex64), torch.eye(3).to_sparse()),
    ]
    assert len({hashed(batch) for batch in batches}) == len(batches)
    assert hashed({"x": x, "names": ("a",)}) == hashed({"x": x.clone(), "names": ("a",)})


def test_the_digest_is_that_of_all_batches_so_far():
    """However many were hashed together, and however often it was asked for."""
    batches = [torch.full((2,), float(i)) for i in range(70)]
    running, often, seldom = hashlib.sha256(), ordered(batches), ordered(batches)
    for one, _ in zip(often, seldom, strict=True):
        running.update(sampled_bytes(one))
        assert often.digest() == running.hexdigest()[:16]
    assert seldom.digest() == running.hexdigest()[:16]


def test_the_seeds_of_batches_go_on_over_epochs_as_they_always_did():
    """Batch 0, 1, 2, ... of the run, however many there are in an epoch."""

    class Drawn(Dataset[torch.Tensor]):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, i: int) -> torch.Tensor:
            return torch.rand(2)

    loader = OrderedLoader(DataLoader(Drawn(), batch_size=None), 5)
    seen = [batch for _ in range(2) for batch in loader]
    for i, batch in enumerate(seen):
        assert torch.equal(batch, torch.rand(2, generator=torch.Generator().manual_seed(stream(5, "batch", i))))


def test_a_batch_that_is_changed_after_it_was_fetched_is_hashed_as_it_came():
    untouched, changed = (ordered([torch.zeros(3), torch.ones(3)]) for _ in range(2))
    for one, _ in zip(changed, untouched, strict=True):
        one.add_(1)
    assert changed.digest() == untouched.digest()


def test_the_samples_of_a_batch():
    x = torch.zeros(5, 2)
    batches = [x, [x, x[:1]], {"ids": x}, ("name", {"x": x}), torch.tensor(1.0), "text", []]
    assert [first_dimension(batch) for batch in batches] == [5, 5, 5, 5, 1, 1, 1]
