"""Depth (CompleteP): the language model's residual branches, what a transfer asks of them, and that changes stay flat."""

from __future__ import annotations

import copy
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_opt import Recipe, Transfer
from lit_opt.errors import RecipeError
from lit_opt.preflight.coordinate_check import coordinate_check
from lit_opt.preflight.coordinate_report import check_plot, check_table
from lit_opt.workloads import LanguageModel

torch.set_num_threads(1)

BYTES = torch.randint(0, 256, (2, 17), generator=torch.Generator().manual_seed(0))


def fresh(layers: int, **options: Any) -> LanguageModel:
    return LanguageModel(layers=layers, width=32, heads=2, mlp_width=64, context=16, **options)


def make(layers: int, **options: Any) -> LanguageModel:
    torch.manual_seed(0)
    return fresh(layers, **options)


def test_every_branch_is_multiplied() -> None:
    """Their last layers have no bias: the same factor on those weights makes the same model."""
    scaled, plain = make(2, residual_scale=0.25), make(2)
    with torch.no_grad():
        for block in plain.model.model.layers:
            block.self_attn.o_proj.weight.mul_(0.25)
            block.mlp.down_proj.weight.mul_(0.25)
    torch.testing.assert_close(scaled(BYTES), plain(BYTES))
    assert not torch.allclose(scaled(BYTES), make(2)(BYTES))
    for twin in (copy.deepcopy(scaled), pickle.loads(pickle.dumps(scaled))):
        assert torch.equal(twin(BYTES), scaled(BYTES))


def test_without_a_scale_nothing_is_added(tmp_path: Path) -> None:
    plain, scaled = make(2), make(2, residual_scale=0.5)
    assert not any(module._forward_hooks for module in plain.modules())
    assert list(plain.state_dict()) == list(scaled.state_dict())
    old = {key: value for key, value in plain.hparams.items() if key != "residual_scale"}
    torch.save({"state_dict": plain.state_dict(), "hyper_parameters": old, "pytorch-lightning_version": "2.4.0"},
               tmp_path / "old.ckpt")  # fmt: skip
    assert torch.equal(LanguageModel.load_from_checkpoint(tmp_path / "old.ckpt")(BYTES), plain(BYTES))


@pytest.mark.parametrize("scale", [0, -1.0, float("nan"), float("inf"), True, "half"])
def test_what_is_no_scale(scale: Any) -> None:
    with pytest.raises(RecipeError, match=r"residual_scale=.*a number above 0"):
        make(1, residual_scale=scale)


@pytest.mark.parametrize(("optimizer", "lr"), [("adamw", 3e-3), ("muon", 0.02)])
def test_rates_stay_and_epsilon_falls(optimizer: str, lr: float) -> None:
    recipe = Recipe(
        "llm", optimizer=optimizer, lr=lr, weight_decay=0.1, transfer=Transfer(base=partial(make, 2), depth=True)
    )
    shallow, _ = recipe.configure(make(2), total_steps=9)
    module = make(6, residual_scale=1 / 3)
    deep, _ = recipe.configure(module, total_steps=9)
    before = {group["name"]: group for group in shallow.param_groups}
    # What lies in a block and what does not have epsilons of their own, so they are groups of their own.
    blocks = {id(p) for name, p in module.named_parameters() if ".layers." in name}
    for group in deep.param_groups:
        inside = {id(p) in blocks for p in group["params"]}
        assert len(inside) == 1, group["name"]
        old = next(before[name] for name in sorted(before, key=len, reverse=True) if group["name"].startswith(name))
        assert group["initial_lr"] == pytest.approx(old["initial_lr"]), group["name"]
        assert group["weight_decay"] == pytest.approx(old["weight_decay"]), group["name"]
        if group.get("algorithm", optimizer) == "adamw":
            assert group["eps"] == pytest.approx(1e-8 / 3 if inside == {True} else 1e-8), group["name"]


def test_what_the_module_lacks_is_said() -> None:
    recipe = Recipe("llm", lr=3e-3, transfer=Transfer(base=partial(make, 2), depth=True))
    with pytest.raises(RecipeError, match=r"has residual_scale=1, .* residual_scale=0.5 is needed here"):
        recipe.configure(make(4), total_steps=9)
    with pytest.raises(RecipeError, match=r"the number of blocks differs .* depth=True"):
        Recipe("llm", lr=3e-3, transfer=Transfer(base=partial(make, 2))).configure(make(4), total_steps=9)
    text = " ".join(recipe.plan(make(4, residual_scale=0.5), total_steps=9).text(width=200).split())
    assert "depth: CompleteP, arXiv:2505.01618, alpha = 1" in text and "x 0.5" in text


@pytest.mark.parametrize(
    ("optimizer", "lr", "overrides"), [("adamw", 1e-2, {}), ("muon", 0.06, {"fallback": {"lr": 1e-2}})]
)
def test_changes_are_flat_over_depth(optimizer: str, lr: float, overrides: dict[str, Any], tmp_path: Path) -> None:
    """From two blocks on; one block has no other to add to, and is off by up to 0.3."""
    found = coordinate_check(
        lambda layers: fresh(layers, residual_scale=2 / layers), (2, 4, 8, 16), without=fresh, batch=BYTES, seeds=(0, 1),
        transfer={"depth": True}, optimizer=optimizer, lr=lr, weight_decay=0.1, **overrides,
    )  # fmt: skip
    assert found.along == "depth"
    for line in found.layers:
        assert abs(line.slope) < 0.12, line
    attention = next(line for line in found.layers if line.layer.endswith("o_proj"))
    assert attention.without > 0.25, "branches that are not scaled grow the stream, and with it what they see"
    assert "log(depth), depths 2, 4, 8, 16" in str(check_table(found).title)
    assert check_plot(found, tmp_path / "depth.png").is_file()
