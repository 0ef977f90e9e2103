"""One worker in this process, or several beside it; and how far they are."""

from __future__ import annotations

import multiprocessing
import pickle
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from lit_opt.comparison.announcement import duration
from lit_opt.comparison.ledger import Ledger
from lit_opt.comparison.order import COMPARISON, Stages
from lit_opt.comparison.stages import Progress, progress_of
from lit_opt.comparison.task import Task
from lit_opt.comparison.worker import intact, work
from lit_opt.errors import RecipeError

_LOOK = 0.5  # seconds between looks at the ledger
_LINE = 60.0  # seconds between lines where there is no terminal


def run_workers(
    folder: Path,
    task: Task,
    *,
    workers: int,
    estimate: Mapping[str, float],
    quiet: bool = False,
    stages: Stages = COMPARISON,
) -> None:
    """Work until the comparison is complete.

    Args:
        folder: Of an opened comparison.
        task: The code that makes modules and data; sent to the other processes.
        workers: How many processes; one works in this one.
        estimate: Arm -> seconds of a run, for the time that is left.
        quiet: No progress.
        stages: What is to be done next.

    Raises:
        RecipeError: The workers stopped before the end.

    Example:
        >>> run_workers.__name__  # tests/comparison/test_workers.py
        'run_workers'
    """
    with meter(estimate, quiet, stages) as seen:
        if workers == 1:
            work(folder, task, stages=stages, seen=seen)
        else:
            _supervise(folder, task, stages, workers, seen)


def refuse_unsendable(task: Task, source: str) -> None:
    """Refuse what another process cannot be given.

    Args:
        task: The code that makes modules and data.
        source: What asks for other processes, such as "workers=4".

    Raises:
        RecipeError: Lambdas, functions inside functions, or open files in the factories.

    Example:
        >>> refuse_unsendable(Task(lambda: None, None, {}), "workers=4")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        lit_opt.errors.RecipeError: workers=4: other processes, and make_module cannot be sent to them ...
    """
    for name, thing in (
        ("make_module", task.make_module),
        ("make_datamodule", task.make_datamodule),
        ("arms", task.recipes),
        ("trainer", task.trainer),
    ):
        try:
            pickle.dumps(thing)
        except Exception as error:  # pickle raises what it likes
            raise RecipeError(
                [
                    f"{source}: other processes, and {name} cannot be sent to them ({error}). Define it at the top level of "
                    "a module (no lambda, no function inside a function), or leave this out."
                ]
            ) from None


def _supervise(folder: Path, task: Task, stages: Stages, workers: int, seen: Callable[[Progress], None]) -> None:
    # Not forked: torch's threads do not survive it.
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_one, args=(folder, task, stages), daemon=True) for _ in range(workers)]
    for process in processes:
        process.start()
    ledger = Ledger(folder)
    try:
        size = -1
        while any(process.is_alive() for process in processes):
            if ledger.path.stat().st_size != size:
                size = ledger.path.stat().st_size
                seen(progress_of(intact(ledger.read(), folder)))
            time.sleep(_LOOK)
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
            process.join()
    progress = progress_of(intact(ledger.read(), folder))
    seen(progress)
    if not stages.is_complete(progress):
        codes = sorted({str(process.exitcode) for process in processes})
        raise RecipeError(
            [
                f"workers: all {workers} stopped (exit codes {', '.join(codes)}) before the end; what they "
                "said is above. What is finished is kept: the same command resumes."
            ]
        )


def _one(folder: Path, task: Task, stages: Stages) -> None:
    """A worker's whole life."""
    try:
        work(folder, task, stages=stages, alone=False)
    except RecipeError as error:
        print(f"lit-opt, worker: {error}", file=sys.stderr)
        sys.exit(2)


@contextmanager
def meter(
    estimate: Mapping[str, float], quiet: bool, stages: Stages = COMPARISON
) -> Iterator[Callable[[Progress], None]]:
    """A bar on a terminal, else a line a minute; called with each look at the ledger.

    Example:
        >>> with meter({"a": 1.0}, quiet=True) as seen:
        ...     callable(seen)
        True
    """
    if quiet:
        yield lambda progress: None
    elif sys.stderr.isatty():
        with _bar(estimate, stages) as update:
            yield update
    else:
        yield _lines(estimate, stages)


@contextmanager
def _bar(estimate: Mapping[str, float], stages: Stages) -> Iterator[Callable[[Progress], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:
        shown = bar.add_task("search", total=None)

        def update(progress: Progress) -> None:
            done, total, where = stages.expected(progress, estimate)
            bar.update(shown, completed=done, total=total, description=where)

        yield update


def _lines(estimate: Mapping[str, float], stages: Stages) -> Callable[[Progress], None]:
    began = last = time.monotonic()
    at_first: float | None = None

    def update(progress: Progress) -> None:
        nonlocal last, at_first
        done, total, where = stages.expected(progress, estimate)
        at_first = done if at_first is None else at_first
        now = time.monotonic()
        if now - last < _LINE:
            return
        last = now
        left = (now - began) * max(0.0, total - done) / (done - at_first) if done > at_first else None
        print(f"{where}" + (f", about {duration(left)} left" if left is not None else ""), file=sys.stderr, flush=True)

    return update
