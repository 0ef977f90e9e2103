"""The points of the search: the same quasi-random points of the unit square for every arm, in each arm's own box."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch

from lit_opt.comparison.records import Arm
from lit_opt.comparison.seeds import stream

# The order of the dimensions; an arm without weight decay leaves the second unused.
TUNED = ("lr", "weight_decay")


def box_around(start: Mapping[str, float], decades: float) -> dict[str, tuple[float, float]]:
    """A box of that many decades around the starting values; what is 0 has no logarithm and is not tuned.

    Args:
        start: "lr" and, where the arm has it, "weight_decay".
        decades: Width of the box; half of it below the start, half above.

    Example:
        >>> box_around({"lr": 0.01, "weight_decay": 0.0}, 2.0)
        {'lr': (0.001, 0.1)}
    """
    half = 10 ** (decades / 2)
    return {name: (start[name] / half, start[name] * half) for name in TUNED if start.get(name, 0.0) > 0}


def unit_points(count: int, seed: int, study: int) -> list[tuple[float, ...]]:
    """Scrambled Sobol points in the unit square; the first n of many are the first n of fewer.

    Example:
        >>> unit_points(8, 0, 0)[:4] == unit_points(4, 0, 0), unit_points(1, 0, 0) != unit_points(1, 0, 1)
        (True, True)
    """
    engine = torch.quasirandom.SobolEngine(len(TUNED), scramble=True, seed=stream(seed, "points", study))
    return [tuple(row) for row in engine.draw(count, dtype=torch.float64).tolist()] if count else []


def values_at(box: Mapping[str, tuple[float, float]], unit: tuple[float, ...]) -> dict[str, float]:
    """The values at a point of the unit square, on a logarithmic scale.

    Example:
        >>> values_at({"lr": (1e-3, 1e-1)}, (0.5, 0.9))
        {'lr': 0.01}
    """
    return {
        name: float(f"{math.exp(math.log(low) + u * (math.log(high) - math.log(low))):.6g}")
        for name, u in zip(TUNED, unit, strict=True)
        if name in box
        for low, high in [box[name]]
    }


def widened(arm: Arm, sides: Mapping[str, str]) -> tuple[Arm, dict[str, tuple[float, float]]]:
    """The arm with a box that is one decade wider on some sides, and the box of what was added.

    Args:
        arm: With the box as it was.
        sides: "lr" or "weight_decay" -> "low" or "high".

    Example:
        >>> arm = Arm("a", "cnn", {}, {"lr": 0.1}, {"lr": (0.01, 1.0)})
        >>> wider, added = widened(arm, {"lr": "high"})
        >>> wider.box, added
        ({'lr': (0.01, 10.0)}, {'lr': (1.0, 10.0)})
    """
    box, added = dict(arm.box), dict(arm.box)
    for name, side in sides.items():
        low, high = box[name]
        box[name] = (low / 10, high) if side == "low" else (low, high * 10)
        added[name] = (low / 10, low) if side == "low" else (high, high * 10)
    return replace(arm, box=box), added
