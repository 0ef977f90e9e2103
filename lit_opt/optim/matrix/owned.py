"""Who owns which matrix of DTensors, and with it its state: the same in every step and in every process.

Of GPT-2 small's 48 matrices the process that has most has with SOAP 1.00, 1.06 and 1.26 times the mean of 4, 8 and 16
processes; of 224 matrices in the shapes of a 7B Llama, 1.00 times that of up to 64.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_opt.averaging.shards import is_sharded
from lit_opt.optim.matrix.layout import blocks, shape_of

# Which matrices of a block each process owns, in the order of the mesh's group.
Ranges = Sequence[slice]


class Block(NamedTuple):
    """Matrices of one shape in a parameter.

    Args:
        matrices: How many.
        shape: (rows, cols).
        numbers: What is kept of one.

    Example:
        >>> Block(12, (64, 768), 700_000).matrices
        12
    """

    matrices: int
    shape: tuple[int, ...]
    numbers: int


def divide(some: Iterable[Block], processes: int) -> list[Ranges]:
    """Who owns the matrices of blocks, so that what later blocks are changes nothing for those before.

    Of each shape all processes have the same number of matrices, or one more, since those of a shape are computed
    together; the odd ones go to whom holds the least so far.

    Args:
        some: What there is.
        processes: How many divide it.

    Returns:
        For each block one range for each process, in order and without gaps.

    Example:
        >>> divide([Block(1, (8, 8), 256), Block(3, (2, 2), 16)], 2)
        [[slice(0, 1, None), slice(1, 1, None)], [slice(0, 1, None), slice(1, 3, None)]]
    """
    held = [0] * processes
    alike: dict[tuple[int, ...], list[int]] = defaultdict(lambda: [0] * processes)
    ranges: list[Ranges] = []
    for count, shape, numbers in some:
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
    owners: dict[int, list[Ranges]] = {}
    # Mesh -> blocks: what divides them, and whose they are.
    meshes: dict[Any, list[tuple[Block, int, int]]] = {}
    for group in optimizer.param_groups:
        found: list[tuple[Any, Block, int, int]] = []
        for param in group["params"] if optimizer._takes(group) else ():
            if param.ndim > 1 and param.numel() and (processes or is_sharded(param)):
                mesh = None if processes else param.device_mesh
                # Shapes alone: looking at the parts of sharded tensors would make processes talk.
                shapes = [shape_of(view) for view in blocks(torch.empty(param.shape, device="meta"), group)]
                owners[id(param)] = [()] * len(shapes)
                for index, (count, *shape) in enumerate(shapes):
                    kept = sum(map(math.prod, optimizer.kept(group, *shape).values()))
                    found.append((mesh, Block(count, tuple(shape), kept), id(param), index))
        # The largest first divide best; a group that is added later changes nothing for those before.
        for mesh, block, key, index in sorted(found, key=lambda each: -each[1].numbers):
            meshes.setdefault(mesh, []).append((block, key, index))
    for mesh, some in meshes.items():
        ranges = divide([block for block, *_ in some], processes or mesh.size())
        for own, (_, key, index) in zip(ranges, some, strict=True):
            owners[key][index] = own
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
                held = [n + each * count_of(own) for n, own in zip(held, owners[id(param)][block], strict=True)]
    most = held.index(max(held))
    return {
        param: {key: count_of(own[most]) / own[-1].stop for key, own in by_key.items()}
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


def count_of(own: slice) -> int:
    """Matrices of a range.

    Example:
        >>> count_of(slice(2, 5))
        3
    """
    return int(own.stop - own.start)
