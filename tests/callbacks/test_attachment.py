"""Ways to attach a recipe, and what each module brings along."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from lightning.pytorch.callbacks import Callback

from lit_opt import Recipe
from lit_opt.errors import RecipeError
from tests.callbacks.modules import Manual, Net, OwnSGD, callbacks_of, fit, loader, names_of, trainer


def decorated(function: Any) -> Any:
    @functools.wraps(function)
    def inner(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return inner


class Raises(Net):
    def configure_optimizers(self) -> Any:
        raise AssertionError("must not be called")


class Decorated(Net):
    @decorated
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.5)


class SGDMixin:
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.5)  # type: ignore[attr-defined]


class Mixed(SGDMixin, Net):
    pass


@pytest.mark.parametrize("kind", [Net, OwnSGD, Raises, Decorated, Mixed, Manual])
def test_the_recipe_brings_the_optimizer(kind: type[Net]) -> None:
    recipe, module = Recipe("llm"), kind()
    before = [p.detach().clone() for p in module.parameters()]
    t = fit(module, recipe)
    assert isinstance(recipe.optimizer, torch.optim.AdamW)
    assert names_of(recipe) == ["decay", "no_decay"]
    assert t.global_step == 4
    assert all(not torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


def test_compiled_module_and_submodule() -> None:
    recipe, module = Recipe("llm"), Net()
    t = trainer(recipe, max_steps=2)
    t.fit(torch.compile(module, backend="eager"), loader())  # type: ignore[arg-type]
    assert names_of(recipe) == ["decay", "no_decay"]
    assert "configure_optimizers" not in vars(module)

    inner, module = Recipe("llm"), Net()
    module.net = torch.compile(module.net, backend="eager")  # type: ignore[assignment]
    fit(module, inner, max_steps=2)
    assert inner.run is not None
    assert next(r.name for r in inner.run.groups.rows()) == "net.0.weight"
    assert inner.run.group_names[0]["params"] == ["net.0.weight", "net.3.weight"]


def test_attach_adds_the_recipe_through_configure_callbacks() -> None:
    recipe = Recipe("llm")
    module = recipe.attach(Net())
    t = fit(module, None)
    assert names_of(recipe) == ["decay", "no_decay"]
    assert recipe in callbacks_of(t)


def test_attach_keeps_the_modules_own_callbacks() -> None:
    class Marker(Callback):
        pass

    class WithCallback(Net):
        def configure_callbacks(self) -> Any:
            return Marker()

    t = fit(Recipe("llm").attach(WithCallback()), None)
    assert any(isinstance(c, Marker) for c in callbacks_of(t))


def test_inside_ones_own_method_with_the_recipe_as_callback() -> None:
    recipe = Recipe("llm")

    class Own(Net):
        def configure_optimizers(self) -> Any:
            return recipe.configure_optimizers(self)

    module = Own()
    fit(module, recipe)
    assert names_of(recipe) == ["decay", "no_decay"]
    kept = Recipe("llm", existing="keep")

    class OwnKept(Net):
        def configure_optimizers(self) -> Any:
            return kept.configure_optimizers(self)

    module_kept = OwnKept()
    fit(module_kept, kept)
    assert module_kept.seen == module.seen


def test_an_optimizer_that_is_kept_has_no_averages_of_the_recipes() -> None:
    """Found by the fuzz."""
    recipe = Recipe("llm/splus", existing="keep", clip=0)
    module = OwnSGD()
    with pytest.raises(RecipeError, match="existing: 'keep' keeps SGD, and the recipe's optimizer"):
        fit(module, recipe)
    assert "configure_optimizers" not in vars(module)


def test_inside_ones_own_method_alone() -> None:
    class Own(Net):
        def __init__(self, recipe: Recipe) -> None:
            super().__init__()
            self.recipe = recipe

        def configure_optimizers(self) -> Any:
            return self.recipe.configure_optimizers(self)

    with pytest.raises(RecipeError, match=r"clip of Recipe\('llm'\) would be lost.*clip=0"):
        fit(Own(Recipe("llm")), None)
    module = Own(Recipe("llm", clip=0))
    t = fit(module, None, max_steps=8)
    assert names_of(module.recipe) == ["decay", "no_decay"]
    through_callback = Net()
    fit(through_callback, Recipe("llm", clip=0), max_steps=8)
    assert module.lrs == through_callback.lrs
    assert t.lr_scheduler_configs[0].name == "lr"


def test_plain_pytorch_loop() -> None:
    module, recipe = Net(), Recipe("llm", lr=1e-2, warmup=3)
    optimizer, scheduler = recipe.configure(module, total_steps=8)
    lrs = []
    for batch in loader():
        optimizer.zero_grad()
        module.loss(batch).backward()
        norm = recipe.clip_gradients(module)
        assert norm is not None and norm > 0
        lrs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    through_trainer = Net()
    fit(through_trainer, Recipe("llm", lr=1e-2, warmup=3), max_steps=8)
    assert lrs == through_trainer.lrs
    # The norm is summed in another order of the parameters, so the last bit may differ.
    torch.testing.assert_close(list(module.parameters()), list(through_trainer.parameters()))


def test_fabric_loop() -> None:
    fabric = Fabric(accelerator="cpu", devices=1)
    module, recipe = Net(), Recipe("llm", lr=1e-2, warmup=3)
    optimizer, scheduler = recipe.configure(module, total_steps=8)
    wrapped, optimizer = fabric.setup(module.net, optimizer)
    data = fabric.setup_dataloaders(loader())
    lrs = []
    for inputs, labels in data:
        optimizer.zero_grad()
        fabric.backward(torch.nn.functional.cross_entropy(wrapped(inputs), labels))
        recipe.clip_gradients(wrapped)
        lrs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    through_trainer = Net()
    fit(through_trainer, Recipe("llm", lr=1e-2, warmup=3), max_steps=8)
    assert lrs == through_trainer.lrs
    torch.testing.assert_close(list(module.net.parameters()), list(through_trainer.net.parameters()))


@pytest.mark.parametrize("own", [False, True])
def test_evaluation_leaves_the_module_alone(own: bool) -> None:
    module, recipe = (OwnSGD if own else Net)(), Recipe("llm")
    t = trainer(recipe, max_steps=2)
    t.validate(module, loader(), verbose=False)
    t.test(module, loader(), verbose=False)
    t.predict(module, loader())
    assert "configure_optimizers" not in vars(module) and recipe.run is None


def test_fast_dev_run_and_barebones() -> None:
    recipe = Recipe("llm")
    fit(Net(), recipe, fast_dev_run=True)
    assert recipe.resolved is not None and recipe.resolved.facts.total_steps == 1

    class Silent(Net):
        def log(self, *args: Any, **kwargs: Any) -> None:
            """A barebones Trainer refuses `self.log`."""

    recipe = Recipe("llm")
    t = trainer()
    barebones = type(t)(barebones=True, max_steps=3, accelerator="cpu", callbacks=[recipe])
    barebones.fit(Silent(), loader())
    assert names_of(recipe) == ["decay", "no_decay"]
