"""Time of one optimizer step on the CPU: what `build` chooses against torch's other implementations.

    python -m benchmarks.optimizer_step > benchmarks/results/optimizer_step.md

The parameters have the shapes of a ResNet-50. All variants are built once and stepped in turn, and the medians are of
process time on one thread, so that other load on the machine weighs on all of them alike.
"""

import platform
import statistics
import time
from pathlib import Path

import timm
import torch
from torchvision.models import resnet50

from lit_opt.optim import build

ROUNDS = 9
IMPLEMENTATIONS: dict[str, dict[str, bool]] = {
    "as built": {},
    "fused": {"fused": True, "foreach": False},
    "foreach": {"fused": False, "foreach": True},
    "loop": {"fused": False, "foreach": False},
}
LEARNING_RATES = {"lars": 1.0, "lamb": 1e-3, "sgd": 1e-3, "nesterov": 1e-3}


def variant(name: str, options: dict[str, bool]) -> torch.optim.Optimizer | None:
    params = [torch.nn.Parameter(p.detach().clone()) for p in resnet50(weights=None).parameters()]
    optimizer = build(name, params, lr=LEARNING_RATES.get(name, 1e-4))
    group = optimizer.param_groups[0]
    if options and not options.keys() <= group.keys() and options.get("fused"):
        return None
    group.update({key: value for key, value in options.items() if key in group})
    generator = torch.Generator().manual_seed(0)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator) * 1e-3
    return optimizer


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def measure(names: tuple[str, ...]) -> dict[tuple[str, str], list[float]]:
    variants = {
        (name, how): optimizer
        for name in names
        for how, options in IMPLEMENTATIONS.items()
        if (optimizer := variant(name, options)) is not None
    }
    times: dict[tuple[str, str], list[float]] = {key: [] for key in variants}
    for optimizer in variants.values():
        optimizer.step()
    for _ in range(ROUNDS):
        for key, optimizer in variants.items():
            start = time.process_time()
            optimizer.step()
            times[key].append(1e3 * (time.process_time() - start))
    return times


def main() -> None:
    torch.set_num_threads(1)
    count = sum(p.numel() for p in resnet50(weights=None).parameters())
    print("# One optimizer step on the CPU\n")
    print(f"ResNet-50 shapes, {count / 1e6:.1f} M parameters in 161 tensors, float32. {cpu_name()}, 1 thread,")
    print(f"torch {torch.__version__}, timm {timm.__version__}. Process time in ms, median of {ROUNDS} interleaved")
    print("steps (lowest to highest). A shared machine: read to one digit. Not run on a GPU.\n")
    print("| optimizer | as built | fused | foreach | loop |\n|---|---|---|---|---|")
    # A few at a time: every variant holds its own parameters, gradients and state.
    for names in (("sgd", "nesterov"), ("adamw",), ("adam",), ("amsgrad",), ("lars",), ("lamb",)):
        times = measure(names)
        for name in names:
            cells = []
            for how in IMPLEMENTATIONS:
                seen = times.get((name, how))
                cells.append(f"{statistics.median(seen):.0f} ({min(seen):.0f}-{max(seen):.0f})" if seen else "none")
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
