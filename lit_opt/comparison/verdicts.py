"""Better, worse, or not shown: by rule, from the paired final metric, and only where the comparison was fair.

The paired t-interval decides, with Holm's step-down over all arms at 0.05. Where a run of a pair failed there is no mean:
then the exact signed-rank test decides, in which a failure is the worst rank. The sign-flip p is reported and decides
nothing: with 6 seeds it cannot go under 0.031, so over two arms it could never speak.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lit_opt.comparison.measures import edges, final_cost, of_arm, sign, winner
from lit_opt.comparison.records import Protocol, Run
from lit_opt.comparison.statistics import (
    bca_interval,
    correlation,
    detectable,
    holm,
    median_interval,
    seeds_needed,
    sign_flip_p,
    signed_ranks,
    t_interval,
    t_test_p,
)

ALPHA = 0.05
# The t-interval covers what it says from 3 pairs on.
LEAST_SEEDS = 3

Comparison = dict[str, Any]

# None until they can be computed.
_NUMBERS = (
    *("mean", "low", "high", "sd", "median", "median_low", "median_high", "median_coverage"),
    *("p", "p_sign_flip", "rho", "bca", "detectable", "needed", "more", "direction"),
)


def pairs_of(protocol: Protocol, runs: Sequence[Run], arm: str) -> list[tuple[Run, Run]]:
    """Confirmed runs of an arm and of the baseline with the same study and seed, in order.

    Example:
        >>> pairs_of(Protocol((), "a", "loss", "min", 2, (2,), 1, 1), [], "b")
        []
    """
    own = {(run.study, run.seed): run for run in of_arm(runs, arm, "confirm")}
    base = {(run.study, run.seed): run for run in of_arm(runs, protocol.baseline, "confirm")}
    return [(own[key], base[key]) for key in sorted(own.keys() & base.keys())]


def differences(protocol: Protocol, pairs: Sequence[tuple[Run, Run]]) -> list[float]:
    """Cost of the arm minus cost of the baseline; infinite where one side failed, 0 where both did.

    Example:
        >>> differences(Protocol((), "a", "loss", "min", 2, (2,), 1, 1), [])
        []
    """
    costs = [(final_cost(protocol, own), final_cost(protocol, base)) for own, base in pairs]
    return [0.0 if own == base else own - base for own, base in costs]


def objections(
    protocol: Protocol, runs: Sequence[Run], arm: str, violations: Sequence[Mapping[str, object]]
) -> list[str]:
    """Why there can be no verdict on an arm against the baseline: one sentence each, none if it was a fair comparison.

    Args:
        protocol: The comparison's.
        runs: All of them.
        arm: Not the baseline.
        violations: Of the contract: mappings with "rule", "text" and "arms" (none named: all of them).

    Example:
        >>> from lit_opt.comparison.records import Arm
        >>> arms = tuple(Arm(name, "llm", {}, {}, {}) for name in "ab")
        >>> protocol = Protocol(arms, "a", "loss", "min", 2, (2,), 1, 2)
        >>> objections(protocol, [], "b", [])[1]
        'search not finished: 0 of 1 points of a in study 0'
    """
    found = []
    for violation in violations:
        named = violation.get("arms") or ()
        assert isinstance(named, Sequence)
        if not named or {arm, protocol.baseline} & set(named):
            found.append(f"contract broken: {violation.get('text') or violation.get('rule')}")
    both = (protocol.baseline, arm)
    if protocol.seeds < LEAST_SEEDS:
        found.append(
            f"{_count(protocol.seeds, 'seed')}: too few for a verdict, which needs {LEAST_SEEDS}; the default is 6 or more"
        )
    for study in range(protocol.studies):
        found += _unequal_budget(protocol, runs, arm, study)
        for name in both:
            found += [f"not tuned: {name}: {text}" for text in edges(protocol, runs, name, study)]
            best = winner(protocol, runs, name, study)
            confirmed = {run.point for run in of_arm(runs, name, "confirm", study)}
            if best is not None and confirmed - {best.point}:
                others = ", ".join(map(str, sorted(confirmed - {best.point})))
                found.append(
                    f"{name} confirmed point {others} in study {study}; the best of its search is {best.point}"
                )
    for name in both:
        found += _unfinished(protocol, runs, name)
    return found


def _unequal_budget(protocol: Protocol, runs: Sequence[Run], arm: str, study: int) -> list[str]:
    found = []
    tried = {name: of_arm(runs, name, "tune", study) for name in (protocol.baseline, arm)}
    points = {name: len({run.point for run in of_name}) for name, of_name in tried.items()}
    (base, base_points), (_, arm_points) = points.items()
    if base_points != arm_points:
        found.append(f"unequal budget: {base} tried {_count(base_points, 'point')}, {arm} {arm_points}")
    elif base_points < protocol.trials:
        found += [f"search not finished: {n} of {protocol.trials} points of {name}" for name, n in points.items()]
        found = [f"{text} in study {study}" for text in found]
    lrs = {name: len({run.values["lr"] for run in of_name if "lr" in run.values}) for name, of_name in tried.items()}
    if base_points == arm_points and lrs[base] != lrs[arm]:
        found.append(f"unequal budget: {base} tried {_count(lrs[base], 'value')} of lr, {arm} {lrs[arm]}")
    return found


def _unfinished(protocol: Protocol, runs: Sequence[Run], name: str) -> list[str]:
    found = []
    for study in range(protocol.studies):
        seen = len(of_arm(runs, name, "confirm", study))
        if seen >= protocol.seeds:
            continue
        ends = Counter(run.state for run in of_arm(runs, name, "tune", study))
        within = f" in study {study}" if protocol.studies > 1 else ""
        if ends.total() >= protocol.trials and winner(protocol, runs, name, study) is None:
            states = ", ".join(f"{n} {state}" for state, n in sorted(ends.items()))
            found.append(f"nothing to confirm: no trial of {name} has a finite result{within} ({states})")
        else:
            found.append(f"confirmation not finished: {seen} of {protocol.seeds} seeds of {name}{within}")
    return found


def compare_arms(
    protocol: Protocol, runs: Sequence[Run], violations: Sequence[Mapping[str, object]]
) -> dict[str, Comparison]:
    """Every arm against the baseline: paired difference, its statistics, and the verdict with its reasons.

    Differences are arm minus baseline in the metric's own units.

    Example:
        >>> from lit_opt.comparison.records import Arm
        >>> compare_arms(Protocol((Arm("a", "llm", {}, {}, {}),), "a", "loss", "min", 2, (2,), 1, 2), [], [])
        {}
    """
    names = [arm.name for arm in protocol.arms if arm.name != protocol.baseline]
    found = {name: _measured(protocol, runs, name, len(names)) for name in names}
    p_values = [1.0 if one["p"] is None else one["p"] for one in found.values()]
    for (name, one), adjusted in zip(found.items(), holm(p_values), strict=True):
        one["p_holm"] = adjusted if one["p"] is not None else None
        one["reasons"] = objections(protocol, runs, name, violations)
        _decide(one, adjusted)
    return found


def _measured(protocol: Protocol, runs: Sequence[Run], name: str, comparisons: int) -> Comparison:
    """The statistics of one comparison, without Holm and without a verdict."""
    pairs = pairs_of(protocol, runs, name)
    cost = np.array(differences(protocol, pairs), dtype=np.float64)
    finite = bool(np.isfinite(cost).all())
    out: Comparison = dict.fromkeys(_NUMBERS)
    out |= {
        "pairs": [{"study": own.study, "seed": own.seed, "runs": [own.key, base.key]} for own, base in pairs],
        "differences": [sign(protocol) * d for d in cost],
        "failed": {one: _failures(protocol, runs, one) for one in (name, protocol.baseline)},
        "test": "paired t" if finite else "signed rank",
        "studies_agree": True,
    }
    if len(cost) < 2:
        return out
    ranks = signed_ranks(cost)
    middle, coverage = median_interval(sign(protocol) * cost)
    out |= {"median": middle.estimate, "median_low": middle.low, "median_high": middle.high}
    out["median_coverage"] = coverage
    if not finite:
        out["p"] = sign_flip_p(ranks) if len(ranks) else 1.0
        out["direction"] = float(np.sign(ranks.sum()))
        return out
    alpha = ALPHA / max(1, comparisons)
    mean, low, high = (float(x) for x in t_interval(sign(protocol) * cost))
    sd = float(cost.std(ddof=1))
    finals = [[final_cost(protocol, run) for run in side] for side in zip(*pairs, strict=True)]
    rho = correlation(finals[0], finals[1]) if all(map(math.isfinite, finals[0] + finals[1])) else None
    needed = seeds_needed(mean, sd, alpha)
    out |= {"mean": mean, "low": low, "high": high, "sd": sd, "p": t_test_p(cost), "p_sign_flip": sign_flip_p(cost)}
    out |= {"rho": rho and rho._asdict(), "detectable": detectable(sd, len(cost), alpha), "needed": needed}
    out["direction"] = float(np.sign(cost.mean()))
    out["more"] = None if needed is None else max(1, needed - len(cost))
    out["bca"] = bca_interval(sign(protocol) * cost)._asdict() if len(cost) >= 10 else None
    studies = {own.study for own, _ in pairs}
    means = [np.mean([d for d, (own, _) in zip(cost, pairs, strict=True) if own.study == s]) for s in sorted(studies)]
    out["studies_agree"] = len({float(np.sign(m)) for m in means}) == 1
    return out


def _failures(protocol: Protocol, runs: Sequence[Run], name: str) -> int:
    return sum(math.isinf(final_cost(protocol, run)) for run in of_arm(runs, name, "confirm"))


def _decide(one: Comparison, adjusted: float) -> None:
    """The verdict, from Holm's p and the objections."""
    shown = adjusted < ALPHA and one["direction"] not in (None, 0.0)
    if one["reasons"] or one["p"] is None:
        one["verdict"] = "no verdict"
    elif shown and one["studies_agree"]:
        one["verdict"] = "better" if one["direction"] == -1.0 else "worse"
    else:
        one["verdict"] = "not shown"
    one["said"] = _said(one, shown)


def _said(one: Comparison, shown: bool) -> str:
    """The verdict as it is printed."""
    if one["verdict"] != "not shown":
        return str(one["verdict"])
    if shown:
        return "not shown: the studies point in different directions"
    if one["test"] == "signed rank":
        return "not shown: runs failed, so the seeds needed cannot be computed"
    if one["more"] is None:
        return "not shown, and at the difference measured more than 1,000 seeds needed"
    return f"not shown, {_count(one['more'], 'more seed')} needed"


def _count(number: object, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
