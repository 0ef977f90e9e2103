"""A worker: claims a run, does it, writes it down, until nothing is left. Any number of them may share a folder."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from lit_opt.comparison.claims import Claims, worker_name
from lit_opt.comparison.codec import run_to_dict
from lit_opt.comparison.ledger import Event, Ledger, Lines
from lit_opt.comparison.order import COMPARISON, Stages
from lit_opt.comparison.records import Run
from lit_opt.comparison.run import execute
from lit_opt.comparison.stages import RETRIES, Progress, progress_of
from lit_opt.comparison.task import Job, Task
from lit_opt.errors import RecipeError

_PAUSE = 0.2  # seconds between looks at the ledger while others work


def work(
    folder: Path,
    task: Task,
    *,
    stages: Stages = COMPARISON,
    alone: bool = True,
    seen: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Work until the comparison is complete.

    Args:
        folder: Of an opened comparison.
        task: The code that makes modules and data.
        stages: What is to be done next.
        alone: No other worker was started beside this one; otherwise times are left out.
        seen: Called after each look at the ledger.

    Returns:
        The ledger's state at the end.

    Raises:
        RecipeError: The ledger was changed by hand, or an arm cannot run at all.

    Example:
        >>> work.__name__  # needs an opened comparison; tests/comparison/test_compare.py
        'work'
    """
    ledger = Ledger(folder)
    claims = Claims(folder, ledger)
    while True:
        progress = progress_of(intact(ledger.read(), folder))
        seen(progress)
        decision = stages.due(progress)
        if decision is not None:
            kind, content = decision
            content = {**content, "protocol_hash": progress.protocol_hash}
            ledger.append(kind, content, unless=lambda now: stages.due(progress_of(now)) != decision)  # noqa: B023
            continue
        if stages.is_complete(progress):
            return progress
        job = next((job for job in stages.open_jobs(progress) if claims.take(job.key)), None)
        if job is None:
            time.sleep(_PAUSE)
            continue
        try:
            with claims.beating(job.key):
                _do(job, progress, task, ledger, claims, alone)
        finally:
            claims.release(job.key)


def intact(reading: Lines, folder: Path) -> Lines:
    """The ledger, if nobody has changed it.

    Raises:
        RecipeError: Lines were changed, taken out or put in.

    Example:
        >>> intact(Lines((), (), (), ""), Path()).events
        ()
    """
    if reading.problems:
        raise RecipeError(
            [
                f"ledger: {text} ({folder / 'ledger.jsonl'}). What was measured cannot be told from what was typed, so it does "
                "not go on from here: begin anew in another folder (--out)."
                for text in reading.problems
            ]
        )
    return reading


def _do(job: Job, progress: Progress, task: Task, ledger: Ledger, claims: Claims, alone: bool) -> None:
    if job.key in progress_of(ledger.read()).runs:  # finished by another between our look and our claim
        return
    common = {"protocol_hash": progress.protocol_hash, "worker": worker_name()}
    started = ledger.append("started", {"key": job.key, "arm": job.arm, "stage": job.stage, **common})
    assert started is not None
    undisturbed = alone and not claims.others()
    arm = next(arm for arm in progress.effective.arms if arm.name == job.arm)
    run = execute(job, arm, task, progress.protocol)
    failures = progress_of(ledger.read()).failures[job.key]
    if run.state in ("crashed", "timeout") and failures < RETRIES:
        content = {"key": job.key, "arm": job.arm, "state": run.state, "error": run.facts.get("error"), **common}
        ledger.append("failed", content)
        return
    undisturbed = undisturbed and not claims.others() and not _joined(ledger.read(), started)
    timing = {"alone": undisturbed, "worker": worker_name(), "host": socket.gethostname()}
    run = replace(run, facts={**run.facts, "attempts": failures + 1, "timing": timing})
    if not undisturbed:
        run = without_times(run)
    ledger.append("finished", {"run": run_to_dict(run), **common}, unless=lambda now: job.key in progress_of(now).runs)


def _joined(reading: Lines, started: Event) -> bool:
    """Whether another worker of this machine has begun a run since."""
    later: list[dict[str, Any]] = []
    for _, event in reading.of("started"):
        later = [] if event["sha"] == started["sha"] else [*later, event]
    host = socket.gethostname()
    return any(e["worker"] != worker_name() and e["worker"].rpartition(":")[0] == host for e in later)


def without_times(run: Run) -> Run:
    """The run with its times blanked: others worked on the same machine meanwhile.

    Example:
        >>> from lit_opt.comparison.records import Reading
        >>> run = Run("k", "tune", 0, "a", 0, 0, {}, "done", {"raw": (Reading(1, 8, 1e9, 0.1, 3.0),)}, (), {"ms_per_step": 9})
        >>> bare = without_times(run)
        >>> bare.readings["raw"][0].seconds, bare.facts["ms_per_step"]
        (nan, None)
    """
    readings = {
        readout: tuple(replace(one, seconds=math.nan) for one in readings) for readout, readings in run.readings.items()
    }
    return replace(run, readings=readings, facts={**run.facts, "ms_per_step": None})
