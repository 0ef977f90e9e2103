"""Evidence of a run that a real Trainer has set up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lit_opt.callbacks.facts import flat_shards, run_facts
from lit_opt.callbacks.patches import is_overridden, patched_by
from lit_opt.callbacks.recipe import Recipe
from lit_opt.param_groups import snapshot_parameters
from lit_opt.preflight.collect import collect
from lit_opt.preflight.evidence import Evidence, TrainerSettings
from lit_opt.resolve import preview

_ACCELERATORS = {"CUDAAccelerator": "cuda", "CPUAccelerator": "cpu", "MPSAccelerator": "mps", "XLAAccelerator": "tpu"}


def evidence_of_trainer(trainer: Any, module: Any, setting: str | None = None) -> Evidence:
    """Gather the evidence inside `fit`, once optimizers and data are set up (from `on_fit_start` on).

    Args:
        trainer: A Lightning Trainer inside `fit`.
        module: Its LightningModule.
        setting: Where no recipe says it.

    Raises:
        RecipeError: Unknown setting, or parameters that cannot be read.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.callbacks import Callback
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> class Look(Callback):
        ...     def on_train_start(self, trainer, pl_module):
        ...         print(evidence_of_trainer(trainer, pl_module).facts.total_steps)
        >>> quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False)
        >>> Trainer(max_steps=3, callbacks=[Look()], accelerator="cpu", enable_model_summary=False, **quiet).fit(BoringModel())
        3
    """
    recipe = next((c for c in trainer.callbacks if isinstance(c, Recipe)), None)
    snapshot = snapshot_parameters(module)
    resolved = recipe.resolved if recipe is not None else None
    facts = resolved.facts if resolved is not None else run_facts(trainer, snapshot.parameter_count)
    if trainer.fast_dev_run:
        facts = replace(facts, total_steps=None)
    evidence = collect(
        module,
        trainer.optimizers,
        trainer.lr_scheduler_configs,
        facts=facts,
        trainer=_settings(trainer, module, recipe),
        callbacks=trainer.callbacks,
        setting=recipe.spec.name if recipe is not None else setting,
        recipe=resolved,
        snapshot=snapshot,
    )
    if trainer.fast_dev_run:
        missing = {**evidence.missing, "horizon": "fast_dev_run is not the real run"}
        evidence = replace(evidence, missing=missing)
    return evidence


def _settings(trainer: Any, module: Any, recipe: Recipe | None) -> TrainerSettings:
    # A recipe always puts its own there, to look at the gradients.
    patched = recipe is not None and patched_by(module, "configure_gradient_clipping") is recipe
    own = is_overridden(type(module) if patched else module, "configure_gradient_clipping")
    clip, clip_by = float(trainer.gradient_clip_val or 0.0), "Trainer(gradient_clip_val)"
    if recipe is not None and not own:
        planned = preview(recipe.spec, recipe.overrides).clip
        if planned is not None:
            clip, clip_by, own = planned.limit, "Recipe(clip)", False
    return TrainerSettings(
        clip=clip,
        clip_by=clip_by,
        own_clipping=own,
        accumulation=int(trainer.accumulate_grad_batches),
        precision=str(trainer.precision),
        accelerator=_ACCELERATORS.get(type(trainer.accelerator).__name__, "other"),
        strategy=type(trainer.strategy).__name__,
        flat=flat_shards(trainer),
        automatic=bool(module.automatic_optimization),
        validates=bool(trainer.enable_validation),
    )
