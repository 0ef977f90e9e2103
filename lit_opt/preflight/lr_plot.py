"""The learning rate of every group on the true step axis: with plain characters, and as PNG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from lit_opt.errors import RecipeError
from lit_opt.explain.values import short
from lit_opt.schedules import Schedule, factor

_MARKS = "*o+x#%"
_HEIGHT = 13
# Curves with other peaks are left out from here on: a terminal cannot tell more apart.
_MOST_CURVES = len(_MARKS)


def curves(groups: Sequence[tuple[str, float]]) -> list[tuple[float, list[str]]]:
    """Groups by their peak learning rate, the highest first: groups with one peak share a curve.

    Args:
        groups: (name, peak) of each group.

    Example:
        >>> curves([("decay", 1e-3), ("no_decay", 1e-3), ("adamw", 3e-3)])
        [(0.003, ['adamw']), (0.001, ['decay', 'no_decay'])]
    """
    by_peak: dict[float, list[str]] = {}
    for name, peak in groups:
        by_peak.setdefault(peak, []).append(name)
    return sorted(by_peak.items(), reverse=True)


def text_plot(schedule: Schedule, groups: Sequence[tuple[str, float]], *, width: int = 100) -> list[str]:
    """Lines of a plot with plain characters.

    Args:
        schedule: With a horizon.
        groups: (name, peak learning rate) of each group.
        width: Columns.

    Example:
        >>> schedule = Schedule(total_steps=100, warmup_steps=50, kind="constant")
        >>> for line in text_plot(schedule, [("all", 0.1)], width=40)[:4]:
        ...     print(line)
          0.1 |               ****************
              |             **
              |            **
        0.075 |           **
    """
    total = schedule.total_steps
    assert total is not None
    shown = _thinned(curves(groups))
    highest = shown[0][0] or 1.0
    labels = {row: short(_rounded(highest * (_HEIGHT - 1 - row) / (_HEIGHT - 1))) for row in (0, 3, 6, 9, _HEIGHT - 1)}
    margin = max(4, *map(len, labels.values()))
    columns = max(20, min(total, width - margin - 4))
    grid = [[" "] * columns for _ in range(_HEIGHT)]
    for mark, (peak, _) in reversed(list(zip(_MARKS, shown, strict=False))):
        for column in range(columns):
            # Every step of a column, so that a short warmup is seen.
            steps = {_step(column, columns, total), max(0, _step(column + 1, columns, total) - 1)}
            for step in steps:
                height = peak * factor(schedule, step) / highest
                row = _HEIGHT - 1 - round(min(1.0, max(0.0, height)) * (_HEIGHT - 1))
                grid[row][column] = mark
    lines = [f"{labels.get(row, ''):>{margin}} |{''.join(cells).rstrip()}" for row, cells in enumerate(grid)]
    lines.append(" " * margin + " +" + "-" * columns)
    lines.append(" " * (margin + 2) + _axis(total, columns))
    for mark, (peak, names) in zip(_MARKS, shown, strict=False):
        lines += _wrapped(f"{'':{margin}}  {mark} {short(peak)}: ", names, width)
    return lines


def png_plot(
    path: str | Path, schedule: Schedule, groups: Sequence[tuple[str, float]], turns: Mapping[int, str], title: str
) -> Path:
    """Write the plot as PNG.

    Args:
        path: Of the file; its folder is made.
        schedule: With a horizon.
        groups: (name, peak learning rate) of each group.
        turns: Step -> what happens there, as thin vertical lines.
        title: Above the plot.

    Returns:
        The path.

    Raises:
        RecipeError: Matplotlib is not installed.

    Example:
        >>> schedule = Schedule(total_steps=100, warmup_steps=10)
        >>> png_plot("lr.png", schedule, [("decay", 1e-3)], {10: "peak"}, "cosine").stat().st_size > 1000
        True
    """
    try:
        from matplotlib import colormaps
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise RecipeError(
            ["plot: a PNG needs matplotlib. Type: pip install 'lit-opt[workloads]'; the text has a plot as well."]
        ) from None
    total = schedule.total_steps
    assert total is not None
    steps = sorted({round(i * (total - 1) / 2000) for i in range(2001)} | {step for step in turns if step < total})
    figure = Figure(figsize=(9, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    found = curves(groups)
    for index, (peak, names) in enumerate(found):
        label = f"{short(peak)}: {_few(names)}" if len(found) <= 12 or index in (0, len(found) - 1) else None
        colour = colormaps["viridis"](0.9 * index / max(1, len(found) - 1))
        axes.plot(steps, [peak * factor(schedule, step) for step in steps], label=label, linewidth=1.6, color=colour)
    for step, what in turns.items():
        if 0 < step < total - 1:
            axes.axvline(step, color="0.75", linewidth=0.8, zorder=0)
            axes.annotate(
                what,
                (step, 0.02),
                xycoords=("data", "axes fraction"),
                rotation=90,
                fontsize=8,
                color="0.3",
                xytext=(3, 0),
                textcoords="offset points",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
            )
    axes.set(xlabel="optimizer step", ylabel="learning rate", title=title, xlim=(0, total), ylim=(0, None))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    heading = "peak: groups" if len(found) <= 12 else f"peak: groups; {len(found) - 2} more rates lie between"
    figure.legend(fontsize=9, title=heading, title_fontsize=9, loc="outside lower center")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path


def _thinned(found: list[tuple[float, list[str]]]) -> list[tuple[float, list[str]]]:
    """At most as many curves as there are marks, spread from the highest to the lowest."""
    if len(found) <= _MOST_CURVES:
        return found
    places = [round(i * (len(found) - 1) / (_MOST_CURVES - 1)) for i in range(_MOST_CURVES)]
    return [found[place] for place in places]


def _step(column: int, columns: int, total: int) -> int:
    return min(total - 1, math.floor(column * total / columns)) if column < columns else total


def _rounded(x: float) -> float:
    return float(f"{x:.2g}")


def _axis(total: int, columns: int) -> str:
    """Step numbers below the plot: the first, the middle and the last."""
    middle, last = f"{total // 2:,}", f"{total:,} steps"
    line = f"{'0':<{max(1, columns // 2 - len(middle) // 2)}}{middle}"
    return f"{line:<{max(len(line) + 1, columns - len(last))}}{last}"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more"


def _wrapped(start: str, names: Sequence[str], width: int) -> list[str]:
    """Names after a start, folded at the width."""
    lines, line = [], start
    for index, name in enumerate(names):
        word = name + (", " if index + 1 < len(names) else "")
        if len(line) + len(word.rstrip()) > width and line.strip():
            lines.append(line.rstrip())
            line = " " * len(start)
        line += word
    return [*lines, line.rstrip()]
