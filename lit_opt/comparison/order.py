"""The order of the runs, as a worker asks for it: one set of functions for a comparison, another for a sweep."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lit_opt.comparison.stages import (
    Progress,
    budgets,
    due,
    horizon_jobs,
    is_complete,
    open_jobs,
    search_jobs,
)
from lit_opt.comparison.task import Job


def expected(progress: Progress, estimate: Mapping[str, float]) -> tuple[float, float, str]:
    """Expected seconds of what is done and of all, and where it is.

    Args:
        progress: Of a comparison.
        estimate: Arm -> seconds of a run of the whole budget.

    Example:
        >>> from collections import Counter
        >>> from lit_opt.comparison.records import Arm, Protocol
        >>> protocol = Protocol((Arm("a", "cnn", {}, {"lr": 0.1}, {}),), "a", "val_loss", "min", 4, (0, 4), 1, 1)
        >>> expected(Progress(protocol, protocol, "", {}, {}, Counter(), (), None, None), {"a": 3.0})
        (0.0, 6.0, 'search 0/1')
    """
    protocol = progress.effective
    total = budgets(protocol) * sum(estimate[arm.name] for arm in protocol.arms)
    done = (
        sum(estimate[r.arm] * (r.steps or protocol.budget_steps) for r in progress.runs.values())
        / protocol.budget_steps
    )
    shorter = [run.key for run in progress.runs.values() if run.stage == "horizon"]
    if progress.chosen is None:
        jobs = search_jobs(progress)
        where = f"search {sum(job.key in progress.runs for job in jobs)}/{len(jobs)}"
    elif shorter:
        where = f"horizons {len(shorter)}/{len(horizon_jobs(progress))}"
    else:
        confirmed = sum(run.stage == "confirm" for run in progress.runs.values())
        where = f"confirmation {confirmed}/{protocol.studies * protocol.seeds * len(protocol.arms)}"
    return done, max(total, 1e-9), where


@dataclass(frozen=True)
class Stages:
    """What a worker asks about the order of the runs: functions of what the ledger says has happened.

    Attributes:
        due: The decision that is due now, kind and content of its line, or None.
        open_jobs: The runs that may be done now.
        is_complete: Nothing is left to do.
        expected: With the seconds of a run of each arm: expected seconds of what is done, of all, and where it is.

    Example:
        >>> COMPARISON.due is due
        True
    """

    due: Callable[[Progress], tuple[str, dict[str, Any]] | None]
    open_jobs: Callable[[Progress], list[Job]]
    is_complete: Callable[[Progress], bool]
    expected: Callable[[Progress, Mapping[str, float]], tuple[float, float, str]]


COMPARISON = Stages(due, open_jobs, is_complete, expected)
