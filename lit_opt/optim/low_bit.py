"""Adam's moments in 8 bits: torchao's on CUDA devices and DTensors, bitsandbytes' elsewhere."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from typing import Any

from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from lit_opt.errors import RecipeError


def adamw_8bit(
    params: Iterable[Mapping[str, Any]],
    lr: float,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Optimizer:
    """AdamW with moments in blocks of 256 values of 8 bits; tensors below 4,096 values keep 32 bits.

    On CUDA devices and DTensors (FSDP2) it is torchao's AdamW8bit, elsewhere bitsandbytes'. Both round the moments to
    the same map of 256 values with a scale for each block, and differ in rounding. Under FSDP2 the 4,096 values are
    counted in each shard, so that results depend on the number of processes (torchao#4912). A group with "optim_bits" 32
    keeps its moments in float32: recipes give one to the embeddings. bitsandbytes' classes cannot be copied or pickled; their state_dict can.

    Args:
        params: Group dicts.
        lr: Peak.
        betas: Decay of the moments per step.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled, multiplied by lr.

    Raises:
        RecipeError: The library is not installed; a group with other optim_bits than 32.

    Source: arXiv:2110.02861.

    Example:
        >>> import torch
        >>> adamw_8bit([{"params": [torch.nn.Parameter(torch.ones(2))]}], lr=1e-3).param_groups[0]["lr"]
        0.001
    """
    groups = list(params)
    entries = [entry for group in groups for entry in group["params"]]
    tensors = [entry[1] if isinstance(entry, tuple) else entry for entry in entries]
    torchaos = any(isinstance(tensor, DTensor) or tensor.device.type == "cuda" for tensor in tensors)
    try:
        module = importlib.import_module(f"lit_opt.optim.low_bit_{'torchao' if torchaos else 'bitsandbytes'}")
    except ModuleNotFoundError as missing:
        where = "on CUDA devices and sharded weights (FSDP2)" if torchaos else "here"
        raise RecipeError(
            [
                f"optimizer: adamw_8bit needs {missing.name} {where}, and it is not installed. Type: "
                "pip install 'lit-opt[lowbit]', or use a recipe with AdamW."
            ]
        ) from missing
    optimizer: Optimizer = module.AdamW8bit(groups, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
    return optimizer


def check_bits(group: Mapping[str, Any]) -> None:
    """Refuse a group that asks for other bits than it can have.

    Raises:
        RecipeError: optim_bits is there and not 32.

    Example:
        >>> check_bits({"params": [], "optim_bits": 32})
    """
    if group.get("optim_bits", 32) != 32:
        raise RecipeError(
            [
                f"optim_bits: {group['optim_bits']!r} is not allowed. 32 keeps the group's moments in float32; leave it out "
                "for those of the optimizer, which has its bits in its name."
            ]
        )
