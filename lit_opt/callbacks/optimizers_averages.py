"""The averages that an optimizer keeps itself (schedule-free), shown and stored as `lit_opt.EMA` does."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info

from lit_opt.averaging.shards import local
from lit_opt.callbacks.ema import EMA
from lit_opt.errors import RecipeError


class OptimizersAverages(EMA):
    """Validation, test and prediction on an optimizer's own averages; checkpoints hold them as `ema_state_dict`.

    Its `eval()` and `train()` are called for an instant to read them, and the weights that gradients are taken at are
    put back from a copy: the run is the same, bit for bit, however often it is validated or saved. `state_dict` keeps
    those weights, so that a resume is exact. Memory: two copies of the weights while the averages are read, one after.

    Batch-norm statistics belong to the weights that gradients are taken at; the library's advice for such networks is to
    run some training batches through the averages first. This is not done here.

    Example:
        >>> OptimizersAverages().updates
        0
    """

    def __init__(self) -> None:
        super().__init__()
        self._optimizer: Any = None
        self._unread = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Continue from a checkpoint.

        Raises:
            RecipeError: The optimizer that steps has no averages: the module's own was kept.
        """
        super().on_train_start(trainer, pl_module)
        self._optimizer = trainer.optimizers[0]
        if not hasattr(self._optimizer, "eval"):
            raise RecipeError(
                [
                    f"existing: 'keep' keeps {type(self._optimizer).__name__}, and the recipe's optimizer, which would average "
                    "the weights itself, does not run. Give existing='replace', or another optimizer= and ema= for averages."
                ]
            )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the steps; the averages are read when they are needed."""
        self._count()
        self._skip = False

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say which weights are where."""
        rank_zero_info(
            f"{type(self._optimizer).__name__}: the checkpoint's ema_state_dict holds the averages, which validation used; "
            "its state_dict and the module in memory hold the weights that gradients are taken at. "
            "EMA.load(module, path) loads the averages."
        )

    def _count(self) -> None:
        if self._stepped:
            self._stepped, self._unread = False, True
            self.steps += 1
            self.updates += 1

    def _update(self, module: pl.LightningModule) -> None:
        self._count()
        if not self._unread:
            return
        self._unread = False
        if self._averages is None:
            self._averages = self._begin(module)
        self._averages.refresh()
        params = [p for group in self._optimizer.param_groups for p in group["params"]]
        with torch.no_grad():
            copies = [local(p).detach().clone() for p in params]
            self._optimizer.eval()
            self._averages.update(0.0)
            self._optimizer.train()
            for param, copy in zip(params, copies, strict=True):
                local(param).copy_(copy)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_optimizer": None}
