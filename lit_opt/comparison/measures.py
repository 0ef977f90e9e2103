"""What is read off runs before any statistics: final metrics, crossings of a target, the winner of a search, its edges.

Inside, a metric is turned into a cost (lower is better), so that a run that failed is infinitely bad in either mode.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lit_opt.comparison.records import Arm, Protocol, Reading, Readout, Run

EDGE = 0.1  # outer share of a box's logarithmic width
REACHED_BY = 0.9  # share of the baseline's seeds that must reach the target

Quantity = Literal["samples", "flops", "seconds"]
QUANTITIES: tuple[Quantity, ...] = ("samples", "flops", "seconds")


def sign(protocol: Protocol) -> int:
    """1 where lower is better, else -1: cost = sign x metric.

    Example:
        >>> sign(Protocol((), "a", "val_loss", "min", 10, (10,), 1, 1))
        1
    """
    return 1 if protocol.mode == "min" else -1


def arm_named(protocol: Protocol, name: str) -> Arm:
    """The arm of that name.

    Example:
        >>> arm = Arm("adamw", "llm", {}, {"lr": 1e-3}, {"lr": (1e-4, 1e-2)})
        >>> arm_named(Protocol((arm,), "adamw", "val_loss", "min", 10, (10,), 1, 1), "adamw").recipe
        'llm'
    """
    return next(arm for arm in protocol.arms if arm.name == name)


def of_arm(runs: Sequence[Run], arm: str, stage: str, study: int | None = None) -> list[Run]:
    """Runs of one arm and stage in an order that does not depend on who finished first.

    Example:
        >>> of_arm([], "adamw", "tune")
        []
    """
    chosen = [r for r in runs if r.arm == arm and r.stage == stage and study in (None, r.study)]
    return sorted(chosen, key=lambda r: (r.study, r.point, r.seed, r.steps or 0, r.key))


def final_cost(protocol: Protocol, run: Run, readout: Readout | None = None) -> float:
    """Cost at the end of the budget; infinite if the run did not get there or ended on a number that is not finite.

    Args:
        protocol: The comparison's.
        run: The run.
        readout: Which weights; the arm's own if unset.

    Example:
        >>> arm = Arm("adamw", "llm", {}, {}, {})
        >>> protocol = Protocol((arm,), "adamw", "acc", "max", 10, (10,), 1, 1)
        >>> run = Run("k", "tune", 0, "adamw", 0, 0, {}, "done", {"raw": (Reading(10, 80, 1e9, 0.1, 0.7),)})
        >>> final_cost(protocol, run)
        -0.7
    """
    readings = run.readings.get(readout or arm_named(protocol, run.arm).readout, ())
    if run.state != "done" or not readings or readings[-1].step != (run.steps or protocol.budget_steps):
        return math.inf
    cost = sign(protocol) * readings[-1].metric
    return cost if math.isfinite(cost) else math.inf


def cost_table(protocol: Protocol, runs: Sequence[Run], readout: Readout) -> NDArray[np.float64]:
    """Costs at every evaluation.

    Returns:
        (runs, evaluations); infinite where a run has none, or none that is finite.

    Example:
        >>> protocol = Protocol((), "a", "loss", "min", 2, (1, 2), 1, 1)
        >>> run = Run("k", "confirm", 0, "a", 0, 1, {}, "diverged", {"raw": (Reading(1, 8, 1e9, 0.1, 3.0),)})
        >>> cost_table(protocol, [run], "raw").tolist()
        [[3.0, inf]]
    """
    steps = evaluation_steps(protocol, runs, readout)
    table = np.full((len(runs), len(steps)), np.inf)
    column = {step: i for i, step in enumerate(steps)}
    for row, run in enumerate(runs):
        for reading in run.readings.get(readout, ()):
            cost = sign(protocol) * reading.metric
            if math.isfinite(cost):
                table[row, column[reading.step]] = cost
    return table


def evaluation_steps(protocol: Protocol, runs: Sequence[Run], readout: Readout) -> list[int]:
    """The protocol's evaluations, and any others that the runs have (at step 0, say).

    Example:
        >>> evaluation_steps(Protocol((), "a", "loss", "min", 2, (1, 2), 1, 1), [], "raw")
        [1, 2]
    """
    return sorted({*protocol.eval_steps, *(r.step for run in runs for r in run.readings.get(readout, ()))})


def crossing(protocol: Protocol, run: Run, readout: Readout, level: float) -> Reading | None:
    """The first evaluation at which the run is past the target.

    Args:
        protocol: The comparison's.
        run: The run.
        readout: Which weights.
        level: The target in the metric's own units.

    Example:
        >>> protocol = Protocol((), "a", "loss", "min", 2, (1, 2), 1, 1)
        >>> run = Run("k", "confirm", 0, "a", 0, 1, {}, "done", {"raw": (Reading(1, 8, 1e9, 0.1, 3.0),)})
        >>> crossing(protocol, run, "raw", 3.5).samples
        8
    """
    for reading in run.readings.get(readout, ()):
        if sign(protocol) * reading.metric <= sign(protocol) * level:
            return reading
    return None


def target_level(protocol: Protocol, runs: Sequence[Run], share: float | None = None) -> float | None:
    """The target: a level of the metric that at least 90 % of the tuned baseline's seeds reach.

    It is the level at `share` of the mean drop from the first evaluation to the final one, loosened to the level that
    90 % of the seeds reach where that is easier. To be computed before any other arm is confirmed, and kept.

    Args:
        protocol: The comparison's.
        runs: Those of the baseline's confirmation are read.
        share: Of the drop; the protocol's if unset.

    Returns:
        The level in the metric's own units. None if more than 10 % of the baseline's seeds failed, or nothing dropped.

    Example:
        >>> arm = Arm("a", "llm", {}, {}, {})
        >>> protocol = Protocol((arm,), "a", "loss", "min", 2, (1, 2), 1, 1, target_share=0.9)
        >>> readings = (Reading(1, 8, 1e9, 0.1, 3.0), Reading(2, 16, 2e9, 0.2, 2.0))
        >>> target_level(protocol, [Run("k", "confirm", 0, "a", 0, 1, {}, "done", {"raw": readings})])
        2.1
    """
    readout = arm_named(protocol, protocol.baseline).readout
    confirmed = of_arm(runs, protocol.baseline, "confirm")
    finished = [run for run in confirmed if math.isfinite(final_cost(protocol, run))]
    if not finished or len(finished) < REACHED_BY * len(confirmed):
        return None
    table = cost_table(protocol, finished, readout)
    first = np.array([next((c for c in row if math.isfinite(c)), math.inf) for row in table]).mean()
    final = table[:, -1].mean()
    if not final < first:
        return None
    level = first - (protocol.target_share if share is None else share) * (first - final)
    enough = math.ceil(REACHED_BY * len(confirmed) - 1e-9)
    level = max(level, float(np.sort(table.min(1))[enough - 1]))
    return float(sign(protocol) * level)


def winner(protocol: Protocol, runs: Sequence[Run], arm: str, study: int = 0) -> Run | None:
    """The best run of an arm's search by its final metric; of equal ones the lower point. None if all failed.

    Example:
        >>> winner(Protocol((Arm("a", "llm", {}, {}, {}),), "a", "loss", "min", 2, (2,), 1, 1), [], "a") is None
        True
    """
    tried = [run for run in of_arm(runs, arm, "tune", study) if math.isfinite(final_cost(protocol, run))]
    return min(tried, key=lambda run: (final_cost(protocol, run), run.point), default=None)


def edges(protocol: Protocol, runs: Sequence[Run], arm: str, study: int = 0) -> list[str]:
    """Where the best point of a search stands at the edge of its box, so that better ones may lie outside.

    At the edge is the outer tenth of the box (logarithmic), unless a point farther inside is as good within the
    standard deviation of the arm's confirmed seeds: a value that hardly matters has its best anywhere.

    Returns:
        One sentence for each such value; none if the arm is well inside.

    Example:
        >>> arm = Arm("a", "llm", {}, {"lr": 1e-3}, {"lr": (1e-4, 1e-2)})
        >>> protocol = Protocol((arm,), "a", "loss", "min", 2, (2,), 1, 1)
        >>> run = Run("k", "tune", 0, "a", 1, 0, {"lr": 9.5e-3}, "done", {"raw": (Reading(2, 16, 2e9, 0.2, 2.0),)})
        >>> edges(protocol, [run], "a")
        ['lr 0.0095 stands at the upper edge of its box, 0.0001 to 0.01']
    """
    best = winner(protocol, runs, arm, study)
    if best is None:
        return []
    finals = [final_cost(protocol, run) for run in of_arm(runs, arm, "confirm", study)]
    finals = [cost for cost in finals if math.isfinite(cost)]
    noise = float(np.std(finals, ddof=1)) if len(finals) > 1 else 0.0
    found = []
    for name, (low, high) in sorted(arm_named(protocol, arm).box.items()):
        if not low < high or name not in best.values:
            continue

        def place(run: Run, name: str = name, low: float = low, high: float = high) -> float:
            return math.log(run.values[name] / low) / math.log(high / low)

        where = place(best)
        inside = [
            run
            for run in of_arm(runs, arm, "tune", study)
            if name in run.values and EDGE < place(run) < 1 - EDGE
            if final_cost(protocol, run) <= final_cost(protocol, best) + noise
        ]
        if not EDGE < where < 1 - EDGE and not inside:
            side = "upper" if where > 0.5 else "lower"
            found.append(
                f"{name} {best.values[name]:.3g} stands at the {side} edge of its box, {low:.3g} to {high:.3g}"
            )
    return found
