"""What `OptimizerMonitor` costs: processor time of a training step with and without it, interleaved.

Run from the root of the repository: `python -m benchmarks.optimizer_monitor`. Writes benchmarks/results/optimizer_monitor.md.
"""

from __future__ import annotations

import logging
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger

from lit_opt import OptimizerMonitor, Recipe
from lit_opt.workloads import ByteText, Digits, ImageClassifier, LanguageModel

STEPS, WARM, ROUNDS = 10, 3, 4

ARMS: dict[str, Callable[[], list[Callback]]] = {
    "none": list,
    "every step": lambda: [OptimizerMonitor(1)],
    "every step, all weights": lambda: [OptimizerMonitor(1, weights="all")],
    "every 10th step": lambda: [OptimizerMonitor(10)],
}

TASKS: dict[str, tuple[Callable[[], LightningModule], Callable[[], LightningDataModule], Callable[[], Recipe]]] = {
    "language model, 0.8 M, AdamW": (
        LanguageModel,
        lambda: ByteText(max_bytes=400_000, batch_size=4),
        lambda: Recipe("llm", total_steps=1000),
    ),
    "language model, 0.8 M, Muon": (
        LanguageModel,
        lambda: ByteText(max_bytes=400_000, batch_size=4),
        lambda: Recipe("llm/muon", total_steps=1000),
    ),
    "ResNet-18, 0.7 M, SGD": (ImageClassifier, Digits, lambda: Recipe("cnn", total_steps=1000, warmup=10)),
}

INTRO = """# What OptimizerMonitor costs

Device: x86_64 CPU, 1 thread, torch {torch}; the machine was busy with other work, so processor time is counted, not the clock.
Not run on a GPU. Script: `python -m benchmarks.optimizer_monitor`. {rounds} rounds, the arms after one another in each;
a round is the median of {steps} steps after {warm} to warm up. The share is the median over the rounds of its ratio to the same
round without the monitor. "every 10th step" does nothing in nine of ten steps and came out between -1 % and +3 %: that is the noise. It is the mean over steps.
The batches are small (1,024 bytes, 64 images), which makes
the shares large: what the monitor does depends on the weights and not on the batch.

| task | monitor | ms a step | more than without |
|---|---|---|---|
"""

OUTRO = """
Memory: on a logged step copies of the sampled weights, at most 4 tensors a group, or of all weights; they are freed at the end of
that step. For the language model above the sample is {sample:.0%} of the weights; a deeper model has a smaller share in it.
Reads of the device: one `tolist` a logged step, none on others; tests/callbacks/test_monitor.py counts them.
"""


class Clock(Callback):
    """Processor time from batch to batch."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_start(self, *args: Any) -> None:
        self.times.append(time.process_time())


def seconds(task: str, arm: str, folder: Path) -> float:
    """Of a step."""
    model, data, recipe = TASKS[task]
    torch.manual_seed(0)
    clock = Clock()
    Trainer(
        max_steps=STEPS + WARM + 1,
        callbacks=[recipe(), *ARMS[arm](), clock],
        logger=CSVLogger(folder),
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    ).fit(model(), data())
    steps = [b - a for a, b in zip(clock.times, clock.times[1:], strict=False)][WARM:]
    return statistics.fmean(steps) if "10th" in arm else statistics.median(steps)


def main() -> None:
    """Write the table."""
    import tempfile

    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    text = INTRO.format(torch=torch.__version__, rounds=ROUNDS, steps=STEPS, warm=WARM)
    with tempfile.TemporaryDirectory() as folder:
        for task in TASKS:
            rounds = [{arm: seconds(task, arm, Path(folder)) for arm in ARMS} for _ in range(ROUNDS)]
            for arm in ARMS:
                own = statistics.median(r[arm] for r in rounds)
                more = statistics.median(r[arm] / r["none"] - 1 for r in rounds)
                text += f"| {task} | {arm} | {1e3 * own:.1f} | {'' if arm == 'none' else f'{more:+.1%}'} |\n"
                print(task, arm, f"{1e3 * own:.1f} ms {more:+.1%}", flush=True)
    path = Path(__file__).parent / "results" / "optimizer_monitor.md"
    path.write_text(text + OUTRO.format(sample=_sample_share()))
    print(path)


def _sample_share() -> float:
    from lit_opt.callbacks.reading import sampled

    model = LanguageModel()
    optimizer, _ = Recipe("llm").configure(model, total_steps=100)
    for p in model.parameters():
        p.grad = p.detach()
    taken = sum(p.numel() for group in optimizer.param_groups for p in sampled(group["params"], 4))
    return taken / sum(p.numel() for p in model.parameters())


if __name__ == "__main__":
    main()
