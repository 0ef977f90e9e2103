"""Run by test_ema_resizes.py: `python -m tests.callbacks.ema_resizes FOLDER/PROCESSES`.

Two processes train with averages and save in every way; one and four read each of these checkpoints and train on. All see
the same batches, so that the number of processes makes no difference.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lit_opt import EMA
from tests.callbacks.ema_lib import SAFE, Net, averages, loader
from tests.callbacks.ema_lib import trainer as plain_trainer
from tests.callbacks.processes import allow_fsdp1_on_the_cpu

KINDS = ("ddp", "fsdp2", "fsdp2_sharded", "fsdp1", "fsdp1_sharded")
STEPS, SAVED = 5, 3


class Small(Net):
    """A layer of 5 rows, which no two or four processes share evenly."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 5))


class Sharded(Small):
    def configure_model(self) -> None:
        from torch.distributed.fsdp import fully_shard

        if any(isinstance(p, DTensor) for p in self.parameters()):
            return
        assert self.device_mesh is not None
        for part in (self.net[0], self.net[3], self.net):
            fully_shard(part, mesh=self.device_mesh["data_parallel"])


class Ends(pl.Callback):
    """The averages at the start of the run and at its end; saves at one step."""

    def __init__(self, ema: EMA, path: Path | None) -> None:
        self.ema, self.path = ema, path
        self.first: dict[str, Tensor] = {}
        self.last: dict[str, Tensor] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.first = averages(self.ema)

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if self.path is not None and trainer.global_step == SAVED:
            trainer.save_checkpoint(self.path)
            self.first = averages(self.ema)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.last = averages(self.ema)


def strategy(kind: str, processes: int) -> Any:
    if kind.startswith("fsdp2"):
        return ModelParallelStrategy(
            data_parallel_size=processes, tensor_parallel_size=1, save_distributed_checkpoint=kind.endswith("sharded")
        )
    if kind.startswith("fsdp1"):
        state: Any = "sharded" if kind.endswith("sharded") else "full"
        return FSDPStrategy(auto_wrap_policy={nn.Linear}, use_orig_params=True, state_dict_type=state)
    return "ddp" if processes > 1 else "auto"


def run(kind: str, processes: int, folder: Path) -> dict[str, Any]:
    path = folder / f"{kind}.ckpt"
    saves = processes == 2
    ema = EMA(0.9)
    ends = Ends(ema, path if saves else None)
    fit = plain_trainer(
        ema, ends, max_steps=STEPS, devices=processes, strategy=strategy(kind, processes), use_distributed_sampler=False
    )
    module = Sharded() if kind.startswith("fsdp2") else Small()
    fit.fit(module, loader(equal=True), ckpt_path=None if saves else path, **SAFE)
    return {"first": ends.first, "last": ends.last, "updates": ema.updates}


def main(folder: Path) -> None:
    allow_fsdp1_on_the_cpu()
    for kind in KINDS:
        try:
            found = run(kind, int(folder.name), folder.parent)
        except Exception:
            found = {"error": traceback.format_exc()}
        torch.save(found, folder / f"{kind}.{os.environ.get('LOCAL_RANK', 0)}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
