"""Samples, compute and time until the target is reached, their ratios to the baseline, and the performance profile."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lit_opt.comparison.measures import (
    QUANTITIES,
    Quantity,
    arm_named,
    cost_table,
    crossing,
    evaluation_steps,
    of_arm,
    sign,
    target_level,
)
from lit_opt.comparison.records import Protocol, Run
from lit_opt.comparison.statistics import median_interval, performance_profile, t_interval
from lit_opt.comparison.verdicts import pairs_of

LADDER = (0.8, 0.9, 0.95)  # shares of the baseline's drop, beside the protocol's own
WIDEST = 4.0  # factor up to which a profile is drawn and scored, as in AlgoPerf

Block = dict[str, Any]


def target_results(protocol: Protocol, runs: Sequence[Run], level: float | None) -> tuple[Block, Block]:
    """What each arm needed to reach the target.

    Args:
        protocol: The comparison's.
        runs: All of them; the confirmation is read.
        level: The target in the metric's own units; None if there is none.

    Returns:
        The block without the clock, and the block of the clock.

    Example:
        >>> target_results(Protocol((), "a", "loss", "min", 2, (2,), 1, 1), [], None)
        ({'level': None, 'arms': {}}, {})
    """
    if level is None:
        return {"level": None, "arms": {}}, {}
    counted: Block = {"level": level, "arms": {}}
    clock: Block = {}
    for arm in protocol.arms:
        blocks = {quantity: _reached(protocol, runs, arm.name, level, quantity) for quantity in QUANTITIES}
        clock[arm.name] = blocks.pop("seconds")
        counted["arms"][arm.name] = blocks
    return counted, clock


def _reached(protocol: Protocol, runs: Sequence[Run], name: str, level: float, quantity: Quantity) -> Block:
    confirmed = of_arm(runs, name, "confirm")
    spent = [_spent(protocol, run, level, quantity) for run in confirmed]
    out: Block = {
        "seeds": [
            {"study": r.study, "seed": r.seed, "value": s, "run": r.key} for r, s in zip(confirmed, spent, strict=True)
        ],
        "reached": sum(map(math.isfinite, spent)),
        "of": len(spent),
        "measured": not any(map(math.isnan, spent)),
        "median": None,
        "low": None,
        "high": None,
        "at_mean": None,
        "speedup": None,
        "source": [f"{name}/confirmation"],
    }
    if not spent or not out["measured"]:
        return out
    out["median"], out["low"], out["high"] = median_interval(spent)[0]
    out["at_mean"] = _mean_crossing(protocol, confirmed, name, level, quantity)
    if name != protocol.baseline:
        out["speedup"] = _speedup(protocol, runs, name, level, quantity)
    return out


def _spent(protocol: Protocol, run: Run, level: float, quantity: Quantity) -> float:
    """Spent at the first evaluation past the target; infinite if there is none, nan if it was not measured."""
    found = crossing(protocol, run, arm_named(protocol, run.arm).readout, level)
    return math.inf if found is None else float(getattr(found, quantity))


def _mean_crossing(protocol: Protocol, confirmed: Sequence[Run], name: str, level: float, quantity: Quantity) -> float:
    """Spent at the first evaluation at which the mean over seeds is past the target, not one lucky seed."""
    readout = arm_named(protocol, name).readout
    means = cost_table(protocol, confirmed, readout).mean(0)
    past = np.flatnonzero(means <= sign(protocol) * level)
    if not len(past):
        return math.inf
    step = evaluation_steps(protocol, confirmed, readout)[past[0]]
    at_step = [r for run in confirmed for r in run.readings[readout] if r.step == step]
    return float(np.mean([getattr(reading, quantity) for reading in at_step]))


def _speedup(protocol: Protocol, runs: Sequence[Run], name: str, level: float, quantity: Quantity) -> Block:
    both = [
        (_spent(protocol, own, level, quantity), _spent(protocol, base, level, quantity))
        for own, base in pairs_of(protocol, runs, name)
    ]
    return paired_ratio(both) | {"source": [f"{name}/confirmation", f"{protocol.baseline}/confirmation"]}


def paired_ratio(both: Sequence[tuple[float, float]]) -> Block:
    """Baseline's need / the arm's over paired seeds: above 1 the arm needs less.

    A t-interval on logarithms where all pairs reached the target, else the median with order statistics, in which an
    arm that missed has 0 and a baseline that missed is infinite. A pair in which both missed says nothing.

    Args:
        both: For each seed the need of the arm and that of the baseline; infinite for a miss.

    Example:
        >>> round(paired_ratio([(100.0, 200.0), (100.0, 180.0)])["ratio"], 2), paired_ratio([(100.0, 200.0)])["ratio"]
        (1.9, None)
    """
    ratios = [
        base / own if math.isfinite(own) else 0.0 for own, base in both if math.isfinite(min(own, base)) and own > 0
    ]
    out: Block = {
        "ratio": None,
        "low": None,
        "high": None,
        "pairs": len(ratios),
        "both_missed": len(both) - len(ratios),
    }
    if len(ratios) < 2:
        return out
    if all(0 < ratio < math.inf for ratio in ratios):
        out["ratio"], out["low"], out["high"] = (math.exp(x) for x in t_interval(np.log(ratios)))
        return out | {"kind": "geometric mean, paired t-interval"}
    (out["ratio"], out["low"], out["high"]), coverage = median_interval(ratios)
    return out | {"kind": f"median, order statistics covering {100 * coverage:.0f} %"}


def profile_results(protocol: Protocol, runs: Sequence[Run]) -> Block | None:
    """Share of problems that each arm solves with at most tau times the samples of the best arm.

    A problem is a target out of a ladder together with a seed that all arms have. It depends on the set of arms.

    Returns:
        None where there is no target or no seed in common.

    Example:
        >>> profile_results(Protocol((), "a", "loss", "min", 2, (2,), 1, 1), []) is None
        True
    """
    names = [arm.name for arm in protocol.arms]
    by_seed = [{(r.study, r.seed): r for r in of_arm(runs, name, "confirm")} for name in names]
    shared = sorted(set.intersection(*map(set, by_seed))) if by_seed else []
    levels = {}
    for share in sorted({*LADDER, protocol.target_share}):
        level = target_level(protocol, runs, share) if shared else None
        if level is not None:
            levels[share] = level
    if not levels:
        return None
    costs = [
        [_spent(protocol, arm[key], level, "samples") for arm in by_seed] for level in levels.values() for key in shared
    ]
    costs = [[max(cost, 1.0) for cost in row] for row in costs]  # reached before the first step
    factors = np.linspace(1, WIDEST, 61)
    curves = performance_profile(costs, factors)
    area = np.trapezoid(curves, factors, axis=1) / (WIDEST - 1)
    return {
        "problems": len(costs),
        "levels": [{"share": share, "level": level} for share, level in levels.items()],
        "factors": factors.tolist(),
        "shares": {name: curve.tolist() for name, curve in zip(names, curves, strict=True)},
        "score": {name: float(one) for name, one in zip(names, np.atleast_1d(area), strict=True)},
        "source": [f"{name}/confirmation" for name in names],
    }
