"""`EMA`: averaged weights under Lightning, saved beside the raw ones, used wherever the model is evaluated.

lightning.pytorch.callbacks.EMAWeightAveraging loses the raw weights when `fit` ends and when validation
raises, swaps in averages that were never updated, saves raw weights with `save_weights_only`, truncates
integer buffers and cannot copy sharded modules (Lightning 2.6.6; #21724, PR #20545, PR #21414).
tests/callbacks/test_ema_faults.py holds one test for each.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import nn
from torch.optim import Optimizer

from lit_opt.averaging import Averages, decay_at
from lit_opt.callbacks.ema_checks import argument_problems, optimizer_problems, trainer_problems
from lit_opt.callbacks.ema_file import (
    META,
    AveragesInFile,
    averages_in,
    load_averages,
    named_averages,
    write_averages,
)
from lit_opt.callbacks.ema_support import follow_module, patch_method, some_names
from lit_opt.callbacks.facts import fsdp1_root
from lit_opt.errors import RecipeError


class EMA(Callback):
    """Averaged weights: `shadow <- d shadow + (1 - d) weights` after each optimizer step, or their mean (SWA).

    With kind="swa" the average is the mean of the weights at start_step (at least 1) and after every `every` steps, as
    torch.optim.swa_utils.AveragedModel has it; decay and warmup are not used, and it is used from the second model on.

    Trainable parameters are averaged (in float32 where they are half precision); buffers and frozen
    parameters are taken from the model as they are. So batch norm keeps the statistics of the raw weights, which do not
    fit the mean of distant models. `buffers=True` averages them as well; exact ones take a pass over the data:
    `EMA.load(module, path)`, then `torch.optim.swa_utils.update_bn(loader, module)`. Only real optimizer steps count:
    not micro-batches, not steps that the gradient scaler skipped; with several optimizers one for each batch in which
    any of them stepped.

    Validation, test and prediction use the averages as soon as there are any, and the raw weights are back
    afterwards, also after an exception or Ctrl-C. After `fit` the module holds the raw weights. `test`,
    `validate` and `predict` with `ckpt_path=` use the averages of that file.

    A checkpoint's `state_dict` holds the raw weights, so that any resume is exact, and `ema_state_dict`, with
    the same keys, the averages. With `checkpoint="ema"` the `state_dict` holds the averages and
    `raw_state_dict` the raw weights; a resume with this callback is exact as well. `EMA.load` and
    `lit_opt.callbacks.export.export_ema` read the averages.

    Not run on a GPU so far; `offload` uses pinned memory there. FSDP2 (`ModelParallelStrategy`) and FSDP1 are
    supported, DeepSpeed is refused. After `ddp_spawn` the averages are only in the checkpoint. A weights-only
    checkpoint that is written after `fit`, or because of an exception, holds the raw weights only.

    Args:
        decay: The final d, per optimizer step, in [0, 1).
        warmup: Use d = min(decay, (1 + n) / (10 + n)) at the n-th update.
        start_step: Real optimizer step after which averaging begins, with the weights of that moment.
        checkpoint: What the checkpoint's `state_dict` holds: "raw" or "ema".
        offload: Keep the averages in CPU memory.
        kind: "ema" or "swa".
        every: Optimizer steps from one model of "swa" to the next.
        buffers: Average floating-point buffers as well.

    Raises:
        RecipeError: If an argument is out of range, if a second averaging callback is present, or if the
            strategy or an optimizer cannot be averaged.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[EMA(decay=0.999)], accelerator="cpu", logger=False)
        >>> EMA(decay=1.5)
        Traceback (most recent call last):
            ...
        lit_opt.errors.RecipeError: EMA: decay=1.5 is not in [0, 1). Usual values are 0.999 to 0.9999.

    Source: https://github.com/fadel/pytorch_ema (rule and warm-up), https://arxiv.org/abs/2212.09748
    (0.9999), https://arxiv.org/abs/1803.05407 (SWA).
    """

    def __init__(
        self,
        decay: float = 0.9999,
        *,
        warmup: bool = True,
        start_step: int = 0,
        checkpoint: str = "raw",
        offload: bool = False,
        kind: str = "ema",
        every: int = 1,
        buffers: bool = False,
    ) -> None:
        switches: dict[str, object] = {"warmup": warmup, "offload": offload, "buffers": buffers}
        problems = argument_problems(decay, start_step, checkpoint, kind, every, switches)
        if problems:
            raise RecipeError(problems)
        self.decay = decay
        self.warmup = warmup
        self.start_step = start_step
        self.checkpoint = checkpoint
        self.offload = offload
        self.kind = kind
        self.every = every
        self.buffers = buffers
        self.updates = 0
        """Updates of the averages so far (the n of the warm-up)."""
        self.steps = 0
        """Real optimizer steps so far."""
        self._averages: Averages | None = None
        self._file: AveragesInFile | None = None
        self._file_was_read = False
        self._stepped = False
        self._skip = False
        self._stale = False
        self._evaluated = False
        self._take_off: list[Callable[[], None]] = []

    @staticmethod
    def load(module: nn.Module, path: str | Path) -> None:
        """Load the averages of a checkpoint into a module.

        Args:
            module: The module that was trained (the LightningModule), or one with the same state_dict keys.
            path: A Lightning checkpoint written with this callback: a file, or the folder of a sharded one.

        Raises:
            RecipeError: If the file holds no averages, is no such checkpoint, or does not fit the module.
        """
        load_averages(module, path)

    def skip_next(self) -> None:
        """Do not count the optimizer's next step of this batch: it was skipped although `step` runs."""
        self._skip = True

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what cannot work; forget the averages of another run; hook into the module's checkpoints."""
        problems = trainer_problems(self, trainer)
        if problems:
            raise RecipeError(problems)
        # A continued fit (the same trainer, the same module) continues the averages.
        if stage == "fit" and not (self._is_of(pl_module) and trainer.global_step):
            self._averages, self.updates, self.steps = None, 0, 0
            self._evaluated = False
        self._file, self._file_was_read = None, False
        self._attach(trainer, pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin, or continue from a checkpoint; only now has every strategy wrapped and loaded the module."""
        self._restore(trainer, pl_module)
        if self._averages is None and self.steps >= self._first_step:
            self._averages = self._begin(pl_module)
        self._stepped = self._skip = False
        self._stale = True
        problems = optimizer_problems(trainer)
        if problems:
            raise RecipeError(problems)
        for optimizer in trainer.optimizers:
            self._take_off.append(optimizer.register_step_post_hook(self._on_step).remove)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look for unfrozen parameters at the epoch's first update: other callbacks may unfreeze after us."""
        self._stale = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Average, if an optimizer stepped."""
        self._update(pl_module)
        self._skip = False

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say which weights are where."""
        if not self.updates:
            rank_zero_info(
                f"EMA: no averages were formed: {self.steps} optimizer steps, start_step={self.start_step}. "
                "Checkpoints hold the raw weights only."
            )
            return
        state, beside = ("raw weights", "averages") if self.checkpoint == "raw" else ("averages", "averages too")
        raw = "" if self.checkpoint == "raw" else ", raw_state_dict the raw weights"
        validation = " Validation metrics were of the averages." if self._evaluated else ""
        rank_zero_info(
            f"EMA: {self.updates} updates. The checkpoint's state_dict holds the {state}, ema_state_dict the "
            f"{beside}{raw}; the module in memory holds the raw weights.{validation}"
        )

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Swap the averages in, if there are any. The same for test and predict."""
        self._begin_evaluation(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Bring the raw weights back. The same for test and predict."""
        self._end_evaluation()

    on_test_start = on_predict_start = on_validation_start
    on_test_end = on_predict_end = on_validation_end

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Write the averages into a checkpoint saved after `fit`; during it the module's hook does."""
        if not self._take_off:
            self._write(trainer, pl_module, checkpoint)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Bring the raw weights back and leave the module as it was."""
        self._end_evaluation()
        self._detach()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave the module as it was."""
        self._end_evaluation()
        self._detach()

    @property
    def _first_step(self) -> int:
        """An EMA may start from the initial weights; a mean should not count them."""
        return max(self.start_step, 1) if self.kind == "swa" else self.start_step

    def _begin(self, module: pl.LightningModule) -> Averages:
        return Averages(module, self.offload, self.buffers, root=fsdp1_root(module.trainer))

    def _is_of(self, module: nn.Module) -> bool:
        return self._averages is not None and self._averages.module is module

    def _on_step(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        # Optimizers that unscale inside `step` (fused Adam) run it also when the scaler found an overflow.
        overflow = getattr(optimizer, "found_inf", None)
        if self._skip or (overflow is not None and bool(overflow)):
            self._skip = False
        else:
            self._stepped = True

    def _update(self, module: pl.LightningModule) -> None:
        if not self._stepped:
            return
        self._stepped = False
        self.steps += 1
        if self._averages is None:
            if self.steps >= self._first_step:
                self._averages = self._begin(module)
            return
        if (self.steps - self._first_step) % self.every:
            return
        if self._stale:
            self._stale = False
            follow_module(self._averages)
        self.updates += 1
        swa = self.kind == "swa"
        self._averages.update(1 - 1 / (self.updates + 1) if swa else decay_at(self.updates, self.decay, self.warmup))

    def _begin_evaluation(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._update(module)
        self._restore(trainer, module)
        fitting = trainer.state.fn == "fit"
        if self._averages is not None and self._is_of(module) and self.updates:
            follow_module(self._averages)
            self._averages.swap_in()
            self._evaluated |= fitting
        elif not fitting:
            rank_zero_info("EMA: there are no averages of this model; its weights are used as they are.")

    def _end_evaluation(self) -> None:
        if self._averages is not None:
            self._averages.swap_out()

    def _restore(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Take over what the module's on_load_checkpoint saw. Which of loading and wrapping comes first
        differs between strategies, so it waits for the first hook that comes after both.
        """
        if not self._file_was_read:
            return
        found, self._file, self._file_was_read = self._file, None, False
        self._averages, self.updates, self.steps = None, 0, 0
        if found is None:
            self.steps = trainer.global_step
            if trainer.state.fn == "fit":
                rank_zero_info("EMA: the checkpoint holds no averages; they start from the weights loaded from it.")
            return
        self.updates, self.steps = found.updates, found.steps
        if found.averages:
            self._averages = self._begin(module)
            missing = self._averages.load(named_averages(found, self._averages, module))
            if missing:
                rank_zero_info(f"EMA: the checkpoint has no average of {some_names(missing)}; they start anew.")

    def _write(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._update(module)
        if META in checkpoint or (self._averages is not None and not self._is_of(module)):
            return
        checkpoint[META] = {
            "updates": self.updates,
            "steps": self.steps,
            "decay": self.decay,
            "warmup": self.warmup,
        }
        # Between the first and the second model of a mean the first is nowhere else.
        if self._averages is not None and (self.updates or self.every > 1):
            write_averages(checkpoint, self._averages, module, self.checkpoint, keep=trainer.is_global_zero)

    def _attach(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Patch the module's checkpoint hooks: `save_weights_only` skips those of callbacks.

        The patched functions bear the names of the hooks, because a bound method is pickled by name.
        """
        self._detach()
        ours = self

        def on_save_checkpoint(self: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
            save(self, checkpoint)
            if self is module:
                ours._write(trainer, module, checkpoint)

        def on_load_checkpoint(self: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
            if self is module:
                found = averages_in(checkpoint, module, root=fsdp1_root(trainer))
                ours._file, ours._file_was_read = found, True
            load(self, checkpoint)

        save, take_off_save = patch_method(module, on_save_checkpoint)
        load, take_off_load = patch_method(module, on_load_checkpoint)
        self._take_off = [take_off_save, take_off_load]

    def _detach(self) -> None:
        for take_off in self._take_off:
            take_off()
        self._take_off = []
