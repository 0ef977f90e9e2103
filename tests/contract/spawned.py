"""A loader that asks for its rank when it is read: it is pickled into each process."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch

from tests.contract.tiny import BATCH, STEPS, Share

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.simplefilter("ignore")


class Halves:
    batch_size = BATCH // 2

    def __len__(self) -> int:
        return STEPS

    def __iter__(self) -> Any:
        return iter(Share(torch.distributed.get_rank(), 2))
