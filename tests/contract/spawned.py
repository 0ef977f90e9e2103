"""What ddp_spawn pickles into its processes: a loader that asks for its rank when it is read, and a callback."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
from lightning.fabric.strategies.launchers.multiprocessing import _disable_module_memory_sharing
from lightning.pytorch.callbacks import Callback

from tests.contract.tiny import BATCH, STEPS, Share

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.simplefilter("ignore")


class Halves:
    batch_size = BATCH // 2

    def __len__(self) -> int:
        return STEPS

    def __iter__(self) -> Any:
        return iter(Share(torch.distributed.get_rank(), 2))


class OwnMemory(Callback):
    """Pickled tensors share their memory on a CPU, and each process would step the weights of all. Lightning parts them
    for the start method "spawn", but not for "forkserver" (2.6.6).
    """

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        _disable_module_memory_sharing(pl_module)
