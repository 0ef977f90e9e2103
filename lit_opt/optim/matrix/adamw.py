"""AdamW for what a matrix method leaves over, by torch's own kernels, inside the same Optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from lit_opt.averaging.shards import gradients_of, locals_of


def adamw_update(
    params: Sequence[Tensor],
    states: Sequence[dict[str, Any]],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """One AdamW step, equal to torch.optim.AdamW; fused where every tensor is plain on one CPU or CUDA device.

    Args:
        params: Parameters that have a gradient, of any shape. Updated in place.
        states: One dict for each; "step", "exp_avg" and "exp_avg_sq" are added on the first call.
        lr: Learning rate.
        betas: Decay of the two moments.
        eps: Added to the root of the second moment.
        weight_decay: Multiplied by lr, as in torch.

    Example:
        >>> import torch
        >>> weight, state = torch.ones(2), {}
        >>> weight.grad = torch.ones(2)
        >>> adamw_update([weight], [state], lr=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
        >>> weight
        tensor([0.9000, 0.9000])
    """
    for param, state in zip(params, states, strict=True):
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=param.device)
            state["exp_avg"] = torch.zeros_like(param)
            state["exp_avg_sq"] = torch.zeros_like(param)
    # By entry, so each process steps on what it holds of DTensors.
    params, grads = locals_of(params), gradients_of(params)
    moments = locals_of([state["exp_avg"] for state in states])
    squares = locals_of([state["exp_avg_sq"] for state in states])
    # The fused CPU kernels walk memory, not indices: everything has to have the same strides (torch 2.15).
    plain = len({param.device for param in params}) == 1 and params[0].device.type in ("cpu", "cuda")
    fused = plain and all(
        p.is_contiguous() and g.is_contiguous() and m.is_contiguous() and s.is_contiguous()
        for p, g, m, s in zip(params, grads, moments, squares, strict=True)
    )
    adamw(
        params,
        grads,
        moments,
        squares,
        [],
        [_on_device(state, param) for param, state in zip(params, states, strict=True)],
        foreach=not fused and plain and params[0].device.type == "cuda",
        fused=fused,
        amsgrad=False,
        beta1=betas[0],
        beta2=betas[1],
        lr=lr,
        weight_decay=weight_decay,
        eps=eps,
        maximize=False,
    )


def _on_device(state: dict[str, Any], param: Tensor) -> Tensor:
    """The step count, which a checkpoint from other hardware may have left on another device."""
    if state["step"].device != param.device:
        state["step"] = state["step"].to(param.device)
    return state["step"]
