"""Samples, compute and time to the target from runs whose schedules are fitted to their length, and the ratios of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lit_opt.comparison.measures import QUANTITIES, Quantity, arm_named, final_cost, of_arm, sign
from lit_opt.comparison.records import Protocol, Run
from lit_opt.comparison.statistics import median_interval
from lit_opt.comparison.targets import paired_ratio

Block = dict[str, Any]
Ladder = list[Run]  # the runs of one seed, the shortest first; the last is that of the confirmation


def horizon_results(protocol: Protocol, runs: Sequence[Run], level: float | None) -> tuple[Block | None, Block]:
    """What each arm needed where every run had a schedule of its own length.

    A seed needs what its shortest run took whose final metric reaches the target, and infinitely much where none does.
    Nothing is interpolated: the true need lies between that run and the next shorter one.

    Args:
        protocol: The comparison's.
        runs: All of them; the horizons and the confirmation are read.
        level: The frozen target in the metric's own units; None if there is none.

    Returns:
        The block without the clock, None where no horizons were asked for; and the block of the clock.

    Example:
        >>> horizon_results(Protocol((), "a", "loss", "min", 2, (2,), 1, 1), [], 3.0)
        (None, {})
    """
    if not protocol.horizons:
        return None, {}
    counted: Block = {"steps": [*protocol.horizons, protocol.budget_steps], "arms": {}}
    clock: Block = {}
    if level is None:
        return counted, clock
    for arm in protocol.arms:
        blocks = {quantity: _needed(protocol, runs, arm.name, level, quantity) for quantity in QUANTITIES}
        clock[arm.name] = blocks.pop("seconds")
        counted["arms"][arm.name] = blocks | {"at": _along(protocol, runs, arm.name, level)}
    return counted, clock


def _ladders(protocol: Protocol, runs: Sequence[Run], name: str) -> dict[tuple[int, int], Ladder]:
    """(study, seed) -> its runs; seeds of which one is missing are left out."""
    found: dict[tuple[int, int], Ladder] = {}
    for run in (*of_arm(runs, name, "horizon"), *of_arm(runs, name, "confirm")):
        found.setdefault((run.study, run.seed), []).append(run)
    whole = {key: sorted(one, key=lambda r: r.steps or protocol.budget_steps) for key, one in sorted(found.items())}
    return {key: one for key, one in whole.items() if len(one) == 1 + len(protocol.horizons)}


def _spent(protocol: Protocol, run: Run, quantity: Quantity) -> float:
    return float(getattr(run.readings[arm_named(protocol, run.arm).readout][-1], quantity))


def _need(protocol: Protocol, ladder: Ladder, level: float, quantity: Quantity) -> tuple[float, float]:
    """What the shortest run that reaches the target took, and the next shorter one (0 if there is none)."""
    below = 0.0
    for run in ladder:
        if final_cost(protocol, run) <= sign(protocol) * level:
            return _spent(protocol, run, quantity), below
        # A run that failed says nothing of what it would have taken; the bound stays.
        below = _spent(protocol, run, quantity) if run.state == "done" else below
    return math.inf, below


def _needed(protocol: Protocol, runs: Sequence[Run], name: str, level: float, quantity: Quantity) -> Block:
    needs = {key: _need(protocol, one, level, quantity) for key, one in _ladders(protocol, runs, name).items()}
    values = [value for value, _ in needs.values()]
    source = [f"{name}/horizons", f"{name}/confirmation"]
    out: Block = {
        "seeds": [
            {"study": study, "seed": seed, "value": value, "above": below}
            for (study, seed), (value, below) in needs.items()
        ],
        "reached": sum(map(math.isfinite, values)),
        "at_shortest": sum(math.isfinite(value) and below == 0 for value, below in needs.values()),
        "of": len(values),
        "measured": not any(math.isnan(x) for pair in needs.values() for x in pair),
        **dict.fromkeys(("median", "low", "high", "speedup")),
        "source": source,
    }
    if not values or not out["measured"]:
        return out
    out["median"], out["low"], out["high"] = median_interval(values)[0]
    if name != protocol.baseline:
        base = {
            key: _need(protocol, one, level, quantity)
            for key, one in _ladders(protocol, runs, protocol.baseline).items()
        }
        pairs = [(needs[key], base[key]) for key in needs if key in base]
        if not any(math.isnan(x) for own, other in pairs for x in (*own, *other)):
            out["speedup"] = _speedup(pairs) | {"source": [*source, f"{protocol.baseline}/horizons"]}
    return out


def _speedup(pairs: Sequence[tuple[tuple[float, float], tuple[float, float]]]) -> Block:
    """The ratio over paired seeds, and between what the spacing of the horizons alone leaves it."""
    out = paired_ratio([(own, base) for (own, _), (base, _) in pairs]) | {"spacing_low": None, "spacing_high": None}
    if pairs and all(math.isfinite(own) and math.isfinite(base) for (own, _), (base, _) in pairs):
        lows = [below / own for (own, _), (_, below) in pairs]
        highs = [base / below if below else math.inf for (_, below), (base, _) in pairs]
        out["spacing_low"] = float(np.exp(np.mean(np.log(lows)))) if all(lows) else 0.0
        out["spacing_high"] = float(np.exp(np.mean(np.log(highs))))
    return out


def _along(protocol: Protocol, runs: Sequence[Run], name: str, level: float) -> list[Block]:
    """For each length of a run the final metrics of the seeds, and how many of them reach the target."""
    ladders = list(_ladders(protocol, runs, name).values())
    found = []
    for place, steps in enumerate((*protocol.horizons, protocol.budget_steps)):
        costs = np.array([final_cost(protocol, ladder[place]) for ladder in ladders], dtype=np.float64)
        metrics = sign(protocol) * costs[np.isfinite(costs)]
        whole = len(metrics) == len(costs) and len(costs) > 0
        found.append(
            {
                "steps": steps,
                "reached": int((costs <= sign(protocol) * level).sum()),
                "of": len(costs),
                "mean": float(metrics.mean()) if whole else None,
                "low": float(metrics.min()) if len(metrics) else None,
                "high": float(metrics.max()) if len(metrics) else None,
                "samples": _spent(protocol, ladders[0][place], "samples") if whole else None,
            }
        )
    return found
