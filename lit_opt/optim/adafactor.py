"""Adafactor as the paper has it, in a form that survives FSDP2 and treats convolutions as matrices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

from lit_opt.optim.one_by_one import OneByOne


class Adafactor(OneByOne):
    """Adam's second moment from its row and column means: O(rows + columns) memory, no first moment.

    Of the four Adafactors in use this is the paper's (algorithm 4), which torch.optim.Adafactor and transformers equal
    on matrices. It differs from torch's in three ways: it runs on DTensors (torch's and timm's fail under FSDP2),
    convolution kernels are factored as (out, in x kernel) and not over their last two dimensions, and eps[0] is added
    to the squared gradient as in the paper. The fourth, big_vision's, is the registry's "adafactor_bv".

    For a weight W (n x m), gradient G, step t: b = 1 - t^beta2_decay; R, C <- means of G^2 + eps[0] over columns and
    rows, averaged with b; V = R C / mean(R); U = G / sqrt(V), divided by max(1, RMS(U) / d);
    W <- (1 - lr weight_decay) W - max(eps[1], RMS(W)) min(lr, 1 / sqrt(t)) U. Vectors keep the whole V.

    Args:
        params: Tensors, (name, tensor) pairs or group dicts.
        lr: Largest step relative to RMS(W); with scale_parameter=False the step itself, as for Adam.
        beta2_decay: Exponent of the second moment's decay.
        eps: Added to the squared gradient; smallest RMS(W) that the step is scaled by.
        d: Largest RMS of an update before lr.
        scale_parameter: Scale the step by RMS(W), and cap lr by 1 / sqrt(t).
        weight_decay: Decoupled, multiplied by lr.

    Source: arXiv:1804.04235.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(8, 4))
        >>> optimizer = Adafactor([weight], lr=0.01)
        >>> weight.square().sum().backward()
        >>> optimizer.step()
        >>> {key: tuple(value.shape) for key, value in optimizer.state[weight].items()}
        {'step': (), 'row_means': (8, 1), 'column_means': (1, 4)}
    """

    # Its states have a dtype of their own, whatever that of the weights: a resume must not cast them.
    keeps_dtypes = True

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        *,
        beta2_decay: float = -0.8,
        eps: tuple[float, float] = (1e-30, 1e-3),
        d: float = 1.0,
        scale_parameter: bool = True,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "beta2_decay": beta2_decay,
                "eps": eps,
                "d": d,
                "scale_parameter": scale_parameter,
                "weight_decay": weight_decay,
            },
        )

    def _update(self, param: Tensor, group: dict[str, Any]) -> None:
        state = self.state[param]
        working = torch.promote_types(param.dtype, torch.float32)
        grad = param.grad.to(working)  # type: ignore[union-attr]
        grad = grad.flatten(1) if grad.ndim > 1 else grad
        square = grad.square() + group["eps"][0]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            if grad.ndim > 1:
                state["row_means"] = torch.zeros_like(mean_over(square, 1))
                state["column_means"] = torch.zeros_like(mean_over(square, 0))
            else:
                state["second_moment"] = torch.zeros_like(square)
        state["step"] += 1
        step = float(state["step"])
        weight = step ** group["beta2_decay"]  # of the new value
        if grad.ndim > 1:
            rows, columns = state["row_means"], state["column_means"]
            rows.lerp_(mean_over(square, 1), weight)
            columns.lerp_(mean_over(square, 0), weight)
            update = grad * (rows / mean_over(rows, 0)).rsqrt() * columns.rsqrt()
        else:
            state["second_moment"].lerp_(square, weight)
            update = grad * state["second_moment"].rsqrt()
        update = update / (_rms(update) / group["d"]).clamp(min=1.0)
        rate = group["lr"]
        if group["scale_parameter"]:
            rate = _rms(param.to(working)).clamp(min=group["eps"][1]) * min(rate, step**-0.5)
        if group["weight_decay"]:
            param.mul_(1 - group["lr"] * group["weight_decay"])
        param.sub_((update * rate).view_as(param))


def mean_over(x: Tensor, dim: int) -> Tensor:
    """The mean over one dimension, which stays; also of DTensors in uneven shards.

    Example:
        >>> mean_over(torch.eye(2), 0)
        tensor([[0.5000, 0.5000]])
    """
    # A DTensor's own mean is wrong for shards of unequal size.
    return _whole(x.sum(dim, keepdim=True)) / x.size(dim)


def _rms(x: Tensor) -> Tensor:
    return (_whole(x.square().sum()) / x.numel()).sqrt()


def _whole(x: Tensor) -> Tensor:
    """Add up what the processes hold parts of."""
    if not isinstance(x, DTensor):
        return x
    return x.redistribute(placements=[Replicate() if p.is_partial() else p for p in x.placements])
