"""Data parallel: each process orthogonalises its share of the matrices, and all get all results.

Whole matrices are computed by one process each, from the same gradients, so every process applies the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lit_opt.optim.matrix.plan import Chunk


def shares(chunks: Sequence[Chunk], processes: int) -> list[list[slice]]:
    """Which matrices of each chunk each process computes, balanced by floating-point operations.

    Each chunk is divided evenly; what is left over goes to the processes with the least work so far, the largest
    matrices first.

    Returns:
        For each chunk one range for each process, in order and without gaps.

    Example:
        >>> from lit_opt.optim.matrix.plan import Chunk
        >>> options = {"ns_steps": 5}
        >>> large = Chunk((3, 64, 64), torch.float32, options, (), True)
        >>> small = Chunk((3, 8, 8), torch.float32, options, (), True)
        >>> shares([small, large], 2)
        [[slice(0, 1, None), slice(1, 3, None)], [slice(0, 2, None), slice(2, 3, None)]]
    """
    work = [chunk.flops // chunk.shape[0] for chunk in chunks]
    return divided([chunk.shape[0] for chunk in chunks], work, processes)


def ranges_of(chunks: Sequence[Chunk], processes: int) -> list[Sequence[slice]]:
    """Each chunk's owners: its own, or `shares` of those that have none.

    Example:
        >>> from lit_opt.optim.matrix.plan import Chunk
        >>> owned = Chunk((1, 8, 8), torch.float32, {}, (), True, owners=(slice(0, 0), slice(0, 1)))
        >>> ranges_of([owned], 2)
        [(slice(0, 0, None), slice(0, 1, None))]
    """
    free = iter(shares([chunk for chunk in chunks if chunk.owners is None], processes))
    return [next(free) if chunk.owners is None else chunk.owners for chunk in chunks]


def divided(counts: Sequence[int], work: Sequence[int], processes: int) -> list[list[slice]]:
    """Which entries of each batch each process computes; see `shares`.

    Args:
        counts: Entries of each batch.
        work: Of one entry of each batch, in any unit.
        processes: How many divide it.

    Example:
        >>> divided([1, 1], [8, 2], 2)
        [[slice(0, 1, None), slice(1, 1, None)], [slice(0, 0, None), slice(0, 1, None)]]
    """
    load = [0] * processes
    taken: dict[int, list[int]] = {}
    for index in sorted(range(len(counts)), key=lambda i: (-work[i], i)):
        each, left = divmod(counts[index], processes)
        lucky = sorted(range(processes), key=lambda rank: (load[rank], rank))[:left]
        taken[index] = [each + (rank in lucky) for rank in range(processes)]
        load = [done + count * work[index] for done, count in zip(load, taken[index], strict=True)]
    ranges = []
    for index in range(len(counts)):
        ends = [sum(taken[index][: rank + 1]) for rank in range(processes)]
        ranges.append([slice(end - count, end) for end, count in zip(ends, taken[index], strict=True)])
    return ranges


def shared(batch: Tensor, parts: Sequence[slice], group: Any, compute: Callable[[Tensor], Tensor]) -> Tensor:
    """`compute` of the whole batch, of which this process computes its part; a collective.

    Args:
        batch: (count, rows, cols), the same in all processes.
        parts: The range of each process.
        group: Process group, or None for the default one.
        compute: Keeps the count; may use its argument as scratch.

    Returns:
        What `compute` makes of all, in all processes the same bits.

    Example:
        >>> import torch, torch.distributed as dist
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> shared(torch.ones(2, 1, 1), [slice(0, 2)], None, torch.neg).flatten()
        tensor([-1., -1.])
        >>> dist.destroy_process_group()
    """
    rank = torch.distributed.get_rank(group)
    most = max(part.stop - part.start for part in parts)
    own = parts[rank]
    # Where a process has nothing to do, one matrix tells the dtype and shape of the result.
    result = compute(batch[own] if own.stop > own.start else torch.zeros_like(batch[:1]))
    padded = result.new_zeros(most, *result.shape[1:])
    padded[: own.stop - own.start] = result[: own.stop - own.start]
    gathered = padded.new_empty(len(parts) * most, *result.shape[1:])
    # As bytes: gloo does not know every dtype.
    torch.distributed.all_gather_into_tensor(gathered.view(torch.uint8), padded.view(torch.uint8), group=group)
    pieces = [gathered[i * most : i * most + part.stop - part.start] for i, part in enumerate(parts)]
    return torch.cat(pieces)
