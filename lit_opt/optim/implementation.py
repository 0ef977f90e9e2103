"""Which implementation of a step to ask for, and how a resume keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from lit_opt.optim.schema import OptimizerRow

_FLAGS = ("fused", "foreach")


def choose_implementation(row: OptimizerRow, tensors: Sequence[Tensor], *, nesterov: bool = False) -> dict[str, bool]:
    """The fastest implementation that is correct for these tensors; empty leaves the choice to the library.

    SGD never gets fused=True, though it wins on a CPU (benchmarks/results/optimizer_step.md): it fails on DTensor,
    and raises a TypeError once a parameter has its first gradient later than the others (torch 2.15).

    Args:
        row: The optimizer.
        tensors: All parameters, of any shape, device and dtype.
        nesterov: Whether any group has Nesterov momentum.

    Example:
        >>> import torch
        >>> from lit_opt.optim import get_row
        >>> choose_implementation(get_row("adamw"), [torch.ones(2)])
        {'fused': True}
        >>> choose_implementation(get_row("adamw"), [torch.ones(2, dtype=torch.complex64)])
        {}
    """
    if row.factory == "torch.optim:SGD" and nesterov:
        # torch's foreach form adds the momentum into p.grad where weight_decay is 0.
        return {"foreach": False}
    devices = {tensor.device.type for tensor in tensors}
    # The fused CPU kernels walk memory, not indices: with a gradient or a state of other strides than the
    # parameter's the result is wrong without a word (torch 2.15).
    plain = all(tensor.is_floating_point() and tensor.is_contiguous() for tensor in tensors)
    return {"fused": True} if row.fused and plain and devices in ({"cpu"}, {"cuda"}) else {}


def keep_implementation(optimizer: Optimizer) -> None:
    """Make the choice hold under mixed precision and after a resume on other hardware, and keep states exact.

    torch stores fused and foreach in a checkpoint and takes them back from it: fused=True of a CPU run would break
    the resume on XLA. The hooks that prevent it are not copied by deepcopy or pickle (torch drops all hooks).

    Example:
        >>> import torch
        >>> saved = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], fused=False).state_dict()
        >>> optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], fused=True)
        >>> keep_implementation(optimizer)
        >>> optimizer.load_state_dict(saved)
        >>> optimizer.param_groups[0]["fused"]
        True
    """
    kept: dict[tuple[int, str], Tensor] = {}
    optimizer.register_load_state_dict_pre_hook(_with_own_flags)
    optimizer.register_load_state_dict_pre_hook(partial(_remember_cast, kept))
    optimizer.register_load_state_dict_post_hook(_with_layout_of_parameters)
    optimizer.register_load_state_dict_post_hook(partial(_restore_cast, kept))
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        # torch's fused classes unscale p.grad in place under a GradScaler, and Lightning <= 2.6 refuses to clip
        # for them under 16-mixed and bf16-mixed (lightning#21435). Without the flag both treat them like any other.
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]


def _with_own_flags(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any] | None:
    saved = state_dict["param_groups"]
    if len(saved) != len(optimizer.param_groups):
        return None  # torch has the message for it
    groups = [
        dict(group) | {flag: own[flag] for flag in _FLAGS if flag in own}
        for group, own in zip(saved, optimizer.param_groups, strict=True)
    ]
    return {**state_dict, "param_groups": groups}


def _remember_cast(kept: dict[tuple[int, str], Tensor], optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
    """Torch casts all state but "step" to the dtype of its parameter: NAdam's mu_product loses digits in bfloat16, and
    so do the float32 states of an optimizer that has them whatever the weights are (`keeps_dtypes`).
    """
    kept.clear()
    order = [index for group in state_dict["param_groups"] for index in group["params"]]
    keeps_dtypes = getattr(optimizer, "keeps_dtypes", False)
    for index, saved in enumerate(order):
        state = state_dict["state"].get(saved)
        for key, value in state.items() if isinstance(state, dict) else ():
            if key == "step" or not isinstance(value, Tensor):
                continue
            if keeps_dtypes or (value.ndim == 0 and not isinstance(value, DTensor)):
                kept[index, key] = value


def _restore_cast(kept: dict[tuple[int, str], Tensor], optimizer: Optimizer) -> None:
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for (index, key), value in kept.items():
        state = optimizer.state.get(params[index], {}) if index < len(params) else {}
        if key in state:
            state[key] = value.to(device=state[key].device, copy=True)
    kept.clear()


def _with_layout_of_parameters(optimizer: Optimizer) -> None:
    """A state saved under channels_last keeps those strides, which the fused CPU kernels would misread."""
    for param, state in optimizer.state.items():
        for key, value in state.items():
            same_shape = isinstance(value, Tensor) and value.shape == param.shape
            if same_shape and value.stride() != param.stride():
                state[key] = torch.empty_like(param, dtype=value.dtype).copy_(value)
