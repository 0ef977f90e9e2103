"""The picture of a sweep: the metric against the value that was tuned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lit_opt.comparison.sweep_result import Found, Point
from lit_opt.workloads.require import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_sweep(found: Found, path: Path) -> Path:
    """Write the picture: the metric against the value; with two values a map of the points.

    Args:
        found: With at least one point that did not fail.
        path: Of the PNG.

    Raises:
        RecipeError: matplotlib is missing.

    Example:
        >>> draw_sweep.__name__  # tests/commands/test_sweep.py
        'draw_sweep'
    """
    require("matplotlib", "the picture of a sweep")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.6, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    done = [point for point in found.points if math.isfinite(point.mean)]
    failed = [point for point in found.points if not math.isfinite(point.mean)]
    first = found.tuned[0]
    axes.set_xscale("log")
    axes.set_xlabel(first)
    if len(found.tuned) == 1:
        _curve(axes, found, done, failed)
    else:
        second = found.tuned[1]
        low, high = _bounds(found, done)
        shown = axes.scatter(
            [p.values[first] for p in done],
            [p.values[second] for p in done],
            c=[p.mean for p in done],
            cmap="viridis" if found.protocol.mode == "min" else "viridis_r",
            vmin=low,
            vmax=high,
            s=110,
            edgecolors="0.45",
            linewidths=0.6,
        )
        axes.scatter([p.values[first] for p in failed], [p.values[second] for p in failed], marker="x", c="#D55E00")
        axes.set_yscale("log")
        axes.set_ylabel(second)
        figure.colorbar(shown, extend="max" if found.protocol.mode == "min" else "min", label=found.protocol.metric)
        box = found.protocol.arms[0].box
        for name, limit in ((first, axes.set_xlim), (second, axes.set_ylim)):
            tried = [*box[name], *(point.values[name] for point in found.points)]
            limit(min(tried) / 1.1, max(tried) * 1.1)
        for point in found.valley():
            weight = 2.2 if point is found.best else 1.0
            place = ([point.values[first]], [point.values[second]])
            axes.scatter(*place, s=240, facecolors="none", edgecolors="black", linewidths=weight)
    axes.set_title(f"{found.protocol.arms[0].recipe}, {found.protocol.budget_steps:,} steps", fontsize=11)
    figure.savefig(path, dpi=130)
    return path


def _curve(axes: Axes, found: Found, done: Sequence[Point], failed: Sequence[Point]) -> None:
    name = found.tuned[0]
    low, high = _bounds(found, done)
    if len(found.valley()) > 1:
        span = [point.values[name] for point in found.valley()]
        axes.axvspan(min(span), max(span), color="#009E73", alpha=0.12, linewidth=0, label="as good as the best")
    if found.protocol.seeds > 1:
        for seed in range(found.protocol.seeds):
            xs, ys = [p.values[name] for p in done], [p.metrics[seed] for p in done]
            axes.plot(xs, ys, ".", color="0.6", label="each seed" if seed == 0 else None)
    axes.plot([p.values[name] for p in done], [p.mean for p in done], "o-", color="#0072B2", label="mean")
    if found.best is not None:
        axes.plot([found.best.values[name]], [found.best.mean], "D", ms=9, color="#D55E00", label="best")
    margin = 0.05 * (high - low or abs(high) or 1.0)
    axes.set_ylim(low - margin, high + margin)
    for point in failed:
        axes.plot([point.values[name]], [0.97], "x", color="#D55E00", transform=axes.get_xaxis_transform())
    axes.set_ylabel(found.protocol.metric)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=9)


def _bounds(found: Found, done: Sequence[Point]) -> tuple[float, float]:
    """From the best to the worst, without what is far off and would flatten all others."""
    assert found.best is not None
    away = sorted(abs(point.mean - found.best.mean) for point in done)
    limit = 3 * away[math.ceil(0.75 * len(away)) - 1]
    shown = [m for point in done if abs(point.mean - found.best.mean) <= limit for m in point.metrics]
    return min(shown), max(shown)
