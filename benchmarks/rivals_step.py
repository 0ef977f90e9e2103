"""One step of what is ours or wrapped, beside the provider or rival that a user would take: ResNet-50's and ViT-S's shapes.

    python -m benchmarks.rivals_step > benchmarks/results/rivals_step.md

One thread, process time, all of a row stepped in turn; "x" is the ratio of medians, above 1 is faster than the rival.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import pytorch_optimizer
import schedulefree
import timm
import timm.optim
import torch
from torch.nn import Parameter

from benchmarks.optimizer_step import cpu_name
from lit_opt.optim import build

ROUNDS = 5
Make = Callable[[list[Parameter]], Any]
# row -> (ours, rival's name, rival)
ROWS: dict[str, tuple[Make, str, Make]] = {
    "adafactor": (
        lambda p: build("adafactor", p, lr=1e-2),
        "torch.optim.Adafactor",
        lambda p: torch.optim.Adafactor(p, lr=1e-2),
    ),
    "adafactor_bv": (
        lambda p: build("adafactor_bv", p, lr=1e-4),
        "torch.optim.Adafactor",
        lambda p: torch.optim.Adafactor(p, lr=1e-2),
    ),
    "lookahead of adamw": (
        lambda p: build("lookahead", p, base="adamw", lr=1e-4),
        "pytorch_optimizer.Lookahead(AdamW fused)",
        lambda p: pytorch_optimizer.Lookahead(torch.optim.AdamW(p, lr=1e-4, fused=True)),
    ),
    # Its norm, copies and ascent; the second gradient comes on top. Rivals want gradients before the step.
    "sam of sgd, without the model": (
        lambda p: build("sam", p, base="sgd", lr=1e-3),
        "sgd alone",
        lambda p: build("sgd", p, lr=1e-3),
    ),
    "schedule_free_adamw": (
        lambda p: build("schedule_free_adamw", p, lr=1e-3),
        "schedulefree.AdamWScheduleFree",
        lambda p: _training(schedulefree.AdamWScheduleFree(p, lr=1e-3)),
    ),
    "adabelief": (
        lambda p: build("adabelief", p, lr=1e-4),
        "pytorch_optimizer.AdaBelief",
        lambda p: pytorch_optimizer.AdaBelief(p, lr=1e-4),
    ),
    "lion": (
        lambda p: build("lion", p, lr=1e-5),
        "pytorch_optimizer.Lion",
        lambda p: pytorch_optimizer.Lion(p, lr=1e-5),
    ),
}


def _training(optimizer: Any) -> Any:
    optimizer.train()
    return optimizer


def parameters(model: str) -> list[Parameter]:
    generator = torch.Generator().manual_seed(0)
    params = [Parameter(p.detach().clone()) for p in timm.create_model(model).parameters()]
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator) * 1e-3
    return params


def main() -> None:
    torch.set_num_threads(1)
    print("# One step beside rivals, on the CPU\n")
    print(f"{cpu_name()}, 1 thread, torch {torch.__version__}, timm {timm.__version__}, pytorch_optimizer")
    print("4.1, schedulefree 1.4, float32. Process time, medians of")
    print(f"{ROUNDS} interleaved steps (range of ratios). A shared machine: read to one digit. **Not run on a GPU.**\n")
    print("| optimizer | shapes | ours | rival | ratio |\n|---|---|---|---|---|")
    only = sys.argv[1:]
    for label, (ours, rival_name, rival) in ROWS.items():
        if only and label not in only:
            continue
        for model in ("resnet50", "vit_small_patch16_224"):
            made = [ours(parameters(model)), rival(parameters(model))]
            times: list[list[float]] = [[], []]
            for round_ in range(ROUNDS + 1):
                for optimizer, seen in zip(made, times, strict=True):
                    start = time.process_time()
                    optimizer.step(lambda: 0.0)
                    if round_:
                        seen.append(1e3 * (time.process_time() - start))
            a, b = (statistics.median(seen) for seen in times)
            each = sorted(y / x for x, y in zip(*times, strict=True))
            print(
                f"| {label} | {model} | {a:.0f} ms | {rival_name} {b:.0f} ms | **{b / a:.2f}x** ({each[0]:.2f}-{each[-1]:.2f}) |",
                flush=True,
            )


if __name__ == "__main__":
    main()
