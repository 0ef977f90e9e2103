"""Adafactor as big_vision has it, in a form that FSDP2 runs and saves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lit_opt.optim.adafactor import mean_over
from lit_opt.optim.one_by_one import OneByOne


class AdafactorBigVision(OneByOne):
    """AdamW's rate and decay with a factored second moment and a momentum in bfloat16.

    timm's class of the same name equals it bit for bit on float32 weights. There, the group holds a torch.dtype, and
    saving a checkpoint under FSDP2 fails on it (torch 2.15); half-precision weights have half-precision moments, and the
    means of unevenly sharded weights are DTensor's own, which older torch has wrong.

    For a weight W, gradient G, step t: b = min(beta2_cap, 1 - t^-0.8); R, C <- means of G^2 + eps over the largest and
    the second largest dimension, averaged with b; V = R C / mean(R); U = G / sqrt(V); M <- momentum M + (1 - momentum) U,
    kept in bfloat16; W <- (1 - lr weight_decay) W - lr M. Weights whose second largest dimension is below
    min_dim_size_to_factor keep the whole V.

    Args:
        params: Tensors, (name, tensor) pairs or group dicts.
        lr: Of AdamW's size.
        momentum: Decay of M, in [0, 1).
        beta2_cap: Largest decay of the second moment.
        eps: Added to the squared gradient.
        weight_decay: Decoupled, multiplied by lr.
        min_dim_size_to_factor: See above.

    Source: arXiv:2106.04560; google-research/big_vision; timm optim/adafactor_bv.py.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(32, 16))
        >>> optimizer = AdafactorBigVision([weight], lr=1e-3)
        >>> weight.square().sum().backward()
        >>> optimizer.step()
        >>> {key: tuple(value.shape) for key, value in optimizer.state[weight].items()}
        {'step': (), 'row_means': (1, 16), 'column_means': (32, 1), 'exp_avg': (32, 16)}
    """

    # Its states have a dtype of their own, whatever that of the weights: a resume must not cast them.
    keeps_dtypes = True

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        *,
        momentum: float = 0.9,
        beta2_cap: float = 0.999,
        eps: float = 1e-30,
        weight_decay: float = 0.0,
        min_dim_size_to_factor: int = 16,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "beta2_cap": beta2_cap,
                "eps": eps,
                "weight_decay": weight_decay,
                "min_dim_size_to_factor": min_dim_size_to_factor,
            },
        )

    def _update(self, param: Tensor, group: dict[str, Any]) -> None:
        state = self.state[param]
        grad = param.grad.to(torch.promote_types(param.dtype, torch.float32))  # type: ignore[union-attr]
        square = grad.square() + group["eps"]
        largest, second = _two_largest(param.shape, group["min_dim_size_to_factor"])
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            if largest is None or second is None:
                state["second_moment"] = torch.zeros_like(square)
            else:
                state["row_means"] = torch.zeros_like(mean_over(square, largest))
                state["column_means"] = torch.zeros_like(mean_over(square, second))
            state["exp_avg"] = torch.zeros_like(grad, dtype=torch.bfloat16)
        state["step"] += 1
        weight = 1 - min(group["beta2_cap"], 1 - float(state["step"]) ** -0.8)
        if largest is None or second is None:
            update = grad * state["second_moment"].lerp_(square, weight).rsqrt()
        else:
            rows = state["row_means"].lerp_(mean_over(square, largest), weight)
            columns = state["column_means"].lerp_(mean_over(square, second), weight)
            update = grad * (rows / mean_over(rows, second)).rsqrt() * columns.rsqrt()
        average = state["exp_avg"].lerp_(update.to(torch.bfloat16), 1 - group["momentum"])
        if group["weight_decay"]:
            param.mul_(1 - group["lr"] * group["weight_decay"])
        param.sub_(average.to(grad.dtype) * group["lr"])


def _two_largest(shape: torch.Size, least: int) -> tuple[int | None, int | None]:
    """The largest and the second largest dimension; of equal ones the later is the larger."""
    order = sorted(range(len(shape)), key=lambda dim: (shape[dim], dim))
    return (order[-1], order[-2]) if len(order) > 1 and shape[order[-2]] >= least else (None, None)
