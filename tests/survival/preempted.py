"""Run by test_preemption.py: `python -m tests.survival.preempted FOLDER`, on a pretended SLURM, a child for each run.

The signals arrive in the fourth step: SIGUSR1, on which Lightning saves and asks for another turn, then SIGTERM. WHERE says
at which moment: "batch end", "validation" (the averages are in the model), or "inside" (in the middle of a step). The second
start of the same command goes on from what was saved.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import traceback
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


def fit(folder: Path, where: str) -> None:
    seed_everything(0)
    recipe = Recipe("llm", lr=1e-2, warmup=3, ema=EMASpec(decay=0.9))
    module = Net(dropout=0.2)
    second = any(folder.glob("hpc_ckpt_*.ckpt"))
    more: dict[str, Any] = {"val_check_interval": 4, "check_val_every_n_epoch": None}
    t = trainer(recipe, *([] if second else [Preempts(where)]), default_root_dir=folder, max_steps=STEPS, **more)
    try:
        t.fit(module, StatefulLoader(), loader(8))
    finally:
        names = ("optimizer_step", "configure_optimizers", "on_save_checkpoint", "configure_gradient_clipping")
        left = [name for name in names if name in vars(module) or name in vars(t.strategy)]
        (folder / "left").write_text(repr(left))
    t.save_checkpoint(folder / "end.ckpt")


def start(folder: Path, where: str) -> None:
    """One turn of the job, in a process of its own."""
    (folder / "bin").mkdir(parents=True, exist_ok=True)
    (folder / "bin" / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> "{folder}/scontrol"\n')
    (folder / "bin" / "scontrol").chmod(0o755)
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    try:
        log = os.open(folder / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if where != "never":
            os.environ |= {"SLURM_JOB_ID": "17", "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "0",
                           "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NTASKS_PER_NODE": "1"}  # fmt: skip
        os.environ["PATH"] = f"{folder / 'bin'}:{os.environ['PATH']}"
        fit(folder, where)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    start(Path(sys.argv[1]) / "never", "never")
    for moment in ("batch end", "validation", "inside"):
        folder = Path(sys.argv[1]) / moment
        start(folder, moment)
        for name in ("scontrol", "left", "hpc_ckpt_1.ckpt"):
            shutil.copy(folder / name, folder / f"first.{name}")
        start(folder, moment)
