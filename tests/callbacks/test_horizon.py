"""The schedule follows the optimizer's steps, over the true length of the run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from lit_opt import Recipe
from lit_opt.callbacks.facts import loader_batch_size
from lit_opt.errors import RecipeError
from lit_opt.recipes.schema import DecaySpec
from lit_opt.schedules import Schedule, factor
from tests.callbacks.modules import Endless, Manual, Net, fit, loader, snapshot, tensors, trainer


def linear(**kwargs: Any) -> Recipe:
    """Falls by one equal part a step, to 0 at the end."""
    given: dict[str, Any] = {"lr": 1.0, "warmup": 0, "decay": DecaySpec(kind="linear", final=0.0)}
    return Recipe("llm", **(given | kwargs))


def endless() -> DataLoader[Any]:
    return DataLoader(Endless(), 4)


@pytest.mark.parametrize("kind", [Net, Manual])
@pytest.mark.parametrize(
    ("kwargs", "steps"),
    [
        ({"max_epochs": 2}, 16),
        ({"max_epochs": 2, "max_steps": 5}, 5),
        ({"max_steps": 20}, 20),
        ({"max_epochs": 2, "limit_train_batches": 3}, 6),
        ({"max_epochs": 2, "limit_train_batches": 0.5}, 8),
    ],
)
def test_one_part_a_step(kind: type[Net], kwargs: dict[str, Any], steps: int) -> None:
    module = kind()
    t = fit(module, linear(), **kwargs)
    assert t.global_step == steps
    assert module.lrs == pytest.approx([1 - step / steps for step in range(steps)])
    assert t.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("kwargs", "steps"),
    [({"max_epochs": 2, "accumulate_grad_batches": 3}, 6), ({"max_steps": 5, "accumulate_grad_batches": 2}, 5)],
)
def test_accumulation(kwargs: dict[str, Any], steps: int) -> None:
    module, recipe = Net(), linear()
    fit(module, recipe, **kwargs)
    assert module.lrs == pytest.approx([1 - step / steps for step in range(steps)])
    assert recipe.resolved is not None
    assert recipe.resolved.facts.global_batch == 4 * kwargs["accumulate_grad_batches"]


@pytest.mark.parametrize(("scheduling", "steps"), [({0: 1, 1: 2}, 16), ({0: 4, 1: 2}, 10), ({1: 8}, 10)])
def test_accumulation_that_changes(scheduling: dict[int, int], steps: int) -> None:
    module = Net()
    t = fit(module, linear(), GradientAccumulationScheduler(scheduling), max_epochs=3)
    assert t.global_step == steps
    assert module.lrs == pytest.approx([1 - step / steps for step in range(steps)])


@pytest.mark.parametrize("kwargs", [{"max_epochs": 2}, {"max_time": "00:00:00:01"}])
def test_an_unknown_horizon_is_one_error_with_the_remedies(kwargs: dict[str, Any]) -> None:
    data = endless() if "max_epochs" in kwargs else loader()
    with pytest.raises(RecipeError) as caught:
        fit(Net(), Recipe("llm"), data=data, **kwargs)
    assert "horizon of the run is unknown" in str(caught.value)
    for remedy in ("max_steps=", "limit_train_batches=", "total_steps=", "decay='constant'"):
        assert remedy in str(caught.value)


def test_remedies_for_an_unknown_horizon() -> None:
    module = Net()
    fit(module, linear(total_steps=16), data=endless(), max_epochs=2)
    assert module.lrs == pytest.approx([1 - step / 16 for step in range(16)])
    for kwargs in ({"limit_train_batches": 4, "max_epochs": 2}, {"max_steps": 8}):
        module = Net()
        fit(module, linear(), data=endless(), **kwargs)
        assert module.lrs == pytest.approx([1 - step / 8 for step in range(8)])
    module = Net()
    fit(module, linear(decay="constant", warmup=3), data=endless(), max_epochs=1)
    assert module.lrs == pytest.approx([1 / 4, 2 / 4, 3 / 4, 1, 1, 1, 1, 1])


def test_max_time_with_a_constant_rate() -> None:
    module = Net()
    t = fit(module, Recipe("llm", lr=1e-3, decay="constant", warmup=2), max_time={"milliseconds": 300})
    assert t.global_step > 2
    assert set(module.lrs[2:]) == {1e-3}


@pytest.mark.parametrize("kwargs", [{"max_epochs": 10}, {"max_steps": 80}])
def test_warmup_in_epochs(kwargs: dict[str, Any]) -> None:
    module, recipe = Net(), linear(warmup="5 epochs")
    fit(module, recipe, accumulate_grad_batches=2, **kwargs)
    assert recipe.resolved is not None and recipe.resolved.schedule is not None
    assert recipe.resolved.schedule.warmup_steps == 20


def test_the_rates_are_those_of_the_closed_form() -> None:
    module, recipe = Net(), Recipe("llm", lr=0.5, warmup=4)
    fit(module, recipe, max_epochs=2)
    expected = Schedule(total_steps=16, warmup_steps=4, kind="cosine", final=0.1, gamma=1.0)
    assert recipe.resolved is not None and recipe.resolved.schedule == expected
    assert module.lrs == [0.5 * factor(expected, step) for step in range(16)]


def test_a_warmup_as_long_as_the_run() -> None:
    module = Net()
    with pytest.raises(RecipeError, match="warmup: 4 steps are as long as the run or longer"):
        fit(module, Recipe("llm", warmup=4))
    with pytest.raises(RecipeError, match="warmup: 40 steps"):
        fit(module, Recipe("llm", warmup="5 epochs"), max_epochs=1)


def test_the_batch_is_read_off_the_loader() -> None:
    assert loader_batch_size(loader(batch_size=8)) == 8
    assert (
        loader_batch_size(DataLoader(tensors(), batch_sampler=BatchSampler(SequentialSampler(tensors()), 5, False)))
        == 5
    )
    assert loader_batch_size([loader(), loader()]) is None
    for kwargs in ({"max_epochs": 1}, {"max_steps": 3}):
        recipe = Recipe("cnn")
        fit(Net(), recipe, data=loader(128, batch_size=64), **kwargs)
        assert recipe.resolved is not None and recipe.resolved.facts.global_batch == 64
        assert recipe.resolved.lr == pytest.approx(0.1 * 64 / 256)


def test_an_unknown_batch_is_asked_for() -> None:
    class NoBatchSize:
        def __iter__(self) -> Any:
            return iter(loader())

        def __len__(self) -> int:
            return 8

    module = Net()
    before = snapshot(module)
    with pytest.raises(RecipeError, match=r"batch.*batch_size="):
        fit(module, Recipe("cnn"), data=NoBatchSize())
    assert snapshot(module) == before
    recipe = Recipe("cnn", batch_size=128)
    fit(module, recipe, data=NoBatchSize())
    assert recipe.resolved is not None and recipe.resolved.lr == pytest.approx(0.05)


def test_a_module_that_makes_its_data_in_setup() -> None:
    class OwnData(Net):
        def setup(self, stage: str) -> None:
            self.data = loader()

        def train_dataloader(self) -> Any:
            return self.data

    recipe = linear()
    t = trainer(recipe, max_epochs=1)
    module = OwnData()
    t.fit(module)
    assert module.lrs == pytest.approx([1 - step / 8 for step in range(8)])


def test_an_empty_dataset() -> None:
    with pytest.raises(RecipeError, match="train_dataloader: it has no batch"):
        fit(Net(), Recipe("llm"), data=DataLoader(torch.utils.data.TensorDataset(torch.zeros(0, 8)), 4), max_epochs=1)
