"""Beside Lightning's own callbacks, loggers and tuner."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
)
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.tuner import Tuner
from torch import nn

from lit_opt import GroupRule, Recipe
from tests.callbacks.modules import Net, StatefulLoader, fit, loader, names_of, snapshot, trainer

HALF = [GroupRule(match="net.0.*", lr_scale=0.5)]


class Remembers(Logger):
    """Keeps what it is given, as TensorBoard's logger would write it."""

    def __init__(self) -> None:
        super().__init__()
        self.hparams: dict[str, Any] = {}
        self.metrics: list[dict[str, float]] = []

    name = "remembers"
    version = "0"

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.hparams |= dict(params)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.metrics.append(metrics)


def test_learning_rate_monitor_names_the_groups() -> None:
    logger, monitor = Remembers(), LearningRateMonitor(logging_interval="step", log_weight_decay=True)
    fit(Net(), Recipe("llm", lr=1.0, warmup=0, decay="linear"), monitor, logger=logger, log_every_n_steps=1)
    logged = [m for m in logger.metrics if "lr/decay" in m]
    assert [m["lr/decay"] for m in logged] == [m["lr/no_decay"] for m in logged] == [1.0, 0.75, 0.5, 0.25]
    assert {"lr/decay-weight_decay", "lr/no_decay-weight_decay"} <= set(monitor.last_weight_decay_values)


@pytest.mark.parametrize("weights_only", [False, True])
def test_every_checkpoint_holds_the_recipe_and_loads_as_plain_data(tmp_path: Path, weights_only: bool) -> None:
    recipe = Recipe("llm", groups=HALF)
    fit(Net(), recipe, ModelCheckpoint(tmp_path, every_n_train_steps=2, save_weights_only=weights_only, save_last=True),
        enable_checkpointing=True)  # fmt: skip
    for path in tmp_path.glob("*.ckpt"):
        saved = torch.load(path, weights_only=True)["lit_opt"]
        assert recipe.resolved is not None
        assert saved["recipe"] == recipe.resolved.as_dict()
        assert [g["name"] for g in saved["groups"]] == names_of(recipe)
        assert ("rng" in saved) is not weights_only
    assert len(list(tmp_path.glob("*.ckpt"))) >= 2


def test_a_lightning_checkpoint_resumes_with_weights_only(tmp_path: Path) -> None:
    recipe = Recipe("llm")
    t = fit(Net(), Recipe("llm", total_steps=6), data=StatefulLoader(), max_steps=3)
    t.save_checkpoint(tmp_path / "c.ckpt")
    again = trainer(recipe, max_steps=6)
    again.fit(Net(), StatefulLoader(), ckpt_path=tmp_path / "c.ckpt", weights_only=True)
    assert again.global_step == 6


def test_the_resolved_recipe_is_in_the_loggers_hyperparameters(tmp_path: Path) -> None:
    logger, recipe = Remembers(), Recipe("llm", lr=2e-3)
    fit(Net(), recipe, logger=[logger, CSVLogger(tmp_path)])
    assert recipe.resolved is not None
    assert logger.hparams["recipe"] == recipe.resolved.as_dict()
    (path,) = tmp_path.rglob("hparams.yaml")
    assert yaml.safe_load(path.read_text())["recipe"]["lr"] == 2e-3


def test_the_log_shows_recipe_and_groups_once(caplog: Any) -> None:
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        fit(Net(), Recipe("llm"))
    assert caplog.text.count("Recipe llm") == 1
    assert caplog.text.count("no_decay") == 1


class WithLR(Net):
    def __init__(self) -> None:
        super().__init__()
        self.lr = 1e-3


def ratios(module: Net) -> set[float]:
    return {round(rates[1] / rates[0], 6) for _, rates in module.seen}


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_the_finders_suggestion_becomes_the_peak(caplog: Any, scale: float) -> None:
    """It ran with the suggestion for the fastest group."""
    rules = [GroupRule(match="net.0.*", lr_scale=scale)]
    module, recipe = WithLR(), Recipe("llm", groups=rules, warmup=0, decay="constant")
    finder = LearningRateFinder(min_lr=1e-5, max_lr=1.0, num_training_steps=25)
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        fit(module, recipe, finder)
    assert finder.optimal_lr is not None
    found = finder.optimal_lr.suggestion()
    assert found is not None and recipe.resolved is not None and recipe.optimizer is not None
    search, run = module.seen[:-4], module.seen[-4:]
    assert len(search) >= 15
    peaks = [group["lr"] for group in recipe.optimizer.param_groups]
    assert recipe.resolved.lr == pytest.approx(found if scale < 1 else found / scale)
    assert sorted(set(peaks)) == pytest.approx([found / 2, found])
    assert all(rates == pytest.approx(peaks) for _, rates in run)
    assert caplog.text.count("from LearningRateFinder") == 1


def test_groups_keep_their_ratios_while_the_finder_runs() -> None:
    used: list[tuple[float, float]] = []

    class Watches(WithLR):
        def on_fit_start(self) -> None:
            """Weights move by lr in SGD without momentum, so the step itself shows the rate that was used."""

    module, recipe = Watches(), Recipe("llm", groups=HALF, warmup=0, optimizer=Recorder, lr=1e-3, weight_decay=0.0)
    Recorder.used = used
    fit(module, recipe, LearningRateFinder(min_lr=1e-5, max_lr=1.0, num_training_steps=25))
    assert len(used) >= 20
    for rates in used:
        assert sorted({round(rate / max(rates), 6) for rate in rates}) == [0.5, 1.0]


class Recorder(torch.optim.SGD):
    """SGD that notes the rates each step is taken with."""

    used: list[Any] = []  # noqa: RUF012

    def step(self, closure: Any = None) -> Any:
        result = super().step(closure)
        self.used.append(tuple(group["lr"] for group in self.param_groups))
        return result


def test_a_given_lr_wins_over_the_finder(caplog: Any) -> None:
    module, recipe = WithLR(), Recipe("llm", lr=5e-4, warmup=0, decay="constant")
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        fit(module, recipe, LearningRateFinder(min_lr=1e-5, max_lr=1.0, num_training_steps=25))
    assert module.lrs[-4:] == [5e-4] * 4
    assert caplog.text.count("lr=0.0005 is kept") == 1


def test_a_tuners_suggestion_is_not_lost_silently(caplog: Any) -> None:
    module, recipe = WithLR(), Recipe("llm")
    before = snapshot(module)
    t = trainer(recipe, max_steps=4)
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        found = Tuner(t).lr_find(module, loader(), min_lr=1e-5, max_lr=1.0, num_training=25)
    assert found is not None
    suggestion = found.suggestion()
    assert caplog.text.count(f"give Recipe(..., lr={suggestion:.3g})") == 1
    assert {k for k, v in snapshot(module).items() if before.get(k) != v} == {"lr"}
    t.fit(module, loader())
    assert recipe.resolved is not None and recipe.resolved.lr == 6e-4


def test_backbone_finetuning() -> None:
    class WithBackbone(Net):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Linear(8, 8)

        def loss(self, batch: Any) -> Any:
            return super().loss([self.backbone(batch[0]), batch[1]])

    module, recipe = WithBackbone(), Recipe("llm", lr=1.0, warmup=0, decay="linear")
    finetuning = BackboneFinetuning(unfreeze_backbone_at_epoch=1, backbone_initial_lr=1e-3)
    start = module.backbone.weight.detach().clone()
    t = fit(module, recipe, finetuning, max_epochs=2)
    assert module.lrs == pytest.approx([1 - step / 16 for step in range(16)])
    assert len(t.optimizers[0].param_groups) == 3
    assert not torch.equal(module.backbone.weight, start)
