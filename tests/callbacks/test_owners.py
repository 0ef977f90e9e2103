"""Who sets the optimizer when several want to, and what manual optimization needs."""

from __future__ import annotations

import logging
import sys
from typing import Any

import pytest
import torch
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import nn

from lit_opt import GroupRule, Recipe
from lit_opt.errors import RecipeError
from tests.callbacks.modules import QUIET, Manual, ManualOwn, Net, OwnSGD, callbacks_of, fit, loader, snapshot, trainer


class OwnWithSchedule(Net):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.5)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def test_replace_is_the_default_and_says_so_in_one_line(caplog: Any) -> None:
    for existing in (None, "replace"):
        caplog.clear()
        recipe = Recipe("llm", existing=existing)
        with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
            t = fit(OwnSGD(), recipe)
        assert t.optimizers[0] is recipe.optimizer
        assert caplog.text.count("replaces OwnSGD.configure_optimizers") == 1


def test_keep_leaves_optimizer_and_scheduler(caplog: Any) -> None:
    module, recipe = OwnWithSchedule(), Recipe("llm", existing="keep")
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        t = fit(module, recipe)
    assert isinstance(t.optimizers[0], torch.optim.SGD) and recipe.optimizer is None
    assert module.lrs == [0.5, 0.25, 0.125, 0.0625]
    assert caplog.text.count("are kept") == 1


def test_keep_without_an_own_method_is_the_recipe() -> None:
    recipe = Recipe("llm", existing="keep")
    assert fit(Net(), recipe).optimizers[0] is recipe.optimizer


def test_error_refuses() -> None:
    module = OwnSGD()
    before = snapshot(module)
    with pytest.raises(RecipeError, match="existing: OwnSGD has its own configure_optimizers"):
        fit(module, Recipe("llm", existing="error"))
    assert snapshot(module) == before
    fit(Net(), Recipe("llm", existing="error"))


def test_manual_optimization_never_replaces_silently() -> None:
    with pytest.raises(RecipeError, match=r"optimizes manually.*existing='keep'"):
        fit(ManualOwn(), Recipe("llm"))
    assert isinstance(fit(ManualOwn(), Recipe("llm", existing="keep")).optimizers[0], torch.optim.SGD)
    module, recipe = ManualOwn(), Recipe("llm", existing="replace", lr=1.0, warmup=0, decay="linear")
    assert fit(module, recipe).optimizers[0] is recipe.optimizer
    assert module.lrs == [1.0, 0.75, 0.5, 0.25]


def test_manual_optimization_with_steps_left_out() -> None:
    """The schedule follows the global step, not the batches."""

    class EverySecond(Manual):
        def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
            if batch_idx % 2:
                super().training_step(batch, batch_idx)

    module = EverySecond()
    fit(module, Recipe("llm", lr=1.0, warmup=0, decay="linear", total_steps=4), max_epochs=1)
    assert module.lrs == [1.0, 0.75, 0.5, 0.25]


def test_two_recipes() -> None:
    module = Net()
    before = snapshot(module)
    with pytest.raises(RecipeError, match=r"two recipes want.*'cnn'.*'llm'"):
        fit(module, Recipe("llm"), Recipe("cnn", batch_size=256))
    assert snapshot(module) == before
    attached = Recipe("cnn", batch_size=256).attach(Net())
    with pytest.raises(RecipeError, match=r"two recipes want.*'cnn'.*'llm'"):
        fit(attached, Recipe("llm"))
    twice = Recipe("llm").attach(Recipe("cnn", batch_size=256).attach(Net()))
    with pytest.raises(RecipeError, match="two recipes"):
        fit(twice, None)


def test_attached_and_given_to_the_trainer_is_one_recipe() -> None:
    recipe = Recipe("llm")
    t = fit(recipe.attach(Net()), recipe)
    assert callbacks_of(t).count(recipe) == 1 and t.optimizers[0] is recipe.optimizer


@pytest.mark.parametrize("scheduler", [[], ["--lr_scheduler=StepLR", "--lr_scheduler.step_size=1"]])
def test_a_command_line_optimizer(monkeypatch: pytest.MonkeyPatch, scheduler: list[str]) -> None:
    defaults = QUIET | {"max_steps": 2, "callbacks": [Recipe("llm")]}
    monkeypatch.setattr(sys, "argv", ["x", "fit", "--optimizer=torch.optim.SGD", "--optimizer.lr=0.1", *scheduler])
    with pytest.raises(RecipeError, match=r"LightningCLI --optimizer.*Remove"):
        LightningCLI(BoringModel, save_config_callback=None, trainer_defaults=defaults)
    monkeypatch.setattr(sys, "argv", ["x", "fit"])
    recipe = Recipe("llm")
    defaults = QUIET | {"max_steps": 2, "callbacks": [recipe]}
    LightningCLI(BoringModel, save_config_callback=None, trainer_defaults=defaults)
    assert recipe.optimizer is not None


class Frozen(Net):
    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize(
    ("module", "recipe", "message"),
    [
        (Frozen, Recipe("llm"), "parameters: none of the module's 6 parameters is trainable"),
        (Net, Recipe("llm", groups=[GroupRule(match="nat.*", lr_scale=0.1)]), "rule 'nat.*' matches no parameter"),
    ],
)
def test_bad_input_through_the_trainer(module: type[Net], recipe: Recipe, message: str) -> None:
    net = module()
    before = snapshot(net)
    with pytest.raises(RecipeError, match=message.replace("*", r"\*")):
        fit(net, recipe)
    assert snapshot(net) == before and recipe.run is None


def test_what_configure_model_makes_is_seen() -> None:
    class Late(Net):
        def configure_model(self) -> None:
            if not hasattr(self, "extra"):
                self.extra = nn.Linear(4, 4)

        def loss(self, batch: Any) -> Any:
            return torch.nn.functional.cross_entropy(self.extra(self.net(batch[0])), batch[1])

    recipe, module = Recipe("llm"), Late()
    fit(module, recipe)
    assert recipe.run is not None
    assert "extra.weight" in [row.name for row in recipe.run.groups.rows()]
    assert "configure_model" not in vars(module)


def test_should_lightning_not_assign_log_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """`setup` still installs where the module has any method; where it has none, Lightning's check comes first."""
    from lightning.pytorch.trainer.connectors.callback_connector import _CallbackConnector

    monkeypatch.setattr(_CallbackConnector, "_attach_model_logging_functions", lambda self: None)
    recipe = Recipe("llm")
    assert fit(OwnSGD(), recipe).optimizers[0] is recipe.optimizer
    recipe = Recipe("llm")
    assert fit(recipe.attach(Net()), None).optimizers[0] is recipe.optimizer


def test_log_fires_before_the_verification(monkeypatch: pytest.MonkeyPatch) -> None:
    import lightning.pytorch.trainer.trainer as lightning_trainer

    order: list[str] = []
    verify = lightning_trainer._verify_loop_configurations

    class Watched(Recipe):
        def open(self, trainer: Any, module: Any) -> None:
            order.append("open")
            super().open(trainer, module)

    def verified(t: Any) -> None:
        order.append("verify")
        verify(t)

    monkeypatch.setattr(lightning_trainer, "_verify_loop_configurations", verified)
    recipe = Watched("llm")
    t = trainer(recipe, max_steps=1)
    t.fit(Net(), loader())
    assert order[:2] == ["open", "verify"]
    assert callable(recipe.log)
