"""The runs with fitted schedules in the report: a table, a sentence, a picture."""

from __future__ import annotations

import io
import math
from html import escape
from typing import Any

from lit_opt.comparison.plots import colour_of
from lit_opt.comparison.tables import table
from lit_opt.comparison.words import interval, rounded, speedup_text

Results = dict[str, Any]

CAPTION = (
    "Every run had a schedule of its own length. Each dot is the mean of the final metric over the seeds at one length, the bar "
    "their range; dotted: the target."
)


def fitted_table(results: Results) -> str:
    """What each arm needed by runs with fitted schedules, as HTML; nothing where none were asked for.

    Example:
        >>> fitted_table({"horizons": None})
        ''
    """
    fitted = results["horizons"]
    if not fitted:
        return ""
    head = "<h3>By runs with schedules fitted to their length</h3>"
    if not fitted["arms"]:
        return f"{head}<p>None yet: they need a target.</p>"
    unit = results["samples_unit"]
    rows = []
    for name, one in fitted["arms"].items():
        clock = results["timing"]["horizons"][name]
        samples = one["samples"]
        rows.append(
            {"arm": name, "seeds that reach it": f"{samples['reached']} of {samples['of']}"}
            | {
                f"by {at['steps']:,} steps": f"{rounded(at['mean'])} ({at['reached']} of {at['of']})"
                for at in one["at"]
            }
            | {
                f"median {unit}": f"{rounded(samples['median'])} [{interval(samples['low'], samples['high'])}]"
                if samples["of"]
                else "none",
                f"fewer {unit}": _ratio(results, name, samples),
                "less compute": _ratio(results, name, one["flops"]),
                "less time": _ratio(results, name, clock),
            }
        )
    return f"{head}{table(rows)}<p class=soft>{escape(how(results))}</p>"


def how(results: Results) -> str:
    """How the numbers were got, and what they leave open.

    Example:
        >>> how({"horizons": {"steps": [50, 100]}, "protocol": {"budget_steps": 100}})[:60]
        'Each winner was also trained with budgets of 50 steps, the s'
    """
    *shorter, whole = results["horizons"]["steps"]
    return (
        f"Each winner was also trained with budgets of {_and(shorter)} steps, the schedule fitted to each, on the seeds of the "
        f"confirmation, which is the run of {whole:,}. A seed needs what its shortest run took whose final metric reaches the "
        "target; a seed that never does is infinite. Nothing is interpolated: in braces is what the spacing of the lengths alone "
        "leaves a ratio. Learning rate and weight decay are those that won at the whole budget. No verdict hangs on these ratios."
    )


def sentence(results: Results) -> str:
    """For the summary; nothing where there is no ratio.

    Example:
        >>> sentence({"horizons": None})
        ''
    """
    fitted = results["horizons"]
    if not fitted:
        return ""
    said = []
    for name, one in fitted["arms"].items():
        block = one["samples"]["speedup"]
        if block and block["ratio"] is not None:
            said.append(f"{name} {_ratio(results, name, one['samples'])}, {_at_shortest(results, name)}")
    if not said:
        return ""
    return (
        f"The same with every run's schedule fitted to its length ({_and(fitted['steps'])} steps): {'; '.join(said)}. In braces: "
        "what the spacing of the lengths alone leaves."
    )


def fitted_picture(results: Results) -> bytes | None:
    """The final metric against the length of the run, as PNG; None where there is nothing to draw.

    Raises:
        ImportError: Matplotlib is not installed.

    Example:
        >>> fitted_picture({"horizons": None}) is None
        True
    """
    fitted = results["horizons"]
    drawn = {
        name: [at for at in one["at"] if at["mean"] is not None]
        for name, one in (fitted or {"arms": {}})["arms"].items()
    }
    if not any(len(points) > 1 for points in drawn.values()):
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.6, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    width = 0.006 * results["protocol"]["budget_steps"]
    for place, (name, points) in enumerate(drawn.items()):
        x = [at["steps"] + (place - (len(drawn) - 1) / 2) * width for at in points]  # bars beside one another
        mean = [at["mean"] for at in points]
        error = [[at["mean"] - at["low"] for at in points], [at["high"] - at["mean"] for at in points]]
        axes.errorbar(
            x, mean, yerr=error, color=colour_of(results, name), label=name, marker="o", linewidth=2, elinewidth=1
        )
    axes.axhline(results["target"]["level"], color="0.5", linewidth=1, linestyle=(0, (2, 2)), label="target", zorder=0)
    axes.set_xticks(fitted["steps"])
    axes.set(xlabel="steps of the run, and of its schedule", ylabel=f"final {results['protocol']['metric']}")
    axes.legend(fontsize=10, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _ratio(results: Results, name: str, block: Results) -> str:
    if not block["measured"]:
        return "not measured"
    if name == results["protocol"]["baseline"]:
        return "baseline"
    ratio = block["speedup"]
    if not ratio or ratio["ratio"] is None:
        return "none"
    text = speedup_text(ratio)
    if ratio["low"] == ratio["high"]:  # all seeds need runs of the same length, so the spacing is all that is open
        text = text.partition(" ")[0]
    if ratio["spacing_low"] is None:
        return f"{text}, with misses"
    open_end = ratio["spacing_high"] is None or math.isinf(ratio["spacing_high"])
    return f"{text} {{{ratio['spacing_low']:.3g} to {'open' if open_end else format(ratio['spacing_high'], '.3g')}}}"


def _at_shortest(results: Results, name: str) -> str:
    """How many are at the lower end of what was tried: they may need less still."""
    block = results["horizons"]["arms"][name]["samples"]
    return f"{block['reached']} of {block['of']} seeds reach it, {block['at_shortest']} at the shortest"


def _and(steps: list[int]) -> str:
    words = [f"{n:,}" for n in steps]
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
