"""Who owns which matrix, and where a matrix is in its parameter."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from lit_opt.optim import build
from lit_opt.optim.matrix.boxes import in_parameters_dimensions, region_of
from lit_opt.optim.matrix.cost import planned
from lit_opt.optim.matrix.layout import blocks, shape_of
from lit_opt.optim.matrix.owned import Block, count_of, divide, largest_share, owners_of
from lit_opt.optim.matrix.traffic import sharded_traffic

METHODS = ("soap", "splus", "shampoo")


@pytest.mark.parametrize("size", [None, 3, 4, 100])
@pytest.mark.parametrize(
    ("shape", "group"),
    [
        ((8, 5), {}),
        ((12, 4), {"split_sizes": [6, 5, 1]}),
        ((12, 4), {"num_heads": 2}),
        ((4, 6), {"layout": "transposed"}),
        ((4, 12), {"layout": "transposed", "split_sizes": [8, 4]}),
        ((9, 4, 2, 2), {}),
        ((4, 6, 2, 1), {"layout": "conv_transposed"}),
        ((3, 4, 5), {"layout": "experts"}),
        ((5, 4, 3), {"layout": "experts_transposed"}),
    ],
)
def test_the_region_of_a_matrix_is_its_block(shape: tuple[int, ...], group: dict[str, Any], size: int | None):
    """For every layout, whole and in blocks: the region has the block's numbers, turned as the parameter is."""
    group = group | {"block_size": size}
    whole = torch.arange(math.prod(shape)).view(shape)
    for block, view in enumerate(blocks(whole, group)):
        count, rows, cols = shape_of(view)
        for index in range(count):
            region = tuple(slice(*ends) for ends in region_of(shape, group, block, index))
            matrix = view[index].reshape(1, rows, cols)
            assert torch.equal(in_parameters_dimensions(matrix, group, shape)[0], whole[region])


def shapes_of_gpt2(layers: int = 12, width: int = 768) -> list[tuple[int, int]]:
    return [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)] * layers


def weights(shapes: list[tuple[int, int]]) -> list[Tensor]:
    return [Parameter(torch.empty(shape, device="meta")) for shape in shapes]


def held(optimizer: Any, processes: int) -> list[int]:
    """Numbers of state that each process has."""
    owners, found = owners_of(optimizer, processes), [0] * processes
    for group in optimizer.param_groups:
        for param in group["params"]:
            for own, view in zip(owners[id(param)], blocks(param, group), strict=True):
                each = sum(map(math.prod, optimizer.kept(group, *shape_of(view)[1:]).values()))
                found = [n + each * count_of(part) for n, part in zip(found, own, strict=True)]
    return found


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("processes", "most"), [(2, 1.0), (4, 1.0), (8, 1.1), (16, 1.3)])
def test_gpt2_is_divided_evenly(method: str, processes: int, most: float):
    optimizer = build(method, weights(shapes_of_gpt2()), lr=1e-3)
    found = held(optimizer, processes)
    assert max(found) <= most * sum(found) / processes
    # What the estimate of a run's memory takes.
    shares = largest_share(optimizer, processes)
    params = optimizer.param_groups[0]["params"]
    sizes = [(optimizer.kept(optimizer.param_groups[0], *map(int, param.shape)), param) for param in params]  # type: ignore[attr-defined]
    if method != "shampoo":  # one block each
        assert max(found) == sum(
            shares[id(param)][key] * math.prod(size) for kept, param in sizes for key, size in kept.items()
        )


def test_of_one_shape_all_have_as_many_or_one_more():
    sizes = [
        Block(count, shape, 10) for count, shape in [(1, (4, 4)), (5, (4, 4)), (3, (2, 2)), (1, (4, 4)), (2, (2, 2))]
    ]
    for processes in (1, 2, 3, 4, 7):
        ranges = divide(sizes, processes)
        for shape in ((4, 4), (2, 2)):
            alike = [own for own, block in zip(ranges, sizes, strict=True) if block.shape == shape]
            counts = [sum(count_of(own[rank]) for own in alike) for rank in range(processes)]
            assert max(counts) - min(counts) <= 1
        for own, block in zip(ranges, sizes, strict=True):
            assert [place for part in own for place in range(part.start, part.stop)] == list(range(block.matrices))


def test_a_group_that_is_added_takes_no_state_from_its_owner():
    first, more = weights(shapes_of_gpt2(2)), weights([(3000, 3000), (768, 768), (10, 10)])
    optimizer = build("soap", first, lr=1e-3)
    before = owners_of(optimizer, 4)
    optimizer.add_param_group({"params": more})
    after = owners_of(optimizer, 4)
    assert len(after) == len(first) + len(more) and {key: after[key] for key in before} == before


def test_owners_do_not_depend_on_what_has_a_gradient():
    """A chunk has each owner's matrices together, the first process's first."""
    params = [Parameter(torch.ones(6, 6)) for _ in range(5)]
    groups: list[dict[str, Any]] = [{"params": params}, {"params": [Parameter(torch.ones(12, 6))], "num_heads": 2}]
    optimizer = build("soap", groups, lr=1e-3)
    owners = owners_of(optimizer, 2)
    [chunk] = planned(optimizer, sharded=2)
    assert chunk.shape == (7, 6, 6) and chunk.owners is not None
    assert [count_of(own) for own in chunk.owners] == [4, 3]
    order = [param for rank in range(2) for param in params if count_of(owners[id(param)][0][rank])]
    assert len(order) == 5


@pytest.mark.parametrize("method", METHODS)
def test_the_simulator_moves_gradients_there_and_updates_back(method: str):
    """Each weight goes to its owner, but for the owner's part of it, and back: as much as with Muon."""
    params = [Parameter(torch.ones(8, 4)) for _ in range(4)]
    found = sharded_traffic(build(method, params, lr=1e-3), (4,), cuda=False)
    each = 3 * 8 * 4 // 4 * 4  # three quarters of a matrix in float32
    assert [(one.sent, one.received) for one in found] == [(2 * each, 2 * each)] * 4
    assert len({one.flops for one in found}) == 1 and found[0].flops > 0
