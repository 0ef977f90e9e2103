"""Does the best learning rate stay where it is? Sweeps on the language model at four widths and two depths.

    python -m benchmarks.transfer_sweep                      # all that is missing, about an hour of one core
    python -m benchmarks.transfer_sweep --depths 2 --optimizers adamw
    python -m benchmarks.transfer_sweep --report             # tables and pictures of all that was measured

AdamW and Muon, each with `Transfer(base=width 32, two blocks, depth=True)` and without. Neighbours on the grid of rates differ by a
factor of 2. A curve begins with three rates around the best one of the width before, and is extended until its best rate, by
the mean over the seeds, has two measured rates on either side. Every rate of Muon's recipe moves: AdamW beside it has a fixed share
of the matrices' rate. Each finished run is one line of runs.jsonl, so a stopped benchmark goes on where it was.
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
WIDTHS, DEPTHS, SEEDS = (32, 64, 128, 256), (2, 4), (0, 1)
STEPS, CONTEXT, BATCH = 80, 64, 8
# Name -> (recipe, where the first curve begins: a power of 2, AdamW's rate beside the matrices over theirs). On the base, 1 is
# better than 1 / 4: "muon" has a value that was not tuned there.
OPTIMIZERS = {"adamw": ("llm", -6, None), "muon": ("llm/muon", -4, 1 / 4), "muon_tuned": ("llm/muon", -4, 1.0)}


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
    recipe, _, beside = OPTIMIZERS[curve.optimizer]
    given: dict[str, Any] = {"lr": 2.0**power}
    if beside is not None:
        given["fallback"] = {"lr": 2.0**power * beside}
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


def found_for(rows: Rows, curve: Curve) -> tuple[dict[int, float], float, int] | None:
    """Its mean losses, the optimum, and how many seeds they have: the most with which the best rate has both neighbours."""
    for count in range(len(SEEDS), 0, -1):
        found = means(rows, curve, SEEDS[:count])
        where = optimum(found) if found else None
        if where is not None:
            return found, where, count
    return None


def table(rows: Rows, optimizer: str) -> tuple[list[str], dict[bool, float]]:
    """Markdown lines, and the farthest that the best rate moves from the base's in grid steps, with and without."""
    lines = [
        "| blocks | width | seeds | best rate, with | moved by | loss | at the base's rate | best rate, without | moved by | loss "
        "| at the base's rate |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    farthest = {True: 0.0, False: 0.0}
    base = found_for(rows, Curve(optimizer, DEPTHS[0], False, WIDTHS[0]))
    if base is None:
        return lines, farthest
    losses, first, _ = base
    best = min(losses, key=lambda p: losses[p])
    for depth in DEPTHS:
        for width in WIDTHS:
            cells, counts = [], []
            for carried in (True, False):
                found = found_for(rows, Curve(optimizer, depth, carried, width))
                if found is None:
                    cells += ["not run", "", "", ""]
                    continue
                moved = found[1] - first
                farthest[carried] = max(farthest[carried], moved, key=abs)
                there = f"{found[0][best] - min(found[0].values()):+.3f}" if best in found[0] else "not run"
                cells += [f"2^{found[1]:.2f}", f"{moved:+.2f}", f"{min(found[0].values()):.3f}", there]
                counts.append(found[2])
            if counts:
                lines.append(f"| {depth} | {width} | {min(counts)} | {' | '.join(cells)} |")
    return lines, farthest


def picture(rows: Rows, optimizer: str) -> Path:
    """Loss against rate, one curve a width: with the transfer left, without it right, one row a depth."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(DEPTHS), 2, sharex=True, sharey=True, squeeze=False)
    for row, depth in zip(axes, DEPTHS, strict=True):
        for panel, carried in zip(row, (True, False), strict=True):
            for place, width in enumerate(WIDTHS):
                found = found_for(rows, Curve(optimizer, depth, carried, width))
                if found is None:
                    continue
                losses, where, _ = found
                color = f"C{place}"
                panel.plot(
                    [2.0**p for p in losses], list(losses.values()), "o-", ms=3, color=color, label=f"width {width}"
                )
                panel.axvline(2.0**where, color=color, lw=0.8, ls=":")
            blocks = f"{depth} blocks"
            panel.set_title(f"{'with' if carried else 'without'} the transfer, {blocks}", fontsize=10)
            panel.set_xscale("log", base=2)
            panel.grid(alpha=0.25)
            panel.set_xlabel("learning rate" + (" of the base" if carried else ""))
            panel.set_ylabel("held-out loss, nats per byte")
            if panel.lines:
                panel.legend(fontsize=7)
    figure.suptitle(f"{optimizer}: loss against learning rate; dotted: the best, by a parabola", fontsize=11)
    target = RESULTS / f"{optimizer}.png"
    figure.savefig(target, dpi=100)
    return target


def report() -> str:
    """Markdown of everything measured; the pictures beside it."""
    rows, lines = read()
    seconds, most = sum(line["cpu_seconds"] for line in lines), max(line["parameters"] for line in lines)
    parts = [
        "# Learning rates over four widths and two depths",
        "",
        "Written by `python -m benchmarks.transfer_sweep --report`; see that file for the set-up. Models of at most "
        f"{most:,} parameters, {STEPS} steps of {BATCH * CONTEXT} bytes, {len(lines)} runs, {seconds / 60:.0f} minutes of one "
        f"core, torch {torch.__version__}. Not run on a GPU.",
        "",
        'Neighbours on the grid of rates differ by a factor of 2, and "moved by" counts such steps from the best rate of the '
        f"base (width {WIDTHS[0]}, {DEPTHS[0]} blocks). The best rate is the minimum of a parabola through the best measured one "
        "and its two neighbours. \"At the base's rate\" is how much loss is lost by training with the base's best measured rate "
        "in place of the model's own.",
        *NOTES,
    ]
    for optimizer, (recipe, _, beside) in OPTIMIZERS.items():
        found, farthest = table(rows, optimizer)
        parts += ["", f"## {optimizer}", "", f"Recipe `{recipe}`{f', AdamW beside it at {beside:g} of its rate' if beside else ''}. Farthest from the base's: {farthest[True]:+.2f} steps with the "
                  f"transfer, {farthest[False]:+.2f} without.", "", f"![picture]({optimizer}.png)", "", *found]  # fmt: skip
        picture(rows, optimizer)
    return "\n".join(parts) + "\n"


# What the tables say, in words.
NOTES = [
    "",
    "- **AdamW**: with the transfer the best rate stays within 0.7 grid steps, over widths of 32 to 256 and two to four blocks. Without "
    "it, it is 2.9 steps lower at width 256. Training there with the base's rate costs 0.07 nats per byte with the transfer (0.09 with "
    "four blocks) and 0.31 without.",
    "- **Muon** with AdamW beside it at the matrices' rate, which the base likes (`muon_tuned`): 0.1 steps with the transfer, 1.1 "
    "without. Width 256 reaches 2.16 with it and 2.25 without.",
    "- **Muon** with AdamW beside it at a quarter of that rate, which the base likes less (2.44 against 2.33): 0.3 steps with the transfer, "
    "0.7 without. Its scale `original` follows the spectral condition already, so that the matrices' best rate hardly moves by itself.",
    "- **What did not transfer: the loss of an untuned base.** With that quarter, width 256 is better without the transfer (2.24 against "
    "2.32): what the base has is carried over, be it good or bad. The same with the initial head: 8 times as large, it takes that base from "
    "2.44 to 2.41, and width 256 from 2.31 to 2.25 (one seed). So tune the rate beside Muon and the initial weights on the base, too.",
    "- Depth: from two to four blocks the best rates move by at most 0.5 steps with the transfer, by 1.0 without; the ratio is too small "
    "to tell that from noise. The losses of four blocks of width 32 are lower with it (2.82 against 2.94, Muon 2.42 against 2.53).",
    "- How sure: two seeds, whose losses differ by up to 0.2 for AdamW; a rate chosen by one seed alone may be a step away. At the largest "
    "width the best rate has one neighbour on each side. Short runs, and small models: nothing is known of longer ones from this.",
]


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizers", nargs="+", default=list(OPTIMIZERS), choices=list(OPTIMIZERS))
    parser.add_argument("--depths", nargs="+", type=int, default=list(DEPTHS), choices=DEPTHS)
    parser.add_argument("--widths", nargs="+", type=int, default=list(WIDTHS), choices=WIDTHS)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--report", action="store_true")
    given = parser.parse_args()
    if given.report:
        (RESULTS / "README.md").write_text(report())
        return
    torch.set_num_threads(1)
    RESULTS.mkdir(parents=True, exist_ok=True)
    sizes = [(width, depth) for width in given.widths for depth in given.depths]
    # All curves with the first seed, then the others; wide models take most of the time, and come last.
    for last in range(1, len(given.seeds) + 1):
        for width, depth in sorted(sizes, key=lambda size: size[::-1]):
            for name in given.optimizers:
                for carried in (True, False):
                    curve = Curve(name, depth, carried, width)
                    measure(curve, start_of(curve, given.seeds[:last]), given.seeds[:last])


if __name__ == "__main__":
    main()
