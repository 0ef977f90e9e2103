"""What the harness of a comparison costs a training step: hashes, seeds, the observer; with it and without, interleaved.

Run from the root of the repository: `python -m benchmarks.compare_overhead`. Writes benchmarks/results/compare_overhead.md.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_opt import Recipe
from lit_opt.comparison.observer import Observer
from lit_opt.comparison.task import Task
from lit_opt.comparison.training import quiet, train

STEPS, WARM, ROUNDS = 200, 20, 15

# Width of the model, batch: the tiny one shows the harness itself, the other a step of about 10 ms.
SIZES = {"tiny step": (8, 16), "step of about 10 ms": (512, 256)}

TEXT = """# What the harness of a comparison costs a step

Device: x86_64 CPU, 1 thread, torch {torch}; the machine was busy with other work, so processor time is counted, not the clock.
Not run on a GPU. Script: `python -m benchmarks.compare_overhead`. {rounds} rounds, with and without after one another in each, in
turns first; a round is the median of {steps} steps after {warm} to warm up; both train with the same recipe (AdamW).
The difference is the median over the rounds. It is what three seedings of Python, numpy and torch, the hash of at most 16 KB
of each tensor of the batch, and the observer's hooks take. The goal is 1 % of a step of 10 ms, 100 microseconds.

| step | without, ms | with, ms | difference, microseconds | of 10 ms | ratio (median of the rounds) |
|---|---|---|---|---|---|
"""


class Net(LightningModule):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)
        )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.mse_loss(self.layers(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.mse_loss(self.layers(batch[0]), batch[1]))


class Clock(Callback):
    """Processor time from batch to batch."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_start(self, *args: Any) -> None:
        self.times.append(time.process_time())


def loaders(batch: int) -> tuple[DataLoader[Any], DataLoader[Any]]:
    data = TensorDataset(torch.randn(32 * batch, 64), torch.randn(32 * batch, 1))
    return DataLoader(data, batch, shuffle=True), DataLoader(TensorDataset(*data[:8]), 8)


def seconds(width: int, batch: int, harness: bool) -> float:
    """Of a step."""
    clock, total = Clock(), STEPS + WARM
    recipe = Recipe("llm", on_nonfinite="ignore")
    if harness:
        task = Task(lambda: Net(width), lambda: loaders(batch), {}, {"accelerator": "cpu"})
        train(task, recipe, Observer(recipe, "val_loss", total, (0, total), seed=0), 0, sanity=0, callbacks=(clock,))
    else:
        off: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        with quiet():
            trainer = Trainer(
                max_steps=total,
                max_epochs=-1,
                val_check_interval=total,
                check_val_every_n_epoch=None,
                accelerator="cpu",
                enable_model_summary=False,
                callbacks=[recipe, clock],
                **off,
            )
            trainer.fit(Net(width), *loaders(batch))
    steps = [b - a for a, b in zip(clock.times[WARM:], clock.times[WARM + 1 :], strict=False)]
    return statistics.median(steps)


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for name, (width, batch) in SIZES.items():
        without: list[float] = []
        with_it: list[float] = []
        for i in range(ROUNDS):
            for harness in (False, True) if i % 2 else (True, False):
                (with_it if harness else without).append(seconds(width, batch, harness))
        difference = statistics.median(b - a for a, b in zip(without, with_it, strict=True))
        ratio = statistics.median(b / a for a, b in zip(without, with_it, strict=True))
        row = (
            f"| {name} | {1e3 * statistics.median(without):.2f} | {1e3 * statistics.median(with_it):.2f} | "
            f"{1e6 * difference:.0f} | {difference / 0.01:.2%} | {ratio:.3f} |"
        )
        print(row, flush=True)
        rows.append(row)
    text = TEXT.format(torch=torch.__version__, rounds=ROUNDS, steps=STEPS, warm=WARM)
    Path("benchmarks/results/compare_overhead.md").write_text(text + "\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
