"""Which process owns which matrix, and which numbers go from whom to whom: planned once, without a message."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_opt.averaging.shards import is_sharded
from lit_opt.optim.matrix.boxes import (
    Box,
    boxes_of,
    common,
    cuts_of,
    in_parameters_dimensions,
    region_of,
    sources_by,
    within,
)
from lit_opt.optim.matrix.plan import Chunk, Slot
from lit_opt.optim.matrix.sharing import ranges_of

Groups = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Part:
    """What this process holds of one matrix.

    Args:
        slot: Index of the slot in the chunk.
        held: Where it is in what the process holds of the parameter; None for all of it.
        shape: In the parameter's dimensions.

    Example:
        >>> Part(slot=0, held=None, shape=(2, 3)).numbers
        6
    """

    slot: int
    held: tuple[slice, ...] | None
    shape: tuple[int, ...]

    @property
    def numbers(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Run:
    """What one process holds of consecutive matrices of an owner, the same of each.

    Args:
        matrices: Their range among the owner's.
        columns: Their columns; None for all.
        slot: One of their slots, for its layout.
        inside: Where the parts are in the matrices, in the parameter's dimensions.
        shape: Of one part, in the parameter's dimensions.

    Example:
        >>> from lit_opt.optim import Muon
        >>> from lit_opt.optim.matrix.cost import planned
        >>> [chunk] = planned(Muon([torch.ones(4, 3)]))
        >>> run = Run(slice(0, 2), None, chunk.slots[0], (slice(0, 1), slice(0, 3)), (1, 3))
        >>> run.of(torch.ones(2, 4, 3), [{}]).shape
        torch.Size([2, 1, 3])
    """

    matrices: slice
    columns: slice | None
    slot: Slot
    inside: tuple[slice, ...]
    shape: tuple[int, ...]

    @property
    def numbers(self) -> int:
        """How many numbers it has."""
        return (self.matrices.stop - self.matrices.start) * math.prod(self.shape)

    def of(self, batch: Tensor, groups: Groups) -> Tensor:
        """The parts as a view of the owner's batch: (count, *shape)."""
        part = batch[self.matrices]
        part = part if self.columns is None else part[..., self.columns]
        view = in_parameters_dimensions(part, groups[self.slot.group], self.slot.param.shape)
        return view[(slice(None), *self.inside)]


@dataclass(frozen=True)
class Route:
    """One chunk's way to its owners and back. Everything is in the order of the group's processes.

    Args:
        chunk: The matrices.
        group: Process group of the parameters' mesh, or of those that share the work.
        ranges: Which matrices each process owns.
        rank: This process's place in the group.
        give: What it sends to each owner.
        assemble: What it receives from each process.
        scatter: What of its results goes to each process.
        take: What comes back from each owner.

    Example:
        >>> from lit_opt.optim import Muon
        >>> from lit_opt.optim.matrix.cost import planned
        >>> [chunk] = planned(Muon([torch.ones(4, 3)]))
        >>> Route(chunk, None, (slice(0, 1), slice(1, 1)), 0, (), (), (), ()).counts
        [1, 0]
    """

    chunk: Chunk
    group: Any
    ranges: tuple[slice, ...]
    rank: int
    give: tuple[tuple[Part, ...], ...]
    assemble: tuple[tuple[Run, ...], ...]
    scatter: tuple[tuple[Run, ...], ...]
    take: tuple[tuple[Part, ...], ...]

    @property
    def everywhere(self) -> bool:
        """Whether every process holds all of every matrix."""
        return self.chunk.mesh is None

    @property
    def counts(self) -> list[int]:
        """How many matrices each process owns."""
        return [own.stop - own.start for own in self.ranges]

    @property
    def count(self) -> int:
        """How many this process owns."""
        return self.counts[self.rank]


def make_routes(chunks: Sequence[Chunk], groups: Groups, sharing: Any = None) -> list[Route]:
    """Routes of chunks; every process of their meshes, or of the group, has to call it with the same ones.

    Args:
        chunks: Of DTensors; or of plain tensors, the same in all processes of `sharing`.
        groups: The optimizer's groups.
        sharing: Process group that shares the work on plain tensors; None for all processes.

    Example:
        >>> make_routes([], [])
        []
    """
    by_mesh: dict[Any, list[Chunk]] = {}
    for chunk in chunks:
        by_mesh.setdefault(chunk.mesh, []).append(chunk)
    found: dict[int, Route] = {}
    known: dict[Any, tuple[list[Box], list[set[int]]]] = {}
    for mesh, ours in by_mesh.items():
        group = (sharing or torch.distributed.group.WORLD) if mesh is None else group_of(mesh)
        for chunk, ranges in zip(ours, ranges_of(ours, torch.distributed.get_world_size(group)), strict=True):
            found[id(chunk)] = _route(chunk, groups, group, ranges, known)
    return [found[id(chunk)] for chunk in chunks]


def items_of(chunk: Chunk, groups: Groups, own: slice) -> list[tuple[int, int, Box]]:
    """What an owner's matrices are made of: place in the chunk, index of the slot, region of the parameter.

    Args:
        chunk: The matrices.
        groups: The optimizer's groups.
        own: The owner's range.

    Example:
        >>> from lit_opt.optim import Muon
        >>> from lit_opt.optim.matrix.cost import planned
        >>> optimizer = Muon([torch.ones(6, 4)], num_heads=2)
        >>> [chunk] = planned(optimizer)
        >>> items_of(chunk, optimizer.param_groups, slice(1, 2))
        [(1, 0, ((3, 6), (0, 4)))]
    """
    found = []
    for index, slot in enumerate(chunk.slots):
        skipped = slot.place.start - (0 if slot.part is None else slot.part.start)
        for matrix in range(max(slot.place.start, own.start), min(slot.place.stop, own.stop)):
            region = region_of(slot.param.shape, groups[slot.group], slot.block, matrix - skipped)
            found.append((0 if slot.columns is None else slot.columns.start, matrix, index, region))
    # By columns first, so that the runs of a stack are long.
    return [(matrix, index, region) for _, matrix, index, region in sorted(found, key=lambda item: item[:2])]


def group_of(mesh: Any) -> Any:
    """The process group of all processes of a mesh, made where there is none; all of them have to call it.

    Example:
        >>> import torch, torch.distributed as dist
        >>> from torch.distributed.tensor import init_device_mesh
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> group_of(init_device_mesh("cpu", (1,))).size()
        1
        >>> dist.destroy_process_group()
    """
    if mesh.ndim == 1:
        return mesh.get_group()
    dist = torch.distributed
    world = dist.group.WORLD
    members = tuple(sorted(mesh.mesh.flatten().tolist()))
    if members == tuple(range(dist.get_world_size())):
        return world
    made = _GROUPS.setdefault(id(world), (world, {}))[1]
    if members not in made:
        made[members] = dist.new_group(list(members), use_local_synchronization=True)
    return made[members]


def order_of(group: Any, mesh: Any = None) -> list[int]:
    """A group's processes as places in a mesh of them, the mesh's last dimension fastest; without one their own order.

    Example:
        >>> import torch.distributed as dist
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> order_of(dist.group.WORLD)
        [0]
        >>> dist.destroy_process_group()
    """
    members = torch.distributed.get_process_group_ranks(group)
    places = members if mesh is None else mesh.mesh.flatten().tolist()
    return [places.index(member) for member in members]


# Default group -> itself, so that no other can get its id, and the groups that were made beside it.
_GROUPS: dict[int, tuple[Any, dict[tuple[int, ...], Any]]] = {}


def _route(chunk: Chunk, groups: Groups, group: Any, ranges: Sequence[slice], known: dict[Any, Any]) -> Route:
    order = order_of(group, chunk.mesh)
    processes, rank = len(order), torch.distributed.get_rank(group)
    layouts = [_holders(slot.param, order, known) for slot in chunk.slots]
    items = [items_of(chunk, groups, own) for own in ranges]

    def parts(process: int, owner: int, sending: bool) -> Iterator[tuple[int, int, Box, Box, Box]]:
        """Place of the columns, matrix, slot's index, region, what the process holds, and what of the region."""
        for matrix, index, region in items[owner]:
            boxes, sources = layouts[index]
            both = common(region, boxes[process])
            if both is not None and (not sending or process in sources[owner]):
                yield matrix, index, region, boxes[process], both

    def held(owner: int, sending: bool) -> tuple[Part, ...]:
        return tuple(
            Part(index, None if both == box else within(both, box), _shape(both))
            for _, index, _, box, both in parts(rank, owner, sending)
        )

    def runs(process: int, sending: bool) -> tuple[Run, ...]:
        first = ranges[rank].start
        found: list[Run] = []
        for matrix, index, region, _, both in parts(process, rank, sending):
            slot, place = chunk.slots[index], slice(matrix - first, matrix - first + 1)
            run = Run(place, slot.columns, slot, within(both, region), _shape(both))
            found[-1:] = _joined(found[-1], run, groups) if found else [run]
        return tuple(found)

    everyone = range(processes)
    return Route(
        chunk=chunk,
        group=group,
        ranges=tuple(ranges),
        rank=rank,
        give=tuple(held(owner, True) for owner in everyone),
        assemble=tuple(runs(process, True) for process in everyone),
        scatter=tuple(runs(process, False) for process in everyone),
        take=tuple(held(owner, False) for owner in everyone),
    )


def _holders(param: Any, order: list[int], known: dict[Any, Any]) -> tuple[list[Box], list[set[int]]]:
    """For each process of the group what it holds of a parameter, and who sends to it as an owner.

    Plain tensors are whole in all of them. What has unknown placements is gathered before
    (lit_opt.optim.matrix.sharded): all hold all, and none has to send.
    """
    key = (tuple(param.shape), getattr(param, "placements", None), getattr(param, "device_mesh", None))
    if key not in known:
        boxes = boxes_of(param) if is_sharded(param) else None
        if boxes is None:
            whole = tuple((0, size) for size in param.shape)
            known[key] = [whole] * len(order), [{i} for i in range(len(order))]
        else:
            cuts = cuts_of(param.device_mesh.shape, param.placements) or ()
            sources = [sources_by(param.device_mesh.shape, cuts, place) for place in order]
            known[key] = [boxes[place] for place in order], [{order.index(i) for i in s} for s in sources]
    return known[key]


def _joined(last: Run, run: Run, groups: Groups) -> list[Run]:
    """One run in place of two that lie beside each other and are cut alike."""
    layouts = [groups[r.slot.group].get("layout") for r in (last, run)]
    alike = (
        last.matrices.stop == run.matrices.start
        and (last.columns, last.inside, last.shape) == (run.columns, run.inside, run.shape)
        and last.slot.param.shape == run.slot.param.shape
        and layouts[0] == layouts[1]
    )
    if not alike:
        return [last, run]
    both = slice(last.matrices.start, run.matrices.stop)
    return [Run(both, last.columns, last.slot, last.inside, last.shape)]


def _shape(box: Box) -> tuple[int, ...]:
    return tuple(stop - start for start, stop in box)
