"""A few steps of every arm before the start: what it starts from, what a step costs, and whether it can be compared at all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import IterableDataset

from lit_opt.callbacks.recipe import Recipe
from lit_opt.comparison.arms import Named
from lit_opt.comparison.contract import check
from lit_opt.comparison.cost import PassCounter
from lit_opt.comparison.facts import facts_after
from lit_opt.comparison.observer import Enough, Observer
from lit_opt.comparison.ranks import devices_of, gathered, on_ranks
from lit_opt.comparison.records import Arm, Protocol, Run
from lit_opt.comparison.seeds import tuning_seed
from lit_opt.comparison.task import Task
from lit_opt.comparison.training import is_out_of_memory, train
from lit_opt.errors import RecipeError

# One step warms up; the others are timed.
STEPS = 4


@dataclass(frozen=True)
class Rehearsed:
    """What an arm has shown.

    Attributes:
        start: Its resolved lr and weight decay.
        fallback: What a matrix optimizer leaves to AdamW, where its numbers are of another unit than `start`.
        averages: It averages its weights.
        units: Of lr, in words.
        seconds_per_step: nan where the budget is a single step.
        evaluation_seconds: Of one evaluation, 0 where none was done.
        model_flops: Of one forward and backward pass; None where they could not be counted.
        logged: Names logged when validation ended.
        validated: Of these the ones that came with validation.
        facts: As of a run.
        digest: Of the batches.
        batches: In an epoch, as far as it is used; None where it has no length.
        iterable: The data are an IterableDataset.

    Example:
        >>> Rehearsed.__name__
        'Rehearsed'
    """

    start: dict[str, float]
    fallback: dict[str, float]
    averages: bool
    units: str
    seconds_per_step: float
    evaluation_seconds: float
    model_flops: float | None
    logged: frozenset[str]
    validated: frozenset[str]
    facts: dict[str, Any]
    digest: str
    batches: int | None
    iterable: bool


def rehearse(
    task: Task, arms: Named, baseline: str, *, budget_steps: int, metric: str | None, seed: int
) -> dict[str, Rehearsed]:
    """Take a few steps of every arm, the baseline first and with an evaluation.

    Args:
        task: How modules and data are made.
        arms: Of `lit_opt.comparison.arms.read_arms`.
        baseline: Name.
        budget_steps: The horizon of the schedules.
        metric: The logged name; None if it is yet to be found.
        seed: Of the comparison.

    Raises:
        RecipeError: What a run would refuse; or the arms do not get the same model and batches.

    Example:
        >>> rehearse.__name__  # tests/comparison/test_compare.py
        'rehearse'
    """
    found: dict[str, Rehearsed] = {}
    devices = devices_of(task.trainer)
    for name in sorted(arms, key=lambda name: name != baseline):
        recipe, keywords = arms[name]
        first = name == baseline
        given = (task, recipe, keywords, budget_steps, metric, seed, first)
        try:
            found[name] = on_ranks(_rehearse, *given, devices=devices) if devices > 1 else _rehearse(*given)
        except RecipeError as error:
            raise RecipeError([f"{name}: {text}" if not first else text for text in error.problems]) from error
        except Exception as error:
            if is_out_of_memory(error):
                raise RecipeError(
                    [f"{name}: out of memory in its first steps ({error}). Take a smaller batch."]
                ) from error
            raise
    _same_for_all(found, baseline, task, seed)
    return found


def _rehearse(
    task: Task, recipe: str, keywords: Mapping[str, Any], budget: int, metric: str | None, seed: int, counts: bool
) -> Rehearsed:
    counter = PassCounter()
    try:
        callback, observer = _few_steps(
            task, recipe, keywords, budget, metric, seed, (counter,) if counts else (), counts
        )
    except RecipeError:
        raise
    except Exception:
        if not counts:
            raise
        # Somebody else's model may not bear being counted; whatever is wrong beside that comes up again.
        counter = PassCounter()
        callback, observer = _few_steps(task, recipe, keywords, budget, metric, seed, (), counts)
    if observer.first_loss is not None and not math.isfinite(observer.first_loss):
        raise RecipeError(
            [
                f"loss: that of the first batch is {observer.first_loss:g}, before any step was taken, so no optimizer can help. "
                "Look at the batch and at training_step; torch.autograd.set_detect_anomaly(True) names the operation."
            ]
        )
    assert callback.resolved is not None and callback.optimizer is not None
    resolved = callback.resolved
    start = {"lr": resolved.lr, "weight_decay": resolved.weight_decay}
    if not any(group.get("weight_decay") for group in callback.optimizer.param_groups):
        start.pop("weight_decay")
    units = resolved.provenance["lr"].value
    dataset = getattr(observer.loader, "dataset", None)
    return Rehearsed(
        start=start,
        fallback={
            key: float(resolved.fallback[key])
            for key in ("lr", "weight_decay")
            if resolved.fallback.get(key) and resolved.fallback[key] != start.get(key)
        },
        averages=resolved.ema is not None,
        units=units.unit if units is not None else "",
        seconds_per_step=observer.seconds_per_step,
        evaluation_seconds=observer.evaluation_seconds,
        model_flops=counter.flops,
        logged=frozenset(observer.logged),
        validated=frozenset(observer.validated),
        facts={**observer.before, **facts_after(observer)},
        digest=" ".join(gathered(observer.loader.digest())) if observer.loader is not None else "",
        batches=observer.batches_an_epoch,
        iterable=isinstance(dataset, IterableDataset),
    )


def _few_steps(
    task: Task,
    recipe: str,
    keywords: Mapping[str, Any],
    budget: int,
    metric: str | None,
    seed: int,
    callbacks: tuple[Any, ...],
    evaluate: bool,
) -> tuple[Recipe, Observer]:
    callback = Recipe(recipe, **keywords, existing="replace", on_nonfinite="ignore")
    steps = (0, max(budget, STEPS + 1))  # no evaluation in between
    observer = Observer(
        callback,
        metric or "",
        budget,
        steps,
        seed=tuning_seed(seed, 0),
        stop_after=min(STEPS, budget),
        evaluates_at_stop=evaluate,
    )
    try:
        train(task, callback, observer, observer.seed, sanity=0, callbacks=callbacks)
    except Enough:
        pass
    except RecipeError:
        raise
    except Exception as failure:
        if why := observer.broken_by():
            raise RecipeError(
                [
                    f"{recipe}: {why} of the rehearsal, at the values it starts from, and the optimizer cannot go on ({failure}). "
                    "Look at the batch and at training_step, or give this arm a lower lr to start from."
                ]
            ) from failure
        raise
    return callback, observer


def _same_for_all(found: Mapping[str, Rehearsed], baseline: str, task: Task, seed: int) -> None:
    """What differs between arms before anything was compared."""
    problems = []
    others = [name for name, one in found.items() if one.digest != found[baseline].digest]
    if others:
        source = "make_datamodule"
        problems.append(
            f"{source}: with the same seed {baseline} and {', '.join(others)} got different batches. "
            + (
                "An IterableDataset has an order of its own: let make_datamodule(seed) pass the seed to it, and draw from "
                "random.Random(seed) or torch.Generator().manual_seed(seed) in its __iter__."
                if found[baseline].iterable
                else "The order must follow from the seed alone: take it from make_datamodule(seed), or draw it from torch's "
                "generator, which is seeded before each batch."
            )
        )
    # Whatever else differs is said as the contract says it.
    runs = [
        Run(
            name,
            "tune",
            0,
            name,
            0,
            tuning_seed(seed, 0),
            {},
            "oom",
            {},
            (),
            {k: v for k, v in one.facts.items() if k != "eval_steps"},
        )
        for name, one in found.items()
    ]
    arms = tuple(Arm(name, name, {}, {}, {}) for name in found)
    problems += [
        f"{violation['text'].replace(' (run ' + violation['arms'][0] + ')', '')}. The arms must train the same model; "
        "make_module(seed) decides it, and no arm may change it."
        for violation in check(Protocol(arms, baseline, "", "min", 1, (0, 1), 1, 1), runs)
        if violation["rule"] != "passes"
    ]
    accumulation = int(task.trainer.get("accumulate_grad_batches", 1))
    batches = found[baseline].batches
    if batches is not None and batches % accumulation:
        whole = batches - batches % accumulation or accumulation
        problems.append(
            f"accumulate_grad_batches={accumulation}: an epoch has {batches} batches, so its last step would have fewer, and "
            f"evaluations would move. Give trainer={{'limit_train_batches': {whole}}} "
            f"(--trainer.limit_train_batches={whole})."
        )
    if problems:
        raise RecipeError(problems)


def seconds_of_a_run(one: Rehearsed, baseline: Rehearsed, budget_steps: int, evaluations: int) -> float:
    """What a run of an arm is expected to take.

    Example:
        >>> seconds_of_a_run.__name__
        'seconds_of_a_run'
    """
    step = one.seconds_per_step if math.isfinite(one.seconds_per_step) else 0.0
    return budget_steps * step + evaluations * baseline.evaluation_seconds


def threads() -> int:
    """CPU threads of a run; with another number sums are taken in another order, so it is part of the protocol.

    Example:
        >>> threads() >= 1
        True
    """
    return torch.get_num_threads()
