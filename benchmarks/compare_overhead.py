"""What the harness of a comparison costs a training step: hashes, seeds, the observer.

Run from the root of the repository on a quiet machine, about four minutes: `python -m benchmarks.compare_overhead` writes
benchmarks/results/compare_overhead.md.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_opt import Recipe
from lit_opt.comparison import data_order
from lit_opt.comparison.observer import Observer
from lit_opt.comparison.statistics import median_interval
from lit_opt.comparison.task import Task
from lit_opt.comparison.training import train

WARM, ROUNDS = 20, 3

# Width of the model, batch, pairs of steps: the tiny one shows the harness itself, the other a step of about 10 ms.
SIZES = {"tiny step": (8, 16, 3_000), "step of about 10 ms": (512, 256, 3_000)}

# A pair with a step of this many times the median, or of its inverse, holds something else: the end of an epoch, other work.
OUTSIDE = 1.5

TEXT = """# What the harness of a comparison costs a step

Device: x86_64 CPU, 1 thread, torch {torch}. {busy} Not run on a GPU.
Script: `python -m benchmarks.compare_overhead`. The goal is 1 % of a step of 10 ms, 100 microseconds.

One training in which the harness works in one of every two steps, in random order: seeds, hash of the batch, hooks of the observer.
Processor time from batch to batch, and the difference within each pair of neighbours, so that neither a slow phase of the
machine nor the caches of another program count, and what the harness leaves behind in the caches does. The median of the pairs,
and the mean, to which belongs what is not done in every step: the hash itself, the seeds made in advance, the look at the
losses. In brackets 95 % intervals. Pairs with a step that is {outside} times as long as the median, or as short, are left out: ends of
epochs, other work. Not in it: what Lightning takes to come to a callback and find that it has nothing to do. Each training was repeated {rounds} times: one line each.

| step | without, ms | median, microseconds | mean, microseconds | mean of 10 ms | pairs (left out) |
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


def loaders(batch: int) -> tuple[DataLoader[Any], DataLoader[Any]]:
    data = TensorDataset(torch.randn(32 * batch, 64), torch.randn(32 * batch, 1))
    return DataLoader(data, batch, shuffle=True), DataLoader(TensorDataset(*data[:8]), 8)


class Switch:
    """Lets the harness work in one of every two steps, and reads the clock between them."""

    def __init__(self) -> None:
        self.on = True
        self.order = random.Random(0)
        self.starts: list[float] = []
        self.worked: list[bool] = []

    def next_step(self) -> None:
        self.starts.append(time.thread_time())
        first = len(self.worked) % 2 == 0
        self.on = self.order.random() < 0.5 if first else not self.worked[-1]
        self.worked.append(self.on)

    def before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The first thing that the harness does in a step."""

        def starting(*args: Any, **more: Any) -> Any:
            self.next_step()
            return function(*args, **more) if self.on else None

        return starting

    def around(self, function: Callable[..., Any], otherwise: Any = None) -> Callable[..., Any]:
        def switched(*args: Any, **more: Any) -> Any:
            return function(*args, **more) if self.on else otherwise

        return switched


def pairs(width: int, batch: int, count: int) -> list[tuple[float, float]]:
    """Seconds of a step without the harness and of its neighbour with it."""
    switch, steps = Switch(), 2 * count + WARM + 1
    recipe = Recipe("llm", on_nonfinite="ignore")
    observer = Observer(recipe, "val_loss", steps, (0, steps), seed=0)
    task = Task(lambda: Net(width), lambda: loaders(batch), {}, {"accelerator": "cpu"})
    with ExitStack() as stack:
        # The loader seeds first in a step. The observer has names of its own for these functions.
        stack.enter_context(patch.object(data_order, "seed_all", switch.before(data_order.seed_all)))
        stack.enter_context(patch.object(data_order, "sampled_bytes", switch.around(data_order.sampled_bytes, b"")))
        digest = switch.around(data_order.OrderedLoader.digest, "")
        stack.enter_context(patch.object(data_order.OrderedLoader, "digest", digest))
        for hook in ("before_step", "before_pass", "on_before_backward", "on_train_batch_end"):
            stack.enter_context(patch.object(Observer, hook, switch.around(getattr(Observer, hook))))
        train(task, recipe, observer, 0, sanity=0)
    took = [after - before for before, after in zip(switch.starts, switch.starts[1:], strict=False)]
    found = []
    for i in range(WARM, WARM + 2 * count, 2):
        with_it, without = (took[i], took[i + 1]) if switch.worked[i] else (took[i + 1], took[i])
        found.append((without, with_it))
    return found


def row(name: str, size: tuple[int, int, int]) -> str:
    measured = pairs(*size)
    step = statistics.median(without for without, _ in measured)
    kept = [pair for pair in measured if step / OUTSIDE < min(pair) and max(pair) < OUTSIDE * step]
    differences = [1e6 * (with_it - without) for without, with_it in kept]
    (middle, low, high), _ = median_interval(differences)
    mean, error = statistics.fmean(differences), statistics.stdev(differences) / len(differences) ** 0.5
    return (
        f"| {name} | {1e3 * step:.2f} | {middle:.0f} [{low:.0f} to {high:.0f}] | {mean:.0f} [{mean - 1.96 * error:.0f} to "
        f"{mean + 1.96 * error:.0f}] | {mean / 1e4:.2%} | {len(kept)} ({len(measured) - len(kept)}) |"
    )


def processor_seconds() -> float:
    """What all processes of the machine have used since it began; nan where the system does not say."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return float("nan")
    user, nice, system, _, _, irq, softirq, *_ = map(int, stat.read_text().split()[1:9])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    torch.set_num_threads(1)
    pairs(8, 16, 100)  # the first fit of a process is like no other
    began, all_then, own_then = time.monotonic(), processor_seconds(), time.process_time()
    rows = []
    for name, size in SIZES.items():
        for _ in range(ROUNDS):
            rows.append(row(name, size))
            print(rows[-1], flush=True)
    others = (processor_seconds() - all_then - (time.process_time() - own_then)) / (time.monotonic() - began)
    busy = f"While it ran, other work used {max(others, 0):.2f} of the machine's {os.cpu_count()} cores."
    text = TEXT.format(torch=torch.__version__, busy=busy, outside=OUTSIDE, rounds=ROUNDS)
    Path("benchmarks/results/compare_overhead.md").write_text(text + "\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
