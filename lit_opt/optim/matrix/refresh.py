"""Which statistics of the preconditioned methods are decomposed together, and by which process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_opt.optim.matrix.sharing import shared

# Scratch of stacked statistics.
SCRATCH_BYTES = 64 * 2**20
# (compute, *batches) -> compute(*batches), each process computing a part of it
Exchange = Callable[..., Tensor]


@dataclass(frozen=True)
class Side:
    """One side of a slot's matrices that is due for a new decomposition.

    Args:
        name: "left" or "right".
        views: The slot's state by name, (count, ...) each; writing to them writes to the state.
        options: Of the slot's chunk.
        step: Of the parameter.

    Example:
        >>> import torch
        >>> Side("left", {"left_factor": torch.zeros(1, 2, 2)}, {}, 1).name
        'left'
    """

    name: str
    views: Mapping[str, Tensor]
    options: Mapping[str, Any]
    step: int


def exchange_of(parts: list[slice], group: Any) -> Exchange:
    """How a computation on batches is divided: among the processes of a group by `parts`, or not at all.

    Example:
        >>> exchange_of([], None)(torch.neg, torch.ones(1))
        tensor([-1.])
    """
    if not parts:
        return lambda compute, *batches: compute(*batches)

    def divided_among_all(compute: Callable[..., Tensor], *batches: Tensor) -> Tensor:
        sides = [batch.size(-1) for batch in batches]
        return shared(torch.cat(batches, dim=-1), parts, group, lambda part: compute(*part.split(sides, dim=-1)))

    return divided_among_all


def packs_of(sides: list[Side], length: int, processes: int) -> list[list[Side]]:
    """Cut a bucket so that what is stacked fits the scratch, with work for every process.

    Example:
        >>> sides = [Side("left", {"left_factor": torch.ones(1, 2, 2)}, {}, 1) for _ in range(3)]
        >>> [len(pack) for pack in packs_of(sides, 2, 1)]
        [3]
    """
    most = max(processes, factors_at_once(length, sides[0].views[f"{sides[0].name}_factor"].itemsize))
    packs: list[list[Side]] = [[]]
    filled = 0
    for side in sides:
        count = side.views[f"{side.name}_factor"].size(0)
        if packs[-1] and filled + count > most:
            packs.append([])
            filled = 0
        packs[-1].append(side)
        filled += count
    return packs


def factors_at_once(length: int, width: int) -> int:
    """Statistics of a side length, of numbers of `width` bytes, that are decomposed in one call.

    Example:
        >>> factors_at_once(768, 4), factors_at_once(10000, 4)
        (7, 1)
    """
    return max(1, SCRATCH_BYTES // (4 * length * length * width))
