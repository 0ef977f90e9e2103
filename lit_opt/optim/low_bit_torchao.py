"""torchao's AdamW with moments of few bits, with its trap closed: for CUDA devices and DTensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torchao.optim
from torch import Tensor
from torch.optim import Optimizer


class _PlainRates(Optimizer):
    """torchao keeps lr as a tensor and refuses a float, which is what schedulers write. Here it is a float outside."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its rate stays a float."""
        lr = param_group.get("lr", self.defaults["lr"])
        super().add_param_group(param_group)
        self.param_groups[-1]["lr"] = float(lr)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; returns what the closure returned, or None."""
        rates = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            if not isinstance(group["lr"], Tensor):
                group["lr"] = torch.tensor(group["lr"], dtype=torch.float32)
        try:
            return super().step(closure)
        finally:
            for group, rate in zip(self.param_groups, rates, strict=True):
                group["lr"] = rate


class AdamW8bit(_PlainRates, torchao.optim.AdamW8bit):
    """AdamW with moments of 8 bits in blocks of 256; tensors below 4,096 values (of each shard) keep 32 bits.

    Source: arXiv:2110.02861; pytorch/ao torchao/optim/adam.py.
    """


class AdamW4bit(_PlainRates, torchao.optim.AdamW4bit):
    """AdamW with moments of 4 bits in blocks of 128.

    Source: arXiv:2309.01507; pytorch/ao torchao/optim/adam.py.
    """


class AdamWFp8(_PlainRates, torchao.optim.AdamWFp8):
    """AdamW with moments in float8 (e4m3) and a scale for each block of 256.

    Source: pytorch/ao torchao/optim/adam.py.
    """
