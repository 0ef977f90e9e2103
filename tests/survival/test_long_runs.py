"""A hundred thousand steps: memory does not grow, and schedule and averages are where their formulas put them."""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from lit_opt import DecaySpec, EMASpec, OptimizerMonitor, Recipe
from tests.callbacks.modules import trainer

STEPS = int(os.environ.get("LIT_OPT_LONG_STEPS", "100000"))
PEAK, FINAL, WARMUP, DECAY = 1e-3, 0.1, 1000, 0.999
START = 0.01  # of the peak: where the warmup of this recipe begins


class Ones(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        for _ in range(STEPS):
            yield torch.ones(2)


class Falls(LightningModule):
    """The gradient is 1 everywhere, so that SGD takes lr away at each step."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = (self.w * batch).sum()
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val", self.w.sum())


def rate(step: int) -> float:
    """The formula, written anew."""
    if step < WARMUP:
        return PEAK * (START + (1 - START) * (step + 1) / (WARMUP + 1))
    share = (step - WARMUP) / (STEPS - WARMUP)
    return PEAK * (FINAL + (1 - FINAL) * 0.5 * (1 + math.cos(math.pi * share)))


class Watches(Callback):
    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.w = self.average = 0.0
        self.updates = 0
        self.worst_rate = 0.0
        self.memory: list[tuple[int, int]] = []

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        lr = trainer.optimizers[0].param_groups[0]["lr"]
        self.worst_rate = max(self.worst_rate, abs(lr / rate(trainer.global_step) - 1))

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        step = trainer.global_step
        self.w -= rate(step - 1)
        self.updates += 1
        d = min(DECAY, (1 + self.updates) / (10 + self.updates))
        self.average = d * self.average + (1 - d) * self.w
        if step % (STEPS // 10) == 0:
            gc.collect()
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.memory.append((len(gc.get_objects()), pages * os.sysconf("SC_PAGE_SIZE")))


@pytest.mark.slow
def test_a_hundred_thousand_steps(tmp_path: Path) -> None:
    module = Falls()
    recipe = Recipe(
        "cnn", lr=PEAK, momentum=0.0, weight_decay=0.0, warmup=WARMUP, decay=DecaySpec(kind="cosine", final=FINAL),
        optimizer_kwargs={"nesterov": False}, ema=EMASpec(decay=DECAY), batch_size=1, on_nonfinite="skip",
    )  # fmt: skip
    watches = Watches(recipe)
    keep = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=STEPS // 5)
    t = trainer(
        recipe, watches, OptimizerMonitor(every_n_steps=1000), keep, max_steps=STEPS, enable_checkpointing=True,
        val_check_interval=STEPS // 10, check_val_every_n_epoch=None, limit_val_batches=2,
    )  # fmt: skip
    t.fit(module, DataLoader(Ones(), batch_size=None), DataLoader(Ones(), batch_size=None))
    assert t.global_step == STEPS == watches.updates
    assert watches.worst_rate < 1e-12
    assert float(module.w[0]) == pytest.approx(watches.w, rel=1e-9)
    assert recipe.ema is not None and recipe.ema._averages is not None
    assert (recipe.ema.steps, recipe.ema.updates) == (STEPS, STEPS)
    assert float(recipe.ema._averages.whole("w")[0]) == pytest.approx(watches.average, rel=1e-9)
    objects, memory = zip(*watches.memory, strict=True)
    print(f"objects {objects}; resident bytes {memory}; rate off by {watches.worst_rate:.1e}")
    assert objects[-1] - objects[2] < 200
    assert memory[-1] - memory[2] < 8 * 2**20
