"""Lookahead: slow weights that follow the fast ones of any optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

from lit_opt.optim.wrapper import Wrapper


class Lookahead(Wrapper):
    """Every k steps of the base: slow <- slow + alpha (fast - slow); fast <- slow.

    The slow weights start where training starts (timm's start at the first sync, which makes that one do nothing) and
    lie in each parameter's state as "slow", so that checkpoints of any kind hold them. The base's own state is kept at
    a sync. Between two syncs the module has the fast weights, also in validation.

    Args:
        base: Any optimizer.
        k: Steps between two syncs.
        alpha: How far the slow weights go.

    Source: arXiv:1907.08610, algorithm 1.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
        >>> optimizer = Lookahead(torch.optim.SGD([weight], lr=0.1), k=2, alpha=0.5)
        >>> for _ in range(2):
        ...     weight.grad = torch.ones(1)
        ...     optimizer.step()
        >>> weight.data
        tensor([0.9000])
    """

    def __init__(self, base: Optimizer, *, k: int = 5, alpha: float = 0.5) -> None:
        super().__init__(base)
        for group in self.param_groups:
            group.setdefault("lookahead_steps", 0)
        self.k, self.alpha = k, alpha

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of the base, and every k-th time a sync; returns what the closure returned, or None."""
        # Not into the state yet: a base makes its own where it finds none.
        starts = {
            param: param.detach().clone()
            for group in self.param_groups
            for param in group["params"]
            if param.requires_grad and "slow" not in self.state.get(param, ())
        }
        loss = self.base.step(closure)
        for param, start in starts.items():
            if param.grad is not None:
                self.state[param]["slow"] = start
        for group in self.param_groups:
            group["lookahead_steps"] = group.get("lookahead_steps", 0) + 1
            if group["lookahead_steps"] % self.k:
                continue
            for param in group["params"]:
                slow = self.state.get(param, {}).get("slow")
                if slow is not None:  # one by one: foreach copies fail on DTensors
                    slow.lerp_(param.to(slow.dtype), self.alpha)
                    param.copy_(slow)
        return loss

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "k": self.k, "alpha": self.alpha}
