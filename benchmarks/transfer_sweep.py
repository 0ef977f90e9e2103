"""Does the best learning rate stay where it is? Sweeps on the language model at four widths and two depths.

    python -m benchmarks.transfer_sweep                      # all that is missing, about an hour of one core
    python -m benchmarks.transfer_sweep --depths 2 --optimizers adamw
    python -m benchmarks.transfer_sweep --report             # tables and pictures of all that was measured

AdamW and Muon, each with `Transfer(base=width 32, one block, depth=True)` and without. Neighbours on the grid of rates differ by a
factor of 2. A curve begins with three rates around the best one of the width before, and is extended until its best rate, by
the mean over the seeds, has two measured rates on either side. Every rate of Muon's recipe moves: AdamW beside it has a quarter of
the matrices' rate. Each finished run is one line of runs.jsonl, so a stopped benchmark goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lit_opt import Recipe, Transfer, scale_initial
from lit_opt.workloads import ByteText, LanguageModel

RESULTS = Path(__file__).parent / "results" / "transfer_sweep"
RUNS = RESULTS / "runs.jsonl"
WIDTHS, DEPTHS, SEEDS = (32, 64, 128, 256), (1, 4), (0, 1)
STEPS, CONTEXT, BATCH = 80, 64, 8
# Name -> (recipe, where the first curve begins: a power of 2).
OPTIMIZERS = {"adamw": ("llm", -6), "muon": ("llm/muon", -4)}


class Curve(NamedTuple):
    """Loss against rate for one model and optimizer, with the transfer or without."""

    optimizer: str
    depth: int
    carried: bool
    width: int

    def key(self) -> Curve:
        """Where its runs are kept: at the base's size there is one curve, since nothing is multiplied."""
        return self._replace(carried=False) if (self.width, self.depth) == (WIDTHS[0], DEPTHS[0]) else self


Rows = dict[tuple[Curve, int, int], float]


def make(width: int, depth: int, **options: Any) -> LanguageModel:
    """Heads of 16, of which wide models have more."""
    return LanguageModel(layers=depth, width=width, heads=width // 16, mlp_width=2 * width, context=CONTEXT, **options)


def train(curve: Curve, power: int, seed: int) -> dict[str, Any]:
    """One run; its line of runs.jsonl. The loss is the mean over fixed windows of held-out text, in nats per byte."""
    begin = time.process_time()
    torch.manual_seed(seed)
    deeper = curve.depth / DEPTHS[0]
    options = {"residual_scale": 1 / deeper} if curve.carried and deeper != 1 else {}
    module = make(curve.width, curve.depth, **options)
    recipe, rate = OPTIMIZERS[curve.optimizer][0], 2.0**power
    given: dict[str, Any] = {"lr": rate}
    if curve.optimizer == "muon":
        given["fallback"] = {"lr": rate / 4}
    if curve.carried:
        base = partial(make, WIDTHS[0], DEPTHS[0])
        scale_initial(module, base)
        given["transfer"] = Transfer(base=base, depth=deeper != 1)
    one = Recipe(recipe, **given)
    optimizer, scheduler = one.configure(module, total_steps=STEPS, global_batch=BATCH)
    data = ByteText(
        seq_len=CONTEXT, batch_size=BATCH, max_bytes=1_000_000, val_windows=128, val_batch_size=32, seed=seed
    )
    data.setup("fit")
    for _, windows in zip(range(STEPS), data.train_dataloader(), strict=False):
        optimizer.zero_grad()
        module.loss(windows).backward()
        one.clip_gradients(module)
        optimizer.step()
        scheduler.step()
    with torch.no_grad():
        losses = [float(module.loss(windows)) for windows in data.val_dataloader()]
    loss = sum(losses) / len(losses)
    return {
        "curve": list(curve), "power": power, "seed": seed, "loss": round(loss, 6) if math.isfinite(loss) else None,
        "parameters": sum(p.numel() for p in module.parameters()), "cpu_seconds": round(time.process_time() - begin, 2),
    }  # fmt: skip


def read() -> tuple[Rows, list[dict[str, Any]]]:
    """(curve, power, seed) -> loss, infinite where it was not finite; and the lines themselves."""
    lines = [json.loads(line) for line in RUNS.read_text().splitlines()] if RUNS.exists() else []
    return {
        (Curve(*line["curve"]), line["power"], line["seed"]): math.inf if line["loss"] is None else line["loss"]
        for line in lines
    }, lines


def means(rows: Rows, curve: Curve, seeds: Sequence[int]) -> dict[int, float]:
    """Power -> mean loss, of the powers that all seeds have."""
    key = curve.key()
    found = {power: [rows.get((key, power, seed)) for seed in seeds] for other, power, _ in rows if other == key}
    complete = {p: [x for x in losses if x is not None] for p, losses in found.items()}
    return {p: sum(losses) / len(losses) for p, losses in sorted(complete.items()) if len(losses) == len(seeds)}


def measure(curve: Curve, start: int, seeds: Sequence[int]) -> int:
    """Complete a curve; its best power."""
    wanted = {start - 1, start, start + 1}
    while True:
        rows, _ = read()
        for power in sorted(wanted):
            for seed in seeds:
                if (curve.key(), power, seed) not in rows:
                    line = train(curve.key(), power, seed)
                    with RUNS.open("a") as file:
                        file.write(json.dumps(line) + "\n")
        found = means(read()[0], curve, seeds)
        best = min(found, key=lambda p: found[p])
        reach = 2 if curve.width < WIDTHS[-1] else 1
        wanted = {best + step for step in range(-reach, reach + 1)} - set(found)
        if not wanted:
            print(f"{time.strftime('%H:%M:%S')} {curve}: best 2^{best}, {found[best]:.4f}", flush=True)
            return best


def start_of(curve: Curve, seeds: Sequence[int]) -> int:
    """Where a curve begins: at its best power with the first seed, or at that of the nearest smaller model."""
    rows, _ = read()
    for depth in sorted((d for d in DEPTHS if d <= curve.depth), reverse=True):
        for width in sorted((w for w in WIDTHS if w <= curve.width), reverse=True):
            found = means(rows, curve._replace(depth=depth, width=width), seeds[:1])
            if found:
                return min(found, key=lambda p: found[p])
    return OPTIMIZERS[curve.optimizer][1]


def optimum(found: dict[int, float]) -> float | None:
    """The minimum of the parabola through the best rate and its neighbours, as a power of 2; None at an edge."""
    best = min(found, key=lambda p: found[p])
    if best - 1 not in found or best + 1 not in found or not math.isfinite(found[best - 1] + found[best + 1]):
        return None
    left, right = found[best - 1] - found[best], found[best + 1] - found[best]
    return best + (left - right) / (2 * (left + right)) if left + right > 0 else float(best)


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizers", nargs="+", default=list(OPTIMIZERS), choices=list(OPTIMIZERS))
    parser.add_argument("--depths", nargs="+", type=int, default=list(DEPTHS), choices=DEPTHS)
    parser.add_argument("--widths", nargs="+", type=int, default=list(WIDTHS), choices=WIDTHS)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    RESULTS.mkdir(parents=True, exist_ok=True)
    sizes = [(width, depth) for width in given.widths for depth in given.depths]
    # All curves with the first seed, then the others; wide models take most of the time, and come last.
    for last in range(1, len(given.seeds) + 1):
        for width, depth in sorted(sizes, key=lambda size: size[0] * size[1]):
            for name in given.optimizers:
                for carried in (True, False):
                    curve = Curve(name, depth, carried, width)
                    measure(curve, start_of(curve, given.seeds[:last]), given.seeds[:last])


if __name__ == "__main__":
    main()
