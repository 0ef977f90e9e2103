"""What the user asked for: checked, with defaults filled in, and comparable with what was asked for the first time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lightning.pytorch import LightningModule

from lit_opt.comparison.arms import Named, read_arms
from lit_opt.comparison.codec import canonical, plain
from lit_opt.comparison.horizons import horizon_steps
from lit_opt.comparison.ranks import device_problems
from lit_opt.comparison.task import Task
from lit_opt.errors import RecipeError, nearest

_EVALUATIONS = 20
# Keywords of the Trainer that the comparison decides.
_OURS = {
    "max_steps": "it is budget_steps",
    "max_epochs": "it is budget_steps",
    "min_steps": "every run has budget_steps",
    "min_epochs": "every run has budget_steps",
    "max_time": "give timeout= in seconds",
    "val_check_interval": "it is eval_every",
    "check_val_every_n_epoch": "it is eval_every",
    "num_sanity_val_steps": "each run is evaluated before its training",
    "logger": "the readings are in the ledger",
    "callbacks": "a callback may treat arms differently, and keeps its state from run to run",
    "num_nodes": "a run stays on one machine; start the same command on others that share the folder",
    "enable_checkpointing": "nothing is kept of a run but its readings",
    "enable_progress_bar": "there is one for the whole comparison",
    "enable_model_summary": "it would come with every run",
    "fast_dev_run": "it is dry_run",
    "detect_anomaly": "it would make a crash of a run that diverges",
    "overfit_batches": "the data have to be those of training",
    "reload_dataloaders_every_n_epochs": "the batches of a run come from one loader",
}


@dataclass(frozen=True)
class Request:
    """The arguments of `compare` that decide about numbers, as plain data.

    Example:
        >>> list(Request.__dataclass_fields__)[:3]
        ['module', 'data', 'arms']
    """

    module: str
    data: str
    arms: dict[str, Any]
    baseline: str
    budget_steps: int
    eval_every: int
    trials: int
    seeds: int
    studies: int
    metric: str | None
    mode: str | None
    readout: str | None
    decades: float
    extend: int
    seed: int
    timeout: float | None
    trainer: dict[str, Any]
    horizons: tuple[int, ...] | None = None


def read_request(given: Mapping[str, Any]) -> tuple[Task, Named, Request]:
    """Check the arguments of `compare`.

    Args:
        given: Name of each argument -> value.

    Raises:
        RecipeError: All that is wrong, at once.

    Example:
        >>> given = dict(make_module=3, make_datamodule=None, arms=["llm", "cnn"], budget_steps=0, eval_every=None)
        >>> given |= dict(trials=1, seeds=6, studies=1, extend=0, workers=1, seed=0, baseline="vit", metric=None)
        >>> given |= dict(mode="up", readout=None, decades=2.0, timeout=None, trainer=None)
        >>> try:
        ...     read_request(given)
        ... except RecipeError as error:
        ...     [problem.split(":")[0] for problem in error.problems]
        ['make_module', 'budget_steps', 'baseline', 'mode']
    """
    problems: list[str] = []
    for name in ("make_module", "make_datamodule"):
        left_out = name == "make_datamodule" and given[name] is None
        if not left_out and (not callable(given[name]) or isinstance(given[name], LightningModule)):
            problems.append(
                f"{name}: an object of {type(given[name]).__name__} is no factory. Give a function (or the class itself) that builds "
                "a new one for each run: an object would carry what one run has learned into the next."
            )
    least = {"budget_steps": 1, "trials": 1, "studies": 1, "workers": 1, "extend": 0, "seed": 0}
    for name, low in (least | ({"seeds": 2} if given["seeds"] is not None else {})).items():
        problems += _whole(name, given[name], low)
    for name, high in (("seeds", 500), ("studies", 100)):  # more would share seeds, see lit_opt.comparison.seeds
        if isinstance(given[name], int) and given[name] > high:
            problems.append(f"{name}: {given[name]} is more than {high}, the most there can be.")
    named: Named = {}
    try:
        named = read_arms(given["arms"], given["readout"])
    except RecipeError as error:
        problems += error.problems
    baseline = given["baseline"] or next(iter(named), "")
    if named and baseline not in named:
        problems.append(f"baseline: {baseline!r} is no arm.{nearest(baseline, named)} Arms: {', '.join(named)}.")
    for name, words in (("mode", ("min", "max")), ("readout", ("raw", "averages"))):
        if given[name] not in (None, *words):
            problems.append(f"{name}: {given[name]!r} is unknown. Known: {', '.join(words)}.")
    for name, lowest, highest in (("decades", 0.1, 8.0), ("timeout", 1.0, 1e9)):
        number = given[name]
        if number is not None and not (isinstance(number, int | float) and lowest <= number <= highest):
            problems.append(f"{name}: {number!r} is not allowed; give a number from {lowest:g} to {highest:g}.")
    every, found = _every(given["budget_steps"], given["eval_every"])
    problems += found
    horizons: tuple[int, ...] = ()
    if not found:
        horizons, found = horizon_steps(given.get("horizons"), given["budget_steps"], every)
        problems += found
    trainer = dict(given["trainer"] or {})
    problems += [f"trainer: {key}: {_OURS[key]}. Leave it out." for key in trainer if key in _OURS]
    problems += device_problems(trainer, given["workers"] if isinstance(given["workers"], int) else 1)
    if problems:
        raise RecipeError(problems)
    task = Task(given["make_module"], given["make_datamodule"], named, trainer)
    request = Request(
        module=label(given["make_module"]),
        data=label(given["make_datamodule"]),
        arms={name: {"recipe": recipe, **plain(keywords)} for name, (recipe, keywords) in named.items()},
        baseline=baseline,
        budget_steps=given["budget_steps"],
        eval_every=every,
        trials=given["trials"],
        seeds=given["seeds"] or default_seeds(len(named)),
        studies=given["studies"],
        metric=given["metric"],
        mode=given["mode"],
        readout=given["readout"],
        decades=float(given["decades"]),
        extend=given["extend"],
        seed=given["seed"],
        timeout=given["timeout"],
        trainer=plain(trainer),
        horizons=horizons or None,  # None, as in ledgers from before there were any
    )
    return task, named, request


def default_seeds(arms: int) -> int:
    """Seeds that find a gain of 1.3 in the time to a target with a power of about 0.8 under Holm's correction.

    Example:
        >>> [default_seeds(arms) for arms in (2, 3, 5, 6)]
        [6, 8, 8, 10]
    """
    return 6 if arms == 2 else 8 if arms <= 5 else 10


def label(factory: Any) -> str:
    """What names a factory in the protocol: its own `label`, or where it is defined.

    Example:
        >>> label(label), label(None)
        ('lit_opt.comparison.request.label', '')
    """
    if factory is None:
        return ""
    own = getattr(factory, "label", None)
    if isinstance(own, str):
        return own
    inside = getattr(factory, "func", factory)  # functools.partial
    arguments = [
        *map(repr, getattr(factory, "args", ())),
        *(f"{k}={v!r}" for k, v in getattr(factory, "keywords", {}).items()),
    ]
    where = f"{getattr(inside, '__module__', '')}.{getattr(inside, '__qualname__', type(inside).__qualname__)}"
    return f"{where}({', '.join(arguments)})" if inside is not factory else where


def changed(before: Mapping[str, Any], request: Request) -> list[str]:
    """What differs between two requests, in words.

    Args:
        before: The first one, from the ledger.
        request: The one now.

    Example:
        >>> one = Request("m", "d", {}, "a", 10, 1, 4, 6, 1, None, None, None, 2.0, 0, 0, None, {})
        >>> changed(asdict(one) | {"trials": 8}, one)
        ['trials: 8 then, 4 now']
    """
    now = plain(asdict(request))
    return [
        f"{name}: {_shown(before.get(name))} then, {_shown(now[name])} now"
        for name in now
        if canonical(before.get(name)) != canonical(now[name])
    ]


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return (
            ", ".join(
                f"{k}={_shown(v)}" if not isinstance(v, Mapping) else f"{k} ({_shown(v)})" for k, v in value.items()
            )
            or "none"
        )
    return "unset" if value is None else str(value)


def _whole(name: str, value: Any, least: int) -> list[str]:
    if isinstance(value, int) and not isinstance(value, bool) and value >= least:
        return []
    return [f"{name}: {value!r} is not allowed; give a whole number from {least} up."]


def _every(budget: Any, every: Any) -> tuple[int, list[str]]:
    """Steps between evaluations: a divisor of the budget, so that the last is at its end."""
    if not isinstance(budget, int) or budget < 1:
        return 1, []
    divisors = [n for n in range(1, budget + 1) if budget % n == 0]
    if every is None:
        return next(n for n in divisors if budget // n <= _EVALUATIONS), []
    if every in divisors:
        return every, []
    whole = isinstance(every, int) and not isinstance(every, bool) and every > 0
    near = sorted(sorted(divisors, key=lambda n: abs(n - every))[:3]) if whole else divisors[-3:]
    return 1, [
        f"eval_every: {every!r} does not divide budget_steps={budget}, so the last evaluation would not be at its end. "
        f"Give {', '.join(map(str, near[:-1]))} or {near[-1]}."
    ]
