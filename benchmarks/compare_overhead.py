"""What the harness of a comparison costs a training step: hashes, seeds, the observer.

Run from the root of the repository: `python -m benchmarks.compare_overhead` measures from inside, some seconds, and writes
benchmarks/results/compare_overhead.md; with `--difference` fits with the harness and without, interleaved, more than a minute, and
writes benchmarks/results/compare_overhead_difference.md. Both want a quiet machine.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_opt import Recipe
from lit_opt.comparison import data_order
from lit_opt.comparison.observer import Observer
from lit_opt.comparison.statistics import median_interval
from lit_opt.comparison.task import Task
from lit_opt.comparison.training import quiet, train

STEPS, WARM, ROUNDS = 200, 20, 15

# Width of the model, batch: the tiny one shows the harness itself, the other a step of about 10 ms.
SIZES = {"tiny step": (8, 16), "step of about 10 ms": (512, 256)}

HEAD = """# What the harness of a comparison costs a step{title}

Device: x86_64 CPU, 1 thread, torch {torch}. {busy} Not run on a GPU.
Script: `python -m benchmarks.compare_overhead{option}`. The goal is 1 % of a step of 10 ms, 100 microseconds.

"""

INSIDE = """The clock around everything that the harness does in a step, in the middle of the training, where it finds the caches cold: two
seedings of Python, numpy and torch, at most 16 KB of each tensor of the batch for the hash, what the observer counts. The median
of {steps} steps, and the mean, to which belongs what is not done in every step: the hash itself, the seeds made in advance, the look
at the losses. Not in it: what Lightning takes to call two hooks more, and what the harness leaves behind in the caches.

| step | median, microseconds | mean, microseconds | mean of 10 ms |
|---|---|---|---|
"""

DIFFERENCE = """A fit with the harness and one without, in processor time: {rounds} rounds of both after one another, in turns first; a round is
the median of {steps} steps after {warm} to warm up; both train with the same recipe (AdamW). The median of the rounds, in
brackets its 95 % interval from order statistics.

| step | without, ms | difference, microseconds | of 10 ms |
|---|---|---|---|
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


def inside(width: int, batch: int) -> list[float]:
    """Seconds that the harness itself takes of each step."""
    spent: list[float] = [0.0]

    def timed(function: Any) -> Any:
        def timing(*args: Any, **more: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args, **more)
            finally:
                spent[-1] += time.perf_counter() - began

        return timing

    # The loader seeds first in a step. The observer has a name of its own for that function, inside before_pass.
    def first(function: Any) -> Any:
        def starting(*args: Any, **more: Any) -> Any:
            spent.append(0.0)
            return timed(function)(*args, **more)

        return starting

    hooks = ("before_pass", "on_before_backward", "on_train_batch_end")
    with ExitStack() as stack:
        stack.enter_context(patch.object(data_order, "seed_all", first(data_order.seed_all)))
        stack.enter_context(patch.object(data_order, "sampled_bytes", timed(data_order.sampled_bytes)))
        made = data_order.streams
        stack.enter_context(patch.object(data_order, "streams", lambda *args: iter(timed(made(*args).__next__), None)))
        stack.enter_context(patch.object(data_order.OrderedLoader, "digest", timed(data_order.OrderedLoader.digest)))
        for hook in hooks:
            stack.enter_context(patch.object(Observer, hook, timed(getattr(Observer, hook))))
        seconds(width, batch, True)
    return spent[WARM:-1]


def processor_seconds() -> float:
    """What all processes of the machine have used since it began; nan where the system does not say."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return float("nan")
    user, nice, system, _, _, irq, softirq, *_ = map(int, stat.read_text().split()[1:9])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def inside_rows() -> Iterator[str]:
    for name, size in SIZES.items():
        spent = inside(*size)
        mean = statistics.fmean(spent)
        yield f"| {name} | {1e6 * statistics.median(spent):.0f} | {1e6 * mean:.0f} | {mean / 0.01:.2%} |"


def difference_rows() -> Iterator[str]:
    for name, size in SIZES.items():
        pairs = []
        for i in range(ROUNDS):
            took = {harness: seconds(*size, harness) for harness in ((False, True) if i % 2 else (True, False))}
            pairs.append((took[False], took[True]))
        (middle, low, high), _ = median_interval([with_it - without for without, with_it in pairs])
        yield (
            f"| {name} | {1e3 * statistics.median(without for without, _ in pairs):.2f} | "
            f"{1e6 * middle:.0f} [{1e6 * low:.0f} to {1e6 * high:.0f}] | {middle / 0.01:.2%} |"
        )


def main(difference: bool) -> None:
    torch.set_num_threads(1)
    seconds(*SIZES["tiny step"], True)  # the first fit of a process is like no other
    began, all_then, own_then = time.monotonic(), processor_seconds(), time.process_time()
    rows = []
    for row in difference_rows() if difference else inside_rows():
        print(row, flush=True)
        rows.append(row)
    others = (processor_seconds() - all_then - (time.process_time() - own_then)) / (time.monotonic() - began)
    title, option, body, name = (
        (": with it and without", " --difference", DIFFERENCE, "compare_overhead_difference.md")
        if difference
        else ("", "", INSIDE, "compare_overhead.md")
    )
    busy = f"While it ran, other work used {others:.2f} of the machine's {os.cpu_count()} cores."
    head = HEAD.format(torch=torch.__version__, busy=busy, title=title, option=option)
    text = head + body.format(rounds=ROUNDS, steps=STEPS, warm=WARM)
    (Path("benchmarks/results") / name).write_text(text + "\n".join(rows) + "\n")


if __name__ == "__main__":
    main("--difference" in sys.argv[1:])
