"""The tables of the report, as HTML. Each number carries the group of runs that it came from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from lit_opt.comparison.words import frozen, horizon_note, interval, measured, p_text, rounded, signed, speedup_text

Results = dict[str, Any]


def tables(results: Results) -> dict[str, str]:
    """Every table of the report by name, as HTML.

    Example:
        >>> from lit_opt.comparison.records import Arm, Protocol
        >>> from lit_opt.comparison.results import compute
        >>> arm = Arm("a", "llm", {}, {"lr": 1e-3}, {})
        >>> list(tables(compute(Protocol((arm,), "a", "loss", "min", 2, (2,), 1, 1), [])))
        ['violations', 'verdicts', 'finals', 'targets', 'searches', 'steps', 'protocol', 'sources']
    """
    return {
        "violations": _violations(results),
        "verdicts": _verdicts(results),
        "finals": _finals(results),
        "targets": _targets(results),
        "searches": _searches(results),
        "steps": _steps(results),
        "protocol": _protocol(results),
        "sources": _sources(results),
    }


def _violations(results: Results) -> str:
    if not results["violations"]:
        return ""
    items = "".join(
        f"<li><b>{escape(str(one.get('rule', 'contract')))}</b>: {escape(str(one.get('text', '')))}</li>"
        for one in results["violations"]
    )
    return f"<div class=warn><p>The comparison was not fair; arms that this touches get no verdict:</p><ul>{items}</ul></div>"


def _verdicts(results: Results) -> str:
    rows = []
    for name, one in results["comparisons"].items():
        rho = one["rho"] and one["rho"]["estimate"]
        because = f"<br><span class=soft>{escape('; '.join(one['reasons']))}</span>" if one["reasons"] else ""
        rows.append(
            {
                "arm": escape(name),
                "verdict": f"<span class='verdict {one['verdict']}'>{escape(one['said'])}</span>{because}",
                "difference": escape(_difference(results, name))
                + _refs(results, f"{name}/confirmation", _base(results)),
                "p (Holm)": escape(p_text(one["p_holm"])) + ("" if one["test"] == "paired t" else " (signed ranks)"),
                "sign-flip p": escape(p_text(one["p_sign_flip"])),
                "pairing (rho)": rounded(rho, digits=2),
                "could have shown": rounded(one["detectable"], digits=2),
            }
        )
    return _raw_table(rows) + (
        "<p class=soft>Better or worse: Holm's p under 0.05 for the paired t-test on the final metric. The sign-flip p "
        "decides nothing. Pairing: correlation of the two arms over seeds. Could have shown: the smallest difference that so "
        "many seeds find in 80 % of comparisons. Seeds needed: if the difference is as large as measured.</p>"
    )


def _difference(results: Results, name: str) -> str:
    one = results["comparisons"][name]
    if one["mean"] is None:
        return measured(results, name) or "none"
    return f"{signed(one['mean'], (one['high'] - one['low']) / 2)} [{interval(one['low'], one['high'])}]"


def _finals(results: Results) -> str:
    rows = []
    for name, arm in results["arms"].items():
        final, states = arm["final"], arm["stability"]["confirmation"]["states"]
        error = (final["high"] - final["low"]) / 2 if final["low"] is not None else None
        shown = (
            f"{rounded(final['mean'], error)} [{interval(final['low'], final['high'])}]"
            if error
            else rounded(final["mean"])
        )
        other = arm["other_readout"]
        rows.append(
            {
                "arm": escape(name),
                "final metric": shown + _refs(results, f"{name}/confirmation"),
                "median": rounded(final["median"], error),
                "spread over seeds (sd)": f"{rounded(final['sd'], digits=2)} [{interval(final['sd_low'], final['sd_high'])}]"
                if final["sd"] is not None
                else "none",
                "runs": ", ".join(f"{count} {state}" for state, count in states.items()),
                "other weights": f"{rounded(other['mean'], error)} ({other['readout']})" if other else "",
            }
        )
    return _raw_table(rows) + "<p class=soft>Means with 95 % t-intervals over seeds; no mean where a run failed.</p>"


def _targets(results: Results) -> str:
    target = results["target"]
    if target["level"] is None:
        return "<p>No target.</p>"
    rows = []
    for name, one in target["arms"].items():
        clock = results["timing"]["target"][name]
        samples = one["samples"]
        rows.append(
            {
                "arm": escape(name),
                "reached": f"{samples['reached']} of {samples['of']}" + _refs(results, f"{name}/confirmation"),
                f"median {results['samples_unit']}": f"{rounded(samples['median'])} [{interval(samples['low'], samples['high'])}]",
                "where the mean gets there": rounded(samples["at_mean"]) if samples["at_mean"] is not None else "never",
                f"fewer {results['samples_unit']}": _speedup(results, name, samples),
                "less compute": _speedup(results, name, one["flops"]),
                "less time": _speedup(results, name, clock),
            }
        )
    return (
        f"<p>Target: {escape(results['protocol']['metric'])} {rounded(target['level'], digits=5)}, a level that at least 90 % of the "
        f"tuned baseline's seeds reach, {frozen(results)}."
        f"{_refs(results, _base(results))}</p>{_raw_table(rows)}<p class=soft>{escape(horizon_note(results))}</p>"
    )


def _speedup(results: Results, name: str, block: Results) -> str:
    if not block["measured"]:
        return "not measured"
    return "baseline" if name == results["protocol"]["baseline"] else speedup_text(block["speedup"])


def _searches(results: Results) -> str:
    rows = []
    for name, arm in results["arms"].items():
        stability = arm["stability"]
        for study in arm["studies"]:
            best = study["winner"]
            values = ", ".join(f"{key} {rounded(value)}" for key, value in best["values"].items()) if best else "none"
            published = " (the published start)" if best and best["published"] else ""
            rows.append(
                {
                    "arm": escape(name) + (f", study {study['study']}" if results["protocol"]["studies"] > 1 else ""),
                    "trials": f"{len(study['points'])}" + _refs(results, f"{name}/search"),
                    "chosen": escape(values + published),
                    "edge": escape("; ".join(study["edges"]) or "inside its box"),
                    "failed": str(sum(point["metric"] is None for point in study["points"])),
                    "lr within 1.1x of the best": _lr_range(stability),
                }
            )
    return _raw_table(rows)


def _lr_range(stability: Results) -> str:
    if stability["lr_decades"] is None:
        return "not defined"
    return f"{rounded(stability['lr_low'], digits=2)} to {rounded(stability['lr_high'], digits=2)} ({stability['lr_decades']:.1f} decades)"


def _steps(results: Results) -> str:
    rows = []
    for name, arm in results["arms"].items():
        clock, facts = results["timing"]["arms"][name], arm["facts"]
        step, peak = clock["ms_per_step"], clock["peak_bytes"]
        error = (step["high"] - step["low"]) / 2 if step and step["runs"] > 1 else None
        rows.append(
            {
                "arm": escape(name),
                "ms a step (median)": (rounded(step["estimate"], error) if step else "not measured")
                + _refs(results, f"{name}/confirmation"),
                "range": interval(step["low"], step["high"]) if error else "",
                "peak memory": f"{peak / 2**20:,.0f} MiB" if peak else "not measured",
                "model FLOPs a step": rounded(facts["model_flops_per_step"])
                if facts["model_flops_per_step"]
                else "not counted",
                "optimizer FLOPs a step": rounded(facts["optimizer_flops_per_step"])
                if facts["optimizer_flops_per_step"] is not None
                else "not counted",
                "parameters": f"{facts['parameters']:,}" if isinstance(facts["parameters"], int) else "",
            }
        )
    devices = ", ".join(results["timing"]["devices"])
    return _raw_table(rows) + (f"<p class=soft>On {escape(devices)}.</p>" if devices else "")


def _protocol(results: Results) -> str:
    plan = results["protocol"]
    arms = [
        {
            "arm": escape(arm["name"]),
            "recipe": escape(" ".join([arm["recipe"], *(f"{k}={v}" for k, v in arm["overrides"].items())])),
            "starts from": escape(", ".join(f"{key} {rounded(value)}" for key, value in arm["start"].items())),
            "box": escape(
                "; ".join(f"{key} {rounded(low)} to {rounded(high)}" for key, (low, high) in arm["box"].items())
            ),
            "weights": escape(arm["readout"]),
        }
        for arm in plan["arms"]
    ]
    simple = {key: value for key, value in plan.items() if key not in ("arms", "eval_steps", "settings")}
    simple |= {"evaluations": len(plan["eval_steps"])} | dict(plan.get("settings") or {})
    rest = [
        {"decided before the first run": escape(key), "value": escape(_short(value))} for key, value in simple.items()
    ]
    return (
        _raw_table(arms)
        + _routing(results)
        + f"<details><summary>All that was decided before the first run</summary>{_raw_table(rest)}</details>"
    )


def _routing(results: Results) -> str:
    """Which parameters each arm gave to which algorithm: what a matrix method leaves to AdamW can decide a result."""
    rows = [
        {"arm": name}
        | {key: _short(group.get(key)) for key in ("name", "algorithm", "lr", "weight_decay", "tensors", "numbers")}
        for name, arm in results["arms"].items()
        for group in arm["facts"]["groups"] or ()
        if isinstance(group, Mapping)
    ]
    return f"<details><summary>Which parameters went where</summary>{table(rows)}</details>" if rows else ""


def _short(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_short(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_short, value))
    return str(value)


def _sources(results: Results) -> str:
    blocks = []
    for number, (name, keys) in enumerate(results["sources"].items(), 1):
        lines = _ranges(results["ledger"].get(name, []))
        blocks.append(
            f"<details id=source-{number}><summary>[{number}] {escape(name)}: {len(keys)} runs</summary>"
            f"<p class=soft>ledger lines {lines or 'unknown'}</p><p><code>{' '.join(map(escape, keys))}</code></p></details>"
        )
    return "".join(blocks)


def _ranges(numbers: Sequence[int]) -> str:
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(f"{low}" if low == high else f"{low}-{high}" for low, high in found)


def _base(results: Results) -> str:
    return f"{results['protocol']['baseline']}/confirmation"


def _refs(results: Results, *names: str) -> str:
    order = list(results["sources"])
    numbers = [order.index(name) + 1 for name in names if name in order]
    return "".join(f"<sup><a href=#source-{number}>[{number}]</a></sup>" for number in numbers)


def table(rows: Iterable[Mapping[str, object]]) -> str:
    """Rows of plain values as a table.

    Example:
        >>> table([{"a": "<"}])
        '<table><thead><tr><th>a</th></tr></thead><tbody><tr><td data-label="a">&lt;</td></tr></tbody></table>'
    """
    return _raw_table([{key: escape(str(value)) for key, value in row.items()} for row in rows])


def _raw_table(rows: Sequence[Mapping[str, str]]) -> str:
    """A table from rows of HTML; narrow screens show every row as a card with the labels in it."""
    if not rows:
        return ""
    keys = [key for key in rows[0] if any(row[key] for row in rows)]
    head = "".join(f"<th>{escape(key)}</th>" for key in keys)
    body = "".join(
        "<tr>" + "".join(f'<td data-label="{escape(key)}">{row[key] or "&ndash;"}</td>' for key in keys) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
