"""Whatever ends a run, module and Trainer are as they were found; copies and pickles work at any time."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from lit_opt import Recipe
from lit_opt.callbacks.patches import patched_by
from lit_opt.errors import RecipeError
from tests.callbacks.modules import (
    Endless,
    Net,
    OwnSGD,
    fit,
    loader,
    names_of,
    roundtrip,
    snapshot,
    trainer,
    trainer_fields,
)


class Fails(Net):
    """Raises `error` in the hook `where`."""

    def __init__(self, where: str, error: type[BaseException]) -> None:
        super().__init__()
        self.where, self.error = where, error

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.where == "training_step" and batch_idx == 1:
            raise self.error("stop here")
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if self.where == "validation_step" and self.trainer.global_step > 0:
            raise self.error("stop here")
        super().validation_step(batch, batch_idx)

    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        super().configure_gradient_clipping(*args, **kwargs)


@pytest.mark.parametrize("where", ["nowhere", "training_step", "validation_step"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_module_and_trainer_are_as_before(where: str, error: type[BaseException]) -> None:
    module, recipe = Fails(where, error), Recipe("llm")
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.1)  # type: ignore[method-assign]
    before = snapshot(module)
    t = trainer(recipe, max_epochs=1)
    fields = trainer_fields(t)
    stopped = (SystemExit, KeyboardInterrupt) if error is KeyboardInterrupt else error
    if where == "nowhere":
        t.fit(module, loader(), loader())
    else:
        with pytest.raises(stopped):
            t.fit(module, loader(), loader())
    assert {k: v for k, v in snapshot(module).items() if before.get(k) != v} == {}
    assert trainer_fields(t) == fields


def test_after_an_error_in_configure() -> None:
    module, recipe = Net(), Recipe("llm")
    before = snapshot(module)
    t = trainer(recipe, max_epochs=1)
    fields = trainer_fields(t)
    with pytest.raises(RecipeError, match="horizon"):
        t.fit(module, torch.utils.data.DataLoader(Endless(), 4))
    assert snapshot(module) == before and trainer_fields(t) == fields
    assert recipe.run is None
    fit(module, recipe)
    assert names_of(recipe) == ["decay", "no_decay"]


def test_second_fit_with_the_same_and_with_another_recipe() -> None:
    recipe, module = Recipe("llm"), Net()
    fit(module, recipe)
    first = recipe.optimizer
    fit(module, recipe, max_steps=6)
    assert recipe.optimizer is not first
    assert recipe.resolved is not None and recipe.resolved.facts.total_steps == 6
    other = Recipe("cnn", batch_size=256)
    fit(module, other)
    assert isinstance(other.optimizer, torch.optim.SGD)


def test_the_same_trainer_fits_twice() -> None:
    recipe, module = Recipe("llm", lr=1e-2), Net()
    t = trainer(recipe, max_steps=2)
    t.fit(module, loader())
    t.fit_loop.epoch_loop.max_steps = 4
    t.fit(module, loader())
    assert t.global_step == 4


def test_copies_before_during_and_after() -> None:
    recipe, module = Recipe("llm", lr=1e-3), OwnSGD()
    seen: dict[str, Any] = {}

    class Copies(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            seen["module"], seen["pickled"] = copy.deepcopy(pl_module), roundtrip(pl_module)
            seen["recipe"], seen["recipe_pickled"] = copy.deepcopy(recipe), roundtrip(recipe)

    for thing in (copy.deepcopy(recipe), roundtrip(recipe)):
        assert thing.overrides == recipe.overrides and thing.spec.name == "llm"
    fit(module, recipe, Copies(), max_steps=2)
    for name in ("module", "pickled"):
        copied = seen[name]
        assert patched_by(copied, "configure_optimizers") is None, name
        # A copy is on its own: it trains by its own method and does not touch the original.
        fit(copied, None, max_steps=2)
        assert isinstance(copied.trainer.optimizers[0], torch.optim.SGD)
        fit(copied, Recipe("llm", existing="replace"), max_steps=2)
        assert isinstance(copied.trainer.optimizers[0], torch.optim.AdamW)
    for name in ("recipe", "recipe_pickled"):
        assert seen[name].run is None and seen[name].overrides == recipe.overrides
        fit(Net(), seen[name], max_steps=2)
    roundtrip(module), copy.deepcopy(module)
    again = copy.deepcopy(recipe)
    fit(Net(), again, max_steps=2)


def test_copies_of_an_attached_module_are_attached_to_a_recipe_of_their_own() -> None:
    recipe = Recipe("llm")
    module = recipe.attach(Net())
    for copied in (copy.deepcopy(module), roundtrip(module)):
        fit(copied, None, max_steps=2)
        assert isinstance(copied.trainer.optimizers[0], torch.optim.AdamW)
        assert recipe.run is None
        with pytest.raises(RecipeError, match=r"two recipes.*cnn.*llm"):
            fit(copied, Recipe("cnn", batch_size=256), max_steps=2)
    fit(module, None, max_steps=2)
    assert names_of(recipe) == ["decay", "no_decay"]
