"""What a run of one of the package's workloads has learned, in a few closing lines.

For a model out of `lit_opt.workloads` (or a subclass) `lit-opt fit` validates before and after training and shows
both figures; where the model has `sample(prompt)`, a text it writes; a picture of the loss and the learning rate;
where the checkpoint is. Any other model is trained as it is, and only the checkpoint is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng

PROMPT, SAMPLE_BYTES = "def ", 120


class History(Callback):
    """Training loss and learning rate at each optimizer step, for the picture."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.losses: list[float] = []
        self.lrs: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Note the step, once for all batches of an accumulation."""
        step = trainer.global_step
        if not trainer.optimizers or (self.steps and self.steps[-1] == step) or "loss" not in (outputs or {}):
            return
        self.steps.append(step)
        self.losses.append(float(outputs["loss"]))
        self.lrs.append(trainer.optimizers[0].param_groups[0]["lr"])


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
        own = any(c.__module__.startswith("lit_opt.workloads.") for c in type(model).__mro__)
        self.active = own and self.data is not None and not getattr(trainer, "fast_dev_run", False)
        self.figures: dict[str, float] = {}
        self.history = History()

    def before(self) -> None:
        """Validate the untrained model. A resumed run is not untrained, so it has no figures from before."""
        if not self.active:
            return
        self.trainer.callbacks.append(self.history)
        if not self.resumed:
            self.figures = self._validate()

    def after(self) -> None:
        """Print what was learned; on the first process only."""
        if self.trainer.interrupted:
            return
        figures = self._validate() if self.active else {}
        if not self.trainer.is_global_zero:
            return
        lines = [""]
        for name, value in figures.items():
            first = f"{self.figures[name]:.4f} -> " if name in self.figures else ""
            lines.append(f"{name:<12} {first}{value:.4f}")
        sample = getattr(self.model, "sample", None)
        if self.active and callable(sample):
            lines += [
                "",
                f"a sample that begins with {PROMPT!r}:",
                *(f"  {line}" for line in sample(PROMPT, SAMPLE_BYTES).splitlines()),
                "",
            ]
        if self.active and self.history.steps:
            lines += _picture(self.history, Path(self.trainer.log_dir or self.trainer.default_root_dir))
        checkpoint = getattr(self.trainer.checkpoint_callback, "best_model_path", "")
        if checkpoint:
            lines.append(f"{'checkpoint':<12} {_short(Path(checkpoint))}")
        if len(lines) > 1:
            print("\n".join(lines))

    def _validate(self) -> dict[str, float]:
        with isolate_rng():  # the run is the same with and without a report
            rows = self.trainer.validate(self.model, datamodule=self.data, verbose=False)
        return {name: value for row in rows for name, value in row.items()}


def _picture(history: History, folder: Path) -> list[str]:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return ["no picture: matplotlib is not installed; `pip install lit-opt[workloads]` brings it"]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    loss = figure.add_subplot()
    loss.plot(history.steps, history.losses, color="tab:blue", linewidth=1)
    loss.set(xlabel="optimizer step", ylabel="training loss")
    rate = loss.twinx()
    rate.plot(history.steps, history.lrs, color="tab:orange", linewidth=1)
    rate.set_ylabel("learning rate", color="tab:orange")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "loss_and_lr.png"
    figure.savefig(path, dpi=120)
    return [f"{'picture':<12} {_short(path)}"]


def _short(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
