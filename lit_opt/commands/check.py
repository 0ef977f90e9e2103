"""`lit-opt check`: what a config would train with, judged without training. No Trainer is built and no device is used."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_helpers import is_overridden

from lit_opt.callbacks.configure import configure_run
from lit_opt.callbacks.recipe import Recipe
from lit_opt.commands.from_config import Project, load_project
from lit_opt.errors import RecipeError
from lit_opt.param_groups import snapshot_parameters
from lit_opt.preflight.check import Report, ignorable, judge
from lit_opt.preflight.collect import collect, setting_key
from lit_opt.preflight.evidence import Evidence, TrainerSettings
from lit_opt.preflight.facts import Foreseen, foresee
from lit_opt.preflight.stand_in import TrainerStandIn, configured_by_module
from lit_opt.resolve import preview

_FLAT = {"fsdp": "flat shards (FSDP1)", "fsdp_grad_op": "flat shards (FSDP1)"} | {
    f"zero{stage}": f"flat shards (ZeRO stage {stage})" for stage in (1, 2, 3)
}


def check_config(
    args: Sequence[str], setting: str | None, ignore: Sequence[str] = ()
) -> tuple[Report, tuple[str, ...]]:
    """Judge a config.

    Args:
        args: `--config NAME_OR_FILE` and overrides, as for `lit-opt fit`.
        setting: Where no recipe says it.
        ignore: Ids of findings to be kept apart.

    Returns:
        The report, and notes on what was assumed.

    Raises:
        RecipeError: Whatever in the config the user has to mend first.
    """
    if setting is not None:
        setting_key(setting)
    ignorable(ignore)
    project = load_project(args, verb="check", recipe="optional")
    try:
        evidence, notes = evidence_of_project(project, setting)
    except MisconfigurationException as error:
        raise RecipeError([f"Lightning: {error}"]) from error
    return judge(evidence, ignore), (*project.notes, *notes)


def evidence_of_project(project: Project, setting: str | None = None) -> tuple[Evidence, tuple[str, ...]]:
    """Build what the config trains with, and gather the evidence.

    Args:
        project: Model, data, recipe and the Trainer's arguments.
        setting: Where no recipe says it.

    Returns:
        The evidence, and notes on what was assumed.

    Raises:
        RecipeError: The model has neither a recipe nor its own optimizer, or asks for what only a run knows.
    """
    model, recipe, section = project.model, project.recipe, project.trainer
    foreseen = foresee(section, model, project.datamodule)
    stand_in = TrainerStandIn(section, foreseen, model, project.datamodule)
    own = is_overridden("configure_optimizers", model, LightningModule)
    if recipe is None and not own:
        raise RecipeError(
            [
                f"model: {type(model).__name__} has no configure_optimizers, and the config has no `recipe:`. Add one, such "
                "as `recipe: {name: llm}`; `lit-opt list` has them all."
            ]
        )
    resolved = None
    if recipe is not None and not (own and recipe.existing == "keep"):
        snapshot = snapshot_parameters(model)
        facts = replace(foreseen.run, parameter_count=snapshot.parameter_count)
        run = configure_run(recipe.spec, recipe.overrides, facts, snapshot, model)
        optimizers: list[Any] = [run.optimizer]
        schedulers: list[Any] = [SimpleNamespace(scheduler=run.scheduler, interval="step", frequency=1)]
        resolved, facts = run.resolved, run.resolved.facts
    else:
        optimizers, schedulers = configured_by_module(model, stand_in)
        facts = foreseen.run
    notes = list(foreseen.notes)
    evidence = collect(
        model,
        optimizers,
        schedulers,
        facts=facts,
        trainer=_settings(section, foreseen, model, recipe),
        callbacks=_callbacks(project, notes),
        setting=recipe.spec.name if recipe is not None else setting,
        recipe=resolved,
    )
    return evidence, tuple(notes)


def _settings(
    section: Mapping[str, Any], foreseen: Foreseen, model: LightningModule, recipe: Recipe | None
) -> TrainerSettings:
    own = is_overridden("configure_gradient_clipping", model, LightningModule)
    clip, clip_by = float(section.get("gradient_clip_val") or 0.0), "Trainer(gradient_clip_val)"
    planned = preview(recipe.spec, recipe.overrides).clip if recipe is not None else None
    if planned is not None and not own:
        clip, clip_by = planned.limit, "Recipe(clip)"
    return TrainerSettings(
        clip=clip,
        clip_by=clip_by,
        own_clipping=own,
        accumulation=foreseen.run.accumulation or 1,
        precision=foreseen.placement.precision,
        accelerator=str(section.get("accelerator") or "auto"),
        strategy=foreseen.placement.strategy,
        flat=_FLAT.get(foreseen.placement.kind, ""),
        automatic=model.automatic_optimization,
        validates=section.get("limit_val_batches") != 0,
    )


def _callbacks(project: Project, notes: list[str]) -> list[Any]:
    """The callbacks that may average weights: built from the config, without a Trainer."""
    found: list[Any] = [] if project.recipe is None else [project.recipe]
    given = project.trainer.get("callbacks") or []
    for entry in given if isinstance(given, list | tuple) else [given]:
        path = entry.get("class_path") if isinstance(entry, Mapping) else None
        if path is None or path.endswith(".Recipe") or path.startswith("lightning.pytorch.callbacks.Model"):
            continue
        module, _, name = path.rpartition(".")
        try:
            found.append(getattr(importlib.import_module(module), name)(**(entry.get("init_args") or {})))
        except Exception as error:  # somebody else's callback; only averages are looked for
            notes.append(
                f"callbacks: {name} could not be built without a run ({type(error).__name__}), so it was left out."
            )
    own = project.model.configure_callbacks()
    return [*found, *(own if isinstance(own, list | tuple) else [own])]
