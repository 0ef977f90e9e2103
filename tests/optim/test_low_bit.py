"""AdamW with moments of few bits, beside AdamW in float64."""

import copy
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from lit_opt.optim import build

FIXTURE = json.loads((Path(__file__).parents[1] / "fixtures" / "classic" / "adamw_8bit.json").read_text())
HYPER = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}


def problem() -> tuple[torch.Tensor, list[torch.Tensor]]:
    """As the fixture describes it."""
    r = np.random.default_rng(4242)
    weight = torch.tensor(r.standard_normal((64, 64)) * 0.05)
    return weight, [torch.tensor(r.standard_normal((64, 64)) * 0.01) for _ in range(10)]


def update_errors(name: str) -> dict[int, float]:
    """|w - w of AdamW in float64| / |w of AdamW - start| after some steps."""
    start, grads = problem()
    ours, exact = nn.Parameter(start.float()), nn.Parameter(start.clone())
    optimizer, reference = build(name, [ours], **HYPER), torch.optim.AdamW([exact], **HYPER)  # type: ignore[arg-type]
    errors = {}
    for step, grad in enumerate(grads, start=1):
        ours.grad, exact.grad = grad.float(), grad.clone()
        optimizer.step()
        reference.step()
        if step in (1, 2, 5, 10):
            errors[step] = float((ours.double() - exact).norm() / (exact - start).norm())
    return errors


def observed(library: str) -> dict[int, float]:
    (found,) = (v for k, v in FIXTURE["observed"].items() if k.startswith(library))
    return {int(step): values["rel_update_err"] for step, values in found.items()}


def test_eight_bits_are_as_close_as_observed():
    for step, error in update_errors("adamw_8bit").items():
        assert error <= max(2 * observed("bnb")[step], 1e-5), step


def test_small_tensors_equal_adamw():
    torch.manual_seed(0)
    ours, exact = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.zeros(8, 8))
    exact.data.copy_(ours.data)
    optimizer, reference = build("adamw_8bit", [ours], **HYPER), build("adamw", [exact], **HYPER)
    for _ in range(5):
        grad = torch.randn(8, 8)
        ours.grad, exact.grad = grad.clone(), grad.clone()
        optimizer.step()
        reference.step()
    assert (ours - exact).abs().max() < 1e-6


def state_bytes(optimizer: Optimizer) -> int:
    return sum(v.numel() * v.element_size() for s in optimizer.state.values() for v in s.values() if torch.is_tensor(v))


def test_states_take_a_quarter_and_resume_bit_for_bit():
    weight = nn.Parameter(torch.randn(256, 256))
    optimizer, plain = build("adamw_8bit", [weight], **HYPER), build("adamw", [weight], **HYPER)
    weight.grad = torch.randn(256, 256)
    plain.step()
    optimizer.step()
    assert 0.25 < state_bytes(optimizer) / state_bytes(plain) < 0.27
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other = copy.deepcopy(weight)
    resumed = build("adamw_8bit", [other], **HYPER)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for w, o in ((weight, optimizer), (other, resumed)):
        w.grad = torch.ones(256, 256)
        o.step()
    assert torch.equal(weight, other)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "bound"), [("AdamW8bit", 0.03), ("adamw_fp8", 0.06), ("adamw_4bit", 0.4)])
def test_torchaos_classes_step_with_plain_rates(name: str, bound: float, monkeypatch: Any):
    """Each compiles its step for half a minute on a CPU."""
    torchaos = pytest.importorskip("lit_opt.optim.low_bit_torchao", reason="torchao (extra lowbit) is not installed")
    if name == "AdamW8bit":
        monkeypatch.setattr("bitsandbytes.optim.AdamW8bit", torchaos.AdamW8bit)
        name = "adamw_8bit"
    errors = update_errors(name)
    assert errors[10] < bound
    weight = nn.Parameter(torch.randn(64, 64))
    optimizer = build(name, [weight], **HYPER)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    weight.grad = torch.randn(64, 64)
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] == 1e-3
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 5e-4
