"""What a run has learned, in a few closing lines.

For the package's own workloads (`LanguageModel`, `ImageClassifier`, `VisionLanguageModel`, `DiffusionModel`, or a subclass)
`lit-opt fit` validates before and after training and prints both results, with a text that the language model
writes, where the last samples of the diffusion model are, a picture of the losses and the learning rate, and where
the checkpoint is. Any other model is trained as it is, and only the checkpoint
is named, as under strategies that shard the weights. Processes other than the first stay quiet.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.seed import isolate_rng

from lit_opt.errors import RecipeError
from lit_opt.workloads.diffusion import DiffusionModel
from lit_opt.workloads.image_classifier import ImageClassifier
from lit_opt.workloads.language_model import LanguageModel
from lit_opt.workloads.report import image_classifier_lines, language_model_lines, loss_plot, vision_language_lines
from lit_opt.workloads.vision_language import VisionLanguageModel


class History(Callback):
    """Training loss and learning rate at each optimizer step and each validation, for the picture."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.rates: dict[str, float] = {}
        self.step = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin at the step of a resumed run."""
        self.step = trainer.global_step

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Note the largest rate that the step will use; at its end the rates are those of the next."""
        self.rates = {f"lr-{type(o).__name__}": max(g["lr"] for g in o.param_groups) for o in trainer.optimizers}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Note the loss of the batch that completes a step, once for all batches of an accumulation."""
        if "loss" not in (outputs or {}) or trainer.global_step == self.step:
            return
        self.step = trainer.global_step
        self.rows.append({"step": self.step, "train_loss": float(outputs["loss"]), **self.rates})

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Note what was logged."""
        if not trainer.sanity_checking:
            metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val_")}
            self.rows.append({"step": trainer.global_step, **metrics})


class ClosingReport:
    """Figures before and after a run.

    Args:
        trainer: Of the run.
        model: The model to be trained.
        fit_kwargs: The other arguments of `Trainer.fit`: the data, and the checkpoint to resume from.
    """

    def __init__(self, trainer: Trainer, model: LightningModule, fit_kwargs: Mapping[str, Any]) -> None:
        self.trainer, self.model = trainer, model
        self.data = fit_kwargs.get("datamodule")
        self.resumed = fit_kwargs.get("ckpt_path") is not None
        own = isinstance(model, LanguageModel | ImageClassifier | VisionLanguageModel | DiffusionModel)
        # Sharded weights cannot be validated twice around a fit, nor sampled from in one process.
        whole = trainer.world_size == 1 or type(trainer.strategy) is DDPStrategy
        self.active = own and whole and self.data is not None and not getattr(trainer, "fast_dev_run", False)
        self.figures: dict[str, float] = {}
        self.history = History()

    def before(self) -> None:
        """Validate the untrained model. A resumed run is not untrained, so it has no figures from before."""
        if not self.active:
            return
        self.trainer.callbacks.append(self.history)  # type: ignore[attr-defined]
        if not self.resumed:
            self.figures = self._validate()

    def after(self) -> None:
        """Print what was learned; on the first process only."""
        figures = self._validate() if self.active else {}
        folder = Path(self.trainer.log_dir or self.trainer.default_root_dir)  # the processes exchange it: ask in all
        if not self.trainer.is_global_zero:
            return
        lines = [_figures("Before training", self.figures)] if self.figures else []
        if self.active:
            lines.append(_figures("After training", figures))
            lines += self._learned(figures)
            lines.append(self._picture(folder))
        checkpoint = getattr(self.trainer.checkpoint_callback, "best_model_path", "")
        if checkpoint:
            lines.append(f"Checkpoint: {_short(Path(checkpoint))}")
        if lines:
            print("\n" + "\n".join(lines))

    def _validate(self) -> dict[str, float]:
        with isolate_rng():  # the run is the same with and without a report
            rows = self.trainer.validate(self.model, datamodule=self.data, verbose=False)
        return {name: value for row in rows for name, value in row.items()}

    def _learned(self, figures: Mapping[str, float]) -> list[str]:
        if isinstance(self.model, LanguageModel):
            return language_model_lines(self.model, figures)
        if isinstance(self.model, VisionLanguageModel):
            return vision_language_lines(self.model, figures)
        if isinstance(self.model, DiffusionModel):
            grid = self.model.last_grid
            return [f"Samples of the last validation: {_short(grid)}"] if grid else []
        assert isinstance(self.model, ImageClassifier)
        return image_classifier_lines(self.model, figures)

    def _picture(self, folder: Path) -> str:
        try:
            return f"Picture of the run: {_short(loss_plot(self.history.rows, folder / 'run.png'))}"
        except RecipeError as error:
            return f"No picture of the run: {error}"


def _figures(when: str, figures: Mapping[str, float]) -> str:
    return f"{when + ':':<17}" + ", ".join(f"{name} {value:.4f}" for name, value in sorted(figures.items()))


def _short(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
