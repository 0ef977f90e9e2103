"""Whole matrices on owners: parts go there, are computed on, and results go back, the next while the last computes.

It knows nothing of what is computed: a job says what a process gives, what an owner makes of whole matrices, and what
a process does with the results.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from lit_opt.optim.matrix.routes import Route

# Chunks that fill less than this in each process travel together: a message has a latency.
_ROUND_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Job:
    """One chunk's work.

    Args:
        route: Who owns what, and which numbers go where.
        groups: The optimizer's groups, for the layouts.
        give: Returns what this process holds of the matrices, one tensor for each slot of the chunk; None for slots of
            which it gives nothing.
        compute: (whole matrices (count, rows, cols)) -> results of the same shape in `dtype`, and what goes to every
            process beside them, (count, `beside`) in `dtype`, or None. Called where this process owns any.
        take: (results, one for each part of `route.take` in order; what was beside them, (all of the chunk, `beside`),
            or None) -> None.
        dtype: Of the results, the same in all processes.
        beside: Numbers that go to every process for each matrix.

    Example:
        >>> import torch, torch.distributed as dist
        >>> from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh
        >>> from lit_opt.optim.matrix.plan import make_plan
        >>> from lit_opt.optim.matrix.routes import make_routes
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> weight = distribute_tensor(torch.ones(1, 2), init_device_mesh("cpu", (1,)), [Shard(0)])
        >>> groups = [{"params": [weight], "ns_steps": 5}]
        >>> [route] = make_routes(make_plan(groups, [[weight]], ["ns_steps"]), groups)
        >>> job = Job(
        ...     route,
        ...     groups,
        ...     give=lambda: [weight.to_local()],
        ...     compute=lambda matrices: (-matrices, None),
        ...     take=lambda results, beside: print(results[0]),
        ...     dtype=torch.float32,
        ... )
        >>> exchange([job])
        tensor([[-1., -1.]])
        >>> dist.destroy_process_group()
    """

    route: Route
    groups: Sequence[Mapping[str, Any]]
    give: Callable[[], Sequence[Tensor | None]]
    compute: Callable[[Tensor], tuple[Tensor, Tensor | None]]
    take: Callable[[list[Tensor], Tensor | None], None]
    dtype: torch.dtype
    beside: int = 0


@dataclass
class _Message:
    """A collective under way for some jobs. Both buffers have to live until it has ended, and no longer.

    `padding` numbers follow what arrived from each process.
    """

    jobs: list[Job]
    buffers: list[Tensor]
    work: Any
    padding: list[int]

    def wait(self) -> Tensor:
        if self.work is not None:
            self.work.wait()
        arrived = self.buffers[1]
        # The work would keep them as well.
        self.buffers, self.work = [], None
        return arrived


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
    for some in [*rounds([_size(job) for job in jobs]), None]:
        parts = None if some is None else _send_parts([jobs[index] for index in some])
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


def all_gather(out: Tensor, group: Any) -> tuple[Tensor, Any]:
    """Start to give numbers to every process.

    Args:
        out: (numbers,), as many in each process.
        group: Process group.

    Returns:
        As `all_to_all`: those of the first process first.

    Example:
        >>> import torch, torch.distributed as dist
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> arriving, work = all_gather(torch.ones(2), dist.group.WORLD)
        >>> arriving if work.wait() else None
        tensor([1., 1.])
        >>> dist.destroy_process_group()
    """
    arriving = out.new_empty(out.numel() * torch.distributed.get_world_size(group))
    work = torch.distributed.all_gather_into_tensor(
        arriving.view(torch.uint8), out.view(torch.uint8), group=group, async_op=True
    )
    return arriving, work


def rounds(sizes: Sequence[tuple[Any, int]]) -> list[list[int]]:
    """Which chunks travel together: neighbours of one kind, as many as fill a message.

    Args:
        sizes: For each chunk what it has in common with those of its kind, and its bytes in one process.

    Returns:
        Indices, in order.

    Example:
        >>> rounds([("a", 3_000_000), ("a", 1_000_000), ("a", 1_000_000), ("b", 1)])
        [[0, 1], [2], [3]]
    """
    found: list[list[int]] = []
    for _, alike in groupby(range(len(sizes)), key=lambda index: sizes[index][0]):
        filled = _ROUND_BYTES + 1
        for index in alike:
            if filled + sizes[index][1] > _ROUND_BYTES:
                found.append([])
                filled = 0
            found[-1].append(index)
            filled += sizes[index][1]
    return found


def _size(job: Job) -> tuple[Any, int]:
    chunk, group = job.route.chunk, job.route.group
    return (id(group), chunk.mesh, chunk.dtype, job.dtype), chunk.bytes // len(job.route.ranges)


def _send_parts(jobs: list[Job]) -> _Message:
    """Each owner gets this process's parts of its matrices, job by job."""
    routes, dtype = [job.route for job in jobs], jobs[0].route.chunk.dtype
    held = [job.give() for job in jobs]
    parts = [
        _part(tensors[part.slot], part.held)  # type: ignore[arg-type]
        for owner in _everyone(jobs)
        for route, tensors in zip(routes, held, strict=True)
        for part in route.give[owner]
    ]
    sent = [sum(part.numbers for route in routes for part in route.give[owner]) for owner in _everyone(jobs)]
    received = [sum(run.numbers for route in routes for run in route.assemble[other]) for other in _everyone(jobs)]
    out = _packed(jobs, parts, dtype, sum(sent))
    # Each has everything already.
    moving = (out, None) if routes[0].everywhere else all_to_all(out, sent, received, routes[0].group)
    return _Message(jobs, [out, moving[0]], moving[1], [0] * len(sent))


def _send_results(message: _Message) -> _Message:
    """Compute, and give each process what belongs to it, job by job."""
    jobs = message.jobs
    routes = [job.route for job in jobs]
    batches = _assembled(jobs, message.wait())[::-1]
    # Popped, so that none outlives its results.
    results = [job.compute(batch) if (batch := batches.pop()).size(0) else None for job in jobs]
    del batch
    everywhere, rank, group = routes[0].everywhere, routes[0].rank, routes[0].group
    receivers = [rank] if everywhere else _everyone(jobs)
    pieces: list[Tensor] = []
    for other in receivers:
        for job, result in zip(jobs, results, strict=True):
            if result is not None:
                pieces += [run.of(result[0], job.groups) for run in job.route.scatter[other]]
                pieces += [] if result[1] is None else [result[1]]
    beside = sum(job.beside * job.route.count for job in jobs)
    sent = [beside + sum(run.numbers for route in routes for run in route.scatter[other]) for other in receivers]
    received = [
        sum(job.beside * job.route.counts[owner] + sum(part.numbers for part in job.route.take[owner]) for job in jobs)
        for owner in _everyone(jobs)
    ]
    if everywhere:
        most = max(received)
        out = _packed(jobs, pieces, jobs[0].dtype, most)
        arriving, work = all_gather(out, group)
        return _Message(jobs, [out, arriving], work, [most - number for number in received])
    out = _packed(jobs, pieces, jobs[0].dtype, sum(sent))
    arriving, work = all_to_all(out, sent, received, group)
    return _Message(jobs, [out, arriving], work, [0] * len(received))


def _assembled(jobs: list[Job], arrived: Tensor) -> list[Tensor]:
    """Each job's whole matrices."""
    batches = [arrived.new_empty(job.route.count, *job.route.chunk.shape[1:]) for job in jobs]
    runs = [
        (run, batch, job.groups)
        for other in _everyone(jobs)
        for job, batch in zip(jobs, batches, strict=True)
        for run in job.route.assemble[other]
    ]
    for (run, batch, groups), piece in zip(runs, arrived.split([run.numbers for run, _, _ in runs]), strict=True):
        run.of(batch, groups).copy_(piece.view(-1, *run.shape))
    return batches


def _take(message: _Message) -> None:
    """Hand out what came back."""
    jobs, arrived = message.jobs, message.wait()
    results: list[list[Tensor]] = [[] for _ in jobs]
    beside: list[list[Tensor]] = [[] for _ in jobs]
    # Shape, and where it goes.
    expected: list[tuple[tuple[int, ...], list[Tensor]]] = []
    for owner, padding in enumerate(message.padding):
        for index, job in enumerate(jobs):
            expected += [(part.shape, results[index]) for part in job.route.take[owner]]
            if job.beside:
                expected.append(((job.route.counts[owner], job.beside), beside[index]))
        expected.append(((padding,), []))
    pieces = arrived.split([math.prod(shape) for shape, _ in expected])
    for (shape, target), piece in zip(expected, pieces, strict=True):
        target.append(piece.view(shape))
    for job, whole, numbers in zip(jobs, results, beside, strict=True):
        job.take(whole, torch.cat(numbers) if numbers else None)


def _packed(jobs: list[Job], pieces: list[Tensor], dtype: torch.dtype, size: int) -> Tensor:
    """The pieces one after another; what is beyond them is padding."""
    out = torch.empty(size, dtype=dtype, device=jobs[0].route.chunk.slots[0].param.device)
    first = 0
    for piece in pieces:
        out[first : first + piece.numel()].view(piece.shape).copy_(piece)
        first += piece.numel()
    out[first:].zero_()
    return out


def _everyone(jobs: list[Job]) -> range:
    return range(len(jobs[0].route.ranges))


def _part(held: Tensor, where: tuple[slice, ...] | None) -> Tensor:
    return held if where is None else held[where]
