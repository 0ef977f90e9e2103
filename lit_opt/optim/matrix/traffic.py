"""Bytes that a step of a matrix method moves and operations it takes, process by process, before a run: a simulator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer

from lit_opt.optim.matrix.boxes import Box, boxes_by, common, sources_by
from lit_opt.optim.matrix.cost import chunk_work, planned, result_width
from lit_opt.optim.matrix.exchange import rounds
from lit_opt.optim.matrix.plan import Chunk
from lit_opt.optim.matrix.routes import items_of
from lit_opt.optim.matrix.sharing import ranges_of, shares


@dataclass(frozen=True)
class Traffic:
    """What one process does in one step.

    Args:
        sent: Bytes to other processes.
        received: Bytes from other processes.
        flops: Operations of the orthogonalisation, by the standard iteration; of SOAP and its kind the average over steps.

    Example:
        >>> Traffic(sent=10, received=10, flops=100).sent
        10
    """

    sent: int
    received: int
    flops: int


def ddp_traffic(optimizer: Optimizer, processes: int, *, cuda: bool) -> list[Traffic]:
    """Under DDP with shared work: each process's results go to all, in a ring.

    Args:
        optimizer: One of Muon, NorMuon, MarsM, Teon, Scion, ARO; its parameters may be on the meta device.
        processes: Of the run.
        cuda: The run is on CUDA devices that multiply bfloat16.

    Example:
        >>> import torch
        >>> from lit_opt.optim import Muon
        >>> muon = Muon([torch.nn.Parameter(torch.zeros(768, 768)) for _ in range(2)], lr=0.02)
        >>> [(one.sent, one.flops > 0) for one in ddp_traffic(muon, 2, cuda=True)]
        [(1179648, True), (1179648, True)]
    """
    chunks = planned(optimizer, sharing=processes)
    owned = shares(chunks, processes)
    widths = [result_width(optimizer, chunk, cuda, normalised=True) for chunk in chunks]
    kinds = [((c.dtype, width), c.bytes // processes) for c, width in zip(chunks, widths, strict=True)]
    flops = [0] * processes
    for chunk, parts in zip(chunks, owned, strict=True):
        each = chunk.flops // chunk.shape[0]
        flops = [done + (part.stop - part.start) * each for done, part in zip(flops, parts, strict=True)]
    moved = 0
    for some in rounds(kinds):
        sizes = [widths[i] * (math.prod(chunks[i].shape[1:]) + _beside(optimizer, chunks[i])) for i in some]
        # Every process sends as much as the one with most.
        moved += max(
            sum(size * (owned[i][rank].stop - owned[i][rank].start) for i, size in zip(some, sizes, strict=True))
            for rank in range(processes)
        )
    return [Traffic((processes - 1) * moved, (processes - 1) * moved, done) for done in flops]


def sharded_traffic(optimizer: Optimizer, mesh_shape: Sequence[int], *, cuda: bool) -> list[Traffic]:
    """Under FSDP2 and HSDP: parts go to owners, results come back.

    Args:
        optimizer: As in `ddp_traffic`; its parameters are whole.
        mesh_shape: (processes,) for FSDP2; (replicas, shards) for HSDP.
        cuda: As in `ddp_traffic`.

    Example:
        >>> import torch
        >>> from lit_opt.optim import Muon
        >>> muon = Muon([torch.nn.Parameter(torch.zeros(768, 768)) for _ in range(2)], lr=0.02)
        >>> [(one.sent, one.flops > 0) for one in sharded_traffic(muon, (2,), cuda=True)]
        [(1769472, True), (1769472, True)]
    """
    processes = math.prod(mesh_shape)
    cuts = [(len(mesh_shape) - 1, 0)]
    groups = optimizer.param_groups
    boxes: dict[tuple[int, ...], list[Box]] = {}
    sources = [sources_by(mesh_shape, cuts, owner) for owner in range(processes)]
    sent, received, flops = ([0] * processes for _ in range(3))
    chunks = planned(optimizer, sharded=processes)
    for chunk, ranges in zip(chunks, ranges_of(chunks, processes), strict=True):
        each = chunk_work(optimizer, chunk)
        width = result_width(optimizer, chunk, cuda, normalised=True)
        for owner, own in enumerate(ranges):
            count = own.stop - own.start
            flops[owner] += count * each
            for _, index, region in items_of(chunk, groups, own):
                shape = tuple(chunk.slots[index].param.shape)
                held = boxes.setdefault(shape, boxes_by(shape, mesh_shape, cuts))
                for process, box in enumerate(held):
                    both = common(region, box)
                    if both is None or process == owner:
                        continue
                    numbers = math.prod(stop - start for start, stop in both)
                    there = numbers * chunk.dtype.itemsize if process in sources[owner] else 0
                    sent[process] += there
                    received[owner] += there
                    sent[owner] += numbers * width
                    received[process] += numbers * width
            moments = count * _beside(optimizer, chunk) * width
            for process in range(processes):
                received[process] += moments if process != owner else 0
            sent[owner] += (processes - 1) * moments
    return [Traffic(*numbers) for numbers in zip(sent, received, flops, strict=True)]


def _beside(optimizer: Any, chunk: Chunk) -> int:
    return int(optimizer._beside(chunk))
