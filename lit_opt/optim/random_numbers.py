"""Two evaluations of a model in one step that draw the same random numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch


def same_random_numbers(groups: Iterable[Mapping[str, Any]]) -> AbstractContextManager[None]:
    """Inside, torch's generators draw what they draw again after it: the same dropout in both evaluations.

    Args:
        groups: Of an optimizer; the generators of the CPU and of the CUDA devices that its parameters are on.

    Example:
        >>> with same_random_numbers([{"params": [torch.zeros(2)]}]):
        ...     first = torch.rand(3)
        >>> torch.equal(first, torch.rand(3))
        True
    """
    params = (param for group in groups for param in group["params"])
    return torch.random.fork_rng(devices=sorted({p.device.index or 0 for p in params if p.device.type == "cuda"}))
