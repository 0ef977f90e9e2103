"""One fit of one recipe on one module: what is put on the module, configured, restored, and taken off again."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only

from lit_opt.callbacks import resume
from lit_opt.callbacks.checkpoint_format import current
from lit_opt.callbacks.clipping import clip_gradients
from lit_opt.callbacks.configure import Configured, configure_run
from lit_opt.callbacks.demands import demand_problems, fit_to_run, left_out, meet_demands, release
from lit_opt.callbacks.facts import fsdp1_root, is_deepspeed, is_flattened, run_facts
from lit_opt.callbacks.install import install
from lit_opt.callbacks.lr_finder import keep_ratios, suggested_lr
from lit_opt.callbacks.matrix import cost_line
from lit_opt.callbacks.nonfinite import FiniteSteps
from lit_opt.callbacks.patches import Patches, attachment_problems, is_overridden, refuse_other_owners
from lit_opt.callbacks.replay import Replay
from lit_opt.errors import RecipeError
from lit_opt.explain.show import as_text, recipe_table
from lit_opt.param_groups import ParamSnapshot, snapshot_parameters
from lit_opt.recipes import get_recipe
from lit_opt.resolve import preview
from lit_opt.resolve.resolved import Provenance

if TYPE_CHECKING:
    from lit_opt.callbacks.recipe import Recipe


class Session:
    """Installs the recipe on the module when made; `close` leaves module and Trainer as they were found.

    Args:
        recipe: The recipe.
        trainer: A Trainer inside `fit`.
        module: Its LightningModule.

    Raises:
        RecipeError: Somebody else sets the optimizer or clips; nothing is installed then.
    """

    def __init__(self, recipe: Recipe, trainer: Any, module: Any) -> None:
        self.recipe, self.trainer, self.module = recipe, trainer, module
        self.planned = preview(recipe.spec, recipe.overrides)
        self.clip = self.planned.clip
        self._norm: Any = None
        self.run: Configured | None = None
        self.patches = Patches()
        self.snapshot: ParamSnapshot | None = None
        self._loaded: dict[str, Any] | None = None
        self._replay: Replay | None = None
        self._trainer_clip: Any = None
        self._unscaling: list[Any] = []
        self._clips_itself = self._started = self._seen_batch = False

        refuse_other_owners(module, recipe, trainer.callbacks)
        own = is_overridden(module, "configure_optimizers")
        self.keeps_theirs = own and recipe.existing == "keep"
        self.steps = FiniteSteps(recipe, trainer, module)
        problems = demand_problems(self.planned, trainer, module, optimizer=not self.keeps_theirs)
        problems += attachment_problems(recipe, trainer, module, own=own, clip=self.clip)
        problems += self.steps.problems(self.planned.optimizer)
        if problems:
            raise RecipeError(problems)
        if self.clip is not None and is_overridden(module, "configure_gradient_clipping"):
            rank_zero_info(
                f"{recipe!r}: {type(module).__name__}.configure_gradient_clipping is kept; the recipe's own clipping "
                f"({self.clip.limit:g}) is off."
            )
            self.clip, self._clips_itself = None, True
        install(self)
        self.let_deepspeed_clip()
        if self.keeps_theirs:
            rank_zero_info(f"{recipe!r}: the optimizer and scheduler of {type(module).__name__} are kept.")
        elif own:
            rank_zero_info(
                f"{recipe!r} replaces {type(module).__name__}.configure_optimizers; existing='keep' would leave it."
            )

    # ---- before the run

    def let_deepspeed_clip(self) -> None:
        """It clips by itself, from the value that its config is formatted with in strategy.setup."""
        if self.clip is not None and is_deepspeed(self.trainer) and self._trainer_clip is None:
            self._trainer_clip = (self.trainer.gradient_clip_val,)
            self.trainer.gradient_clip_val = self.clip.limit

    def configure(self) -> dict[str, Any]:
        """Lightning's dictionary of optimizer and scheduler, once the facts of the run are known."""
        if self.snapshot is None or not is_flattened(self.module):
            self.snapshot = snapshot_parameters(self.module)
        spec, overrides = self.recipe.spec, self.recipe.overrides
        theirs = self._theirs()
        if theirs is not None:
            name, overrides = resume.as_overrides(theirs, overrides)
            spec = get_recipe(name)
            self.recipe.follow_ema(preview(spec, overrides).ema)
        facts = run_facts(self.trainer, self.snapshot.parameter_count)
        self.run = run = configure_run(spec, overrides, facts, self.snapshot, self.module)
        self.recipe.run = run
        fit_to_run(run.resolved, run.optimizer, self.trainer, self.module)
        if theirs is not None:
            run.resolved = resume.named_as_checkpoints(run.resolved)
            if not self._clips_itself:
                self.clip = run.resolved.clip
                self.let_deepspeed_clip()
        self._check_loaded()
        keep_ratios(self.trainer, run.optimizer, run.scheduler.peaks)
        self._announce(run)
        return {
            "optimizer": run.optimizer,
            "lr_scheduler": {"scheduler": run.scheduler, "interval": "step", "frequency": 1, "name": "lr"},
        }

    @rank_zero_only
    def _announce(self, run: Configured) -> None:
        rank_zero_info(
            as_text(recipe_table(run.resolved), "", run.groups.table(), *run.resolved.notes, *run.groups.notes)
        )
        for logger in self.trainer.loggers:
            logger.log_hyperparams({"recipe": run.resolved.as_dict()})

    # ---- checkpoints

    def packed(self, *, full: bool) -> dict[str, Any]:
        """The recipe's part of a checkpoint."""
        resolved, groups = (self.planned, []) if self.run is None else (self.run.resolved, self.run.group_names)
        return resume.pack(resolved, groups, full=full, steps=self.steps.state())

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Take note of a checkpoint; strategies load it before or after the optimizer is configured."""
        self._loaded = {k: checkpoint[k] for k in (resume.KEY, "optimizer_states") if k in checkpoint}
        if resume.KEY in self._loaded:
            self._loaded[resume.KEY] = current(checkpoint[resume.KEY])
        self._replay = Replay(self.trainer, self._restore_rng)
        self.steps.load(self._loaded.get(resume.KEY, {}).get("steps", {}))
        if self.run is not None and self._theirs() is not None:
            # FSDP and ModelParallel load after the optimizer was made, and restore its state after this.
            self.trainer.strategy.setup_optimizers(self.trainer)
        else:
            self._check_loaded()

    def _theirs(self) -> dict[str, Any] | None:
        """The checkpoint's recipe where its values win."""
        if self._loaded is None or self.recipe.on_resume != "checkpoint" or resume.KEY not in self._loaded:
            return None
        recipe: dict[str, Any] = self._loaded[resume.KEY]["recipe"]
        return recipe

    def _check_loaded(self) -> None:
        if self._loaded is None or self.run is None:
            return
        saved = self._loaded.get(resume.KEY)
        if saved is None:
            resume.check_foreign(self._loaded, self.run.group_names)
            rank_zero_info(f"{self.recipe!r}: the checkpoint was written without a recipe; this one goes on with it.")
            return
        settings, facts = resume.differences(saved["recipe"], self.run.resolved)
        if settings and self.recipe.on_resume != "config":
            raise RecipeError([resume.refusal(settings)])
        resume.check_optimizer(saved["recipe"], self.run.resolved)
        resume.check_groups(saved["groups"], self.run.group_names)
        for line in [*settings, *facts]:
            rank_zero_info(f"{self.recipe!r}, resumed: {line}")

    # ---- during the run

    def start(self) -> None:
        """Re-apply rates and options that loading the optimizer's state may have overwritten."""
        self._started = True
        if self._replay is not None:
            # With max_steps alone Lightning counts steps, not epochs, and takes one batch again after a resume.
            inexact = self._replay.is_mid_epoch() or self.trainer.max_epochs in (None, -1)
            if inexact and not resume.data_are_exact(self.trainer):
                rank_zero_info(
                    f"{self.recipe!r}, resumed: the training loader cannot restore its position (no state_dict), so the "
                    "batches from here on are not those of an uninterrupted run."
                )
            self._replay.train_start()
        if self.run is None:
            self._let_lightning_unscale()
            return
        if self._replay is not None:
            for group, options in zip(self.run.optimizer.param_groups, self.run.group_options, strict=False):
                group.update(options)
        meet_demands(self.run.resolved, self.run.optimizer, self.trainer)
        self._follow_finder(self.run)
        self.run.scheduler.apply(self.trainer.global_step)

    def batch_start(self, batch: Any, index: int) -> None:
        """Refuse parameters that nobody steps on; say once what a matrix optimizer costs, as soon as a batch is seen."""
        if self.run is not None and (index == 0 or not self._seen_batch):
            # Not at train start: modules and finetuning callbacks unfreeze, and add groups, in hooks after ours.
            forgotten = left_out(self.run.optimizer, self.module)
            if forgotten and not is_flattened(self.module) and not is_deepspeed(self.trainer):
                raise RecipeError([_forgotten(forgotten)])
        if self.run is not None and not self._seen_batch:
            line = cost_line(self.run.optimizer, self.run.resolved, batch, self.trainer.accumulate_grad_batches)
            if line:
                rank_zero_info(line)
        self._seen_batch = True

    def epoch_start(self) -> None:
        """Continue the random states and the order of the batches at the start of an epoch."""
        if self._replay is not None:
            self._replay.epoch_start()
            self._replay = None

    def _restore_rng(self) -> None:
        saved = (self._loaded or {}).get(resume.KEY)
        self._loaded = None
        if saved is not None and not resume.restore_rng(saved):
            rank_zero_info(
                f"{self.recipe!r}, resumed: the checkpoint holds random states of {len(saved.get('rng', []))} processes, "
                "so dropout and other random draws are not those of an uninterrupted run."
            )

    @property
    def norm(self) -> Any:
        """Of the gradients of the last step before they were clipped, 0-D; None where it is not known."""
        engines = getattr(self.trainer.strategy.model, "get_global_grad_norm", None)  # DeepSpeed's
        return engines() if self.clip is not None and engines is not None else self._norm

    def clip_gradients(self, optimizer: Any) -> None:
        """Clip what this optimizer holds."""
        if self.clip is not None:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            self._norm = clip_gradients(parameters, self.clip, root=fsdp1_root(self.trainer))

    def _let_lightning_unscale(self) -> None:
        """A fused step of theirs that unscales by itself would be clipped before it (Lightning#21435)."""
        for optimizer in self.trainer.optimizers:
            if self.clip is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
                optimizer._step_supports_amp_scaling = False
                self._unscaling.append(optimizer)

    def step_schedule(self) -> None:
        """Follow the global step under manual optimization, where Lightning does not step schedulers."""
        if self.run is not None and self.run.scheduler.last_epoch != self.trainer.global_step:
            self.run.scheduler.apply(self.trainer.global_step)

    def _follow_finder(self, run: Configured) -> None:
        found = suggested_lr(self.trainer)
        if found is None:
            return
        if "lr" in self.recipe.overrides:
            rank_zero_info(f"{self.recipe!r}: LearningRateFinder suggests {found:.3g}; lr={run.resolved.lr:g} is kept.")
            return
        scale = found / max(run.scheduler.peaks)  # the finder ran with found for the fastest group
        run.scheduler.peaks = [peak * scale for peak in run.scheduler.peaks]
        note = f"LearningRateFinder; the recipe has {run.resolved.lr:g}"
        peak = run.resolved.lr * scale
        lr = Provenance(number=peak, origin="yours", note=note, value=run.resolved.provenance["lr"].value)
        run.resolved = replace(run.resolved, lr=peak, provenance=run.resolved.provenance | {"lr": lr})
        rank_zero_info(f"{self.recipe!r}: lr {peak:.3g} from LearningRateFinder, ratios of the groups kept.")

    # ---- the end

    def close(self) -> None:
        """Take everything off the module and the Trainer. Safe to call twice."""
        self.patches.remove()
        if self.run is not None:
            release(self.run.optimizer)
        found = suggested_lr(self.trainer)
        if found is not None and not self._started:
            rank_zero_info(
                f"{self.recipe!r}: lr_find suggests {found:.3g}; to use it, give Recipe(..., lr={found:.3g})."
            )
        while self._unscaling:
            self._unscaling.pop()._step_supports_amp_scaling = True
        if self._trainer_clip is not None:
            (self.trainer.gradient_clip_val,) = self._trainer_clip
            self._trainer_clip = None


def _forgotten(names: list[str]) -> str:
    return (
        f"parameters: {len(names)} became trainable after the optimizer was made ({', '.join(names[:3])}"
        f"{', ...' if len(names) > 3 else ''}), so it would never step on them. Make and unfreeze them before `fit`, in setup or "
        "in configure_model, or add them with optimizer.add_param_group({'params': [...], 'name': ...})."
    )
