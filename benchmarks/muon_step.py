"""Time of a Muon step on the CPU against torch.optim.Muon, and of the AdamW part against torch's fused AdamW.

    python -m benchmarks.muon_step > benchmarks/results/muon_step.md

One thread, process time. All variants of a row are stepped in turn in each round; "x" is the ratio of medians, and the
range is that of the single rounds' ratios. The same gradients and weights for all.
"""

import math
import statistics
import sys
import time
from collections.abc import Callable

import timm
import torch
from torch import Tensor
from torch.nn import Parameter

from benchmarks.optimizer_step import cpu_name
from lit_opt.optim import build

Shapes = list[tuple[int, ...]]


def gpt2(width: int, layers: int) -> Shapes:
    return [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)] * layers


def hidden_matrices(model: str) -> Shapes:
    """2-D shapes of a timm model, convolution kernels flattened, without what a recipe gives to AdamW."""
    kept = []
    for name, param in timm.create_model(model).named_parameters():
        stem = name.startswith(("conv1.", "patch_embed", "pos_embed", "cls_token")) or "head" in name or "fc.w" in name
        if param.ndim > 1 and not stem:
            kept.append((param.size(0), math.prod(param.shape[1:])))
    return [shape for shape in kept if not (model == "resnet50" and shape == (1000, 2048))]


def parameters(shapes: Shapes) -> list[Parameter]:
    generator = torch.Generator().manual_seed(0)
    params = [Parameter(torch.randn(shape, generator=generator) * 0.02) for shape in shapes]
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator)
    return params


def float32_muon(params: list[Parameter]) -> Callable[[], None]:
    """torch's algorithm without its cast to bfloat16, one matrix at a time."""
    buffers = [torch.zeros_like(param) for param in params]

    def polar(x: Tensor) -> Tensor:
        y = x.T if x.size(0) > x.size(1) else x
        y = y / y.norm().clamp(min=1e-7)
        for _ in range(5):
            gram = y @ y.T
            y = torch.addmm(y, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), y, beta=3.4445)
        return y.T if x.size(0) > x.size(1) else y

    @torch.no_grad()
    def step() -> None:
        for param, buffer in zip(params, buffers, strict=True):
            assert param.grad is not None
            buffer.lerp_(param.grad, 0.05)
            update = polar(param.grad.lerp(buffer, 0.95))
            param.mul_(1 - 1e-5 * 0.1)
            param.add_(update, alpha=-1e-5 * max(1, param.size(0) / param.size(1)) ** 0.5)

    return step


def variants(shapes: Shapes, names: tuple[str, ...]) -> dict[str, Callable[[], object]]:
    made: dict[str, Callable[[], object]] = {}
    for name in names:
        params = parameters(shapes)
        if name == "torch":
            made[name] = torch.optim.Muon(params, lr=1e-5).step
        elif name == "float32 loop":
            made[name] = float32_muon(params)
        else:
            preset, _, dtype = name.partition(" ")
            made[name] = build("muon", params, lr=1e-5, orthogonalize=preset, ns_dtype=dtype or "auto").step
    return made


def measure(steps: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.process_time()
            step()
            times[name].append(1e3 * (time.process_time() - start))
    return times


def row(label: str, shapes: Shapes, names: tuple[str, ...], rounds: int) -> None:
    times = measure(variants(shapes, names), rounds)
    base = times[names[0]]
    cells = []
    for name in names[1:]:
        ratio = statistics.median(base) / statistics.median(times[name])
        each = sorted(b / t for b, t in zip(base, times[name], strict=True))
        cells.append(f"{name} {statistics.median(times[name]):.1f} ms, **{ratio:.2f}x** ({each[0]:.2f}-{each[-1]:.2f})")
    print(f"| {label} | {names[0]} {statistics.median(base):.1f} ms | {'; '.join(cells)} |", flush=True)


def adamw_part(rounds: int) -> None:
    shapes = [tuple(p.shape) for p in timm.create_model("vit_small_patch16_224").parameters()]
    ours = build("muon", [{"params": parameters(shapes), "algorithm": "adamw"}], lr=0.02).step
    theirs = torch.optim.AdamW(parameters(shapes), lr=3e-4, fused=True).step
    times = measure({"torch": theirs, "ours": ours}, rounds)
    theirs_ms, ours_ms = statistics.median(times["torch"]), statistics.median(times["ours"])
    print(
        f"\nAdamW part, all {len(shapes)} tensors of ViT-S: {ours_ms:.1f} ms against {theirs_ms:.1f} ms of torch's fused "
        f"AdamW, {ours_ms / theirs_ms:.2f} of its time."
    )


def overhead(rounds: int) -> None:
    """Steps of many 2 x 2 matrices, where nothing but overhead is left."""
    few, many = parameters([(2, 2)] * 10), parameters([(2, 2)] * 210)
    steps: dict[str, Callable[[], object]] = {
        "few": build("muon", few, lr=1e-5).step,
        "many": build("muon", many, lr=1e-5).step,
        "torch": torch.optim.Muon(parameters([(2, 2)] * 210), lr=1e-5).step,
    }
    times = {name: statistics.median(ms) for name, ms in measure(steps, 3 * rounds).items()}
    each = (times["many"] - times["few"]) / 200
    print(
        f"\nOverhead with 2 x 2 matrices, torch's operations included: {times['few'] - 10 * each:.2f} ms + "
        f"{1e3 * each:.0f} us a parameter; torch.optim.Muon takes {1e3 * times['torch'] / 210:.0f} us a parameter."
    )


def main() -> None:
    torch.set_num_threads(1)
    quick = "--quick" in sys.argv
    rounds = 3 if quick else 5
    print("# One Muon step on the CPU\n")
    print(f"{cpu_name()}, 1 thread, torch {torch.__version__}, float32 weights. Process time, medians of {rounds}")
    print("interleaved rounds (range of the rounds). `auto` is bfloat16 from 64 rows on where the CPU has it. A shared")
    print("machine: read to one digit. **Not run on a GPU.**\n")
    print("| weights | against | lit_opt |\n|---|---|---|")
    row("GPT-2, d = 768, 1 layer", gpt2(768, 1), ("torch", "polar_express", "jordan"), rounds)
    row("the same in float32", gpt2(768, 1), ("float32 loop", "jordan float32", "polar_express float32"), rounds)
    row("GPT-2, d = 128, 12 layers", gpt2(128, 12), ("torch", "polar_express"), rounds)
    row("GPT-2, d = 64, 12 layers", gpt2(64, 12), ("torch", "polar_express"), 3 * rounds)
    if not quick:
        row("ResNet-50, kernels flattened", hidden_matrices("resnet50"), ("torch", "polar_express"), 3)
        row("ViT-S, 2 blocks", hidden_matrices("vit_small_patch16_224")[:8], ("torch", "polar_express"), rounds)
    adamw_part(3 * rounds)
    overhead(rounds)


if __name__ == "__main__":
    main()
