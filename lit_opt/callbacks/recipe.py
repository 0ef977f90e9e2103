"""The recipe as a Lightning callback: it brings the optimizer, its groups, the schedule and clipping."""

from __future__ import annotations

from typing import Any, Literal

from torch.optim import Optimizer

from lit_opt import recipes
from lit_opt.callbacks import resume
from lit_opt.callbacks.configure import Configured
from lit_opt.callbacks.inside import InsideModule
from lit_opt.callbacks.lr_scheduler import RecipeLR
from lit_opt.callbacks.misspelled import refuse_misspelled
from lit_opt.callbacks.nonfinite import POLICIES, FiniteSteps
from lit_opt.callbacks.outside import OutsideTrainer
from lit_opt.callbacks.owns_ema import OwnsEMA
from lit_opt.callbacks.plans import Plans
from lit_opt.callbacks.session import Session
from lit_opt.errors import RecipeError, nearest
from lit_opt.recipes.schema import ClipSpec, DecaySpec, EMASpec, GroupRule
from lit_opt.resolve import preview
from lit_opt.resolve.overrides import find_problems
from lit_opt.resolve.resolved import ResolvedRecipe
from lit_opt.transfer.spec import Transfer


class Recipe(Plans, InsideModule, OutsideTrainer, OwnsEMA):
    """Give a LightningModule the optimizer, groups, schedule and clipping of its setting.

    Unset arguments keep the recipe's value; `lit-opt explain NAME` shows each with its range and source.

    Args:
        name: Recipe, such as "llm", "vit", "cnn" or "large_batch/lars"; `lit-opt list` has them all.
        optimizer: Registry name, or a torch.optim.Optimizer class (then give lr and weight_decay as well).
        lr: The peak learning rate the optimizer sees; never rescaled.
        base_lr: Peak that belongs to base_batch_size; scaled to the batch of the run by the recipe's rule.
        base_batch_size: Batch of base_lr; the recipe's own reference batch if unset.
        weight_decay: torch's unit: multiplied by the learning rate.
        betas: Decay of Adam's moments, each in [0, 1).
        momentum: Decay of SGD's velocity, in [0, 1).
        warmup: 0.02 (fraction of the run), 500 (optimizer steps), "5 epochs" or "500 steps".
        decay: "cosine", "linear", "step", "polynomial", "constant", "wsd", or a DecaySpec with the final value.
        clip: Largest global gradient norm, or a ClipSpec; 0 turns clipping off.
        ema: Decay of averaged weights per step, an EMASpec, or True and False.
        batch_size: Global batch in samples, where it cannot be read off the loader.
        batch_tokens: Global batch in tokens.
        total_steps: Horizon in optimizer steps, where the Trainer does not know it.
        optimizer_kwargs: The optimizer's other keywords, checked against its registry row.
        fallback: lr, betas, weight_decay of what a matrix optimizer leaves to AdamW.
        groups: Rules for parameters by name (glob); the first that matches wins, one without a match is an error.
        layer_decay: Learning-rate factor per layer below the head, such as 0.75.
        parts: Where a model's parts lie (vlm), such as {"projector": "*.bridge.*"}; others are found by known names.
        transfer: Carry values tuned on a small model over: lr, weight_decay, betas, fallback and rules are then the small
            model's, and `plan` shows what each group gets. See `lit_opt.Transfer`.
        existing: What becomes of the module's own configure_optimizers: "replace" (the default), "keep" (its
            optimizer and scheduler stay, clipping and averaging are added) or "error". Under manual optimization
            an own method is never replaced unless "replace" is given.
        on_resume: Where a checkpoint's recipe differs: "error", "checkpoint" (its values win) or "config" (these win).
        on_nonfinite: A loss or a gradient that is nan or inf: "raise", "skip" (neither weights, nor optimizer state, nor
            averages change; the schedule goes on; after 20 in a row it is an error) or "ignore". See docs/interruptions.md.

    Raises:
        RecipeError: All problems that can be seen without a run, in one message.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> recipe = Recipe("llm", lr=1e-3)
        >>> quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False)
        >>> Trainer(max_steps=4, callbacks=[recipe], accelerator="cpu", enable_model_summary=False, **quiet).fit(BoringModel())
        >>> [group["name"] for group in recipe.optimizer.param_groups]
        ['decay', 'no_decay']
    """

    @refuse_misspelled
    def __init__(
        self,
        name: str,
        *,
        optimizer: type | str | None = None,
        lr: float | None = None,
        base_lr: float | None = None,
        base_batch_size: int | None = None,
        weight_decay: float | None = None,
        betas: tuple[float, float] | None = None,
        momentum: float | None = None,
        warmup: int | float | str | None = None,
        decay: str | DecaySpec | None = None,
        clip: float | ClipSpec | None = None,
        ema: float | EMASpec | bool | None = None,
        batch_size: int | None = None,
        batch_tokens: int | None = None,
        total_steps: int | None = None,
        optimizer_kwargs: dict[str, Any] | None = None,
        fallback: dict[str, Any] | None = None,
        groups: list[GroupRule] | None = None,
        layer_decay: float | None = None,
        parts: dict[str, Any] | None = None,
        transfer: Transfer | None = None,
        existing: Literal["replace", "keep", "error"] | None = None,
        on_resume: Literal["error", "checkpoint", "config"] = "error",
        on_nonfinite: Literal["raise", "skip", "ignore"] = "raise",
    ) -> None:
        given = {
            "optimizer": optimizer,
            "lr": lr,
            "base_lr": base_lr,
            "base_batch_size": base_batch_size,
            "weight_decay": weight_decay,
            "betas": betas,
            "momentum": momentum,
            "warmup": warmup,
            "decay": decay,
            "clip": clip,
            "ema": ema,
            "batch_size": batch_size,
            "batch_tokens": batch_tokens,
            "total_steps": total_steps,
            "optimizer_kwargs": optimizer_kwargs,
            "fallback": fallback,
            "groups": groups,
            "layer_decay": layer_decay,
            "parts": parts,
            "transfer": transfer,
        }
        self.spec = recipes.get_recipe(name)
        self.overrides = {key: value for key, value in given.items() if value is not None}
        problems = find_problems(self.spec, self.overrides)
        for key, word, allowed in (
            ("existing", existing, (None, "replace", "keep", "error")),
            ("on_resume", on_resume, ("error", "checkpoint", "config")),
            ("on_nonfinite", on_nonfinite, POLICIES),
        ):
            if word not in allowed:
                known = [str(name) for name in allowed if name]
                problems.append(
                    f"{key}: {word!r} is unknown.{nearest(word, known)} Known: {', '.join(map(repr, known))}."
                )
        if problems:
            raise RecipeError(problems)
        self.existing = existing
        self.on_resume = on_resume
        self.on_nonfinite = on_nonfinite
        self.run: Configured | None = None
        self._session: Session | None = None
        self._steps: FiniteSteps | None = None
        self.ema = self.averaging(preview(self.spec, self.overrides))

    def __repr__(self) -> str:
        return f"Recipe({self.spec.name!r})"

    # ---- what a run was resolved to

    @property
    def resolved(self) -> ResolvedRecipe | None:
        """The recipe of the current or last run, None before one is configured."""
        return self.run.resolved if self.run else None

    @property
    def optimizer(self) -> Optimizer | None:
        """The optimizer of the current or last run."""
        return self.run.optimizer if self.run else None

    @property
    def scheduler(self) -> RecipeLR | None:
        """The learning-rate scheduler of the current or last run."""
        return self.run.scheduler if self.run else None

    @property
    def skipped_steps(self) -> int:
        """Steps left out since the start of the run, over its resumes, because a loss or gradient was not finite."""
        return self._steps.skipped if self._steps is not None else 0

    # ---- Lightning's hooks

    @property
    def log(self) -> Any:
        """The module's `log`. Lightning assigns it just before it verifies `configure_optimizers`."""
        return self.__dict__.get("_log")

    @log.setter
    def log(self, function: Any) -> None:
        self.__dict__["_log"] = function
        module = getattr(function, "__self__", None)
        if module is not None:
            self.open(module.trainer, module)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Install the recipe, should a future Lightning not assign `log` any more."""
        self.open(trainer, pl_module)
        super().setup(trainer, pl_module, stage)

    def open(self, trainer: Any, module: Any) -> None:
        """Put the recipe on the module, once for each `fit`; Lightning's hooks call it."""
        if trainer.state.fn != "fit" or self._session is not None:
            return
        self.run = None
        self._session = Session(self, trainer, module)
        self._steps = self._session.steps

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Apply the rates of this step, also after a checkpoint was loaded."""
        assert self._session is not None
        self._session.start()
        super().on_train_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Continue the random states of a checkpoint from the end of an epoch."""
        assert self._session is not None
        self._session.epoch_start()
        super().on_train_epoch_start(trainer, pl_module)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Say what a matrix optimizer costs, before the first step."""
        assert self._session is not None
        self._session.batch_start(batch, batch_idx)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        """Note the loss, to see whether it is finite."""
        assert self._session is not None
        self._session.steps.note_loss(loss)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Clip under manual optimization, where Lightning does not."""
        assert self._session is not None
        if not pl_module.automatic_optimization:
            self._session.steps.look(optimizer)
            self._session.clip_gradients(optimizer)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Step the schedule under manual optimization, where Lightning does not."""
        assert self._session is not None
        if not pl_module.automatic_optimization:
            self._session.step_schedule()
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Learn about the last steps before they are validated; swap the averages in."""
        self._settle()
        super().on_validation_start(trainer, pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Learn about the last steps; say which weights are where."""
        self._settle()
        super().on_train_end(trainer, pl_module)

    def _settle(self) -> None:
        if self._session is not None:
            self._session.steps.settle()

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Compare the checkpoint's recipe with this one."""
        if self._session is not None:
            self._session.load(checkpoint)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Put the recipe into a checkpoint that is saved after `fit`, when it is off the module again."""
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self._session is None and self.run is not None and self.run.optimizer in trainer.optimizers:
            counts = self._steps.state() if self._steps is not None else {}
            checkpoint[resume.KEY] = resume.pack(self.run.resolved, self.run.group_names, full=True, steps=counts)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave the module as it was found."""
        super().teardown(trainer, pl_module, stage)
        self._close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave the module as it was found; Lightning calls no teardown after an exception."""
        super().on_exception(trainer, pl_module, exception)
        self._close()

    def _close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles carry the settings; a run belongs to one process."""
        return self.__dict__ | {"_session": None, "_steps": None, "run": None, "_log": None}
