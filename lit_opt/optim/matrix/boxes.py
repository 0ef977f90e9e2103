"""What each process holds of a DTensor, as ranges of its dimensions: known to all without a message.

Sources: torch.distributed.tensor (Shard cuts as torch.chunk does), torch.distributed.fsdp.fully_shard (which cuts what
tensor parallelism left, so that the later mesh dimension comes first where both cut the same one).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from lit_opt.optim.matrix.layout import layout_of

# (start, stop) of each dimension.
Box = tuple[tuple[int, int], ...]


def is_partial(param: Any) -> bool:
    """Whether a DTensor's values are sums that nobody has added up yet.

    Example:
        >>> import torch, torch.distributed as dist
        >>> from torch.distributed.tensor import DTensor, Partial, init_device_mesh
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> is_partial(DTensor.from_local(torch.ones(2, 2), init_device_mesh("cpu", (1,)), [Partial()]))
        True
        >>> dist.destroy_process_group()
    """
    return any(placement.is_partial() for placement in param.placements)


def cuts_of(mesh_shape: Sequence[int], placements: Sequence[Any]) -> list[tuple[int, int]] | None:
    """(dimension of the mesh, dimension of the tensor) in the order in which a tensor was cut.

    Known are placements that cut each dimension of the tensor once (FSDP2, HSDP, tensor parallelism, both on different
    dimensions), and FSDP2 on what tensor parallelism has cut along the same dimension. All else gives None.

    Args:
        mesh_shape: Processes along each dimension of the mesh.
        placements: One for each of them.

    Example:
        >>> from torch.distributed.tensor import Replicate, Shard
        >>> cuts_of((2, 2), (Replicate(), Shard(0)))
        [(1, 0)]
        >>> cuts_of((2, 2), (Shard(0), Shard(1)))
        [(0, 0), (1, 1)]
        >>> cuts_of((2, 2), (Shard(0), Shard(0)))
    """
    cuts: list[tuple[int, int]] = []
    later: dict[int, int] = {}
    for index in reversed(range(len(placements))):
        placement = placements[index]
        if placement.is_replicate():
            continue
        dim = getattr(placement, "dim", None)
        strides = getattr(placement, "split_factor", 1)
        # FSDP2 says how often later dimensions of the mesh have cut already.
        if dim is None or strides != later.get(dim, 1):
            return None
        later[dim] = later.get(dim, 1) * mesh_shape[index]
        cuts.append((index, dim))
    repeated = len({dim for _, dim in cuts}) < len(cuts)
    return cuts if repeated else cuts[::-1]


def boxes_of(param: Any) -> list[Box] | None:
    """What each process of a DTensor's mesh holds, the mesh's last dimension fastest; None for unknown placements.

    Raises:
        RuntimeError: This process holds something else: torch cuts in a way not known here.

    Example:
        >>> import torch, torch.distributed as dist
        >>> from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> boxes_of(distribute_tensor(torch.ones(4, 3), init_device_mesh("cpu", (1,)), [Shard(0)]))
        [((0, 4), (0, 3))]
        >>> dist.destroy_process_group()
    """
    mesh = param.device_mesh
    cuts = cuts_of(mesh.shape, param.placements)
    if cuts is None:
        return None
    boxes = boxes_by(param.shape, mesh.shape, cuts)
    own = boxes[_own_index(mesh)]
    if tuple(stop - start for start, stop in own) != tuple(param.to_local().shape):
        raise RuntimeError(
            f"A DTensor of shape {tuple(param.shape)} with {param.placements} has {tuple(param.to_local().shape)} on "
            f"this process, and lit_opt expected {own}. Please report this with your version of torch."
        )
    return boxes


def boxes_by(shape: Sequence[int], mesh_shape: Sequence[int], cuts: Sequence[tuple[int, int]]) -> list[Box]:
    """`boxes_of` from shapes alone.

    Args:
        shape: The whole tensor's.
        mesh_shape: Processes along each dimension of the mesh.
        cuts: From `cuts_of`.

    Example:
        >>> boxes_by((5, 2), (2,), [(0, 0)])
        [((0, 3), (0, 2)), ((3, 5), (0, 2))]
    """
    return [_box(shape, mesh_shape, place, cuts) for place in _coordinates(mesh_shape)]


def sources_by(mesh_shape: Sequence[int], cuts: Sequence[tuple[int, int]], owner: int) -> set[int]:
    """Which processes of a mesh send their parts to an owner: of replicas, the owner's own.

    Args:
        mesh_shape: Processes along each dimension of the mesh.
        cuts: From `cuts_of`.
        owner: A process, in the order of `boxes_by`.

    Example:
        >>> sources_by((2, 2), [(1, 0)], 3)
        {2, 3}
    """
    places = _coordinates(mesh_shape)
    same = set(range(len(mesh_shape))) - {mesh_dim for mesh_dim, _ in cuts}
    return {i for i, place in enumerate(places) if all(place[d] == places[owner][d] for d in same)}


def region_of(shape: Sequence[int], group: Mapping[str, Any], block: int, index: int) -> Box:
    """Where in a parameter one of its matrices is.

    Args:
        shape: The parameter's.
        group: Its layout, split_sizes, num_heads and block_size.
        block: Which of `layout.blocks`.
        index: Which matrix of the block.

    Example:
        >>> region_of((8, 5), {"num_heads": 2}, 0, 1)
        ((4, 8), (0, 5))
    """
    box = [(0, size) for size in shape]
    layout = layout_of(group, torch.empty(tuple(shape), device="meta"))
    experts, turned = layout.startswith("experts"), layout.endswith("transposed")
    rows, cols = (int(experts), int(experts) + 1)[:: -1 if turned else 1]
    if experts:
        box[0] = (index, index + 1)
    parts = [(0, shape[rows])]
    if group.get("num_heads"):
        size = shape[rows] // group["num_heads"]
        parts = [(index * size, (index + 1) * size)]
    elif group.get("split_sizes"):
        parts = list(pairwise(accumulate(group["split_sizes"], initial=0)))
    largest, channels = shape[rows], shape[cols]
    if group.get("block_size"):
        largest = group["block_size"]
        # A kernel is not cut.
        channels = max(1, largest // math.prod(() if experts else shape[2:]))
    box[rows], box[cols] = [
        ((first, min(first + largest, stop)), (inner, min(inner + channels, shape[cols])))
        for start, stop in parts
        for first in range(start, stop, largest)
        for inner in range(0, shape[cols], channels)
    ][block]
    return tuple(box)


def in_parameters_dimensions(batch: Tensor, group: Mapping[str, Any], shape: Sequence[int]) -> Tensor:
    """Matrices as a view with the parameter's dimensions behind the first.

    Args:
        batch: (count, rows, cols), of any strides.
        group: The layout.
        shape: The parameter's.

    Example:
        >>> import torch
        >>> in_parameters_dimensions(torch.ones(2, 4, 18), {}, (4, 2, 3, 3)).shape
        torch.Size([2, 4, 2, 3, 3])
        >>> in_parameters_dimensions(torch.ones(2, 4, 6), {"layout": "transposed"}, (6, 4)).shape
        torch.Size([2, 6, 4])
    """
    layout = layout_of(group, torch.empty(tuple(shape), device="meta"))
    if layout.startswith("experts"):
        return (batch.mT if layout == "experts_transposed" else batch).unsqueeze(1)
    turned = layout in ("transposed", "conv_transposed")
    # Blocks of a matrix have fewer inputs than the parameter.
    view = batch.unflatten(2, (-1, *shape[2:]))
    return view.transpose(1, 2) if turned else view


def common(left: Box, right: Box) -> Box | None:
    """The ranges that two boxes share; None for none.

    Example:
        >>> common(((0, 4), (0, 3)), ((2, 6), (0, 3)))
        ((2, 4), (0, 3))
    """
    both = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(left, right, strict=True))
    return both if all(start < stop for start, stop in both) else None


def within(part: Box, whole: Box) -> tuple[slice, ...]:
    """A box as slices of a tensor that holds `whole`.

    Example:
        >>> within(((2, 4), (0, 3)), ((2, 6), (0, 3)))
        (slice(0, 2, None), slice(0, 3, None))
    """
    return tuple(slice(a - start, b - start) for (a, b), (start, _) in zip(part, whole, strict=True))


def _box(shape: Sequence[int], mesh_shape: Sequence[int], place: Sequence[int], cuts: Sequence[tuple[int, int]]) -> Box:
    box = [(0, size) for size in shape]
    for mesh_dim, dim in cuts:
        start, stop = box[dim]
        each = -(-(stop - start) // mesh_shape[mesh_dim])
        box[dim] = (min(start + place[mesh_dim] * each, stop), min(start + (place[mesh_dim] + 1) * each, stop))
    return tuple(box)


def _coordinates(mesh_shape: Sequence[int]) -> list[tuple[int, ...]]:
    places: list[tuple[int, ...]] = [()]
    for size in mesh_shape:
        places = [(*place, i) for place in places for i in range(size)]
    return places


def _own_index(mesh: Any) -> int:
    index = 0
    for size, place in zip(mesh.shape, mesh.get_coordinate(), strict=True):
        index = index * size + place
    return index
