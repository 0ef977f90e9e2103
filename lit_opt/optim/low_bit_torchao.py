"""torchao's AdamW with moments of few bits, with its trap closed: for CUDA devices and DTensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torchao.optim
from torch import Tensor
from torch.optim import Optimizer

from lit_opt.optim.low_bit import check_bits


class _PlainRates(Optimizer):
    """torchao keeps lr as a tensor and refuses a float, which is what schedulers write. Here it is a float outside.

    Groups with "optim_bits" 32 keep their moments in float32.
    """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its rate stays a float.

        Raises:
            RecipeError: It has other optim_bits than 32.
        """
        check_bits(param_group)
        lr = param_group.get("lr", self.defaults["lr"])
        super().add_param_group(param_group)
        self.param_groups[-1]["lr"] = float(lr)

    def _new_buffer(self, p: Tensor, signed: bool) -> Tensor:
        """torchao's, which sees no group."""
        wide = (q for group in self.param_groups if group.get("optim_bits") == 32 for q in group["params"])
        if any(p is q for q in wide):
            return torch.zeros_like(p, dtype=torch.float32)
        buffer: Tensor = super()._new_buffer(p, signed)  # type: ignore[misc]
        return buffer

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
