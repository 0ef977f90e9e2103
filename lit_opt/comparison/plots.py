"""The pictures of a report, from its results: PNG bytes by name. Colours are Okabe and Ito's, told apart by everyone."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
BASELINE_COLOUR = "#333333"
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))

Results = dict[str, Any]

AXES = {"samples": "training {unit}", "flops": "compute (FLOPs of model and optimizer)", "seconds": "training time (s)"}


def pictures(results: Results) -> dict[str, bytes]:
    """All pictures that the results have numbers for.

    Args:
        results: Of `lit_opt.comparison.results.compute`.

    Returns:
        PNG bytes by name: "difference", "curve_samples", "curve_flops", "curve_seconds", "needed", "speedup", "search",
        "best_after", "profile"; of "search" one an arm, "search_muon".

    Raises:
        ImportError: Matplotlib is not installed.

    Example:
        >>> from lit_opt.comparison.records import Arm, Protocol
        >>> from lit_opt.comparison.results import compute
        >>> arm = Arm("a", "llm", {}, {"lr": 1e-3}, {})
        >>> pictures(compute(Protocol((arm,), "a", "loss", "min", 2, (2,), 1, 1), []))
        {}
    """
    found = {"difference": _difference(results)}
    for quantity in AXES:
        found[f"curve_{quantity}"] = _curve(results, quantity)
    found |= {"needed": _needed(results), "speedup": _speedup(results)}
    found |= {f"search_{name}": _search_map(results, name) for name in results["arms"]}
    found |= {"best_after": _best_after(results), "profile": _profile(results)}
    return {name: _png(figure) for name, figure in found.items() if figure is not None}


def colour_of(results: Results, name: str) -> str:
    """The colour of an arm: dark grey for the baseline.

    Example:
        >>> colour_of({"protocol": {"baseline": "a"}, "arms": {"a": {}, "b": {}}}, "b")
        '#0072B2'
    """
    if name == results["protocol"]["baseline"]:
        return BASELINE_COLOUR
    others = [arm for arm in results["arms"] if arm != results["protocol"]["baseline"]]
    return COLOURS[others.index(name) % len(COLOURS)]


def _difference(results: Results) -> Figure | None:
    """Final metric minus the baseline's, seed by seed, with the paired interval."""
    rows = [(name, one) for name, one in results["comparisons"].items() if len(one["differences"]) > 1]
    if not rows:
        return None
    figure, axes = _figure(height=1.5 + 0.75 * len(rows))
    axes.axvline(0, color=BASELINE_COLOUR, linewidth=1.5)
    for y, (name, one) in enumerate(rows):
        colour = colour_of(results, name)
        dots = [d for d in one["differences"] if d is not None]
        axes.plot(dots, [y + 0.16] * len(dots), "o", color=colour, alpha=0.45, markersize=6, markeredgewidth=0)
        if one["mean"] is not None:
            axes.plot([one["low"], one["high"]], [y - 0.1] * 2, color=colour, linewidth=4, solid_capstyle="butt")
            axes.plot([one["mean"]], [y - 0.1], "D", color=colour, markersize=9, markeredgecolor="white")
    _names(axes, [f"{name}\n{one['verdict']}{_lost(one['differences'])}" for name, one in rows])
    low, high = axes.get_xlim()
    widest = max(abs(low), abs(high)) * 1.05
    axes.set_xlim(-widest, widest)
    better = "left of 0 is better" if results["protocol"]["mode"] == "min" else "right of 0 is better"
    baseline, metric = results["protocol"]["baseline"], results["protocol"]["metric"]
    axes.set_xlabel(f"{metric} minus that of {baseline}, same seed ({better})")
    return figure


def _curve(results: Results, quantity: str) -> Figure | None:
    """The metric against samples, compute or time: mean over seeds, with the range over seeds as a band."""
    figure, axes = _figure()
    drawn: list[tuple[list[float], list[float]]] = []
    for index, (name, arm) in enumerate(results["arms"].items()):
        along = results["timing"]["arms"][name]["curve_seconds"] if quantity == "seconds" else arm["curve"][quantity]
        shown = [i for i, x in enumerate(along) if x is not None and arm["curve"]["low"][i] is not None]
        if not shown or max(along[i] for i in shown) == 0:
            continue
        x = [along[i] for i in shown]
        low, high, mean = ([arm["curve"][key][i] for i in shown] for key in ("low", "high", "mean"))
        colour = colour_of(results, name)
        axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
        label = name + (" (baseline)" if name == results["protocol"]["baseline"] else "")
        style = _LINES[index % len(_LINES)]
        axes.plot(
            x, [math.nan if m is None else m for m in mean], color=colour, label=label, linewidth=2.2, linestyle=style
        )
        drawn.append((low, high))
    if not drawn:
        return None
    level = results["target"]["level"]
    if level is not None:
        axes.axhline(level, color="0.5", linewidth=1, linestyle=(0, (2, 2)), label="target", zorder=0)
    axes.set_ylim(*_interesting(drawn, results["protocol"]["mode"]))
    axes.set_xlim(0, None)
    axes.set(xlabel=AXES[quantity].format(unit=results["samples_unit"]), ylabel=results["protocol"]["metric"])
    axes.xaxis.set_major_formatter(_engineering)
    axes.legend(fontsize=10, frameon=False)
    return figure


def _needed(results: Results) -> Figure | None:
    """Samples until the target, seed by seed, with the median, its interval and the crossing of the mean."""
    rows = [(name, one["samples"]) for name, one in results["target"]["arms"].items() if one["samples"]["of"]]
    if not rows:
        return None
    figure, axes = _figure(height=1.6 + 0.85 * len(rows))
    most = max([one["value"] or 0 for _, row in rows for one in row["seeds"]])
    if most == 0:
        return None
    for y, (name, row) in enumerate(rows):
        colour = colour_of(results, name)
        values = sorted(one["value"] for one in row["seeds"] if one["value"] is not None)
        above = [y + 0.1 + 0.09 * values[:i].count(value) for i, value in enumerate(values)]
        axes.plot(values, above, "o", color=colour, alpha=0.55, markersize=5, markeredgewidth=0)
        if row["median"] is not None:
            high = row["high"] if row["high"] is not None else most * 1.08
            axes.plot([row["low"], high], [y - 0.12] * 2, color=colour, linewidth=4, solid_capstyle="butt")
            axes.plot([row["median"]], [y - 0.12], "D", color=colour, markersize=9, markeredgecolor="white")
        if row["at_mean"] is not None:
            axes.plot([row["at_mean"]], [y - 0.34], "^", color=colour, markersize=7)
    _names(axes, [f"{name}\n{row['reached']} of {row['of']} seeds" for name, row in rows])
    axes.set_xlim(0, most * 1.08)
    axes.xaxis.set_major_formatter(_engineering)
    unit = results["samples_unit"]
    axes.set_xlabel(
        f"training {unit} until the target (dots: seeds; bar: median's interval;\ntriangle: where the mean gets there)"
    )
    return figure


def _speedup(results: Results) -> Figure | None:
    """Baseline's need / the arm's need to reach the target, in samples, compute and time, with intervals."""
    rows = []
    for name, one in results["target"]["arms"].items():
        blocks = {"samples": one["samples"], "compute": one["flops"], "time": results["timing"]["target"].get(name, {})}
        for what, block in blocks.items():
            ratio = block.get("speedup")
            if ratio and ratio["ratio"]:
                rows.append((name, f"{name}, {what}", ratio))
    if not rows:
        return None
    figure, axes = _figure(height=1.4 + 0.42 * len(rows))
    axes.axvline(1, color=BASELINE_COLOUR, linewidth=1.5)
    ends = [x for *_, r in rows for x in (r["low"], r["ratio"], r["high"]) if x]
    left, right = min([0.9, *ends]) / 1.1, max([1.1, *ends]) * 1.1
    for y, (name, _, ratio) in enumerate(rows):
        colour = colour_of(results, name)
        axes.plot(
            [ratio["low"] or left, ratio["high"] or right], [y, y], color=colour, linewidth=4, solid_capstyle="butt"
        )
        axes.plot([ratio["ratio"]], [y], "D", color=colour, markersize=9, markeredgecolor="white")
    _names(axes, [label for _, label, _ in rows])
    axes.set_xscale("log")
    axes.set_xlim(left, right)
    _plain_ticks(axes.xaxis, [0.25, 0.5, 0.7, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2, 3, 4, 8], left, right)
    axes.set_xlabel(f"{results['protocol']['baseline']}'s need / the arm's, to the target (right of 1: needs less)")
    return figure


def _search_map(results: Results, name: str) -> Figure | None:
    """The points of an arm's search in its box, coloured by final metric: crosses failed, the ring is the winner."""
    points = [point for study in results["arms"][name]["studies"] for point in study["points"]]
    points = [point for point in points if "lr" in point["values"]]
    arm = next(arm for arm in results["protocol"]["arms"] if arm["name"] == name)
    done = [point for point in points if point["metric"] is not None]
    if len(points) < 2 or not done:
        return None
    figure, axes = _figure(width=4.6, height=3.9)
    second = "weight_decay" if all("weight_decay" in point["values"] for point in points) else None

    def places(some: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
        return [p["values"]["lr"] for p in some], [p["values"][second] if second else p["metric"] for p in some]

    metrics = sorted(point["metric"] for point in done)
    if results["protocol"]["mode"] == "max":
        worst, best = metrics[len(metrics) // 4], metrics[-1]
    else:
        worst, best = metrics[-1 - len(metrics) // 4], metrics[0]
    low, high = sorted((worst, best))
    cmap = "viridis_r" if results["protocol"]["mode"] == "max" else "viridis"
    shown = axes.scatter(
        *places(done), c=[p["metric"] for p in done], cmap=cmap, vmin=low, vmax=high,
        s=110, edgecolors="0.45", linewidths=0.6, zorder=2,
    )  # fmt: skip
    failed = [point for point in points if point["metric"] is None]
    if failed and second:
        axes.scatter(*places(failed), marker="x", c="#D55E00", s=70, linewidths=2, zorder=2)
    starts = [point for point in done if point["point"] == 0]
    if starts:
        axes.scatter(*places(starts), marker="s", s=200, facecolors="none", edgecolors="0.35", zorder=3)
    winners = {study["winner"]["run"] for study in results["arms"][name]["studies"] if study["winner"]}
    best_points = [point for point in done if point["run"] in winners]
    axes.scatter(
        *places(best_points),
        s=260,
        facecolors="none",
        edgecolors="black",
        linewidths=2,
        zorder=4,
    )
    axes.set_xscale("log")
    if second:
        axes.set_yscale("log")
        bar = figure.colorbar(shown, extend="max" if results["protocol"]["mode"] == "min" else "min")
        bar.set_label(results["protocol"]["metric"])
    if second in arm["box"]:
        axes.set_ylim(*arm["box"][second])
    if "lr" in arm["box"]:
        axes.set_xlim(*arm["box"]["lr"])
    axes.set(title=name, xlabel="lr", ylabel=second or results["protocol"]["metric"])
    return figure


def _best_after(results: Results) -> Figure | None:
    """What the best of k trials is expected to be, with the middle 90 % of the draws."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = _figure()
    finals = []
    for index, (name, arm) in enumerate(results["arms"].items()):
        steps = [one for one in arm["studies"][0]["best_after"] if one["lucky"] is not None] if arm["studies"] else []
        if len(steps) < 2:
            continue
        colour = colour_of(results, name)
        x = [one["k"] for one in steps]
        mean = [math.nan if one["expected"] is None else one["expected"] for one in steps]
        axes.plot(x, mean, color=colour, label=name, linewidth=2.2, linestyle=_LINES[index % len(_LINES)], marker=".")
        for end in ("lucky", "unlucky"):
            ends = [math.nan if one[end] is None else one[end] for one in steps]
            axes.plot(x, ends, color=colour, linewidth=0.9, alpha=0.5)
        finals.append(([one["lucky"] for one in steps], [m for m in mean if not math.isnan(m)] or [steps[-1]["lucky"]]))
    if not finals:
        return None
    shown = [x for lucky, mean in finals for x in (*lucky, *mean)]
    margin = 0.06 * (max(shown) - min(shown) or 1)
    axes.set_ylim(min(shown) - margin, max(shown) + margin)
    axes.set(xlabel="trials of the search", ylabel=f"best {results['protocol']['metric']} so far (search runs)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=10, frameon=False)
    return figure


def _profile(results: Results) -> Figure | None:
    """Share of problems (targets x seeds) that an arm solves within tau times the samples of the best."""
    if not results["profile"]:
        return None
    figure, axes = _figure()
    for index, (name, shares) in enumerate(results["profile"]["shares"].items()):
        label = f"{name} ({results['profile']['score'][name]:.2f})"
        axes.plot(
            results["profile"]["factors"], shares, color=colour_of(results, name), label=label, linewidth=2.2,
            drawstyle="steps-post", linestyle=_LINES[index % len(_LINES)],
        )  # fmt: skip
    axes.set(xlabel=f"tau: {results['samples_unit']} needed / those of the best arm", ylabel="share of problems solved")
    axes.set(ylim=(0, 1.03), xlim=(1, results["profile"]["factors"][-1]))
    axes.legend(fontsize=10, frameon=False, loc="lower right", title="arm (area)", title_fontsize=10)
    return figure


def _figure(width: float = 6.6, height: float = 4.2) -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.label.set_fontsize(11)
    axes.yaxis.label.set_fontsize(11)
    return figure, axes


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _names(axes: Axes, names: list[str]) -> None:
    """One row a name, from the top."""
    axes.set_yticks(range(len(names)), names, fontsize=11)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _lost(differences: list[float | None]) -> str:
    count = sum(d is None for d in differences)
    return f"\n{count} failed" if count else ""


def _interesting(drawn: list[tuple[list[float], list[float]]], mode: str) -> tuple[float, float]:
    """Bounds that leave out the first fall of a curve, which would flatten everything after it."""
    late = [
        (low[i], high[i]) for low, high in drawn for i in range(len(low)) if i >= min(0.15 * len(low), len(low) - 1)
    ]
    bottom, top = min(low for low, _ in late), max(high for _, high in late)
    margin = 0.06 * (top - bottom or abs(top) or 1)
    return bottom - margin, top + margin


def _engineering(x: float, _: object) -> str:
    for limit, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(x) >= limit:
            return f"{x / limit:g}{letter}"
    return f"{x:g}"


def _plain_ticks(axis: Any, at: list[float], low: float, high: float) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    axis.set_major_locator(FixedLocator([x for x in at if low <= x <= high]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda x, _: f"{x:g}x")
