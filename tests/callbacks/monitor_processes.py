"""Run by test_monitor.py, in two processes: `python -m tests.callbacks.monitor_processes FOLDER`."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

import torch

from lit_opt import OptimizerMonitor
from tests.callbacks.modules import Net, trainer
from tests.callbacks.processes import Share, make, rank, recipe


class Notes(OptimizerMonitor):
    """Keeps what each logged step measured."""

    def __init__(self) -> None:
        super().__init__(1, weights="all")
        self.rows: list[dict[str, float]] = []

    def on_train_batch_end(self, *args: Any) -> None:
        super().on_train_batch_end(*args)
        self.rows.append(self.latest)


def run_one() -> dict[str, Any]:
    """One process with the whole batch."""
    notes = Notes()
    trainer(recipe(ema=0.9), notes, max_steps=6).fit(Net(), Share(0, 1))
    return {"rows": notes.rows}


def run(kind: str, folder: Path) -> dict[str, Any]:
    from lightning.pytorch.loggers import CSVLogger

    module, how = make(kind)
    notes, logger = Notes(), CSVLogger(folder, name=kind)
    t = trainer(recipe(ema=0.9), notes, devices=2, max_steps=6, use_distributed_sampler=False, logger=logger, **how)
    t.fit(module, Share(rank(), 2))
    return {"rows": notes.rows}


def main(folder: Path) -> None:
    for kind in ("ddp", "fsdp2"):
        try:
            result = run(kind, folder)
        except BaseException:
            result = {"error": traceback.format_exc()}
        torch.save(result, folder / f"{kind}.{rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
