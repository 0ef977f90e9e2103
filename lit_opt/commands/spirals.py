"""`lit-opt spirals`: optimizers on two spirals, as a picture and an animation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lit_opt.callbacks.plane import Plane
from lit_opt.callbacks.trajectory_picture import write_gif, write_png
from lit_opt.errors import RecipeError
from lit_opt.workloads.spirals import Trained, start_of, train, two_spirals
from lit_opt.workloads.spirals_picture import spirals_scene

MOST = 4


def run_spirals(optimizers: Sequence[str], lrs: Sequence[str], steps: int, seed: int, out: Path, frames: int) -> str:
    """Train, draw, and say what was done.

    Args:
        optimizers: Names of the registry, one to four.
        lrs: "name=value" for each rate that is not the table's.
        steps: Optimizer steps of each.
        seed: Of weights and data.
        out: Folder for spirals.png and spirals.gif.
        frames: Of the animation.

    Raises:
        RecipeError: Anything that cannot be run, all problems at once.
    """
    rates, problems = _rates(lrs, optimizers)
    if not 1 <= len(optimizers) <= MOST or len(set(optimizers)) < len(optimizers):
        problems.append(
            f"optimizers: {','.join(optimizers)!r} are not one to {MOST} different names. Type --optimizers sgd,adamw,muon."
        )
    if steps < 2:
        problems.append(f"steps: {steps} is not 2 or more. Type --steps 300.")
    if frames < 2:
        problems.append(f"frames: {frames} is not 2 or more. Type --frames 48.")
    starts = {}
    for name in optimizers:
        try:
            starts[name] = start_of(name, rates.get(name))
        except RecipeError as error:
            problems += error.problems
    if problems:
        raise RecipeError(problems)
    points, labels = two_spirals(seed=seed)
    runs = [train(name, start, points, labels, steps=steps, seed=seed) for name, start in starts.items()]
    scene = spirals_scene(runs, points, labels, frames=frames)
    write_png(scene, out / "spirals.png")
    write_gif(scene, out / "spirals.gif", frames)
    width = max(map(len, optimizers))
    lines = [f"{'':{width}}  lr      final loss  in the plane  where the lr comes from"]
    lines += [_line(run, width, steps, scene.plane) for run in runs]
    lines += [
        "",
        f"The plane holds {100 * scene.plane.explained:.0f} % of the variance of the paths. The surface is the loss on the plane; a path is the",
        "shadow that the weights throw on it, and the loss curve is that of the weights themselves.",
        "Where little of a path is in the plane, the surface under it is not what it met: draw fewer optimizers at once.",
        "The table's rates are the smallest of 1e-4, 3e-4, ..., 1 that end under a loss of 0.01 in 300 steps, else the best.",
        "That rule was chosen after a look at the picture, on one seed: the order of the optimizers is no evidence.",
        "A toy: who is first here says nothing of real models; `lit-opt compare` does.",
        f"{out / 'spirals.png'}\n{out / 'spirals.gif'}",
    ]
    return "\n".join(lines)


def _line(run: Trained, width: int, steps: int, plane: Plane) -> str:
    final = f"{float(run.losses[-1]):.2e}" if len(run.losses) == steps + 1 else "diverged"
    moved = run.history[run.history.isfinite().all(1)]
    moved = moved[-1] - moved[0]
    share = float((plane.axes @ moved).square().sum() / moved.square().sum().clamp(min=1e-30))
    return f"{run.name:{width}}  {run.start.values['lr']:<6g}  {final:<10}  {100 * share:>10.0f} %  {run.start.source}"


def _rates(lrs: Sequence[str], optimizers: Sequence[str]) -> tuple[dict[str, float], list[str]]:
    rates, problems = {}, []
    for text in lrs:
        name, _, number = text.partition("=")
        try:
            rates[name] = float(number)
        except ValueError:
            problems.append(f"lr: {text!r} is not NAME=NUMBER. Type --lr adamw=0.01.")
            continue
        if name not in optimizers:
            problems.append(
                f"lr: {name!r} is not among the optimizers ({', '.join(optimizers)}). Add it to --optimizers."
            )
    return rates, problems
