"""A sweep: one recipe's rate, and its decay if asked for, tuned on one model with the machinery of a comparison.

The runs are those of a comparison's search: the same rehearsal, seeds, data order and ledger. There is one arm, every
point is run on every seed, and the mean decides. Nothing is confirmed: the outcome is values, not a verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lit_opt.comparison.announcement import duration
from lit_opt.comparison.arms import read_arms
from lit_opt.comparison.codec import digest, plain, protocol_to_dict
from lit_opt.comparison.compare import open_protocol, refuse_changed
from lit_opt.comparison.facts import versions
from lit_opt.comparison.ledger import Ledger, Lines
from lit_opt.comparison.points import TUNED
from lit_opt.comparison.ranks import device_problems
from lit_opt.comparison.records import Protocol
from lit_opt.comparison.request import Request, label
from lit_opt.comparison.stages import progress_of
from lit_opt.comparison.sweep_result import Found, found_in
from lit_opt.comparison.sweep_stages import sweep_stages
from lit_opt.comparison.task import Factory, Task
from lit_opt.comparison.team import refuse_unsendable, run_workers
from lit_opt.comparison.worker import intact
from lit_opt.errors import RecipeError, nearest

# Fewer have no inside.
_LEAST_TRIALS = 3


@dataclass(frozen=True)
class SweepRequest(Request):
    """What was asked for, as plain data.

    Example:
        >>> list(SweepRequest.__dataclass_fields__)[-1]
        'tuned'
    """

    tuned: list[str] = field(default_factory=list)


def read_sweep(given: Mapping[str, Any]) -> tuple[Task, SweepRequest]:
    """Check what was asked for.

    Args:
        given: make_module, make_datamodule, recipe (keywords of `Recipe` with its "name"), params, budget_steps, trials,
            seeds, extend, workers, seed, decades, metric, mode and trainer.

    Raises:
        RecipeError: All that is wrong, at once.

    Example:
        >>> given = dict(make_module=dict, make_datamodule=None, recipe={"name": "llm"}, params=["lr", "beta"], trials=2)
        >>> given |= dict(budget_steps=0, seeds=1, extend=0, workers=1, seed=0, decades=2.0, metric=None, mode=None)
        >>> try:
        ...     read_sweep(given | {"trainer": {}})
        ... except RecipeError as error:
        ...     [problem.split(":")[0] for problem in error.problems]
        ['param', 'budget_steps', 'trials']
    """
    params: Sequence[str] = list(dict.fromkeys(given["params"]))
    problems = [
        f"param: {name!r} cannot be tuned here.{nearest(name, TUNED)} Known: {', '.join(TUNED)}."
        for name in params
        if name not in TUNED
    ]
    least = {"budget_steps": 1, "trials": _LEAST_TRIALS, "seeds": 1, "extend": 0, "workers": 1, "seed": 0}
    for name, low in least.items():
        value = given[name]
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            problems.append(f"{name}: {value!r} is not allowed; give a whole number from {low} up.")
    if not 0.1 <= given["decades"] <= 8.0:
        problems.append(f"decades: {given['decades']!r} is not allowed; give a number from 0.1 to 8.")
    problems += device_problems(given["trainer"], given["workers"] if isinstance(given["workers"], int) else 1)
    named = {}
    try:
        named = read_arms({given["recipe"]["name"]: given["recipe"]}, None, least=1)
    except RecipeError as error:
        problems += error.problems
    if problems:
        raise RecipeError(problems)
    ((name, (recipe, keywords)),) = named.items()
    request = SweepRequest(
        module=label(given["make_module"]),
        data=label(given["make_datamodule"]),
        arms={name: {"recipe": recipe, **plain(keywords)}},
        baseline=name,
        budget_steps=given["budget_steps"],
        eval_every=given["budget_steps"],  # before the first step and at the end: the end decides
        trials=given["trials"],
        seeds=given["seeds"],
        studies=1,
        metric=given["metric"],
        mode=given["mode"],
        readout=None,
        decades=float(given["decades"]),
        extend=0,  # may change from call to call: it adds points and changes none
        seed=given["seed"],
        timeout=None,
        trainer=plain(dict(given["trainer"])),
        tuned=[one for one in TUNED if one in params],
    )
    make: tuple[Factory, Factory | None] = (given["make_module"], given["make_datamodule"])
    return Task(*make, named, dict(given["trainer"])), request


def sweep(
    task: Task,
    request: SweepRequest,
    folder: Path,
    *,
    extend: int = 0,
    workers: int = 1,
    dry_run: bool = False,
    quiet: bool = False,
    check: Callable[[Protocol], object] = lambda protocol: None,
) -> Found | None:
    """Run it, or what is left of it; the same call resumes.

    Args:
        task: How modules and data are made.
        request: Of `read_sweep`.
        folder: Of the ledger.
        extend: Rounds of points beyond an edge.
        workers: Processes.
        dry_run: Announce, and write nothing.
        quiet: No announcement and no progress.
        check: Called before the runs; may refuse.

    Returns:
        The outcome; None of a dry run.

    Raises:
        RecipeError: What cannot be trained or tuned; another protocol in the folder.

    Example:
        >>> sweep.__name__  # tests/commands/test_sweep.py
        'sweep'
    """
    if workers > 1:
        refuse_unsendable(task, f"workers={workers}")
    reading = intact(Ledger(folder).read(), folder) if folder.exists() else Lines((), (), (), "")
    opened = next((event for _, event in reading.of("opened")), None)
    if opened is not None:
        refuse_changed(opened["request"], request, folder)
        protocol, estimate = progress_of(reading).protocol, opened["estimate"]
    else:
        protocol, estimate = _open(task, request)
    check(protocol)
    if not quiet:
        print(announced(protocol, estimate, workers, extend, f"{folder}" if opened else None), flush=True)
    if dry_run:
        return None
    ledger = Ledger(folder)
    if opened is None:
        data = protocol_to_dict(protocol)
        content = {
            "protocol": data,
            "request": asdict(request),
            "estimate": estimate,
            "versions": versions(),
            "command": None,
            "protocol_hash": digest(data),
        }
        began = ledger.append("opened", content, unless=lambda now: any(now.of("opened")))
        if began is None:  # another process was faster
            refuse_changed(next(ledger.read().of("opened"))[1]["request"], request, folder)
    run_workers(folder, task, workers=workers, estimate=estimate, quiet=quiet, stages=sweep_stages(extend))
    return found_in(progress_of(intact(ledger.read(), folder)))


def _open(task: Task, request: SweepRequest) -> tuple[Protocol, dict[str, float]]:
    protocol, estimate, _ = open_protocol(task, {request.baseline: task.recipes[request.baseline]}, request)
    (arm,) = protocol.arms
    missing = [name for name in request.tuned if name not in arm.box]
    if missing:
        raise RecipeError(
            [
                f"param: {name}: it is 0 in this recipe, and a search in its logarithm has to start somewhere. Give a start, such "
                f"as --recipe.{name}=0.1, or leave it out of --param."
                for name in missing
            ]
        )
    return replace(protocol, arms=(replace(arm, box={name: arm.box[name] for name in request.tuned}),)), estimate


def announced(protocol: Protocol, estimate: Mapping[str, float], workers: int, extend: int, resumed: str | None) -> str:
    """What a sweep will cost, in words.

    Args:
        protocol: Of the sweep.
        estimate: Arm -> seconds of a run.
        workers: Processes.
        extend: Rounds of points beyond an edge.
        resumed: The folder, where it holds the beginning.

    Example:
        >>> from lit_opt.comparison.records import Arm
        >>> arm = Arm("llm", "llm", {}, {"lr": 0.01}, {"lr": (1e-3, 0.1)})
        >>> print(announced(Protocol((arm,), "llm", "val_loss", "min", 40, (0, 40), 9, 3), {"llm": 2.0}, 1, 0, None))
        llm: lr, 9 values from 0.001 to 0.1, evenly in the logarithm; val_loss decides, lower is better.
        27 runs of 40 steps (9 points, 3 seeds). Estimated from a few timed steps: 54 s.
    """
    (arm,) = protocol.arms
    boxes = [f"{name} from {low:.4g} to {high:.4g}" for name, (low, high) in arm.box.items()]
    better = "lower" if protocol.mode == "min" else "higher"
    if len(boxes) == 1:
        (name, (low, high)) = next(iter(arm.box.items()))
        where = f"{name}, {protocol.trials} values from {low:.4g} to {high:.4g}, evenly in the logarithm"
    else:
        where = (
            f"{protocol.trials} points, {' and '.join(boxes)}; the first is {_start(arm.start)}, the others scattered"
        )
    runs = protocol.trials * protocol.seeds
    seconds = runs * estimate[arm.name] / workers
    with_workers = f" with {workers} workers" if workers > 1 else ""
    seeds = f"{protocol.seeds} seeds" if protocol.seeds > 1 else "one seed"
    lines = [
        f"{arm.recipe}: {where}; {protocol.metric} decides, {better} is better.",
        f"{runs} runs of {protocol.budget_steps:,} steps ({protocol.trials} points, {seeds}). Estimated from a few timed "
        f"steps: {duration(seconds)}{with_workers}.",
    ]
    if extend:
        lines.append(f"Should the best stand at an edge, half as many points beyond it, up to {_times(extend)}.")
    if resumed:
        lines.append(f"{resumed} holds the beginning; what is done is kept.")
    return "\n".join(lines)


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def _start(start: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in start.items())
