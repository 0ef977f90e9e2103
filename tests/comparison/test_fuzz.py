"""Hypothesis draws comparisons: each gives results that a second call repeats, or is refused with our message."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, WeightedRandomSampler

from lit_opt import Recipe, compare
from lit_opt.errors import RecipeError
from lit_opt.recipes import list_recipes

SLOW = int(os.environ.get("LIT_OPT_FUZZ_DRAWS", "300"))
# 8 bits are torchao's, which compiles for each shape; adapters need peft's layers.
RECIPES = [name for name in list_recipes() if "8bit" not in name and "lora" not in name]


@dataclass(frozen=True)
class Draw:
    """What a module, its data and a comparison of them are like."""

    width: int
    norm: str
    dropout: float
    scale: float
    bad: str
    at: int
    logs: str
    loader: str
    kind: str
    samples: int
    batch: int
    drop_last: bool
    arms: Any
    budget: tuple[int, int | None, tuple[float, ...] | None]
    search: tuple[int, int, int, int]
    readout: str | None
    decades: float
    trainer: tuple[tuple[str, Any], ...]


def one(*values: Any) -> Any:
    return st.sampled_from(values)


names = one(*RECIPES)
arms = st.one_of(
    st.lists(names, min_size=2, max_size=3, unique=True),
    st.tuples(names, names).map(lambda two: {"a": two[0], "b": {"name": two[1], "lr": 1e-3}}),
    st.tuples(names, names).map(lambda two: {"a": Recipe(two[0]), "b": Recipe(two[1], ema=0)}),
)
draws = st.builds(
    Draw,
    width=one(4, 16),
    norm=one("", "batch", "layer"),
    dropout=one(0.0, 0.3),
    scale=one(1.0, 1.0, 1e4, 1e-6),
    bad=one("", "", "", "", "nan", "huge", "none", "stop"),
    at=one(1, 2, 3, 5, 9, 14),
    logs=one("val_loss", "val_loss", "double", "two", "train too", "nan", "nothing"),
    loader=one("plain", "plain", "iterable", "workers", "weighted", "batch sampler"),
    kind=one("pair", "noisy", "mapping", "with an index"),
    samples=one(16, 33, 64),
    batch=one(4, 8, 16),
    drop_last=st.booleans(),
    arms=arms,
    budget=one((1, 1, None), (4, None, None), (6, 2, None), (8, 2, (0.5,)), (8, 2, (0.25, 0.75)), (16, 4, None)),
    search=st.tuples(one(1, 1, 2, 4), one(2, 3), one(1, 1, 2), one(0, 0, 1)),  # trials, seeds, studies, extend
    readout=one("raw", "raw", None, "averages"),
    decades=one(0.5, 2.0, 8.0),
    trainer=one(
        *((), (), ("precision", "bf16-mixed"), ("accumulate_grad_batches", 2), ("limit_val_batches", 1)),
        *(("gradient_clip_val", 0.5), ("limit_train_batches", 2), ("deterministic", True), ("inference_mode", False)),
    ).map(lambda pair: (pair,) if pair else ()),
)


class Numbers(Dataset[Any]):
    def __init__(self, count: int, kind: str) -> None:
        self.kind = kind
        self.x = torch.randn(count, 8, generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        x = self.x[index]
        y = torch.tanh(2 * x[:1])
        if self.kind == "mapping":
            return {"x": x, "y": y, "name": f"number {index}"}
        x = x + 0.1 * torch.randn(8) if self.kind == "noisy" else x
        return (x, y, index) if self.kind == "with an index" else (x, y)


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        for _ in range(64):
            x = torch.randn(8)
            yield x, torch.tanh(x[:1])


def loaders(draw: Draw) -> tuple[Any, Any]:
    data: Any = Endless() if draw.loader == "iterable" else Numbers(draw.samples, draw.kind)
    whole = draw.drop_last or draw.norm == "batch"  # which cannot train on the single sample that 33 leave
    given: dict[str, Any] = {"batch_size": draw.batch, "drop_last": whole}
    if draw.loader == "batch sampler":
        given = {"batch_sampler": BatchSampler(RandomSampler(data), draw.batch, whole)}
    elif draw.loader == "weighted":
        given["sampler"] = WeightedRandomSampler(torch.ones(len(data)).tolist(), len(data))
    elif draw.loader != "iterable":
        given |= {"shuffle": True, "num_workers": int(draw.loader == "workers")}
    kind = "mapping" if draw.kind == "mapping" and draw.loader != "iterable" else "pair"
    return DataLoader(data, **given), DataLoader(Numbers(16, kind), 8)


class Drawn(LightningModule):
    def __init__(self, draw: Draw) -> None:
        super().__init__()
        self.draw, self.calls, width = draw, 0, draw.width
        norm = {"": nn.Identity(), "batch": nn.BatchNorm1d(width), "layer": nn.LayerNorm(width)}[draw.norm]
        middle = (norm, nn.ReLU(), nn.Dropout(draw.dropout), nn.Linear(width, width, bias=False), nn.ReLU())
        self.layers = nn.Sequential(nn.Linear(8, width), *middle, nn.Linear(width, 1))

    def loss(self, batch: Any) -> Any:
        x, y = (batch["x"], batch["y"]) if isinstance(batch, dict) else batch[:2]
        return F.mse_loss(self.layers(x), y) * self.draw.scale

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.calls += 1
        loss, now = self.loss(batch), self.calls == self.draw.at
        if self.draw.logs == "train too":
            self.log("train_loss", loss)
        if self.draw.bad == "none" and now:
            return None
        if self.draw.bad == "stop" and now:
            self.trainer.should_stop = True
        late = self.draw.bad == "huge" and self.calls >= self.draw.at
        return loss * (torch.nan if self.draw.bad == "nan" and now else 1e6 if late else 1.0)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        loss, logs = self.loss(batch), self.draw.logs
        if logs != "nothing":
            self.log("val_loss", loss.double() if logs == "double" else loss * torch.nan if logs == "nan" else loss)
        if logs == "two":
            self.log("val_acc", torch.exp(-loss))


def try_out(draw: Draw, folder: str) -> str:
    steps, every, horizons = draw.budget
    trials, seeds, studies, extend = draw.search

    def run() -> dict[str, Any]:
        return compare(
            lambda: Drawn(draw),
            lambda: loaders(draw),
            arms=draw.arms,
            budget_steps=steps,
            eval_every=every,
            horizons=horizons,
            trials=trials,
            seeds=seeds,
            studies=studies,
            extend=extend,
            readout=draw.readout,  # type: ignore[arg-type]
            decades=draw.decades,
            trainer={"accelerator": "cpu", **dict(draw.trainer)},
            out=folder,
            quiet=True,
        )

    def numbers(results: dict[str, Any]) -> str:
        return json.dumps(
            {key: value for key, value in results.items() if key != "timing"}, sort_keys=True, default=str
        )

    try:
        first = run()
    except RecipeError:
        return "refused"
    assert numbers(first) == numbers(run()), f"resumed it says something else: {draw}"
    assert first["violations"] == [], f"{first['violations']}\n{draw}"
    return "compared"


@pytest.mark.slow
def test_hundreds_of_comparisons() -> None:
    torch.set_num_threads(1)
    seen: Counter[str] = Counter()

    @settings(max_examples=SLOW, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=True)
    @given(draws)
    def many(draw: Draw) -> None:
        with tempfile.TemporaryDirectory() as folder:
            seen[try_out(draw, folder)] += 1

    many()
    print(dict(seen))
    assert seen["compared"] > 0.2 * sum(seen.values()), seen
