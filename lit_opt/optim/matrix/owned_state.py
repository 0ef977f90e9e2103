"""State that one process of a mesh has for all, on its way into checkpoints and back.

In a checkpoint each tensor of state is a DTensor of even shards, as of any optimizer: torch can gather it, and load it in
another number of processes. Both ways are collectives, one for each parameter. The shards are copies: while they live, a
process has its part of the state twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lit_opt.averaging.shards import is_sharded, like, local, own_part
from lit_opt.optim.matrix.boxes import Box, boxes_by
from lit_opt.optim.matrix.exchange import all_to_all
from lit_opt.optim.matrix.owned import Ranges, count_of, owners_of, ranges_by_key
from lit_opt.optim.matrix.routes import group_of, order_of


def give_out(optimizer: Any, saved: dict[str, Any]) -> None:
    """Put DTensors into a state_dict in place of what this process owns; every process of the meshes calls it.

    Args:
        optimizer: A PreconditionedOptimizer.
        saved: Its state_dict, with the state as it is in this process.

    Example:
        >>> from lit_opt.optim import Soap
        >>> give_out(Soap([torch.ones(2, 2)]), {"state": {}, "param_groups": [{"params": [0]}]})
    """
    owners = owners_of(optimizer)
    for param, index in _pairs(optimizer, saved):
        state = saved["state"].get(index)
        if state and id(param) in owners:
            ranges = ranges_by_key(optimizer, param, owners[id(param)])
            whole = to_shards([state[key] for key in ranges], list(ranges.values()), param)
            saved["state"][index] = state | dict(zip(ranges, whole, strict=True))


def take_in(optimizer: Any, saved: dict[str, Any]) -> None:
    """After torch has loaded a state_dict: what the owners need of it, and all of it in the precision it was saved in.

    Torch casts the state to the weights' precision.

    Args:
        optimizer: A PreconditionedOptimizer.
        saved: A state_dict of DTensors or of whole tensors; every process of the meshes has it.

    Example:
        >>> from lit_opt.optim import Soap
        >>> take_in(Soap([torch.ones(2, 2)]), {"state": {}, "param_groups": [{"params": [0]}]})
    """
    owners = owners_of(optimizer)
    for param, index in _pairs(optimizer, saved):
        given = saved["state"].get(index)
        if not given:
            continue
        state = optimizer.state[param]
        ranges = ranges_by_key(optimizer, param, owners[id(param)]) if id(param) in owners else {}
        for key, value in given.items():
            if key in ranges or not isinstance(value, Tensor):
                continue
            if state[key].dtype != value.dtype:
                state[key] = value.detach().to(state[key].device, copy=True)
            if is_sharded(param) and not is_sharded(value) and value.ndim and value.shape == param.shape:
                state[key] = like(own_part(state[key], param).clone(), param)
        if ranges:
            own = to_owners([given[key] for key in ranges], list(ranges.values()), param)
            state.update(zip(ranges, own, strict=True))


def _pairs(optimizer: Any, saved: dict[str, Any]) -> list[tuple[Tensor, Any]]:
    """Each parameter and its name in a state_dict."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    return list(zip(params, [index for group in saved["param_groups"] for index in group["params"]], strict=True))


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
        [(count_of(own[owner]), *_sizes(box[1:])) for own, box in zip(ranges, boxes[rank], strict=True)]
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
    mine = [count_of(ranges[index][rank]) for index in cut]
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
