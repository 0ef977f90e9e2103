"""What is to be done next, as a function of the ledger alone: so any worker, after any crash, comes to the same answer.

Search of every arm, choice of the winners, confirmation of the baseline, the target frozen from it, confirmation of the
others, and shorter runs of all where horizons were asked for. Between search and choice the boxes may be widened.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lit_opt.comparison.codec import digest, protocol_from_dict, run_from_dict
from lit_opt.comparison.ledger import Event, Lines
from lit_opt.comparison.measures import EDGE, edges, target_level, winner
from lit_opt.comparison.points import unit_points, values_at, widened
from lit_opt.comparison.records import Arm, Protocol, Run
from lit_opt.comparison.seeds import confirmation_seed, stream, tuning_seed
from lit_opt.comparison.task import Job
from lit_opt.errors import RecipeError

# Whoever crashes or runs out of time is tried again with the same seed that often.
RETRIES = 2


@dataclass(frozen=True)
class Progress:
    """What the ledger says has happened.

    Attributes:
        protocol: As it was opened.
        effective: With the boxes and the number of points that widening has led to.
        protocol_hash: Of `protocol`.
        opened: The first line.
        runs: Key -> finished run.
        failures: Key -> how often it crashed or ran out of time.
        rounds: For each round of widening the box in which each arm got its new points.
        chosen: (study, arm) -> the winner of the search; None before the choice.
        target: The line that froze the target, None before.

    Example:
        >>> protocol = Protocol((), "a", "val_loss", "min", 4, (0, 4), 1, 1)
        >>> Progress(protocol, protocol, "", {}, {}, Counter(), (), None, None).runs
        {}
    """

    protocol: Protocol
    effective: Protocol
    protocol_hash: str
    opened: Event
    runs: dict[str, Run]
    failures: Counter[str]
    rounds: tuple[dict[str, dict[str, tuple[float, float]]], ...]
    chosen: dict[tuple[int, str], Mapping[str, Any]] | None
    target: Event | None


def progress_of(reading: Lines) -> Progress:
    """Read the lines.

    Raises:
        RecipeError: The ledger has no first line.

    Example:
        >>> progress_of(Lines((), (), (), ""))
        Traceback (most recent call last):
            ...
        lit_opt.errors.RecipeError: out: there is no comparison in this folder. `lit-opt compare --config ...` begins one.
    """
    opened = next((event for _, event in reading.of("opened")), None)
    if opened is None:
        raise RecipeError(["out: there is no comparison in this folder. `lit-opt compare --config ...` begins one."])
    protocol = effective = protocol_from_dict(opened["protocol"])
    rounds = []
    for _, event in reading.of("widened"):
        wider = {arm.name: widened(arm, event["sides"].get(arm.name, {})) for arm in effective.arms}
        rounds.append({name: added for name, (_, added) in wider.items()})
        effective = replace(
            effective,
            arms=tuple(wider[arm.name][0] for arm in effective.arms),
            trials=effective.trials + math.ceil(protocol.trials / 2),
        )
    runs: dict[str, Run] = {}
    for number, event in reading.of("finished"):
        runs.setdefault(event["run"]["key"], run_from_dict(event["run"], (number,)))
    chosen = next((event for _, event in reading.of("chosen")), None)
    return Progress(
        protocol=protocol,
        effective=effective,
        protocol_hash=digest(opened["protocol"]),
        opened=opened,
        runs=runs,
        failures=Counter(event["key"] for _, event in reading.of("failed")),
        rounds=tuple(rounds),
        chosen=None if chosen is None else {(w["study"], w["arm"]): w for w in chosen["winners"]},
        target=next((event for _, event in reading.of("target")), None),
    )


def open_jobs(progress: Progress) -> list[Job]:
    """The runs that may be done now, in the order in which they should begin.

    Example:
        >>> arm = Arm("a", "cnn", {}, {"lr": 0.1}, {"lr": (0.01, 1.0)})
        >>> protocol = Protocol((arm,), "a", "val_loss", "min", 4, (0, 4), 2, 1)
        >>> new = Progress(protocol, protocol, "", {}, {}, Counter(), (), None, None)
        >>> [(job.point, job.seed, job.values["lr"] == 0.1) for job in open_jobs(new)]
        [(0, 0, True), (1, 0, False)]
    """
    for jobs in (search_jobs(progress), *confirmation_jobs(progress), horizon_jobs(progress)):
        left = [job for job in jobs if job.key not in progress.runs]
        if left:
            return left
    return []


def due(progress: Progress) -> tuple[str, dict[str, Any]] | None:
    """The decision that is due now: kind and content of its line, or None.

    Example:
        >>> arm = Arm("a", "cnn", {}, {"lr": 0.1}, {})
        >>> protocol = Protocol((arm,), "a", "val_loss", "min", 4, (0, 4), 1, 1)
        >>> due(Progress(protocol, protocol, "", {}, {}, Counter(), (), None, None)) is None
        True
    """
    runs = list(progress.runs.values())
    if any(job.key not in progress.runs for job in search_jobs(progress)):
        return None
    protocol = progress.effective
    if progress.chosen is None:
        sides = _sides(protocol, runs) if len(progress.rounds) < protocol.extend else {}
        if sides:
            return "widened", {"round": len(progress.rounds) + 1, "sides": sides}
        return "chosen", {
            "winners": [_winner(protocol, runs, arm, s) for s in range(protocol.studies) for arm in protocol.arms]
        }
    baseline, _ = confirmation_jobs(progress)
    if progress.target is None and all(job.key in progress.runs for job in baseline):
        level = target_level(protocol, runs)
        return "target", {"level": level, "share": protocol.target_share, "of": [job.key for job in baseline]}
    return None


def is_complete(progress: Progress) -> bool:
    """Whether nothing is left to do.

    Example:
        >>> protocol = Protocol((Arm("a", "cnn", {}, {"lr": 0.1}, {}),), "a", "val_loss", "min", 4, (0, 4), 1, 1)
        >>> is_complete(Progress(protocol, protocol, "", {}, {}, Counter(), (), None, None))
        False
    """
    return progress.target is not None and not open_jobs(progress)


def total_runs(protocol: Protocol) -> int:
    """Runs of the whole comparison, without widening.

    Example:
        >>> arms = tuple(Arm(name, "cnn", {}, {"lr": 0.1}, {}) for name in "ab")
        >>> total_runs(Protocol(arms, "a", "val_loss", "min", 4, (0, 4), 16, 6))
        44
    """
    confirmed = protocol.seeds * (1 + len(protocol.horizons))
    return protocol.studies * len(protocol.arms) * (protocol.trials + confirmed)


def budgets(protocol: Protocol) -> float:
    """The runs of one arm in runs of the whole budget: a shorter horizon counts as its share. Without widening.

    Example:
        >>> budgets(Protocol((), "a", "val_loss", "min", 100, (0, 50, 100), 16, 6, horizons=(50,)))
        25.0
    """
    shares = sum(protocol.horizons) / protocol.budget_steps
    return protocol.studies * (protocol.trials + protocol.seeds * (1 + shares))


def search_jobs(progress: Progress) -> list[Job]:
    """All runs of the search, finished or not: point after point, the arms of a point in random order.

    Example:
        >>> arms = tuple(Arm(name, "cnn", {}, {"lr": 0.1}, {}) for name in "ab")
        >>> protocol = Protocol(arms, "a", "val_loss", "min", 4, (0, 4), 1, 1)
        >>> jobs = search_jobs(Progress(protocol, protocol, "", {}, {}, Counter(), (), None, None))
        >>> sorted(job.arm for job in jobs)
        ['a', 'b']
    """
    protocol, jobs = progress.effective, []
    for study in range(protocol.studies):
        units = unit_points(protocol.trials - 1, protocol.seed, study)
        for point in range(protocol.trials):
            for arm in _shuffled(protocol, "search", study, point):
                values = dict(arm.start)
                if point:
                    values |= values_at(_box(progress, arm.name, point), units[point - 1])
                jobs.append(_job(progress, "tune", study, arm.name, point, tuning_seed(protocol.seed, study), values))
    return jobs


def confirmation_jobs(progress: Progress) -> tuple[list[Job], list[Job]]:
    """All runs of the confirmation: those of the baseline, and those of the others once the target is frozen.

    Example:
        >>> protocol = Protocol((Arm("a", "cnn", {}, {"lr": 0.1}, {}),), "a", "val_loss", "min", 4, (0, 4), 1, 1)
        >>> confirmation_jobs(Progress(protocol, protocol, "", {}, {}, Counter(), (), None, None))
        ([], [])
    """
    protocol = progress.effective
    baseline: list[Job] = []
    others: list[Job] = []
    for study in range(protocol.studies if progress.chosen is not None else 0):
        for index in range(protocol.seeds):
            seed = confirmation_seed(protocol.seed, study, index)
            for arm in _shuffled(protocol, "confirmation", study, index):
                assert progress.chosen is not None
                chosen = progress.chosen[study, arm.name]
                if chosen["point"] is None:  # every point failed: nothing to confirm
                    continue
                job = _job(progress, "confirm", study, arm.name, chosen["point"], seed, chosen["values"])
                (baseline if arm.name == protocol.baseline else others).append(job)
    return baseline, others if progress.target is not None else []


def horizon_jobs(progress: Progress) -> list[Job]:
    """All runs with a shorter budget: each winner on the seeds of its confirmation, once there is a target to reach.

    Example:
        >>> protocol = Protocol((Arm("a", "cnn", {}, {"lr": 0.1}, {}),), "a", "val_loss", "min", 4, (0, 2, 4), 1, 1)
        >>> horizon_jobs(Progress(protocol, protocol, "", {}, {}, Counter(), (), None, None))
        []
    """
    if progress.target is None or progress.target["level"] is None:
        return []
    protocol = progress.effective
    confirmed = [job for jobs in confirmation_jobs(progress) for job in jobs]
    shorter = [
        _job(progress, "horizon", job.study, job.arm, job.point, job.seed, job.values, steps)
        for job in confirmed
        for steps in protocol.horizons
    ]
    random.Random(stream(protocol.seed, "order", "horizons")).shuffle(shorter)
    return sorted(shorter, key=lambda job: (job.study, job.seed))


def _job(
    progress: Progress,
    stage: Any,
    study: int,
    arm: str,
    point: int,
    seed: int,
    values: Mapping[str, float],
    steps: int | None = None,
) -> Job:
    content = [progress.protocol_hash, stage, study, arm, point, seed, values, *([] if steps is None else [steps])]
    return Job(digest(content), stage, study, arm, point, seed, dict(values), steps)


def _shuffled(protocol: Protocol, what: str, study: int, block: int) -> list[Arm]:
    arms = list(protocol.arms)
    random.Random(stream(protocol.seed, "order", what, study, block)).shuffle(arms)
    return arms


def _box(progress: Progress, arm: str, point: int) -> dict[str, tuple[float, float]]:
    """The box that a point of the search lies in: that of the protocol, or of a round of widening."""
    trials = progress.protocol.trials
    if point < trials:
        return next(a.box for a in progress.protocol.arms if a.name == arm)
    return progress.rounds[(point - trials) // math.ceil(trials / 2)][arm]


def _winner(protocol: Protocol, runs: list[Run], arm: Arm, study: int) -> dict[str, Any]:
    best = winner(protocol, runs, arm.name, study)
    found = {"point": best.point, "values": best.values, "of": best.key} if best else {"point": None, "values": None}
    return {"study": study, "arm": arm.name, **found, "edges": edges(protocol, runs, arm.name, study)}


def _sides(protocol: Protocol, runs: list[Run]) -> dict[str, dict[str, str]]:
    """Arm -> value -> the side on which its best point stands at the edge, in any study."""
    sides: dict[str, dict[str, str]] = {}
    for arm in protocol.arms:
        for study in range(protocol.studies):
            best = winner(protocol, runs, arm.name, study)
            at_edge = edges(protocol, runs, arm.name, study)
            for name, (low, high) in arm.box.items():
                if best is None or not any(text.startswith(f"{name} ") for text in at_edge):
                    continue
                place = math.log(best.values[name] / low) / math.log(high / low)
                assert not EDGE < place < 1 - EDGE
                sides.setdefault(arm.name, {})[name] = "low" if place < 0.5 else "high"
    return sides
