"""The plan of models that nobody here wrote, at their real sizes, on the meta device."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lit_opt import Recipe
from lit_opt.preflight.plan import Plan
from tests.preflight.models import MODELS, build

torch.set_num_threads(1)

# Published sizes, in millions: model cards and papers.
MILLIONS = {
    "Llama 2 7B": 6738.4,
    "Qwen2.5 7B": 7615.6,
    "Mamba 2.8B": 2768.3,
    "Mixtral 8x7B": 46702.8,
    "T5 large": 737.7,
    "CLIP L/14": 427.6,
    "LLaVA 1.5 7B": 7062.9,
    "ViT L/16": 304.3,
    "Swin L": 196.5,
    "ConvNeXt L": 197.8,
    "EfficientNet B4": 19.34,
    "MambaOut base": 84.8,
    "Stable Diffusion 1.5 UNet": 859.5,
    "Flux": 11891.2,
}


def planned(name: str, **kwargs: Any) -> tuple[Plan, torch.nn.Module]:
    recipe, module = build(name)
    return Recipe(recipe).plan(module, batch_size=1024, total_steps=100_000, **kwargs), module


def test_the_models_of_the_list() -> None:
    assert set(MILLIONS) <= set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_the_plan_of_a_real_model(name: str) -> None:
    plan, module = planned(name, devices=8, strategy="fsdp2", precision="bf16-mixed")
    parameters = dict(module.named_parameters())
    assert {p.device.type for p in parameters.values()} == {"meta"}
    if name in MILLIONS:
        assert plan.parameters["trainable"] / 1e6 == pytest.approx(MILLIONS[name], rel=1e-3)
    # Every parameter once, with its shape and a reason.
    assert {row.name: row.shape for row in plan.rows} == {n: tuple(p.shape) for n, p in parameters.items()}
    assert all(row.reason and row.lr > 0 for row in plan.rows)
    assert sum(group.parameters for group in plan.groups) == plan.parameters["trainable"]
    # Repeated blocks are joined, and nothing is lost.
    assert sum(f.count for f in plan.folded) == len(plan.rows)
    assert sum(f.count * math.prod(f.shape) for f in plan.folded) == plan.parameters["trainable"]
    text = plan.text(width=100)
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text
    # Weights and gradients in float32, an eighth each; rows that eight cannot divide cost a little more.
    lines = {line.name: line.bytes for line in plan.memory.lines}
    eighth = 4 * plan.parameters["trainable"] / 8
    assert eighth <= lines["weights"] == lines["gradients"] < 1.03 * eighth
    assert plan.memory.peak >= plan.memory.held > 3 * eighth


def test_a_deep_model_is_a_page() -> None:
    """291 tensors of Llama in a dozen lines."""
    plan, _ = planned("Llama 2 7B")
    assert (len(plan.rows), len(plan.folded)) == (291, 12)
    assert [f.pattern for f in plan.folded][:2] == [
        "model.embed_tokens.weight",
        "model.layers.*.self_attn.q_proj.weight",
    ]
    assert {f.count for f in plan.folded} == {1, 32}
    memory = {line.name: line.bytes for line in plan.memory.lines}
    assert memory["optimizer state"] / 1e9 == pytest.approx(53.9, abs=0.05)


def test_experts_and_their_routers() -> None:
    plan, _ = planned("Mixtral 8x7B")
    by_name = {f.pattern: f for f in plan.folded}
    experts = by_name["model.layers.*.mlp.experts.down_proj"]
    assert (experts.count, experts.algorithm) == (32, "muon") and "8 hidden matrices" in experts.reason
    router = by_name["model.layers.*.mlp.gate.weight"]
    assert router.algorithm == "adamw" and "router of experts" in router.reason


def test_parts_of_a_vision_language_model() -> None:
    plan, _ = planned("LLaVA 1.5 7B")
    rates = {group.name.rpartition("/")[2]: group.lr for group in plan.groups}
    assert rates["projector"] > rates["language_model"] == rates["vision_tower"]


def test_state_space_parameters_are_not_decayed() -> None:
    plan, _ = planned("Mamba 2.8B")
    found = {f.pattern: f for f in plan.folded}
    assert found["backbone.layers.*.mixer.A_log"].weight_decay == 0.0
    assert found["backbone.layers.*.mixer.in_proj.weight"].weight_decay > 0.0


def test_layer_wise_rates_of_a_deep_model_are_joined() -> None:
    _, module = build("ViT L/16")
    plan = Recipe("vit/finetune").plan(module, batch_size=1024, total_steps=1000)
    assert len(plan.groups) > 40 and len(plan.folded) < 40
    text = plan.text()
    assert "decay/layer_*" in text and " .. " in text and len(text.splitlines()) < 200
