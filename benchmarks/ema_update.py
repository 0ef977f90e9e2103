"""Cost of one EMA update on the CPU, against what a user would pick instead.

    python -m benchmarks.ema_update [--rounds 25] [--out benchmarks/results/ema_update.md]

Each round runs every candidate once, in random order, so that a busy neighbour hits all alike. Times are CPU
seconds of the process with one thread. The speed-up is the ratio of the medians.
"""

from __future__ import annotations

import argparse
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import lightning.pytorch as pl
import timm
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lit_opt import EMA
from lit_opt.averaging import Averages

# Model, and the least speed-up over Lightning that we hold ourselves to.
MODELS = {"resnet50": 3.5, "vit_small_patch16_224": 3.5, "efficientnet_b0": 6.0}


class Module(pl.LightningModule):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


def candidates(model: nn.Module) -> dict[str, Callable[[], object]]:
    module = Module(model)
    trainer: Any = SimpleNamespace(global_step=0)
    theirs = EMAWeightAveraging(decay=0.999)
    theirs.setup(trainer, module, "fit")
    multi = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999), use_buffers=True)
    ours = EMA(decay=0.999)
    ours._averages = Averages(module)
    parameters = [p.detach() for p in model.parameters()]
    shadows = [p.clone() for p in parameters]
    flat = torch.cat([p.flatten() for p in parameters])
    flat_shadow = flat.clone()

    def loop() -> None:
        for shadow, parameter in zip(shadows, parameters, strict=True):
            shadow.lerp_(parameter, 1e-3)

    def call_theirs() -> None:
        trainer.global_step += 1
        theirs.on_train_batch_end(trainer, module, None, None, 0)

    def call_ours() -> None:
        ours._stepped = True  # as the hook on the optimizer does
        ours.on_train_batch_end(trainer, module, None, None, 0)

    return {
        "Lightning EMAWeightAveraging": call_theirs,
        "AveragedModel(multi_avg_fn)": lambda: multi.update_parameters(model),
        "lit_opt.EMA": call_ours,
        "Python loop of lerp_ over cached lists": loop,
        "one flat tensor (bound)": lambda: flat_shadow.lerp_(flat, 1e-3),
    }


def measure(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    order = random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
        function()
    for _ in range(rounds):
        for name in order.sample(list(functions), len(functions)):
            start = time.process_time()
            functions[name]()
            times[name].append(time.process_time() - start)
    return times


def device_name() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].split(":")[1].strip() if names else platform.processor()


def report(rounds: int) -> str:
    torch.set_num_threads(1)
    lines = [
        "# EMA update",
        "",
        f"{device_name()}, 1 thread, CPU time, {rounds} interleaved rounds, torch {torch.__version__}, "
        f"lightning {lightning.__version__}, timm {timm.__version__}. Not run on a GPU.",
        "Written by `python -m benchmarks.ema_update`. The speed-up is the ratio of medians over Lightning's "
        "callback; both callbacks are called through on_train_batch_end.",
        "lit_opt.EMA takes buffers from the live model, so it does no work for them.",
    ]
    for model_name, wanted in MODELS.items():
        model = timm.create_model(model_name)
        with torch.no_grad():
            times = measure(candidates(model), rounds)
        base = statistics.median(times["Lightning EMAWeightAveraging"])
        count = sum(p.numel() for p in model.parameters()) / 1e6
        lines += [
            "",
            f"## {model_name}: {len(list(model.parameters()))} parameters ({count:.1f} M), "
            f"{len(list(model.buffers()))} buffers; wanted at least {wanted}",
            "",
            "| | median ms | lowest ms | speed-up |",
            "|---|---|---|---|",
        ]
        for name, seconds in times.items():
            median = statistics.median(seconds)
            lines.append(f"| {name} | {median * 1e3:.2f} | {min(seconds) * 1e3:.2f} | {base / median:.1f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    text = report(arguments.rounds)
    print(text)
    if arguments.out:
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()
