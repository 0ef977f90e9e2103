"""Random numbers of a run in three streams: initial weights, data, and noise in the model. No arm can shift another's."""

from __future__ import annotations

import hashlib
import random

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


def seed_all(seed: int) -> None:
    """Seed the global generators of Python, numpy and torch, on the CPU and on the accelerator in use.

    Example:
        >>> seed_all(1); a = torch.rand(1); seed_all(1); bool(torch.rand(1) == a)
        True
    """
    random.seed(seed)
    np.random.seed(seed)
    # torch.manual_seed notes the whole call stack for every device that is not in use yet: milliseconds.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    elif torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)
