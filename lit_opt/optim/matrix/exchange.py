"""Whole matrices on owners: parts go there, are computed on, and results go back, the next while the last computes.

It knows nothing of what is computed: a job says what a process gives, what an owner makes of whole matrices, and what
a process does with the results.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_opt.optim.matrix.routes import Route


@dataclass(frozen=True)
class Job:
    """One chunk's work.

    Args:
        route: Who owns what, and which numbers go where.
        groups: The optimizer's groups, for the layouts.
        give: Returns what this process holds of the matrices, one tensor for each slot of the chunk.
        compute: (whole matrices (count, rows, cols)) -> results of the same shape in `dtype`, and `beside`, (count,
            numbers) in `dtype`, which goes to every process; None for nothing. Called where count is not 0.
        take: (results for each of `route.take`, `beside` of all matrices of the chunk or None) -> None.
        dtype: Of the results, the same in all processes.
        beside: Numbers that go to every process for each matrix.
    """

    route: Route
    groups: Sequence[Mapping[str, Any]]
    give: Callable[[], list[Tensor]]
    compute: Callable[[Tensor], tuple[Tensor, Tensor | None]]
    take: Callable[[list[Tensor], Tensor | None], None]
    dtype: torch.dtype
    beside: int = 0


@dataclass
class _Message:
    """An all-to-all under way. Both buffers have to live until it has ended."""

    job: Job
    out: Tensor
    arriving: Tensor
    work: Any

    def wait(self) -> Tensor:
        self.work.wait()
        return self.arriving


def exchange(jobs: Sequence[Job]) -> None:
    """Do the jobs in order; every process of their groups has to call it with the same routes.

    While a process computes on one chunk, the next one's parts and the last one's results are on their way.

    Args:
        jobs: In the same order in all processes.

    Example:
        >>> exchange([])
    """
    ahead: _Message | None = None
    behind: _Message | None = None
    for job in [*jobs, None]:
        parts = None if job is None else _send_parts(job)
        if ahead is not None:
            results = _send_results(ahead)
            if behind is not None:
                _take(behind)
            behind = results
        ahead = parts
    if behind is not None:
        _take(behind)


def all_to_all(out: Tensor, sent: Sequence[int], received: Sequence[int], group: Any) -> tuple[Tensor, Any]:
    """Start one all-to-all of numbers.

    Args:
        out: (numbers,), those for each process one after another.
        sent: How many go to each process.
        received: How many come from each.
        group: Process group.

    Returns:
        What will be received, and the work to wait for.

    Example:
        >>> import torch, torch.distributed as dist
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> arriving, work = all_to_all(torch.ones(2), [2], [2], dist.group.WORLD)
        >>> arriving if work.wait() else None
        tensor([1., 1.])
        >>> dist.destroy_process_group()
    """
    arriving = out.new_empty(sum(received))
    # As bytes: gloo does not know every dtype.
    size = out.element_size()
    work = torch.distributed.all_to_all_single(
        arriving.view(torch.uint8),
        out.view(torch.uint8),
        [number * size for number in received],
        [number * size for number in sent],
        group=group,
        async_op=True,
    )
    return arriving, work


def _send_parts(job: Job) -> _Message:
    route = job.route
    held = job.give()
    parts = [_part(held[part.slot], part.held) for part in route.give]
    device, dtype = route.chunk.slots[0].param.device, route.chunk.dtype
    out = torch.empty(sum(route.sent), dtype=dtype, device=device)
    if parts:
        torch.cat([part.reshape(-1).to(dtype) for part in parts], out=out)
    arriving, work = all_to_all(out, route.sent, route.received, route.group)
    return _Message(job, out, arriving, work)


def _send_results(message: _Message) -> _Message:
    job, arrived = message.job, message.wait()
    route = job.route
    shape = (route.count, *route.chunk.shape[1:])
    batch = _assembled(job, arrived, shape)
    pieces: list[Tensor] = []
    if route.count:
        update, beside = job.compute(batch)
        for runs in route.scatter:
            pieces += [run.of(update, job.groups).reshape(-1) for run in runs]
            if beside is not None:
                pieces.append(beside.reshape(-1))
    out = torch.cat(pieces) if pieces else arrived.new_empty(0, dtype=job.dtype)
    extra = job.beside * route.count
    sent = [sum(run.numbers for run in runs) + extra for runs in route.scatter]
    received = [
        number + job.beside * (own.stop - own.start) for number, own in zip(route.taken, route.ranges, strict=True)
    ]
    arriving, work = all_to_all(out, sent, received, route.group)
    return _Message(job, out, arriving, work)


def _assembled(job: Job, arrived: Tensor, shape: tuple[int, int, int]) -> Tensor:
    runs = job.route.assemble
    # What came from one process, all of each matrix and in order, is the batch already.
    if len(runs) == 1 and runs[0].of(arrived.view(shape), job.groups).is_contiguous():
        return arrived.view(shape)
    batch = arrived.new_empty(shape)
    pieces = arrived.split([run.numbers for run in runs]) if runs else ()
    for run, piece in zip(runs, pieces, strict=True):
        run.of(batch, job.groups).copy_(piece.view(-1, *run.shape))
    return batch


def _take(message: _Message) -> None:
    job, arrived = message.job, message.wait().to(message.job.route.chunk.dtype)
    route = job.route
    results: list[Tensor] = []
    beside: list[Tensor] = []
    parts = iter(route.take)
    by_owner = arrived.split(
        [number + job.beside * (own.stop - own.start) for number, own in zip(route.taken, route.ranges, strict=True)]
    )
    for number, own, received in zip(route.taken, route.ranges, by_owner, strict=True):
        first = 0
        while first < number:
            part = next(parts)
            size = torch.Size(part.shape).numel()
            results.append(received[first : first + size].view(part.shape))
            first += size
        if job.beside:
            beside.append(received[number:].view(own.stop - own.start, job.beside))
    job.take(results, torch.cat(beside) if beside else None)


def _part(held: Tensor, where: tuple[slice, ...] | None) -> Tensor:
    return held if where is None else held[where]
