"""Run by test_preemption.py: `python -m tests.survival.preempted FOLDER WHERE`, on a pretended SLURM.

The signals arrive in the fourth step: SIGUSR1, on which Lightning saves and asks for another turn, then SIGTERM. WHERE says
at which moment: "batch end", "validation" (the averages are in the model), or "inside" (in the middle of a step). The second
start of the same command goes on from what was saved.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import Callback

from lit_opt import EMASpec, Recipe
from tests.callbacks.modules import Net, StatefulLoader, loader, trainer

STEPS = 9


class Preempts(Callback):
    def __init__(self, where: str) -> None:
        self.where = where

    def _strike(self, where: str, at: int, step: int) -> None:
        if where == self.where and at == step:
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGTERM)

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self._strike("batch end", trainer.global_step, 4)

    def on_validation_batch_end(self, trainer: Any, *args: Any) -> None:
        if not trainer.sanity_checking:
            self._strike("validation", trainer.global_step, 4)

    def on_before_zero_grad(self, trainer: Any, *args: Any) -> None:
        self._strike("inside", trainer.global_step, 4)


def main(folder: Path, where: str) -> None:
    seed_everything(0)
    recipe = Recipe("llm", lr=1e-2, warmup=3, ema=EMASpec(decay=0.9))
    module = Net(dropout=0.2)
    preempts = [] if where == "never" else [Preempts(where)]
    more: dict[str, Any] = {"val_check_interval": 4, "check_val_every_n_epoch": None}
    t = trainer(recipe, *preempts, default_root_dir=folder, max_steps=STEPS, **more)
    if t.ckpt_path is None and list(folder.glob("hpc_ckpt_*.ckpt")):
        for callback in preempts:
            callback.where = "past"
    try:
        t.fit(module, StatefulLoader(), loader(8))
    finally:
        names = ("optimizer_step", "configure_optimizers", "on_save_checkpoint", "configure_gradient_clipping")
        left = [name for name in names if name in vars(module) or name in vars(t.strategy)]
        (folder / "left").write_text(repr(left))
    t.save_checkpoint(folder / "end.ckpt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2])
