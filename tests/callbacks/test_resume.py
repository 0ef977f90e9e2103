"""A resumed run is the uninterrupted one, bit for bit."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lit_opt import Recipe
from tests.callbacks.modules import Net, SaveAt, StatefulLoader, fit, loader


class Draws(Net):
    """Dropout, and a draw of each generator a step."""

    def __init__(self) -> None:
        super().__init__(dropout=0.5)
        self.drawn: list[tuple[float, float, float]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.drawn.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
        return super().training_step(batch, batch_idx)


def seed(n: int) -> None:
    random.seed(n)
    np.random.seed(n)
    torch.manual_seed(n)


def recipe(**kwargs: Any) -> Recipe:
    return Recipe("llm", **({"lr": 1e-2, "warmup": 8} | kwargs))


def straight_and_resumed(
    path: Path, make_data: Any, step: int, where: str = "on_train_batch_end", val: Any = None, **kwargs: Any
) -> tuple[Any, ...]:
    """Run to the end; run with a save at `step`; resume from it. Returns both modules, recipes and loaders."""
    kwargs = {"max_epochs": 3} | kwargs
    seed(1)
    whole, first_recipe, whole_data = Draws(), recipe(), make_data()
    saver = SaveAt(path, step, where)
    fit(whole, first_recipe, saver, data=whole_data, val_dataloaders=val, **kwargs)
    assert saver.done
    seed(2)
    rest, second_recipe, rest_data = Draws(), recipe(), make_data()
    fit(rest, second_recipe, data=rest_data, val_dataloaders=val, ckpt_path=path, **kwargs)
    return whole, rest, first_recipe, second_recipe, whole_data, rest_data


def assert_same_end(whole: Draws, rest: Draws, first: Recipe, second: Recipe) -> None:
    assert rest.seen == whole.seen[-len(rest.seen) :] and 0 < len(rest.seen) < len(whole.seen)
    assert rest.drawn == whole.drawn[-len(rest.drawn) :]
    assert first.optimizer is not None and second.optimizer is not None
    for a, b in zip(whole.parameters(), rest.parameters(), strict=True):
        assert torch.equal(a, b)
        for key, value in first.optimizer.state[a].items():
            assert torch.equal(value, second.optimizer.state[b][key]), key
    for g, h in zip(first.optimizer.param_groups, second.optimizer.param_groups, strict=True):
        assert {k: v for k, v in g.items() if k != "params"} == {k: v for k, v in h.items() if k != "params"}


@pytest.mark.parametrize("step", [3, 13])  # in the warmup, in the decay
def test_in_the_middle_of_an_epoch(tmp_path: Path, step: int) -> None:
    whole, rest, a, b, data, resumed_data = straight_and_resumed(tmp_path / "c.ckpt", StatefulLoader, step)
    assert resumed_data.given == data.given[step:]
    assert_same_end(whole, rest, a, b)


@pytest.mark.parametrize("where", ["on_train_batch_end", "on_train_epoch_end", "on_validation_end"])
@pytest.mark.parametrize("make_data", [StatefulLoader, lambda: loader(shuffle=True)])
def test_at_the_end_of_an_epoch(tmp_path: Path, where: str, make_data: Any) -> None:
    """Also with a plain DataLoader, whose order is drawn from the global generator."""
    val = loader(8) if where == "on_validation_end" else None
    whole, rest, a, b, *_ = straight_and_resumed(tmp_path / "c.ckpt", make_data, 8, where, val)
    assert_same_end(whole, rest, a, b)


def test_with_accumulation_and_max_steps(tmp_path: Path) -> None:
    whole, rest, a, b, *_ = straight_and_resumed(
        tmp_path / "c.ckpt", StatefulLoader, 5, max_epochs=-1, max_steps=11, accumulate_grad_batches=2
    )
    assert_same_end(whole, rest, a, b)
