"""`lit-opt transfer check --config mine.yaml`: coordinate checks of a config's transfer, on the model's own data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from lit_opt.commands.from_config import Project, load_project
from lit_opt.errors import RecipeError
from lit_opt.param_groups.base import build_base
from lit_opt.preflight.coordinate_check import CoordinateCheck, coordinate_check
from lit_opt.preflight.coordinate_report import check_plot
from lit_opt.transfer.spec import make_transfer

# What a check decides itself: rates are constant, and nothing else than the steps changes the weights.
_LEFT_OUT = ("transfer", "warmup", "decay", "ema", "batch_size", "batch_tokens", "total_steps", "lr")


def check_config(args: Sequence[str], options: Mapping[str, Any]) -> CoordinateCheck:
    """The coordinate check of a config.

    Args:
        args: Of the config, as `lit-opt fit` takes them.
        options: factors (of the base's sizes), steps, seeds, plot.

    Raises:
        RecipeError: Whatever the user can mend, in one message.
    """
    project = load_project(args, verb="transfer check", meta=True)
    assert project.recipe is not None
    overrides = project.recipe.overrides
    if "transfer" not in overrides:
        raise RecipeError(
            [
                "recipe.transfer: the config has none, so there is nothing to check. Add transfer: {base: {class_path: ..., "
                "init_args: {...}}} and lr, the small model's."
            ]
        )
    asked = make_transfer(overrides["transfer"])
    make, first = _family(asked.base, project)
    found = coordinate_check(
        lambda width: make(width // first),
        [first * factor for factor in options["factors"]],
        batch=_batch(project),
        recipe=project.recipe.spec.name,
        lr=overrides["lr"],
        steps=options["steps"],
        seeds=range(options["seeds"]),
        transfer={"weight_decay": asked.weight_decay},
        **{key: value for key, value in overrides.items() if key not in _LEFT_OUT},
    )
    if options["plot"] is not None:
        check_plot(found, Path(options["plot"]))
    return found


def _family(base: Any, project: Project) -> tuple[Callable[[int], nn.Module], int]:
    """Factor -> model, and the base's width: the sizes that differ between base and model grow in step."""
    if not isinstance(base, Mapping) or "class_path" not in base:
        raise RecipeError(
            ["recipe.transfer.base: give class_path and init_args, so that other widths can be made of it."]
        )
    small, large = dict(base.get("init_args") or {}), dict(project.section.get("init_args") or {})
    growing = {
        key: value
        for key, value in small.items()
        if isinstance(value, int) and not isinstance(value, bool) and large.get(key, value) != value
    }
    if not growing:
        raise RecipeError(
            [
                "recipe.transfer.base: none of its init_args is a whole number that differs from the model's, so it is not "
                f"known what makes it wider. The base has {small}, the model {large}."
            ]
        )
    first = growing.get("width", max(growing.values()))

    def make(factor: int) -> nn.Module:
        sizes = {key: value * factor for key, value in growing.items()}
        return build_base({"class_path": base["class_path"], "init_args": small | sizes}, meta=False)

    return make, first


def _batch(project: Project) -> Any:
    if project.datamodule is None:
        raise RecipeError(["data: the config has none, and the check needs a batch. Add the section data:."])
    project.datamodule.prepare_data()
    project.datamodule.setup("fit")
    return next(iter(project.datamodule.train_dataloader()))
