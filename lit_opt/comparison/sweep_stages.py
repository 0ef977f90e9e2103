"""What a sweep does next, as a function of the ledger alone: every point of one recipe's search on every seed.

A single value is tried on an even grid of its logarithm; two on the quasi-random points of a comparison. Where the best
point stands at the edge, further points may be added beyond it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from lit_opt.comparison.codec import digest
from lit_opt.comparison.measures import EDGE, final_cost
from lit_opt.comparison.order import Stages
from lit_opt.comparison.points import TUNED, values_at
from lit_opt.comparison.seeds import tuning_seed
from lit_opt.comparison.stages import Progress, search_jobs
from lit_opt.comparison.task import Job


def sweep_stages(extend: int) -> Stages:
    """The order of a sweep's runs.

    Args:
        extend: Rounds in which points are added beyond an edge.

    Example:
        >>> sweep_stages(2).open_jobs is open_jobs
        True
    """
    return Stages(partial(due, extend=extend), open_jobs, partial(is_complete, extend=extend), expected)


def points_of(progress: Progress) -> list[dict[str, float]]:
    """The values of each point, in the order in which they were decided.

    Args:
        progress: Of a sweep: a protocol with one arm, whose box holds the tuned values.

    Example:
        >>> from collections import Counter
        >>> from lit_opt.comparison.records import Arm, Protocol
        >>> arm = Arm("llm", "llm", {}, {"lr": 0.01, "weight_decay": 0.1}, {"lr": (1e-3, 0.1)})
        >>> protocol = Protocol((arm,), "llm", "val_loss", "min", 4, (0, 4), 3, 1)
        >>> points_of(Progress(protocol, protocol, "", {}, {}, Counter(), (), None, None))[1:]
        [{'lr': 0.01, 'weight_decay': 0.1}, {'lr': 0.1, 'weight_decay': 0.1}]
    """
    (arm,) = progress.protocol.arms
    if len(arm.box) > 1:
        return [job.values for job in search_jobs(progress)]
    return [{**arm.start, **values_at(arm.box, (unit,) * len(TUNED))} for unit in _units(progress)]


def edge_of(progress: Progress, values: Mapping[str, float]) -> dict[str, str]:
    """Which of the tuned values stand at an edge of what was tried: name -> "low" or "high".

    On a grid that is its first and its last value; among scattered points the outer tenth of the box.

    Example:
        >>> from collections import Counter
        >>> from lit_opt.comparison.records import Arm, Protocol
        >>> arm = Arm("llm", "llm", {}, {"lr": 0.01}, {"lr": (1e-3, 0.1)})
        >>> protocol = Protocol((arm,), "llm", "val_loss", "min", 4, (0, 4), 5, 1)
        >>> new = Progress(protocol, protocol, "", {}, {}, Counter(), (), None, None)
        >>> edge_of(new, {"lr": 0.1}), edge_of(new, {"lr": 0.03})
        ({'lr': 'high'}, {})
    """
    (arm,) = progress.effective.arms
    if len(arm.box) == 1:
        (name,) = arm.box
        tried = [point[name] for point in points_of(progress)]
        side = "low" if values[name] <= min(tried) else "high" if values[name] >= max(tried) else ""
        return {name: side} if side else {}
    found = {}
    for name, (low, high) in arm.box.items():
        place = math.log(values[name] / low) / math.log(high / low)
        if not EDGE < place < 1 - EDGE:
            found[name] = "low" if place < 0.5 else "high"
    return found


def sweep_jobs(progress: Progress) -> list[Job]:
    """All runs, finished or not: all points with the first seed, then with the next.

    Example:
        >>> from collections import Counter
        >>> from lit_opt.comparison.records import Arm, Protocol
        >>> arm = Arm("llm", "llm", {}, {"lr": 0.01}, {"lr": (1e-3, 0.1)})
        >>> protocol = Protocol((arm,), "llm", "val_loss", "min", 4, (0, 4), 3, 2)
        >>> jobs = sweep_jobs(Progress(protocol, protocol, "", {}, {}, Counter(), (), None, None))
        >>> [(job.point, job.seed) for job in jobs]
        [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)]
    """
    protocol = progress.protocol
    (arm,) = protocol.arms
    points, jobs = points_of(progress), []
    for index in range(protocol.seeds):
        seed = tuning_seed(protocol.seed, 0) + index
        for point, values in enumerate(points):
            key = digest([progress.protocol_hash, "tune", 0, arm.name, point, seed, values])
            jobs.append(Job(key, "tune", 0, arm.name, point, seed, dict(values)))
    return jobs


def open_jobs(progress: Progress) -> list[Job]:
    """The runs that are yet to be done.

    Example:
        >>> open_jobs.__name__  # of `sweep_jobs` those without a line in the ledger
        'open_jobs'
    """
    return [job for job in sweep_jobs(progress) if job.key not in progress.runs]


def due(progress: Progress, extend: int) -> tuple[str, dict[str, Any]] | None:
    """Points beyond the edge, where the best one stands there and rounds are left.

    Example:
        >>> due.__name__  # tests/commands/test_sweep.py
        'due'
    """
    if len(progress.rounds) >= extend or open_jobs(progress):
        return None
    chosen = chosen_point(progress)
    sides = edge_of(progress, points_of(progress)[chosen]) if chosen is not None else {}
    (arm,) = progress.protocol.arms
    return ("widened", {"round": len(progress.rounds) + 1, "sides": {arm.name: sides}}) if sides else None


def is_complete(progress: Progress, extend: int) -> bool:
    """Whether nothing is left to do.

    Example:
        >>> is_complete.__name__  # tests/commands/test_sweep.py
        'is_complete'
    """
    return not open_jobs(progress) and due(progress, extend) is None


def expected(progress: Progress, estimate: Mapping[str, float]) -> tuple[float, float, str]:
    """Expected seconds of what is done and of all, and where it is.

    Example:
        >>> expected.__name__  # the seconds of a run, times runs
        'expected'
    """
    jobs = sweep_jobs(progress)
    done = sum(job.key in progress.runs for job in jobs)
    each = max(sum(estimate.values()), 1e-9)
    return done * each, len(jobs) * each, f"sweep {done}/{len(jobs)}"


def costs_of(progress: Progress) -> list[list[float]]:
    """For each point the costs of its finished runs, one a seed: lower is better, infinite where a run failed.

    Example:
        >>> costs_of.__name__  # tests/commands/test_sweep.py
        'costs_of'
    """
    points: list[list[float]] = [[] for _ in points_of(progress)]
    for job in sweep_jobs(progress):
        run = progress.runs.get(job.key)
        if run is not None:
            points[job.point].append(final_cost(progress.protocol, run))
    return points


def best_point(progress: Progress) -> int | None:
    """The point with the lowest mean cost; None where all of them failed.

    Example:
        >>> best_point.__name__  # tests/commands/test_sweep.py
        'best_point'
    """
    means = [sum(costs) / len(costs) if costs else math.inf for costs in costs_of(progress)]
    finite = [index for index, mean in enumerate(means) if math.isfinite(mean)]
    return min(finite, key=lambda index: (means[index], index), default=None)


def chosen_point(progress: Progress) -> int | None:
    """The point whose values are taken: the best; where that stands at an edge, the best inside if it is as good.

    As good is what lies within the seeds' noise: a value that hardly matters has its best anywhere.

    Example:
        >>> chosen_point.__name__  # tests/commands/test_sweep.py
        'chosen_point'
    """
    best = best_point(progress)
    if best is None:
        return None
    points, costs = points_of(progress), costs_of(progress)
    if not edge_of(progress, points[best]):
        return best
    inside = [i for i in range(len(points)) if not edge_of(progress, points[i]) and within_noise(costs[i], costs[best])]
    return min(inside, key=lambda i: (sum(costs[i]), i), default=best)


def within_noise(costs: Sequence[float], best: Sequence[float]) -> bool:
    """Whether the mean difference of two points is at most twice its standard error over the seeds.

    Args:
        costs: One a seed.
        best: Of the best point, the same seeds.

    Returns:
        False with one seed: then nothing is known of noise.

    Example:
        >>> within_noise([2.0, 2.2], [2.1, 2.0]), within_noise([3.0, 3.1], [2.0, 2.0]), within_noise([2.1], [2.0])
        (True, False, False)
    """
    differences = [a - b for a, b in zip(costs, best, strict=True)]
    if len(differences) < 2 or not all(map(math.isfinite, differences)):
        return False
    return statistics.mean(differences) <= 2 * statistics.stdev(differences) / math.sqrt(len(differences))


def _units(progress: Progress) -> list[float]:
    """Places of the grid on the box's logarithmic scale: 0 to 1, and beyond where points were added."""
    protocol = progress.protocol
    (arm,) = protocol.arms
    ((name, (low, _)),) = arm.box.items()
    steps = protocol.trials - 1
    units = [i / steps for i in range(protocol.trials)]
    for box in progress.rounds:
        up = box[arm.name][name][0] > low
        edge = max(units) if up else min(units)
        units += [edge + (k if up else -k) / steps for k in range(1, math.ceil(protocol.trials / 2) + 1)]
    return units
