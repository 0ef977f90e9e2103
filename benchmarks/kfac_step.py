"""K-FAC beside gpauloski/kfac-pytorch: whole steps (forward, backward, update) of a narrow ResNet-50 and ViT-S.

    python -m benchmarks.kfac_step > benchmarks/results/kfac_step.md

needs `kfac`, which is no dependency: pip install --no-deps --target DIR git+https://github.com/gpauloski/kfac-pytorch,
then PYTHONPATH=.:DIR. One thread, process time, all of a row stepped in turn; "x" is the ratio of medians, above 1 is
faster than kfac-pytorch.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import timm
import timm.models.resnet as resnet
import torch
from torch import Tensor, nn

from benchmarks.optimizer_step import cpu_name
from lit_opt.optim import build

ROUNDS = 5
BATCH, PIXELS = 16, 64
LR, MOMENTUM, DAMPING = 0.01, 0.9, 1e-3
INTERVALS = (1, 10)
MODES = {"eigen": "EIGEN", "factored": "INVERSE"}
Step = Callable[[], None]


def resnet50() -> nn.Module:
    """ResNet-50's layers at a quarter of its width; the largest factor has 1,153 rows instead of 4,609."""
    return resnet.ResNet(resnet.Bottleneck, [3, 4, 6, 3], channels=(16, 32, 64, 128), stem_width=16, num_classes=100)


def vit_small() -> nn.Module:
    """ViT-S's layers at half of its width."""
    return timm.models.vision_transformer.VisionTransformer(
        img_size=PIXELS, patch_size=8, embed_dim=192, depth=12, num_heads=3, num_classes=100
    )


MODELS = {"ResNet-50, a quarter of the width": resnet50, "ViT-S, half of the width": vit_small}


def made(make: Callable[[], nn.Module]) -> tuple[nn.Module, Callable[[], None]]:
    """A model of always the same weights, and its forward and backward pass on always the same batch."""
    torch.manual_seed(0)
    model = make()
    images, labels = torch.randn(BATCH, 3, PIXELS, PIXELS), torch.randint(0, 100, (BATCH,))

    def passes() -> None:
        model.zero_grad()
        loss: Tensor = nn.functional.cross_entropy(model(images), labels)
        loss.backward()

    return model, passes


def ours(make: Callable[[], nn.Module], interval: int, mode: str) -> Step:
    """This package's."""
    model, passes = made(make)
    options: dict[str, Any] = {"momentum": MOMENTUM, "damping": DAMPING}
    kfac = build("kfac", model.parameters(), module=model, lr=LR, inverse_every=interval, damping_mode=mode, **options)

    def step() -> None:
        passes()
        kfac.step()

    return step


def theirs(make: Callable[[], nn.Module], interval: int, mode: str) -> Step:
    """kfac-pytorch's preconditioner and torch's SGD."""
    from kfac.enums import ComputeMethod
    from kfac.preconditioner import KFACPreconditioner

    model, passes = made(make)
    sgd = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
    method = ComputeMethod[MODES[mode]]
    kfac = KFACPreconditioner(model, lr=LR, damping=DAMPING, inv_update_steps=interval, compute_method=method)

    def step() -> None:
        passes()
        kfac.step()
        sgd.step()

    return step


def plain(make: Callable[[], nn.Module]) -> Step:
    """SGD without any of it."""
    model, passes = made(make)
    sgd = build("sgd", model.parameters(), lr=LR, momentum=MOMENTUM)

    def step() -> None:
        passes()
        sgd.step()

    return step


def row(make: Callable[[], nn.Module], interval: int, mode: str) -> str:
    """Times and their ratio."""
    steps = [plain(make), ours(make, interval, mode), theirs(make, interval, mode)]
    times: list[list[float]] = [[], [], []]
    for round_ in range(ROUNDS + 1):
        for step, seen in zip(steps, times, strict=True):
            start = time.process_time()
            for _ in range(interval):
                step()
            if round_:
                seen.append(1e3 * (time.process_time() - start) / interval)
    none, a, b = (statistics.median(seen) for seen in times)
    each = sorted(y / x for x, y in zip(times[1], times[2], strict=True))
    return f"{none:.0f} ms | {a:.0f} ms | {b:.0f} ms | **{b / a:.2f}x** ({each[0]:.2f}-{each[-1]:.2f})"


def main() -> None:
    """Print the table."""
    if find_spec("kfac") is None:
        raise SystemExit(f"kfac (kfac-pytorch) is not importable, so there is nothing to compare with.\n{__doc__}")
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print("# K-FAC's step beside kfac-pytorch's, on the CPU\n")
    print(f"{cpu_name()}, 1 thread, torch {torch.__version__}, kfac-pytorch {version('kfac-pytorch')}, float32.")
    print(
        f"Forward, backward and update of {BATCH} images of {PIXELS} x {PIXELS}; process time of one step, averaged over"
    )
    print(
        f"an interval, medians of {ROUNDS} interleaved rounds (range of ratios). Both update their factors at every step"
    )
    print("and keep the momentum of SGD; the interval is that between decompositions. A shared machine: read to one")
    print("digit. **Not run on a GPU, nor on several processes, which is what kfac-pytorch is made for.**\n")
    print(
        "| model | damping | interval | SGD | ours | kfac-pytorch | ratio |\n|---|---|---:|---:|---:|---:|---|",
        flush=True,
    )
    for label, make in MODELS.items():
        for mode in MODES:
            for interval in INTERVALS:
                print(f"| {label} | {mode} | {interval} | {row(make, interval, mode)} |", flush=True)


if __name__ == "__main__":
    main()
