"""The memory of SOAP, SPlus and Shampoo in a step with new decompositions, beside their plan."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lit_opt.optim import build
from lit_opt.optim.matrix.cost import scratch_bytes
from lit_opt.preflight.memory import state_bytes
from tests.preflight.measured import held_by, most_at_once

CASES: list[tuple[str, dict[str, Any]]] = [
    ("soap", {"max_preconditioner_dim": 300}),
    ("soap", {}),
    ("splus", {}),
    ("shampoo", {"grafting": "adam"}),
    ("shampoo", {"max_preconditioner_dim": 100}),
]


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
@pytest.mark.parametrize("shapes", [[(192, 320)], [(64, 48)] * 6])
def test_scratch_of_a_step_with_new_decompositions(name: str, options: dict[str, Any], shapes: list[Any]) -> None:
    params = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    optimizer = build(name, params, lr=1e-3, precondition_frequency=1, **options)
    estimate = scratch_bytes(optimizer, cuda=False)
    for _ in range(3):
        for p in params:
            p.grad = torch.randn_like(p)
        taken = most_at_once(optimizer.step)
    assert estimate == pytest.approx(taken, rel=0.25)


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("shape", "group"),
    [
        ((12, 350), {}),
        ((6, 40, 3, 3), {}),
        ((40, 6, 3, 3), {"layout": "conv_transposed"}),
        ((12, 8), {"split_sizes": [4, 8]}),
        ((12, 8), {"num_heads": 3}),
        ((3, 5, 4), {"layout": "experts"}),
        ((3, 5, 4), {"layout": "experts_transposed"}),
        ((7,), {}),
    ],
)
def test_the_state_is_what_the_row_says(
    name: str, options: dict[str, Any], dtype: torch.dtype, shape: tuple[int, ...], group: dict[str, Any]
) -> None:
    param = nn.Parameter(torch.randn(shape, dtype=torch.float64).to(dtype))
    optimizer = build(name, [{"params": [param], **group}], lr=1e-3, **options)
    estimate = state_bytes(optimizer)
    param.grad = torch.randn_like(param)
    optimizer.step()
    assert estimate == held_by(optimizer)
