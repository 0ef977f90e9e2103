"""Results in words: numbers with honest digits, the verdicts, what they mean and do not mean, a paragraph to paste."""

from __future__ import annotations

import math
from typing import Any

Results = dict[str, Any]


def rounded(value: float | None, error: float | None = None, digits: int = 3) -> str:
    """A number with as many digits as its error allows: two significant ones of the error.

    Args:
        value: The number; None is a number that does not exist.
        error: Half the width of its interval; None or 0 gives `digits` significant digits.
        digits: Without an error.

    Example:
        >>> rounded(3.41234, 0.0161), rounded(0.05), rounded(1234567.0), rounded(None)
        ('3.412', '0.05', '1.23 million', 'none')
    """
    if value is None or not math.isfinite(value):
        return "none"
    for size, word in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G")):
        if abs(value) >= size:
            return f"{value / size:.3g} {word}"
    if error and math.isfinite(error):
        places = 1 - math.floor(math.log10(error))
        if places >= 0:
            return f"{value:.{min(places, 12)}f}"
    if abs(value) >= 1e6:
        return f"{value / 1e6:.3g} million"
    if abs(value) >= 10**digits:
        return f"{float(f'{value:.{digits}g}'):,.0f}"
    return f"{value:.{digits}g}"


def interval(low: float | None, high: float | None) -> str:
    """An interval with honest digits; an open end is a run that never got there.

    Example:
        >>> interval(-0.0963, -0.0747), interval(5760.0, None)
        ('-0.096 to -0.075', '5,760 to never')
    """
    if low is None:
        return "never"
    if high is None:
        return f"{rounded(low)} to never"
    error = (high - low) / 2 * (1 if max(abs(low), abs(high)) < 1000 else 0)
    return f"{rounded(low, error)} to {rounded(high, error)}"


def p_text(p: float | None) -> str:
    """A p value.

    Example:
        >>> p_text(6e-7), p_text(0.2647), p_text(None)
        ('< 0.0001', '0.26', 'none')
    """
    if p is None:
        return "none"
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def verdict_line(results: Results, name: str) -> str:
    """The verdict on one arm in a sentence.

    Example:
        >>> one = {"said": "no verdict", "verdict": "no verdict", "mean": None, "reasons": ["search not finished"]}
        >>> verdict_line({"comparisons": {"b": one}, "protocol": {"baseline": "a", "metric": "loss"}}, "b")
        'b against a: no verdict (search not finished).'
    """
    one, plan = results["comparisons"][name], results["protocol"]
    line = f"{name} against {plan['baseline']}: {one['said']}"
    if one["reasons"]:
        return f"{line} ({'; '.join(one['reasons'])})."
    return f"{line} ({measured(results, name)})." if measured(results, name) else f"{line} (too few pairs of seeds)."


def measured(results: Results, name: str) -> str:
    """What was measured between an arm and the baseline, in a clause.

    Example:
        >>> one = {"mean": -0.085, "low": -0.096, "high": -0.075, "p_holm": 1e-6, "differences": [0] * 8}
        >>> measured({"comparisons": {"b": one}, "protocol": {"metric": "loss"}}, "b")
        'loss -0.085 [-0.096 to -0.075], p < 0.0001 after Holm, 8 paired seeds'
    """
    one, metric = results["comparisons"][name], results["protocol"]["metric"]
    seeds = f"{len(one['differences'])} paired seeds"
    if one["mean"] is not None:
        value = signed(one["mean"], (one["high"] - one["low"]) / 2)
        return f"{metric} {value} [{interval(one['low'], one['high'])}], p {_equals(one['p_holm'])} after Holm, {seeds}"
    if one["p_holm"] is not None:
        failed = "; ".join(f"{arm}: {count} failed" for arm, count in one["failed"].items() if count)
        return f"signed ranks with failed runs as the worst ({failed}), p {_equals(one['p_holm'])} after Holm, {seeds}"
    return ""


def signed(value: float, error: float | None = None) -> str:
    """A difference with its sign.

    Example:
        >>> signed(0.0123, 0.004)
        '+0.0123'
    """
    return ("+" if value > 0 else "") + rounded(value, error)


def speedup_text(block: Results | None) -> str:
    """A ratio of needs with its interval.

    Example:
        >>> speedup_text({"ratio": 1.565, "low": 1.53, "high": 1.6, "pairs": 8})
        '1.56x [1.53 to 1.6]'
    """
    if not block or block["ratio"] is None:
        return "none"
    high = "open" if block["high"] is None else f"{block['high']:.3g}"
    return f"{block['ratio']:.3g}x [{block['low']:.3g} to {high}]"


def horizon_note(results: Results) -> str:
    """What a target means under the schedules of these runs.

    Example:
        >>> horizon_note({"decays": ["wsd"], "protocol": {"budget_steps": 100}})[:40]
        'Learning rates stay level until a late d'
    """
    if results["decays"] and set(results["decays"]) <= {"constant", "wsd"}:
        return (
            "Learning rates stay level until a late decay (or throughout), so the way to the target does not hang on the "
            "length of the run before that decay begins; a crossing inside it does."
        )
    known = f" ({', '.join(results['decays'])})" if results["decays"] else ""
    return (
        f"The learning rates decay towards step {results['protocol']['budget_steps']:,}{known}. Under such a schedule every "
        "arm approaches its best near the end, so what is needed to reach the target says little about a shorter run: a "
        "run that was to be shorter would have a schedule fitted to it. The paired final metric decides; these ratios do not."
    )


def frozen(results: Results) -> str:
    """When the target was fixed.

    Example:
        >>> frozen({"target": {"frozen": True}})
        'frozen before the other arms were confirmed'
    """
    if results["target"]["frozen"]:
        return "frozen before the other arms were confirmed"
    return "from the baseline's confirmation, not frozen in a ledger"


def caveats(results: Results) -> list[str]:
    """What the comparison does not say.

    Example:
        >>> len(caveats({"protocol": {"studies": 1, "trials": 1}, "timing": {"arms": {}}, "target": {"level": None}}))
        5
    """
    plan = results["protocol"]
    found = [
        "It speaks for this model, this data, this budget and these boxes of values. Nothing here speaks for models of "
        "100 million parameters and more, or for longer runs, unless that is what was run.",
    ]
    if plan["trials"] == 1:
        found.append(
            "No arm was tuned: each ran as published. A verdict is about the published values, not the optimizers."
        )
    if plan["studies"] == 1:
        found.append(
            "One search an arm: the verdict is about the points that it found. What luck the search had is not in the "
            "interval; --studies 3 would measure it."
        )
    timed = [arm["curve_seconds"] for arm in results["timing"]["arms"].values()]
    if not any(one is not None for arm in timed for one in arm):
        found.append(
            "Times are not reported: runs shared the machine, or it has no fair clock. Samples and compute hold."
        )
    if results["target"]["level"] is None:
        found.append(
            "There is no target: the baseline's confirmation is missing, failed too often, or did not improve."
        )
    return found


def summary(results: Results, fitted: str = "") -> str:
    """A paragraph in Markdown to paste, with the protocol in one sentence and each verdict.

    Args:
        results: Of `lit_opt.comparison.results.compute`.
        fitted: A sentence on runs with fitted schedules.

    Example:
        >>> from lit_opt.comparison.records import Arm, Protocol
        >>> from lit_opt.comparison.results import compute
        >>> arm = Arm("a", "llm", {}, {"lr": 1e-3}, {})
        >>> summary(compute(Protocol((arm,), "a", "loss", "min", 2, (2,), 1, 1), [])).splitlines()[0]
        '**Fair comparison on `loss`** (lower is better).'
    """
    plan = results["protocol"]
    better = "lower" if plan["mode"] == "min" else "higher"
    times = f", {plan['studies']} studies" if plan["studies"] > 1 else ""
    lines = [
        f"**Fair comparison on `{plan['metric']}`** ({better} is better).",
        f"{plan['budget_steps']:,} steps a run; {_trials(plan['trials'])}; then {plan['seeds']} fresh "
        f"seeds, the same for all arms{times}. Verdicts: paired t-test on the final metric, Holm over "
        f"{len(results['comparisons'])} arms at 0.05.",
        "",
        *(f"- {verdict_line(results, name)}" for name in results["comparisons"]),
    ]
    ratios = [
        f"{name} {speedup_text(one['samples']['speedup'])}"
        for name, one in results["target"]["arms"].items()
        if one["samples"]["speedup"] and one["samples"]["speedup"]["ratio"]
    ]
    if ratios:
        lines += [
            "",
            f"{results['samples_unit'].capitalize()} until {plan['metric']} {rounded(results['target']['level'], digits=4)} "
            f"({frozen(results)}), need of {plan['baseline']} / need of the arm: {'; '.join(ratios)}. {horizon_note(results)}",
        ]
    if fitted:
        lines += ["", fitted]
    total = results["total"]
    lines += [
        "",
        f"{total['runs']['tune']} runs of the search and {total['runs']['confirm']} of the confirmation"
        + (f", {total['runs']['horizon']} shorter ones. " if total["runs"].get("horizon") else ". ")
        + " ".join(caveats(results)[:1]),
    ]
    return "\n".join(lines) + "\n"


def _trials(trials: int) -> str:
    if trials == 1:
        return "no search, each arm as published"
    return f"{trials} trials of learning rate and weight decay for every arm, on the same points of its box"


def _equals(p: float) -> str:
    return p_text(p) if p < 1e-4 else f"= {p_text(p)}"
