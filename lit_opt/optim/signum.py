"""Signum: the sign of a moving average of the gradient."""

from __future__ import annotations

from typing import Any

from timm.optim import Lion


class Signum(Lion):
    """timm's Lion with both betas equal to `momentum`, which is Signum: m <- mu m + (1 - mu) g; w <- w - lr sign(m).

    It is the baseline of the equal-betas study (arXiv:2505.21829).

    Args:
        params: Tensors, (name, tensor) pairs or group dicts; a group may have its own momentum.
        lr: The step of every weight.
        momentum: Decay of the moving average per step.
        weight_decay: Decoupled, multiplied by lr.

    Source: arXiv:1802.04434, in the form with a moving average.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.tensor([3.0, -2.0]))
        >>> optimizer = Signum([weight], lr=0.5)
        >>> weight.square().sum().backward()
        >>> optimizer.step()
        >>> weight.data
        tensor([ 2.5000, -1.5000])
    """

    def __init__(self, params: Any, lr: float = 1e-4, *, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        self._momentum = momentum
        super().__init__(params, lr=lr, betas=(momentum, momentum), weight_decay=weight_decay)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, with its own or the common momentum."""
        momentum = param_group.setdefault("momentum", self._momentum)
        super().add_param_group({**param_group, "betas": (momentum, momentum)})
