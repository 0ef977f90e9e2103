"""Random numbers of a run in three streams: initial weights, data, and noise in the model. No arm can shift another's."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterator
from functools import cache

import numpy as np
import torch

# Search and confirmation never share a seed: those of study s are 1000 s, and 1000 s + 1 upwards.
_PER_STUDY = 1000


def tuning_seed(protocol_seed: int, study: int) -> int:
    """The seed of every run of the search of a study.

    Example:
        >>> tuning_seed(0, 1)
        1000
    """
    return _PER_STUDY * (study + 100 * protocol_seed)


def confirmation_seed(protocol_seed: int, study: int, index: int) -> int:
    """The seed of a block of the confirmation.

    Example:
        >>> [confirmation_seed(0, 1, i) for i in range(2)]
        [1001, 1002]
    """
    return tuning_seed(protocol_seed, study) + 1 + index


def stream(seed: int, *parts: int | str) -> int:
    """A seed below 2**32 for one use of a run's seed; hashed, so that neighbours share nothing.

    Example:
        >>> stream(0, "data") != stream(0, "noise"), stream(0, "data") == stream(0, "data")
        (True, True)
    """
    return int.from_bytes(hashlib.blake2b(repr((seed, *parts)).encode(), digest_size=4).digest())


def streams(seed: int, use: str, first: int = 0) -> Iterator[int]:
    """`stream(seed, use, first)`, `stream(seed, use, first + 1)` and so on.

    They are made 64 at a time: one by one each would find the caches cold after a training step, 14 microseconds and not 1.

    Example:
        >>> made = streams(0, "noise", first=1)
        >>> [next(made) for _ in range(70)] == [stream(0, "noise", i) for i in range(1, 71)]
        True
    """
    for start in itertools.count(first, 64):
        yield from [stream(seed, use, i) for i in range(start, start + 64)]


def seed_all(seed: int) -> None:
    """Seed the global generators of Python, numpy and torch, on the CPU and on the accelerator in use.

    Example:
        >>> seed_all(1); a = torch.rand(1); seed_all(1); bool(torch.rand(1) == a)
        True
    """
    random.seed(seed)
    np.random.seed(seed)
    seed_torch(seed)


def seed_torch(seed: int) -> None:
    """Seed torch's global generators, on the CPU and on the accelerator in use.

    Example:
        >>> seed_torch(1); a = torch.rand(1); seed_torch(1); bool(torch.rand(1) == a)
        True
    """
    # torch.manual_seed notes the whole call stack for every device that is not in use yet: milliseconds.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    elif _has_mps():
        torch.mps.manual_seed(seed)


@cache
def _has_mps() -> bool:
    return torch.backends.mps.is_available()
