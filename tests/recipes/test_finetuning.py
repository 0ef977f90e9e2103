"""The fine-tuning recipes end to end: the rates that parameters really get."""

from __future__ import annotations

import pytest
import timm
from torch import nn

from lit_opt import Recipe
from lit_opt.param_groups import group_parameters
from lit_opt.recipes import get_recipe
from lit_opt.resolve import RunFacts, resolve


@pytest.mark.parametrize(("batch", "lr"), [(64, 5e-4), (256, 5e-4), (512, 1e-3), (1024, 2e-3), (4096, 4e-3)])
def test_vit_follows_mae(batch, lr):
    """MAE: 5e-4 per 256 images, linear, run at 1,024; above that by the square root, and not scaled down."""
    facts = RunFacts(total_steps=100, global_batch=batch)
    assert resolve(get_recipe("vit/finetune"), {}, facts).lr == pytest.approx(lr)


def test_vit_has_a_rate_for_each_layer():
    size = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2}
    module = timm.create_model("vit_tiny_patch16_224", num_classes=4, **size)
    rows = {row.name: row for row in group_parameters(module, "vit/finetune").rows()}
    # stem 0, blocks 1 to 3, and the final norm and the head above them
    for name, below_the_head in (
        ("head.weight", 0), ("blocks.2.mlp.fc1.weight", 1), ("blocks.0.mlp.fc1.weight", 3), ("patch_embed.proj.weight", 4),
    ):  # fmt: skip
        assert rows[name].lr == pytest.approx(5e-4 * 0.75**below_the_head), name
        assert rows[name].weight_decay == 0.05
    assert rows["pos_embed"].weight_decay == 0.0
    base = {r.name: r for r in group_parameters(module, resolve_with(layer_decay=0.65)).rows()}
    assert base["blocks.0.mlp.fc1.weight"].lr == pytest.approx(5e-4 * 0.65**3)


def resolve_with(**overrides):
    return resolve(get_recipe("vit/finetune"), overrides, RunFacts(total_steps=100, global_batch=256))


@pytest.mark.parametrize(
    ("total", "warmup"), [(100_000, 500), (5000, 500), (1000, 100)]
)  # 500 steps, a tenth of a shorter run
def test_diffusion_warms_up_and_stays(total, warmup):
    schedule = resolve(get_recipe("diffusion/finetune"), {}, RunFacts(total_steps=total)).schedule
    assert schedule is not None and (schedule.warmup_steps, schedule.kind) == (warmup, "constant")


def test_llm_rates_do_not_depend_on_size_or_batch():
    optimizer, scheduler = Recipe("llm/finetune").configure(nn.Linear(8, 8), total_steps=100, global_batch=8)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert max(rates) == pytest.approx(2e-5) and rates[-1] < 2e-7 and rates[0] < rates[1] < rates[2]
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.01, 0.0]
