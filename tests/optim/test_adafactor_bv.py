"""Adafactor as big_vision has it: timm's to the last bit, and a resume in bfloat16."""

from __future__ import annotations

import copy

import pytest
import timm.optim
import torch
from torch import nn

from lit_opt.optim import build


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Weights of both orders of the dimensions, equal dimensions, a kernel, and some that are too small to factor."""
    torch.manual_seed(0)
    shapes = ((16, 40), (40, 17), (16, 16), (8, 32))
    return nn.Sequential(*(nn.Linear(b, a) for a, b in shapes), nn.Conv2d(24, 20, 3)).to(dtype)


def step(module: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.grad = torch.randn(p.shape, generator=g).to(p.dtype)
    optimizer.step()


def test_equals_timms_bit_for_bit() -> None:
    ours, theirs = network(), network()
    optimizer = build("adafactor_bv", ours.parameters(), lr=0.01, weight_decay=0.1)
    reference = timm.optim.AdafactorBigVision(theirs.parameters(), lr=0.01, weight_decay=0.1)
    for seed in range(5):
        step(ours, optimizer, seed)
        step(theirs, reference, seed)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b), tuple(a.shape)


@pytest.mark.parametrize("name", ["adafactor", "adafactor_bv"])
def test_resumes_bit_for_bit_in_bfloat16(name: str) -> None:
    """The states are float32 there, and torch's load_state_dict would cast them to the dtype of the weights."""
    module = network(torch.bfloat16)
    optimizer = build(name, module.parameters(), lr=0.01)
    step(module, optimizer, 0)
    again = copy.deepcopy(module)
    resumed = build(name, again.parameters(), lr=0.01)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for seed in (1, 2, 3):
        step(module, optimizer, seed)
        step(again, resumed, seed)
    for a, b in zip(module.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
