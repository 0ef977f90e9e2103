"""Which statistics of the preconditioned methods are decomposed together, and by which process."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_opt.optim.matrix.sharing import divided, shared

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


def refresh(
    sides: Sequence[Side], decomposed: Callable[[Sequence[Side], Exchange], None], processes: int, group: Any
) -> None:
    """New decompositions of sides, those of one length together.

    Args:
        sides: That are due.
        decomposed: The method's, for sides of one length.
        processes: How many divide the work; 1 where these are this process's own.
        group: Of these processes.

    Example:
        >>> refresh([], lambda sides, exchange: None, 1, None)
    """
    buckets: dict[tuple[Any, ...], list[Side]] = defaultdict(list)
    for side in sides:
        factor = side.views[f"{side.name}_factor"]
        buckets[factor.size(-1), factor.dtype, factor.device, *side.options.values(), side.step].append(side)
    packs = [pack for (length, *_), alike in buckets.items() for pack in packs_of(alike, length, processes)]
    counts = [sum(side.views[f"{side.name}_factor"].size(0) for side in pack) for pack in packs]
    work = [pack[0].views[f"{pack[0].name}_factor"].size(-1) ** 3 for pack in packs]
    parts = divided(counts, work, processes) if processes > 1 else [[] for _ in packs]
    for pack, part in zip(packs, parts, strict=True):
        decomposed(pack, exchange_of(part, group))


def together(tensors: Sequence[Tensor]) -> Tensor:
    """One batch of several, and one as it is.

    Example:
        >>> import torch
        >>> together([torch.ones(1, 2), torch.zeros(1, 2)])
        tensor([[1., 1.],
                [0., 0.]])
    """
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


def factors_at_once(length: int, width: int) -> int:
    """Statistics of a side length, of numbers of `width` bytes, that are decomposed in one call.

    Example:
        >>> factors_at_once(768, 4), factors_at_once(10000, 4)
        (7, 1)
    """
    return max(1, SCRATCH_BYTES // (4 * length * length * width))
