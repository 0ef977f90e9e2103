"""A matrix recipe through Lightning: routed groups, exact resume, plain checkpoints, and shards that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy, SingleDeviceStrategy
from torch import nn
from torch.utils.data import DataLoader

from lit_opt import Recipe
from lit_opt.callbacks.session import Session
from lit_opt.errors import RecipeError
from lit_opt.recipes.schema import GroupRule
from lit_opt.workloads import LanguageModel
from tests.callbacks.modules import Net, OwnSGD, SaveAt, fit, trainer

RECIPES: dict[str, dict[str, Any]] = {
    "llm/muon": {},
    "llm/muon_rms": {},
    "llm/normuon": {},
    "teon": {"optimizer": "teon", "lr": 0.02, "weight_decay": 0.01},
    "mars_m": {"optimizer": "mars_m"},
}


def recipe(name: str, **kwargs: Any) -> Recipe:
    return Recipe(name if "/" in name else "llm", **(RECIPES[name] | {"warmup": 2, "total_steps": 8} | kwargs))


def language_model() -> LanguageModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LanguageModel(layers=2, width=16, heads=2, mlp_width=32, context=16)


def text() -> DataLoader[Any]:
    """Four batches in one order, so that a run saved at the end of an epoch is continued exactly."""
    g = torch.Generator().manual_seed(0)
    phrase = torch.randint(0, 256, (32,), generator=g)
    windows = torch.stack([phrase.roll(int(shift))[:17] for shift in torch.randint(0, 32, (16,), generator=g)])
    return DataLoader(windows, batch_size=4)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", RECIPES)
def test_trains_and_resumes_bit_for_bit(name: str, tmp_path: Path) -> None:
    first, before = language_model(), language_model()
    ours = recipe(name)
    path = tmp_path / "half.ckpt"
    fit(first, ours, SaveAt(path, 4, "on_train_epoch_end"), data=text(), max_epochs=2)
    assert all(not torch.equal(a, b) for a, b in zip(first.parameters(), before.parameters(), strict=True))
    with torch.no_grad():
        windows = next(iter(text()))
        assert first.loss(windows) < before.loss(windows) - 0.03

    saved = torch.load(path, weights_only=True)
    assert {group["algorithm"] for group in saved["lit_opt"]["groups"]} == {ours.run.resolved.optimizer, "adamw"}  # type: ignore[union-attr]
    assert saved["lit_opt"]["recipe"]["fallback"] == ours.resolved.as_dict()["fallback"]  # type: ignore[union-attr]
    for again in (recipe(name), Recipe("llm", on_resume="checkpoint", total_steps=8)):
        rest = language_model()
        fit(rest, again, data=text(), max_epochs=2, ckpt_path=path)
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), rest.parameters(), strict=True))


def test_the_groups_are_announced(caplog: pytest.LogCaptureFixture) -> None:
    ours = recipe("llm/muon")
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        fit(language_model(), ours, data=text())
    lines = [line.split() for line in caplog.text.replace("│", " ").splitlines()]
    assert ["decay", "muon", "0.02", "0.01", "14", "5,120"] in lines
    assert ["decay/adamw", "adamw", "0.0003", "0.01", "1", "4,096"] in lines
    assert ["no_decay/adamw", "adamw", "0.0003", "0", "6", "4,176"] in lines
    assert ["fallback.lr", "0.0003", "recipe"] in [line[:3] for line in lines]
    # Both rates follow the schedule.
    assert ours.optimizer is not None
    muon, adamw = (ours.optimizer.param_groups[i]["lr"] for i in (0, 1))
    assert 0 < muon < 0.02 and adamw / muon == pytest.approx(3e-4 / 0.02)


def test_teon_stacks_consecutive_blocks() -> None:
    ours = recipe("teon")
    fit(language_model(), ours, data=text())
    assert ours.optimizer is not None
    group = ours.optimizer.param_groups[0]
    names = [[group["param_names"][i] for i in stack] for stack in group["stack"]]
    assert names == [
        [f"model.model.layers.{i}.self_attn.{role}_proj.weight" for i in (0, 1)] for role in ("q", "k", "v")
    ]


def test_another_fallback_is_another_recipe(tmp_path: Path) -> None:
    path = tmp_path / "c.ckpt"
    fit(language_model(), recipe("llm/muon"), data=text(), max_steps=2).save_checkpoint(path)
    with pytest.raises(RecipeError, match=r"fallback.lr: 0.0003 in the checkpoint, 0.001 now"):
        fit(language_model(), recipe("llm/muon", fallback={"lr": 1e-3}), data=text(), ckpt_path=path)
    moved = recipe("llm/muon", groups=[GroupRule(match="*.down_proj.weight", algorithm="adamw")], on_resume="config")
    with pytest.raises(RecipeError, match="in another group or with another algorithm"):
        fit(language_model(), moved, data=text(), ckpt_path=path)


# ---- shards


class DeepSpeedStrategy(SingleDeviceStrategy):
    """DeepSpeed itself needs a GPU; what is read of it is its name and config."""

    def __init__(self, stage: int) -> None:
        super().__init__(device="cpu")
        self.config = {"zero_optimization": {"stage": stage}}


@pytest.mark.parametrize("strategy", [FSDPStrategy(), DeepSpeedStrategy(1), DeepSpeedStrategy(3)])
def test_flat_shards_are_refused_before_anything_is_installed(strategy: Any) -> None:
    module = Net()
    ours = Recipe("llm/muon")
    t: Any = trainer(ours, max_steps=1)
    t.strategy.__class__ = type(strategy)  # Lightning refuses FSDPStrategy itself without a GPU
    t.strategy.config = getattr(strategy, "config", None)
    with pytest.raises(RecipeError, match=r"whole matrices.*flat shards \((FSDP1|ZeRO stage \d)\)") as error:
        Session(ours, t, module)
    assert "ModelParallelStrategy (FSDP2) or DDP" in str(error.value)
    assert "configure_optimizers" not in vars(module)
    # AdamW is fine there, and so is an optimizer of the module's own.
    for other, kept in ((Recipe("llm"), Net()), (Recipe("llm/muon", existing="keep", clip=0), OwnSGD())):
        t.callbacks[0] = other
        Session(other, t, kept).close()


def test_flat_shards_are_refused_in_plain_torch_as_well() -> None:
    module = nn.Linear(8, 8)
    module.weight.ds_shape = (8, 8)  # type: ignore[attr-defined]
    with pytest.raises(RecipeError, match=r"flat shards \(FSDP1 or ZeRO\)"):
        Recipe("llm/muon").configure(module, total_steps=10)
    Recipe("llm", lr=1e-3).configure(module, total_steps=10)
