"""AdaBound of pytorch_optimizer, with its trap closed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pytorch_optimizer import AdaBound as _AdaBound


class AdaBound(_AdaBound):
    """Adam whose step sizes are held between bounds that close around final_lr: Adam first, SGD in the end.

    a = lr sqrt(1 - b2^t) / (1 - b1^t) / (sqrt(v) + eps), clipped to final_lr lr / peak (1 -+ 1 / (gamma t)); w <- w - a m.

    pytorch_optimizer keeps the peak rate that the bounds are scaled by in an attribute, which no checkpoint holds and
    which groups that are added later do not enter. Here it is a group's option, `base_lr`.

    Args:
        params: Tensors, (name, tensor) pairs or group dicts.
        lr: Peak of the first, Adam-like part.
        final_lr: Rate of the last, SGD-like part at the peak of the schedule.
        betas: Decay of the moments per step.
        gamma: How fast the bounds close.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled, multiplied by lr.
        amsbound: Keep the largest second moment.

    Source: arXiv:1902.09843 in the form of Luolc/AdaBound, which has no 1 / sqrt(t); pytorch_optimizer 4.1.

    Example:
        >>> import torch
        >>> optimizer = AdaBound([torch.nn.Parameter(torch.ones(2))], lr=1e-3)
        >>> optimizer.param_groups[0]["base_lr"]
        0.001
    """

    # torch copies and pickles groups and state alone.
    maximize = False
    foreach = None

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        *,
        final_lr: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.999),
        gamma: float = 1e-3,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsbound: bool = False,
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            final_lr=final_lr,
            betas=betas,
            gamma=gamma,
            eps=eps,
            weight_decay=weight_decay,
            weight_decouple=True,
            ams_bound=amsbound,
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its peak rate is the one it comes with."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        group.setdefault("base_lr", float(group["lr"]))

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; returns what the closure returned, or None."""
        self.base_lrs = [group["base_lr"] for group in self.param_groups]
        return super().step(closure)
