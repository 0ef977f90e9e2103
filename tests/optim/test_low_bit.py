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

from lit_opt import Recipe
from lit_opt.errors import RecipeError
from lit_opt.optim import build
from tests.preflight.measured import backward, network

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


def test_a_recipe_keeps_embeddings_in_32_bits():
    """Two tables of the same size: the embedding, and the head."""
    module = network()
    recipe = Recipe("llm/adamw_8bit", lr=1e-3, warmup=2, total_steps=8)
    estimate = recipe.plan(module, accelerator="cpu").memory
    optimizer, _ = recipe.configure(module, total_steps=8, global_batch=2)
    backward(module)
    optimizer.step()
    large = {name: p for name, p in module.named_parameters() if p.numel() > 4096}
    moments = {name: optimizer.state[p]["state1"].dtype for name, p in large.items()}
    assert moments.pop("embedding.weight") == torch.float32
    assert set(moments.values()) == {torch.uint8} and "head.weight" in moments
    (group,) = (g for g in optimizer.param_groups if any(p is module.embedding.weight for p in g["params"]))
    assert (group["name"], group["optim_bits"], len(group["params"])) == ("no_decay/optim_bits_32", 32, 1)
    (line,) = (line for line in estimate.lines if line.name == "optimizer state")
    assert line.bytes == state_bytes(optimizer)


def test_32_bits_equal_adamw_and_resume():
    torch.manual_seed(0)
    start = torch.randn(80, 64)

    def setup(name: str, **more: Any) -> tuple[nn.Parameter, Optimizer]:
        weight = nn.Parameter(start.clone())
        return weight, build(name, [{"params": [weight], **more}], **HYPER)

    ours, optimizer = setup("adamw_8bit", optim_bits=32)
    exact, reference = setup("adamw")
    rounded, eight = setup("adamw_8bit")
    grads = [torch.randn(80, 64) for _ in range(6)]
    for step, grad in enumerate(grads):
        for weight, each in ((ours, optimizer), (exact, reference), (rounded, eight)):
            weight.grad = grad.clone()
            each.step()
        if step == 2:  # goes on from a checkpoint
            saved, ours = optimizer.state_dict(), nn.Parameter(ours.detach().clone())
            optimizer = build("adamw_8bit", [{"params": [ours], "optim_bits": 32}], **HYPER)
            optimizer.load_state_dict(saved)
    assert (ours - exact).abs().max() < 1e-6 < (rounded - exact).abs().max()


def test_other_bits_are_refused():
    with pytest.raises(RecipeError, match="optim_bits: 16 is not allowed"):
        build("adamw_8bit", [{"params": [nn.Parameter(torch.ones(2))], "optim_bits": 16}], lr=1e-3)


@pytest.mark.slow
def test_torchao_keeps_32_bits_where_asked():
    torchaos = pytest.importorskip("lit_opt.optim.low_bit_torchao", reason="torchao (extra lowbit) is not installed")
    table, weight = nn.Parameter(torch.randn(64, 64)), nn.Parameter(torch.randn(64, 64))
    optimizer = torchaos.AdamW8bit([{"params": [table], "optim_bits": 32}, {"params": [weight]}], lr=1e-3)
    for param in (table, weight):
        param.grad = torch.randn(64, 64)
    optimizer.step()
    assert type(optimizer.state[table]["exp_avg"]) is torch.Tensor
    assert optimizer.state[table]["exp_avg_sq"].dtype == torch.float32
    assert type(optimizer.state[weight]["exp_avg"]) is not torch.Tensor


@pytest.mark.slow
@pytest.mark.parametrize(("name", "bound"), [("AdamW8bit", 0.03), ("adamw_fp8", 0.06), ("adamw_4bit", 0.4)])
def test_torchaos_classes_step_with_plain_rates(name: str, bound: float, monkeypatch: Any):
    """Each compiles its step for half a minute on a CPU."""
    torchaos = pytest.importorskip("lit_opt.optim.low_bit_torchao", reason="torchao (extra lowbit) is not installed")
    if name == "AdamW8bit":
        monkeypatch.setattr("lit_opt.optim.low_bit_bitsandbytes.AdamW8bit", torchaos.AdamW8bit)
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
