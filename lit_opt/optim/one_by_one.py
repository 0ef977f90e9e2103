"""A step that goes from parameter to parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class OneByOne(Optimizer):
    """Base of optimizers that update each parameter with a gradient by itself; a subclass defines `_update`.

    Example:
        >>> from lit_opt.optim import Adafactor
        >>> issubclass(Adafactor, OneByOne)
        True
    """

    _update: Callable[[Tensor, dict[str, Any]], None]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; returns what the closure returned, or None."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None and param.numel():
                    self._update(param, group)
        return loss
