"""State that one process of a mesh has for all: who owns which matrix, and its way into checkpoints and back.

In a checkpoint each tensor of state is a DTensor of even shards, as of any optimizer: torch can gather it, and load it in
another number of processes. Both ways are collectives.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from lit_opt.averaging.shards import is_sharded, local
from lit_opt.optim.matrix.boxes import Box, boxes_by
from lit_opt.optim.matrix.exchange import all_to_all
from lit_opt.optim.matrix.layout import blocks, shape_of
from lit_opt.optim.matrix.routes import group_of, order_of

# Which matrices of a block each process owns, in the order of the mesh's group.
Ranges = Sequence[slice]


def divide(found: Iterable[tuple[int, tuple[int, int], int]], processes: int) -> list[Ranges]:
    """Who owns the matrices of blocks, so that what later blocks are changes nothing for those before.

    Of each shape all processes have the same number of matrices, or one more, since those of a shape are computed
    together; the odd ones go to whom holds the least so far.

    Args:
        found: (matrices, their shape, what is kept of one) of each block.
        processes: How many divide them.

    Returns:
        For each block one range for each process, in order and without gaps.

    Example:
        >>> divide([(1, (8, 8), 256), (1, (2, 2), 16), (3, (2, 2), 16)], 2)
        [[slice(0, 1, None), slice(1, 1, None)], [slice(0, 0, None), slice(0, 1, None)], [slice(0, 2, None), slice(2, 3, None)]]
    """
    held = [0] * processes
    alike: dict[tuple[int, int], list[int]] = defaultdict(lambda: [0] * processes)
    ranges: list[Ranges] = []
    for count, shape, numbers in found:
        each, left = divmod(count, processes)
        have = alike[shape]
        lucky = set(sorted(range(processes), key=lambda rank: (have[rank], held[rank], rank))[:left])
        own = [each + (rank in lucky) for rank in range(processes)]
        alike[shape] = [before + more for before, more in zip(have, own, strict=True)]
        held = [before + more * numbers for before, more in zip(held, own, strict=True)]
        ranges.append([slice(*ends) for ends in pairwise(accumulate(own, initial=0))])
    return ranges


def owners_of(optimizer: Any, processes: int | None = None) -> dict[int, list[Ranges]]:
    """Who owns the matrices of each parameter, block by block: the same in every step, whatever has a gradient.

    Args:
        optimizer: A PreconditionedOptimizer.
        processes: As if FSDP2 sharded the parameters among so many; None for the DTensors that there are.

    Returns:
        id of a parameter -> its blocks.

    Example:
        >>> from lit_opt.optim import Soap
        >>> weight = torch.nn.Parameter(torch.ones(4, 4))
        >>> owners_of(Soap([weight], num_heads=2), 2)[id(weight)]
        [[slice(0, 1, None), slice(1, 2, None)]]
    """
    meshes: dict[Any, list[tuple[int, Mapping[str, Any], list[tuple[int, int, int]]]]] = {}
    for group in optimizer.param_groups:
        for param in group["params"] if optimizer._takes(group) else ():
            if param.ndim > 1 and param.numel() and (processes or is_sharded(param)):
                # Shapes alone: looking at the parts of sharded tensors would make processes talk.
                shapes = [shape_of(view) for view in blocks(torch.empty(param.shape, device="meta"), group)]
                meshes.setdefault(None if processes else param.device_mesh, []).append((id(param), group, shapes))
    owners: dict[int, list[Ranges]] = {}
    for mesh, params in meshes.items():
        kept = (
            (count, (rows, cols), sum(map(math.prod, optimizer.kept(group, rows, cols).values())))
            for _, group, shapes in params
            for count, rows, cols in shapes
        )
        ranges = iter(divide(kept, processes or mesh.size()))
        owners |= {key: [next(ranges) for _ in shapes] for key, _, shapes in params}
    return owners


def largest_share(optimizer: Any, processes: int) -> dict[int, dict[str, float]]:
    """Which part of each tensor of state the process has that has most of all state, under FSDP2.

    Args:
        optimizer: A PreconditionedOptimizer.
        processes: Among which FSDP2 shards the parameters.

    Returns:
        id of a parameter -> key -> part of the tensor.

    Example:
        >>> from lit_opt.optim import Soap
        >>> weights = [torch.nn.Parameter(torch.ones(4, 4)) for _ in range(3)]
        >>> [found["exp_avg"] for found in largest_share(Soap(weights), 2).values()]
        [1.0, 0.0, 1.0]
    """
    owners = owners_of(optimizer, processes)
    held = [0] * processes
    ranges: dict[int, dict[str, Ranges]] = {}
    for group in optimizer.param_groups:
        for param in (param for param in group["params"] if id(param) in owners):
            ranges[id(param)] = ranges_by_key(optimizer, param, owners[id(param)])
            for block, view in enumerate(blocks(torch.empty(param.shape, device="meta"), group)):
                each = sum(map(math.prod, optimizer.kept(group, *shape_of(view)[1:]).values()))
                held = [n + each * _count(own) for n, own in zip(held, owners[id(param)][block], strict=True)]
    most = held.index(max(held))
    return {
        param: {key: _count(own[most]) / own[-1].stop for key, own in by_key.items()}
        for param, by_key in ranges.items()
    }


def key_of(name: str, block: int) -> str:
    """The key of a state; blocks of a parameter after its first have a number.

    Example:
        >>> key_of("exp_avg", 0), key_of("exp_avg", 2)
        ('exp_avg', 'exp_avg_2')
    """
    return f"{name}_{block}" if block else name


def ranges_by_key(optimizer: Any, param: Tensor, owners: Sequence[Ranges]) -> dict[str, Ranges]:
    """Who owns what of each tensor of a parameter's state that is divided.

    Args:
        optimizer: A PreconditionedOptimizer.
        param: One of its parameters.
        owners: Its value in `owners_of`.

    Example:
        >>> from lit_opt.optim import Soap
        >>> weight = torch.nn.Parameter(torch.ones(4, 4))
        >>> soap = Soap([weight], max_preconditioner_dim=3)
        >>> ranges_by_key(soap, weight, owners_of(soap, 1)[id(weight)])
        {'exp_avg': [slice(0, 1, None)], 'exp_avg_sq': [slice(0, 1, None)]}
    """
    [group] = [group for group in optimizer.param_groups if any(param is other for other in group["params"])]
    views = blocks(torch.empty(param.shape, device="meta"), group)
    return {
        key_of(key, block): own
        for block, (own, view) in enumerate(zip(owners, views, strict=True))
        for key in optimizer.kept(group, *shape_of(view)[1:])
    }


def to_shards(held: Sequence[Tensor], ranges: Sequence[Ranges], param: Any) -> list[Tensor]:
    """Each tensor of a parameter's state as a DTensor on its mesh, from what its owners hold.

    Args:
        held: (own matrices, rows, cols) each, of one dtype.
        ranges: Of the block that each belongs to.
        param: A DTensor.

    Returns:
        (matrices, rows, cols) each, rows cut along the first dimension of the mesh, columns along the second.

    Example:
        >>> import torch.distributed as dist
        >>> from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> weight = distribute_tensor(torch.ones(3, 2), init_device_mesh("cpu", (1,)), [Shard(0)])
        >>> [state] = to_shards([torch.ones(1, 3, 2)], [[slice(0, 1)]], weight)
        >>> state.shape, state.placements
        (torch.Size([1, 3, 2]), (Shard(dim=1),))
        >>> [to_owners([state], [[slice(0, 1)]], weight)[0].shape]
        [torch.Size([1, 3, 2])]
        >>> dist.destroy_process_group()
    """
    from torch.distributed.tensor import DTensor

    mesh = param.device_mesh
    shapes = [(own[-1].stop, *tensor.shape[1:]) for own, tensor in zip(ranges, held, strict=True)]
    boxes, rank = _boxes(shapes, mesh)
    pieces = [tensor[_at(box[1:])] for place in boxes for tensor, box in zip(held, place, strict=True)]
    sizes = [
        [(_count(own[owner]), *_sizes(box[1:])) for own, box in zip(ranges, boxes[rank], strict=True)]
        for owner in range(len(boxes))
    ]
    arrived = _exchanged(pieces, sizes, mesh)
    return [
        DTensor.from_local(
            torch.cat([theirs[index] for theirs in arrived]),
            mesh,
            _placements(mesh),
            run_check=False,
            shape=torch.Size(shape),
            stride=torch.empty(shape, device="meta").stride(),
        )
        for index, shape in enumerate(shapes)
    ]


def to_owners(values: Sequence[Any], ranges: Sequence[Ranges], param: Any) -> list[Tensor]:
    """What this process owns of a parameter's state: the way back from `to_shards`.

    Args:
        values: (matrices, rows, cols) each: DTensors, or whole tensors that are the same in all processes.
        ranges: Of the block that each belongs to.
        param: A DTensor.

    Returns:
        (own matrices, rows, cols) each, on the parameter's device, in its precision and in float32 at least.

    Example:
        >>> import torch.distributed as dist
        >>> from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> weight = distribute_tensor(torch.ones(3, 2), init_device_mesh("cpu", (1,)), [Shard(0)])
        >>> to_owners([torch.ones(2, 3, 2)], [[slice(0, 2)]], weight)[0].shape
        torch.Size([2, 3, 2])
        >>> dist.destroy_process_group()
    """
    mesh, device = param.device_mesh, local(param).device
    dtype = torch.promote_types(param.dtype, torch.float32)
    group = group_of(mesh)
    rank = torch.distributed.get_rank(group)
    found: list[Tensor] = [torch.empty(0)] * len(values)
    cut: list[int] = []
    for index, (value, own) in enumerate(zip(values, ranges, strict=True)):
        if is_sharded(value):
            cut.append(index)
        else:
            found[index] = value.detach()[own[rank]].to(device, dtype, copy=True)
    if not cut:
        return found
    whole = [tuple(values[index].shape) for index in cut]
    boxes, _ = _boxes(whole, mesh)
    parts = [values[index].redistribute(mesh, _placements(mesh)).to_local().to(device, dtype) for index in cut]
    everyone = range(len(boxes))
    pieces = [part[ranges[index][owner]] for owner in everyone for index, part in zip(cut, parts, strict=True)]
    mine = [_count(ranges[index][rank]) for index in cut]
    sizes = [[(count, *_sizes(box[1:])) for count, box in zip(mine, boxes[other], strict=True)] for other in everyone]
    arrived = _exchanged(pieces, sizes, mesh)
    for place, (index, count) in enumerate(zip(cut, mine, strict=True)):
        found[index] = parts[place].new_empty(count, *whole[place][1:])
        for other in everyone:
            found[index][_at(boxes[other][place][1:])] = arrived[other][place]
    return found


def _exchanged(pieces: Sequence[Tensor], sizes: Sequence[Sequence[tuple[int, ...]]], mesh: Any) -> list[list[Tensor]]:
    """Pieces for each process of a mesh, one after another, against those of these sizes from each."""
    group = group_of(mesh)
    each = len(pieces) // len(sizes)
    sent = [sum(piece.numel() for piece in pieces[first : first + each]) for first in range(0, len(pieces), each)]
    received = [sum(map(math.prod, shapes)) for shapes in sizes]
    arriving, work = all_to_all(torch.cat([piece.reshape(-1) for piece in pieces]), sent, received, group)
    work.wait()
    flat = iter(arriving.split([math.prod(shape) for shapes in sizes for shape in shapes]))
    return [[next(flat).view(shape) for shape in shapes] for shapes in sizes]


def _boxes(shapes: Sequence[tuple[int, ...]], mesh: Any) -> tuple[list[list[Box]], int]:
    """For each process of the mesh's group what it has of state in a checkpoint, and which of them this one is."""
    group = group_of(mesh)
    cuts = [(dim, dim + 1) for dim in range(min(mesh.ndim, 2))]
    by_tensor = [boxes_by(shape, mesh.shape, cuts) for shape in shapes]
    return [[boxes[place] for boxes in by_tensor] for place in order_of(group, mesh)], torch.distributed.get_rank(group)


def _placements(mesh: Any) -> list[Any]:
    from torch.distributed.tensor import Replicate, Shard

    return [Shard(dim + 1) if dim < 2 else Replicate() for dim in range(mesh.ndim)]


def _at(box: Box) -> tuple[slice, ...]:
    return (slice(None), *(slice(*ends) for ends in box))


def _sizes(box: Box) -> tuple[int, ...]:
    return tuple(stop - start for start, stop in box)


def _count(own: slice) -> int:
    return int(own.stop - own.start)
