"""A callback that owns one EMA and passes Lightning's hooks on to it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from lightning.pytorch.callbacks import Callback

from lit_opt.callbacks.ema import EMA
from lit_opt.callbacks.optimizers_averages import OptimizersAverages
from lit_opt.errors import RecipeError
from lit_opt.optim.registry import row_of
from lit_opt.recipes.schema import EMASpec
from lit_opt.resolve.resolved import ResolvedRecipe


class OwnsEMA(Callback):
    """Forwards every hook that `EMA` has to `self.ema`, where there is one.

    Subclasses that define one of these hooks call `super()`'s.
    """

    ema: EMA | None = None

    @staticmethod
    def averaging(planned: ResolvedRecipe) -> EMA | None:
        """The averages of a recipe: those of its optimizer, or an EMA, or none.

        Args:
            planned: The recipe, with or without the facts of the run.
        """
        if isinstance(planned.optimizer, str) and row_of(planned.optimizer, planned.hyperparameters).averages_itself:
            return OptimizersAverages()
        return EMA(**asdict(planned.ema)) if planned.ema is not None else None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse what cannot be averaged; patch the module's checkpoint hooks."""
        if self.ema is not None:
            self.ema.setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin or continue the averages."""
        if self.ema is not None:
            self.ema.on_train_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Look for unfrozen parameters."""
        if self.ema is not None:
            self.ema.on_train_epoch_start(trainer, pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Average, if an optimizer stepped."""
        if self.ema is not None:
            self.ema.on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Say which weights are where."""
        if self.ema is not None:
            self.ema.on_train_end(trainer, pl_module)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Swap the averages in. The same for test and predict."""
        if self.ema is not None:
            self.ema.on_validation_start(trainer, pl_module)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Bring the raw weights back. The same for test and predict."""
        if self.ema is not None:
            self.ema.on_validation_end(trainer, pl_module)

    on_test_start = on_predict_start = on_validation_start
    on_test_end = on_predict_end = on_validation_end

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Write the averages into a checkpoint saved after `fit`."""
        if self.ema is not None:
            self.ema.on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Bring the raw weights back and leave the module as it was."""
        if self.ema is not None:
            self.ema.on_exception(trainer, pl_module, exception)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave the module as it was."""
        if self.ema is not None:
            self.ema.teardown(trainer, pl_module, stage)

    def follow_ema(self, spec: EMASpec | None) -> None:
        """Take the numbers of a checkpoint's recipe (`on_resume="checkpoint"`).

        Raises:
            RecipeError: One of the two averages and the other does not; that is decided before a checkpoint is read.
        """
        if spec is None and isinstance(self.ema, OptimizersAverages):
            return
        if (spec is None) != (self.ema is None):
            have, give = (
                ("averages weights", "ema=True") if spec is not None else ("does not average weights", "ema=False")
            )
            raise RecipeError([f"ema: the checkpoint's recipe {have} and this one differs. Give Recipe(..., {give})."])
        if spec is not None:
            for name, value in asdict(spec).items():
                setattr(self.ema, name, value)
