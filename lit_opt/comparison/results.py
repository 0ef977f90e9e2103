"""Protocol and runs -> the results: one plain dictionary, the same for the same runs in any order.

What changes from one execution to the next stands under "timing" (the clock, memory, device) and "ledger" (line numbers)
alone. A number that is not finite is None; the counts of failed runs beside it say why.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from lit_opt.comparison.horizon_results import horizon_results
from lit_opt.comparison.measures import (
    cost_table,
    edges,
    evaluation_steps,
    final_cost,
    of_arm,
    sign,
    winner,
)
from lit_opt.comparison.measures import target_level as target_level
from lit_opt.comparison.records import Arm, Protocol, Readout, Run
from lit_opt.comparison.statistics import best_after, median_interval, sd_interval, t_interval
from lit_opt.comparison.targets import profile_results, target_results
from lit_opt.comparison.verdicts import compare_arms

SCHEMA = 1
VOLATILE = ("timing", "ledger")
NEAR_BEST = 1.1

Results = dict[str, Any]


def compute(
    protocol: Protocol,
    runs: Sequence[Run],
    *,
    target: float | None = None,
    violations: Sequence[Mapping[str, object]] = (),
) -> Results:
    """All numbers of the report.

    Args:
        protocol: What was decided before the first run.
        runs: One for each key, in any order; unfinished comparisons are fine, they get no verdict.
        target: The frozen target. Computed from the baseline's confirmation if unset.
        violations: Of the contract: mappings with "rule", "text" and "arms" (none named: all of them).

    Returns:
        A dictionary for `json.dumps`, with "schema", "protocol", "arms", "comparisons", "target", "horizons", "profile",
        "violations", "sources" (which runs each number came from), "timing" and "ledger".

    Example:
        >>> arm = Arm("adamw", "llm", {}, {"lr": 1e-3}, {"lr": (1e-4, 1e-2)})
        >>> results = compute(Protocol((arm,), "adamw", "val_loss", "min", 10, (10,), 1, 2), [])
        >>> results["schema"], results["comparisons"]
        (1, {})
    """
    runs = sorted(runs, key=lambda r: (r.study, r.stage, r.arm, r.point, r.seed, r.key))
    level = target_level(protocol, runs) if target is None else target
    reached, reached_timing = target_results(protocol, runs, level)
    fitted, fitted_timing = horizon_results(protocol, runs, level)
    results = {
        "schema": SCHEMA,
        "protocol": asdict(protocol),
        "samples_unit": next((r.facts["samples_unit"] for r in runs if "samples_unit" in r.facts), "samples"),
        "arms": {arm.name: _arm(protocol, runs, arm) for arm in protocol.arms},
        "comparisons": compare_arms(protocol, runs, violations),
        "target": reached | {"frozen": target is not None},
        "horizons": fitted,
        "profile": profile_results(protocol, runs),
        "violations": [dict(one) for one in violations],
        "decays": sorted({str(r.facts["decay"]) for r in runs if r.facts.get("decay")}),
        "total": {
            "runs": {stage: sum(r.stage == stage for r in runs) for stage in _stages(protocol)},
            "samples": sum(_last(r, "samples") for r in runs),
            "flops": float(sum(_last(r, "flops") for r in runs)),
        },
        "sources": {name: [run.key for run in found] for name, found in _sources(protocol, runs).items()},
        "timing": {
            "arms": {arm.name: _arm_timing(protocol, runs, arm) for arm in protocol.arms},
            "target": reached_timing,
            "horizons": fitted_timing,
            "seconds": float(sum(_last(r, "seconds") for r in runs)),
            "devices": sorted({str(r.facts["device"]) for r in runs if "device" in r.facts}),
            "versions": sorted(
                {json.dumps(r.facts["versions"], sort_keys=True) for r in runs if "versions" in r.facts}
            ),
        },
        "ledger": {
            name: sorted({line for run in found for line in run.lines})
            for name, found in _sources(protocol, runs).items()
        },
    }
    cleaned = _plain(results)
    assert isinstance(cleaned, dict)
    return cleaned


def without_volatile(results: Results) -> Results:
    """The results less what two executions of the same comparison may differ in.

    Example:
        >>> without_volatile({"schema": 1, "timing": {}, "ledger": {}})
        {'schema': 1}
    """
    return {key: value for key, value in results.items() if key not in VOLATILE}


def to_json(results: Results) -> str:
    r"""Results as JSON with sorted keys.

    Example:
        >>> to_json({"schema": 1})
        '{\n "schema": 1\n}'
    """
    return json.dumps(results, sort_keys=True, indent=1, allow_nan=False, ensure_ascii=False)


def _sources(protocol: Protocol, runs: Sequence[Run]) -> dict[str, list[Run]]:
    return {
        f"{arm.name}/{name}": of_arm(runs, arm.name, stage)
        for arm in protocol.arms
        for stage, name in _stages(protocol).items()
    }


def _stages(protocol: Protocol) -> dict[str, str]:
    """Stage -> what the report calls its runs."""
    return {"tune": "search", "confirm": "confirmation"} | ({"horizon": "horizons"} if protocol.horizons else {})


def _arm(protocol: Protocol, runs: Sequence[Run], arm: Arm) -> Results:
    confirmed = of_arm(runs, arm.name, "confirm")
    other: Readout = "averages" if arm.readout == "raw" else "raw"
    both = any(run.readings.get(other) for run in confirmed)
    return {
        "studies": [_search(protocol, runs, arm, study) for study in range(protocol.studies)],
        "final": _finals(protocol, confirmed, arm.readout),
        "other_readout": _finals(protocol, confirmed, other) | {"readout": other} if both else None,
        "curve": _curve(protocol, confirmed, arm.readout),
        "stability": _stability(protocol, runs, arm),
        "facts": {
            name: next((run.facts[name] for run in confirmed if name in run.facts), None)
            for name in (
                *("parameters", "model_flops_per_step", "optimizer_flops_per_step", "optimizer", "precision"),
                "groups",
            )
        },
        "source": [f"{arm.name}/confirmation"],
    }


def _search(protocol: Protocol, runs: Sequence[Run], arm: Arm, study: int) -> Results:
    """The search of one study. Its metrics chose the point; as results they would be too good (the winner's curse)."""
    tried = of_arm(runs, arm.name, "tune", study)
    best = winner(protocol, runs, arm.name, study)
    costs = [final_cost(protocol, run) for run in tried]
    after = best_after(costs) if tried else []
    return {
        "study": study,
        "points": [
            {"point": r.point, "values": r.values, "state": r.state, "metric": sign(protocol) * c, "run": r.key}
            for r, c in zip(tried, costs, strict=True)
        ],
        "winner": best and {"point": best.point, "values": best.values, "run": best.key, "published": best.point == 0},
        "edges": edges(protocol, runs, arm.name, study),
        "distinct": {name: len({r.values[name] for r in tried if name in r.values}) for name in sorted(arm.start)},
        "best_after": [
            {
                "k": k,
                "expected": sign(protocol) * one.estimate,
                "lucky": sign(protocol) * one.low,
                "unlucky": sign(protocol) * one.high,
            }
            for k, one in enumerate(after, 1)
        ],
        "source": [f"{arm.name}/search"],
    }


def _finals(protocol: Protocol, confirmed: Sequence[Run], readout: Readout) -> Results:
    costs = np.array([final_cost(protocol, run, readout) for run in confirmed], dtype=np.float64)
    metrics = sign(protocol) * costs
    out: Results = dict.fromkeys(("mean", "low", "high", "sd", "sd_low", "sd_high", "median"))
    out |= {
        "seeds": [
            {"study": r.study, "seed": r.seed, "metric": m, "state": r.state, "run": r.key}
            for r, m in zip(confirmed, metrics, strict=True)
        ],
        "failed": int(np.isinf(costs).sum()),
    }
    if len(costs):
        out["median"] = median_interval(metrics)[0].estimate
    if len(costs) > 1 and not out["failed"]:
        out["mean"], out["low"], out["high"] = (float(x) for x in t_interval(metrics))
        out["sd"], out["sd_low"], out["sd_high"] = sd_interval(metrics)
    elif len(costs) == 1:
        out["mean"] = float(metrics[0])
    return out


def _curve(protocol: Protocol, confirmed: Sequence[Run], readout: Readout) -> Results:
    """Mean and range over seeds at each evaluation; no mean once a seed has failed."""
    steps = evaluation_steps(protocol, confirmed, readout)
    table = sign(protocol) * cost_table(protocol, confirmed, readout)
    alive = np.isfinite(table)
    out: Results = {"step": steps, "alive": [int(n) for n in alive.sum(0)]}
    columns = [table[alive[:, i], i] for i in range(len(steps))]
    whole = [len(c) == len(confirmed) and len(c) > 0 for c in columns]
    out["mean"] = [c.mean() if all_there else None for c, all_there in zip(columns, whole, strict=True)]
    out["low"] = [c.min() if len(c) else None for c in columns]
    out["high"] = [c.max() if len(c) else None for c in columns]
    for quantity in ("samples", "flops"):
        out[quantity] = _along(confirmed, readout, steps, quantity)
    return out


def _along(confirmed: Sequence[Run], readout: Readout, steps: Sequence[int], quantity: str) -> list[float | None]:
    """Mean of a quantity over the seeds at each evaluation."""
    at: dict[int, list[float]] = {step: [] for step in steps}
    for run in confirmed:
        for reading in run.readings.get(readout, ()):
            at[reading.step].append(float(getattr(reading, quantity)))
    return [float(np.mean(values)) if values else None for values in at.values()]


def _stability(protocol: Protocol, runs: Sequence[Run], arm: Arm) -> Results:
    """How often an arm failed, and how wide a range of learning rates is within 1.1x of its best."""
    out: Results = {}
    for stage, name in (("tune", "search"), ("confirm", "confirmation")):
        found = of_arm(runs, arm.name, stage)
        out[name] = {"runs": len(found), "states": dict(sorted(Counter(run.state for run in found).items()))}
    tried = [
        (r.values["lr"], sign(protocol) * final_cost(protocol, r))
        for r in of_arm(runs, arm.name, "tune", 0)
        if "lr" in r.values
    ]
    finite = [metric for _, metric in tried if math.isfinite(metric)]
    out |= {"lr_low": None, "lr_high": None, "lr_decades": None}
    if finite and min(finite) > 0:
        best = min(finite) if protocol.mode == "min" else max(finite)
        near = [lr for lr, metric in tried if math.isfinite(metric) and max(metric / best, best / metric) <= NEAR_BEST]
        out |= {"lr_low": min(near), "lr_high": max(near), "lr_decades": math.log10(max(near) / min(near))}
    return out


def _arm_timing(protocol: Protocol, runs: Sequence[Run], arm: Arm) -> Results:
    confirmed = of_arm(runs, arm.name, "confirm")
    steps = evaluation_steps(protocol, confirmed, arm.readout)
    speeds = [float(run.facts["ms_per_step"]) for run in confirmed if _is_number(run.facts.get("ms_per_step"))]  # type: ignore[arg-type]
    peaks = [int(run.facts["peak_bytes"]) for run in confirmed if _is_number(run.facts.get("peak_bytes"))]  # type: ignore[call-overload]
    middle = median_interval(speeds)[0] if speeds else None
    return {
        "ms_per_step": middle and middle._asdict() | {"runs": len(speeds)},
        "peak_bytes": max(peaks, default=None),
        "curve_seconds": _along(confirmed, arm.readout, steps, "seconds"),
    }


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _last(run: Run, quantity: str) -> float:
    readings = max(run.readings.values(), key=len, default=())
    value = getattr(readings[-1], quantity) if readings else 0
    return value if math.isfinite(value) else 0


def _plain(value: object) -> object:
    """Only what JSON knows; a number that is not finite is None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | None) else str(value)
