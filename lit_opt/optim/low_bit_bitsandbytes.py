"""bitsandbytes' AdamW with moments of 8 bits, and of 32 in groups that ask for them."""

from __future__ import annotations

from typing import Any

import bitsandbytes.optim

from lit_opt.optim.low_bit import check_bits


class AdamW8bit(bitsandbytes.optim.AdamW8bit):
    """AdamW with moments of 8 bits in blocks of 256; groups with "optim_bits" 32 and small tensors keep float32.

    bitsandbytes' own way, GlobalOptimManager, is one for the process and remembers parameters by id.

    Source: arXiv:2110.02861; bitsandbytes/optim/optimizer.py.

    Example:
        >>> import torch
        >>> table, weight = torch.nn.Parameter(torch.ones(64, 64)), torch.nn.Parameter(torch.ones(64, 64))
        >>> optimizer = AdamW8bit([{"params": [table], "optim_bits": 32}, {"params": [weight]}], lr=1e-3)
        >>> table.grad, weight.grad = torch.ones(64, 64), torch.ones(64, 64)
        >>> optimizer.step()
        >>> [optimizer.state[p]["state1"].dtype for p in (table, weight)]
        [torch.float32, torch.uint8]
    """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group.

        Raises:
            RecipeError: It has other optim_bits than 32.
        """
        check_bits(param_group)
        super().add_param_group(param_group)

    def get_config(self, gindex: int, pindex: int, group: dict[str, Any]) -> dict[str, Any]:
        """What bitsandbytes asks for each parameter."""
        config: dict[str, Any] = super().get_config(gindex, pindex, group)
        return config | {"optim_bits": group.get("optim_bits", config["optim_bits"])}
