"""What a run is made from: the factories, the recipe of the arm, and the values of the trial."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lit_opt.comparison.records import Arm, Stage
from lit_opt.optim import get_row
from lit_opt.recipes import get_recipe
from lit_opt.resolve.units import published_units

Factory = Callable[..., Any]


@dataclass(frozen=True)
class Task:
    """What every worker needs besides the protocol: the code that makes things.

    Attributes:
        make_module: seed -> LightningModule, or without arguments.
        make_datamodule: seed -> LightningDataModule, or (training loader, validation loader); None where the module
            has its loaders itself.
        recipes: Name of an arm -> (recipe, keywords), as objects.
        trainer: Keywords of the Trainer.

    Example:
        >>> Task(make_module=list, make_datamodule=None, recipes={"llm": ("llm", {})}).trainer
        {}
    """

    make_module: Factory
    make_datamodule: Factory | None
    recipes: Mapping[str, tuple[str, dict[str, Any]]]
    trainer: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """A run that is to be done; the same work has the same key, whoever does it.

    Attributes:
        key: Hash of arm, values, seed, stage and protocol.
        stage: "tune", "confirm" or "horizon".
        study: Number of the study.
        arm: Name.
        point: Number of the point in the search.
        seed: Of weights, data and noise.
        values: lr and weight_decay.
        steps: Its budget where that is not the protocol's.

    Example:
        >>> Job("k", "tune", 0, "llm", 0, 0, {"lr": 6e-4}).point
        0
    """

    key: str
    stage: Stage
    study: int
    arm: str
    point: int
    seed: int
    values: dict[str, float]
    steps: int | None = None


def call_with_seed(factory: Factory, seed: int) -> Any:
    """Call a factory with the seed, or without where it takes none.

    Example:
        >>> call_with_seed(lambda seed: seed + 1, 3), call_with_seed(lambda: "no seed", 3)
        (4, 'no seed')
    """
    try:
        takes = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # some builtins have no signature
        return factory()
    if any(p.name == "seed" for p in takes):
        return factory(seed=seed)
    needed = [p for p in takes if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty]
    return factory(seed) if needed else factory()


def overrides_at(
    arm: Arm, keywords: Mapping[str, Any], values: Mapping[str, float], fallback: Mapping[str, Any]
) -> dict[str, Any]:
    """The keywords of a trial's recipe.

    What a matrix optimizer leaves to AdamW keeps its ratio to the matrices' rate and decay, so that a trial moves the
    whole arm, as it does for AdamW. Its scale is named beside the rate: a box reaches below what the scale's users take,
    where a rate by itself would be refused as one of the other units.

    Args:
        arm: With its starting values.
        keywords: Of the arm's recipe.
        values: Of the trial.
        fallback: AdamW's numbers at the start, {} where there are none.

    Example:
        >>> arm = Arm("muon", "llm/muon", {}, {"lr": 0.02}, {"lr": (0.002, 0.2)})
        >>> overrides_at(arm, {}, {"lr": 0.04}, {"lr": 1e-3})
        {'lr': 0.04, 'optimizer_kwargs': {'scale': 'original'}, 'fallback': {'lr': 0.002}}
    """
    given = {key: value for key, value in keywords.items() if key not in ("base_lr", "base_batch_size")}
    given |= {name: value for name, value in values.items() if arm.start.get(name)}
    if "lr" in given and (scale := _scale(arm.recipe, keywords)):
        given["optimizer_kwargs"] = {"scale": scale, **(keywords.get("optimizer_kwargs") or {})}
    scaled = {
        name: fallback[name] * (value / arm.start[name])
        for name, value in values.items()
        if fallback.get(name) and arm.start.get(name)
    }
    if scaled:
        given["fallback"] = {**(keywords.get("fallback") or {}), **scaled}
    return given


def _scale(recipe: str, keywords: Mapping[str, Any]) -> str | None:
    """The unit system of a matrix optimizer's rate; None where there is but one."""
    spec = get_recipe(recipe)
    name = keywords.get("optimizer", spec.optimizer.number)
    if not isinstance(name, str) or "scale" not in get_row(name).hyperparameters:
        return None
    scale = published_units(spec, get_row(name))["scale"]
    return scale if isinstance(scale, str) else None  # Scion's is a factor
