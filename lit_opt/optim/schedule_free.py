"""schedulefree's classes with their traps closed: averaging in place of a decaying rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from schedulefree import AdamWScheduleFree, SGDScheduleFree
from torch.optim import Optimizer


class _ScheduleFree(Optimizer):
    """What both have in common.

    The library's step writes into p.grad, and fails unless train() was called; its train() makes empty state entries,
    which break torch's set_optimizer_state_dict. Here p.grad stays (one copy of the gradients during the step), the
    optimizer starts in training mode, and there are no empty entries. Its warmup_steps are left to a schedule: the
    weights of the average follow the rate of each step, so that the two are the same.
    """

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, **options)
        for group in self.param_groups:
            group["train_mode"] = True
        self.defaults["train_mode"] = True

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of the weights that gradients are taken at; returns what the closure returned, or None."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        held = [(p, p.grad) for group in self.param_groups for p in group["params"] if p.grad is not None]
        for param, grad in held:
            param.grad = grad.clone()
        try:
            super().step()
        finally:
            for param, grad in held:
                param.grad = grad
        return loss

    def train(self) -> None:
        """Put the weights that gradients are taken at into the parameters."""
        super().train()  # type: ignore[misc]
        self._drop_empty()

    def eval(self) -> None:
        """Put the averages into the parameters: what to validate, test and publish."""
        super().eval()  # type: ignore[misc]
        self._drop_empty()

    def _drop_empty(self) -> None:
        for param in [param for param, state in self.state.items() if not state]:
            del self.state[param]


class ScheduleFreeAdamW(_ScheduleFree, AdamWScheduleFree):
    """AdamW whose averaged weights take the place of a decaying learning rate.

    Gradients are taken at y = (1 - b1) z + b1 x; z <- z - lr (g / (sqrt(vhat) + eps) + wd y); x averages z.

    Args:
        params: Tensors, (name, tensor) pairs or group dicts.
        lr: Constant after its warmup; 1 to 10 times AdamW's.
        betas: b1 mixes z and x; b2 decays the second moment.
        eps: Added to the root of the second moment.
        weight_decay: At y, multiplied by lr.
        warmup_steps: Steps in which lr rises from 0; leave it 0 where a schedule does that, as recipes do.
        r: Power of the step in the weights of the average.
        weight_lr_power: Power of the rate in the weights of the average.

    Source: arXiv:2405.15682; facebookresearch/schedule_free, class AdamWScheduleFree.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([3.0, -2.0]))
        >>> optimizer = ScheduleFreeAdamW([weight], lr=0.5)
        >>> for _ in range(50):
        ...     optimizer.zero_grad()
        ...     weight.square().sum().backward()
        ...     optimizer.step()
        >>> optimizer.eval()
        >>> bool(weight.abs().max() < 0.5)
        True
    """

    def __init__(
        self,
        params: Any,
        lr: float = 2.5e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
    ) -> None:
        average = {"warmup_steps": warmup_steps, "r": r, "weight_lr_power": weight_lr_power}
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, **average)


class ScheduleFreeSGD(_ScheduleFree, SGDScheduleFree):
    """SGD whose averaged weights take the place of a decaying learning rate.

    Gradients are taken at y = (1 - momentum) z + momentum x; z <- z - lr (g + wd y); x averages z.

    Args:
        params: Tensors, (name, tensor) pairs or group dicts.
        lr: Constant after its warmup; 10 to 50 times SGD's.
        momentum: Mixes z and x.
        weight_decay: At y, multiplied by lr.
        warmup_steps: As in `ScheduleFreeAdamW`.
        r: As there.
        weight_lr_power: As there.

    Source: arXiv:2405.15682; facebookresearch/schedule_free, class SGDScheduleFree.

    Example:
        >>> ScheduleFreeSGD([torch.nn.Parameter(torch.ones(2))], lr=1.0).param_groups[0]["train_mode"]
        True
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
    ) -> None:
        average = {"warmup_steps": warmup_steps, "r": r, "weight_lr_power": weight_lr_power}
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay, **average)
