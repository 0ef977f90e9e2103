"""One run of a comparison: train with the arm's recipe at a trial's values, and say how it ended."""

from __future__ import annotations

import math
import traceback
from collections.abc import Mapping
from typing import Any

import torch

from lit_opt.callbacks.recipe import Recipe
from lit_opt.comparison.facts import facts_after
from lit_opt.comparison.observer import Diverged, Observer, TimedOut
from lit_opt.comparison.ranks import devices_of, on_ranks
from lit_opt.comparison.records import Arm, Protocol, Reading, Readout, Run, State
from lit_opt.comparison.task import Job, Task, overrides_at
from lit_opt.comparison.training import is_out_of_memory, train
from lit_opt.errors import RecipeError


def execute(job: Job, arm: Arm, task: Task, protocol: Protocol) -> Run:
    """Do a run from its start to its end.

    Args:
        job: Which.
        arm: Its arm.
        task: How modules and data are made.
        protocol: Steps, evaluations and metric. Its settings may hold "threads", "model_flops_per_pass", "timeout"
            (seconds) and "fallback" (arm -> AdamW's numbers at the start).

    Returns:
        The run; where it did not end well, "error" in its facts says why.

    Raises:
        RecipeError: Something that every run of this arm would refuse, or the module stopped the run early.

    Example:
        >>> execute.__name__  # tests/comparison/test_run.py runs it
        'execute'
    """
    devices = devices_of(task.trainer)
    if devices == 1:
        return _execute(job, arm, task, protocol)
    try:
        run: Run = on_ranks(_execute_on_rank, job, arm, task, protocol, devices=devices)
    except _Broken as broken:
        return broken.run
    except RuntimeError as error:  # killed, or ended by something that Python does not see
        return _run_of(job, "crashed", {}, {"error": str(error)[-500:]})
    return run


class _Broken(Exception):
    """A run that did not end well in one process; the others may wait for it and have to be stopped."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.run = run


def _execute_on_rank(job: Job, arm: Arm, task: Task, protocol: Protocol) -> Run:
    run = _execute(job, arm, task, protocol)
    if run.state != "done":  # perhaps in this process alone
        raise _Broken(run)
    return run


def _execute(job: Job, arm: Arm, task: Task, protocol: Protocol) -> Run:
    settings: Mapping[str, Any] = protocol.settings
    if settings.get("threads"):
        torch.set_num_threads(int(settings["threads"]))
    name, keywords = task.recipes[arm.name]
    at = overrides_at(arm, keywords, job.values, settings.get("fallback", {}).get(arm.name, {}))
    recipe = Recipe(name, **at, existing="replace", on_nonfinite="ignore")
    budget = job.steps or protocol.budget_steps
    observer = Observer(
        recipe,
        protocol.metric,
        budget,
        tuple(step for step in protocol.eval_steps if step <= budget),
        seed=job.seed,
        timeout=float(settings.get("timeout") or math.inf),
    )
    observer.model_flops = float(settings.get("model_flops_per_pass") or 0.0)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    state, error = _train(task, recipe, observer, job.seed)
    last = observer.readings[-1] if observer.readings else None
    if state == "done" and (last is None or last.step != budget):
        raise RecipeError([_stopped(observer.step, budget)])
    elif state == "done" and last is not None and not math.isfinite(last.metric):
        state, error = "diverged", f"{protocol.metric} was {last.metric} at the end"
    facts = {**observer.before, **facts_after(observer), **({"error": error[:500]} if error else {})}
    return _run_of(job, state, {arm.readout: tuple(observer.readings)}, facts)


def _run_of(job: Job, state: State, readings: dict[Readout, tuple[Reading, ...]], facts: dict[str, Any]) -> Run:
    return Run(
        key=job.key,
        stage=job.stage,
        study=job.study,
        arm=job.arm,
        point=job.point,
        seed=job.seed,
        values=dict(job.values),
        state=state,
        readings=readings,
        facts=facts,
        steps=job.steps,
    )


def _stopped(step: int, budget: int) -> str:
    return (
        f"{step} of {budget} steps: a run was stopped early, without an error, and a comparison needs equal budgets. Take out what "
        "sets trainer.should_stop, such as a callback in the module's configure_callbacks. What is finished is kept: the same "
        "command goes on from there."
    )


def _train(task: Task, recipe: Recipe, observer: Observer, seed: int) -> tuple[State, str]:
    try:
        train(task, recipe, observer, seed)
    except Diverged as stop:
        return "diverged", str(stop)
    except TimedOut as stop:
        return "timeout", str(stop)
    except RecipeError:
        raise
    except Exception as failure:  # a user's module may raise anything; it becomes the state of the run
        text = "".join(traceback.format_exception_only(failure)).strip()
        if is_out_of_memory(failure):
            return "oom", text
        if why := observer.broken_by():
            return "diverged", f"{why}: {text}"
        frame = traceback.extract_tb(failure.__traceback__)[-1]
        return "crashed", f"{text} ({frame.filename}:{frame.lineno})"
    return "done", ""
