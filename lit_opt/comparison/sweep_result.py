"""What a sweep has found: the values tried with their metric, the best, and how flat the valley around it is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.table import Table

from lit_opt.comparison.measures import sign
from lit_opt.comparison.records import Protocol
from lit_opt.comparison.stages import Progress
from lit_opt.comparison.sweep_stages import best_point, chosen_point, costs_of, edge_of, points_of, within_noise

# A metric that is this share of the best one's size from it is as good.
NEAR = 0.01


@dataclass(frozen=True)
class Point:
    """Values that were tried.

    Attributes:
        values: lr and weight_decay.
        metrics: At the end of each seed's run; infinite (or minus infinite, the worst there is) where it failed.
        as_good: "best", "1 %" or "seed noise" where it is as good as the best; "" where it is worse.

    Example:
        >>> point = Point({"lr": 0.1}, (2.0, 2.2), "best")
        >>> round(point.mean, 3), round(point.spread, 3)
        (2.1, 0.141)
    """

    values: dict[str, float]
    metrics: tuple[float, ...]
    as_good: str

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return sum(self.metrics) / len(self.metrics)

    @property
    def spread(self) -> float:
        """Standard deviation over the seeds; nan with one, or where one failed."""
        finite = len(self.metrics) > 1 and all(map(math.isfinite, self.metrics))
        return statistics.stdev(self.metrics) if finite else math.nan


@dataclass(frozen=True)
class Found:
    """The outcome of a sweep.

    Attributes:
        protocol: It was made by.
        tuned: Names of the values.
        points: In the order of their values where one is tuned, else from the best to the worst.
        best: With the best mean; None where all failed.
        chosen: Whose values are taken; not the best where that stands at an edge and an inner one is as good.
        edges: Where the chosen one stands at the edge of what was tried: name -> "low" or "high".
        rounds: Of points that were added beyond an edge.

    Example:
        >>> Found(Protocol((), "a", "loss", "min", 1, (0, 1), 3, 1), ("lr",), (), None, None, {}, 0).valley()
        ()
    """

    protocol: Protocol
    tuned: tuple[str, ...]
    points: tuple[Point, ...]
    best: Point | None
    chosen: Point | None
    edges: dict[str, Literal["low", "high"]]
    rounds: int

    def valley(self) -> tuple[Point, ...]:
        """The best and what is as good."""
        return tuple(point for point in self.points if point.as_good)


def found_in(progress: Progress) -> Found:
    """Read the outcome off a ledger's state; all runs have to be done.

    Args:
        progress: Of a sweep.

    Example:
        >>> found_in.__name__  # tests/commands/test_sweep.py
        'found_in'
    """
    protocol = progress.protocol
    (arm,) = protocol.arms
    values, costs = points_of(progress), costs_of(progress)
    best, chosen = best_point(progress), chosen_point(progress)
    points = [
        Point(one, tuple(sign(protocol) * cost for cost in costs[i]), _as_good(costs, i, best))
        for i, one in enumerate(values)
    ]
    tuned = tuple(arm.box)
    by_value = len(tuned) == 1
    order = sorted(
        range(len(points)), key=lambda i: values[i][tuned[0]] if by_value else sign(protocol) * points[i].mean
    )
    return Found(
        protocol=protocol,
        tuned=tuned,
        points=tuple(points[i] for i in order),
        best=None if best is None else points[best],
        chosen=None if chosen is None else points[chosen],
        edges={} if chosen is None else edge_of(progress, values[chosen]),  # type: ignore[arg-type]
        rounds=len(progress.rounds),
    )


def _as_good(costs: Sequence[Sequence[float]], index: int, best: int | None) -> str:
    if best is None or index == best:
        return "" if best is None else "best"
    here, there = (sum(costs[i]) / len(costs[i]) for i in (index, best))
    if here - there <= NEAR * abs(there):
        return "1 %"
    return "seed noise" if within_noise(costs[index], costs[best]) else ""


def sweep_title(found: Found) -> str:
    """What the table shows.

    Example:
        >>> sweep_title(Found(Protocol((), "a", "loss", "min", 1000, (0, 1000), 3, 2), ("lr",), (), None, None, {}, 0))
        'loss after 1,000 steps, mean of 2 seeds; lower is better'
    """
    protocol = found.protocol
    seeds = f"mean of {protocol.seeds} seeds" if protocol.seeds > 1 else "one seed"
    better = "lower" if protocol.mode == "min" else "higher"
    return f"{protocol.metric} after {protocol.budget_steps:,} steps, {seeds}; {better} is better"


def sweep_table(found: Found) -> Table:
    """For a terminal, to be put below `sweep_title`.

    Example:
        >>> protocol = Protocol((), "a", "loss", "min", 1, (0, 1), 3, 1)
        >>> sweep_table(Found(protocol, ("lr",), (), None, None, {}, 0)).row_count
        0
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in (*found.tuned, found.protocol.metric, "sd", "to the best", ""):
        table.add_column(name, justify="left" if name == "" else "right")
    for point in found.points:
        table.add_row(*(f"{point.values[name]:.4g}" for name in found.tuned), *_cells(point, found))
    return table


def _cells(point: Point, found: Found) -> tuple[str, str, str, str]:
    failed = sum(not math.isfinite(metric) for metric in point.metrics)
    if failed:
        return "failed", "", "", f"{failed} of {len(point.metrics)} seeds diverged or crashed"
    best = found.best
    assert best is not None
    share = 0.0 if point is best else (point.mean - best.mean) / abs(best.mean) if best.mean else math.inf
    words = {"best": "best", "1 %": "as good: within 1 %", "seed noise": "as good: within seed noise"}
    mark = words.get(point.as_good, "")
    if point is found.chosen and point is not best:
        mark += ", taken"
    spread = "" if math.isnan(point.spread) else f"{point.spread:.2g}"
    return f"{point.mean:.5g}", spread, "" if point is best else f"{share:+.1%}", mark


def sweep_sentences(found: Found) -> list[str]:
    """What the table says, in words: the values that are taken, the valley, and edges.

    Example:
        >>> protocol = Protocol((), "a", "loss", "min", 1, (0, 1), 3, 1)
        >>> sweep_sentences(Found(protocol, ("lr",), (), None, None, {}, 0))
        ['No point finished on all seeds: nothing can be said. The errors are in ledger.jsonl.']
    """
    best, chosen = found.best, found.chosen
    if best is None or chosen is None:
        return ["No point finished on all seeds: nothing can be said. The errors are in ledger.jsonl."]
    lines = [f"Best: {_named(best, found.tuned)}."]
    if chosen is not best:
        lines[0] = (
            f"Best: {_named(best, found.tuned)}, at an edge; {_named(chosen, found.tuned)} inside is as good within seed "
            "noise, and is taken."
        )
    others = len(found.valley()) - 1
    if others:
        count = "one other point is" if others == 1 else f"{others} other points are"
        lines.append(f"The valley: {count} as good (within 1 % or seed noise), {spans(found)}.")
        beyond = [name for name in found.tuned if not found.edges and _reaches_an_end(found, name)]
        if beyond:
            lines.append(f"In {' and '.join(beyond)} it reaches the end of what was tried, and may go on beyond it.")
    elif not found.edges:
        lines.append("The valley is narrow: no other point is within 1 % or seed noise.")
    if found.protocol.seeds == 1:
        lines.append("With one seed nothing is known of seed noise; --seeds 3 in another folder would tell.")
    for name, side in found.edges.items():
        lines.append(
            f"{name} {chosen.values[name]:.4g} stands at the {'upper' if side == 'high' else 'lower'} edge of what was tried: a "
            "better one may lie beyond."
        )
    return lines


def spans(found: Found) -> str:
    """From where to where the valley goes, in words.

    Example:
        >>> protocol = Protocol((), "a", "loss", "min", 1, (0, 1), 3, 1)
        >>> points = (Point({"lr": 0.1}, (2.0,), "best"), Point({"lr": 0.2}, (2.01,), "1 %"), Point({"lr": 0.4}, (3.0,), ""))
        >>> spans(Found(protocol, ("lr",), points, points[0], points[0], {}, 0))
        'lr 0.1 to 0.2'
    """
    valley = found.valley()
    return ", ".join(
        f"{name} {min(p.values[name] for p in valley):.4g} to {max(p.values[name] for p in valley):.4g}"
        for name in found.tuned
    )


def _reaches_an_end(found: Found, name: str) -> bool:
    tried = [point.values[name] for point in found.points]
    return any(point.values[name] in (min(tried), max(tried)) for point in found.valley())


def _named(point: Point, names: Sequence[str]) -> str:
    return ", ".join(f"{name} {point.values[name]:.4g}" for name in names)
