"""Which process orthogonalises which matrices."""

from __future__ import annotations

from collections.abc import Sequence

from lit_opt.optim.matrix.plan import Chunk


def shares(chunks: Sequence[Chunk], processes: int) -> list[list[slice]]:
    """Which matrices of each chunk each process computes, balanced by floating-point operations.

    Each chunk is divided evenly; what is left over goes to the processes with the least work so far, the largest
    matrices first.

    Returns:
        For each chunk one range for each process, in order and without gaps.

    Example:
        >>> import torch
        >>> from lit_opt.optim.matrix.plan import Chunk
        >>> options = {"ns_steps": 5}
        >>> large = Chunk((3, 64, 64), torch.float32, options, (), True)
        >>> small = Chunk((3, 8, 8), torch.float32, options, (), True)
        >>> shares([small, large], 2)
        [[slice(0, 1, None), slice(1, 3, None)], [slice(0, 2, None), slice(2, 3, None)]]
    """
    load = [0] * processes
    counts: dict[int, list[int]] = {}
    work = {i: chunk.flops // chunk.shape[0] for i, chunk in enumerate(chunks)}
    for index in sorted(work, key=lambda i: (-work[i], i)):
        each, left = divmod(chunks[index].shape[0], processes)
        lucky = sorted(range(processes), key=lambda rank: (load[rank], rank))[:left]
        counts[index] = [each + (rank in lucky) for rank in range(processes)]
        load = [done + count * work[index] for done, count in zip(load, counts[index], strict=True)]
    ranges = []
    for index in range(len(chunks)):
        ends = [sum(counts[index][: rank + 1]) for rank in range(processes)]
        ranges.append([slice(end - count, end) for end, count in zip(ends, counts[index], strict=True)])
    return ranges
