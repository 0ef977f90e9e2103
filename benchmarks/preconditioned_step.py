"""SOAP, SPlus and Shampoo beside other implementations: time of a step at equal refresh intervals, on one CPU thread.

    python -m benchmarks.preconditioned_step                                # rivals that are installed
    python -m benchmarks.preconditioned_step --soap soap.py --splus splus.py   # beside the official single files
    PYTHONPATH=folder python -m benchmarks.preconditioned_step              # with HeavyBall in that folder

It writes benchmarks/results/preconditioned_step.md. Each round is one whole refresh interval of each implementation in
turn, and the ratio is that of the medians of rounds. Gradients are random and the same for all.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_optimizer
import torch
from torch.nn import Parameter

from benchmarks.optimizer_step import cpu_name
from lit_opt.optim import build

RESULT = Path(__file__).parent / "results" / "preconditioned_step.md"
Make = Callable[[list[Parameter]], Any]
EVERY = 10
# name -> (shapes of the matrices, layers)
SHAPES: dict[str, tuple[list[tuple[int, int]], int]] = {
    "small matrices, 24 of (64, 64)": ([(64, 64)] * 4, 6),
    "GPT, 2 layers (256)": ([(768, 256), (256, 256), (1024, 256), (256, 1024)], 2),
    "ViT-S, 1 block (384)": ([(1152, 384), (384, 384), (1536, 384), (384, 1536)], 1),
    "GPT-2 small, 1 block (768)": ([(2304, 768), (768, 768), (3072, 768), (768, 3072)], 1),
}


def ours(name: str, **options: Any) -> Make:
    return lambda params: build(name, params, lr=1e-3, precondition_frequency=EVERY, **options)


def from_file(path: str, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


def arms(soap_file: str | None, splus_file: str | None) -> dict[str, tuple[Make, dict[str, Make]]]:
    """Method -> (ours, rivals)."""
    soap: dict[str, Make] = {
        "pytorch_optimizer.SOAP": lambda p: pytorch_optimizer.SOAP(p, lr=1e-3, precondition_frequency=EVERY),
    }
    if soap_file:
        official = from_file(soap_file, "SOAP")
        soap["nikhilvyas soap.py"] = lambda p: official(p, lr=1e-3, precondition_frequency=EVERY)
    if importlib.util.find_spec("heavyball"):
        import heavyball

        heavyball.utils.compile_mode = None
        # Its default leaves sides above 2048 alone, the others rotate them.
        soap["heavyball.SOAP"] = lambda p: heavyball.SOAP(
            p, lr=1e-3, precondition_frequency=EVERY, max_precond_dim=10000
        )
    splus: dict[str, Make] = {"pytorch_optimizer.SPlus": lambda p: pytorch_optimizer.SPlus(p, inverse_steps=EVERY)}
    if splus_file:
        single = from_file(splus_file, "SPlus")
        splus["kvfrans splus.py"] = lambda p: single(p, inverse_every=EVERY)
    shampoo: dict[str, Make] = {
        "pytorch_optimizer.ScalableShampoo": lambda p: pytorch_optimizer.ScalableShampoo(
            p, start_preconditioning_step=1, preconditioning_compute_steps=EVERY, block_size=2048, graft_type=3
        ),
        "pytorch_optimizer.Shampoo": lambda p: pytorch_optimizer.Shampoo(p, preconditioning_compute_steps=EVERY),
    }
    grafted = ours("shampoo", grafting="adam", max_preconditioner_dim=2048, start_preconditioning_step=1)
    return {"soap": (ours("soap"), soap), "splus": (ours("splus"), splus), "shampoo": (grafted, shampoo)}


def parameters(shapes: list[tuple[int, int]], layers: int) -> list[Parameter]:
    generator = torch.Generator().manual_seed(0)
    params = [Parameter(torch.randn(shape, generator=generator) * 0.02) for _ in range(layers) for shape in shapes]
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator) * 1e-3
    return params


def interval(optimizer: Any, grads: list[torch.Tensor]) -> list[float]:
    """CPU milliseconds of each step of a refresh interval; gradients are given anew, since some rivals write to them."""
    taken = []
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for _ in range(EVERY):
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad.clone()
        start = time.process_time()
        optimizer.step()
        taken.append(1e3 * (time.process_time() - start))
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--soap", help="path of nikhilvyas/SOAP's soap.py")
    parser.add_argument("--splus", help="path of kvfrans/splus's torch/splus.py")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# SOAP, SPlus and Shampoo beside other implementations",
        "",
        f"{cpu_name()}, 1 thread, torch {torch.__version__}, float32, process time on a shared machine.",
        f"New decompositions every {EVERY} steps for all. ms is the mean of the steps of a refresh interval, the median of",
        f"{args.rounds} interleaved intervals after the first step; x above 1 means that ours is faster, with the range of the",
        "rounds; longest is the longest step of an interval (ours spreads the decompositions). **Not run on a GPU.**",
        "",
        "| method | shapes | ours ms | longest | rival | ms | longest | ratio |",
        "|---|---|---:|---:|---|---:|---:|---:|",
    ]
    for label, (shapes, layers) in SHAPES.items():
        for method, (own, rivals) in arms(args.soap, args.splus).items():
            made = {"ours": own(parameters(shapes, layers))}
            made |= {name: make(parameters(shapes, layers)) for name, make in rivals.items()}
            means: dict[str, list[float]] = {name: [] for name in made}
            longest: dict[str, list[float]] = {name: [] for name in made}
            for optimizer in made.values():
                optimizer.step()  # makes the state, and all first decompositions
            for round_ in range(args.rounds):
                for name, optimizer in made.items():
                    generator = torch.Generator().manual_seed(round_)
                    grads = [torch.randn(p.shape, generator=generator) * 1e-3 for p in parameters(shapes, layers)]
                    taken = interval(optimizer, grads)
                    means[name].append(statistics.mean(taken))
                    longest[name].append(max(taken))
            mine = statistics.median(means["ours"])
            for name in rivals:
                theirs = statistics.median(means[name])
                each = sorted(b / a for a, b in zip(means["ours"], means[name], strict=True))
                lines.append(
                    f"| {method} | {label} | {mine:.1f} | {statistics.median(longest['ours']):.0f} | {name} | {theirs:.1f} "
                    f"| {statistics.median(longest[name]):.0f} | **{theirs / mine:.2f}x** ({each[0]:.2f}-{each[-1]:.2f}) |"
                )
                print(lines[-1], flush=True)
    RESULT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
