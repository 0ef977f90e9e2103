"""What can be read off a scheduler: its rate at any step, and the length it was made for."""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch.optim import lr_scheduler as torch_schedulers

from lit_opt.callbacks.lr_scheduler import RecipeLR

_BY_LAST_EPOCH = (
    torch_schedulers.LambdaLR,
    torch_schedulers.OneCycleLR,
    torch_schedulers.CyclicLR,
    RecipeLR,
)


def is_timm(scheduler: Any) -> bool:
    """Whether it follows timm's protocol: told the epoch, or the number of updates.

    Example:
        >>> is_timm(object())
        False
    """
    return hasattr(scheduler, "step_update") and hasattr(scheduler, "t_in_epochs")


def has_closed_form(scheduler: Any) -> bool:
    """Whether its rate can be asked for at any step, without stepping through.

    Example:
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
        >>> has_closed_form(torch.optim.lr_scheduler.StepLR(optimizer, 30))
        True
    """
    if isinstance(scheduler, torch_schedulers.SequentialLR):
        # A sequence inside a sequence is begun by torch in a way of its own.
        parts = scheduler._schedulers
        return all(has_closed_form(part) and not isinstance(part, torch_schedulers.SequentialLR) for part in parts)
    if type(scheduler) is torch_schedulers.CosineAnnealingWarmRestarts or type(scheduler) in _BY_LAST_EPOCH:
        return True
    # Of torch's own: in a subclass the two forms may differ.
    ours = type(scheduler).__module__ == torch_schedulers.__name__
    return ours and hasattr(scheduler, "_get_closed_form_lr")


def rates_at(scheduler: Any, calls: int) -> Sequence[Any]:
    """The rate of each group after so many calls; the scheduler is changed, so it has to be a copy.

    Example:
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
        >>> rates = rates_at(torch.optim.lr_scheduler.LinearLR(optimizer, 0.5, total_iters=10), 5)
        >>> round(rates[0], 6)
        0.075
    """
    if isinstance(scheduler, torch_schedulers.SequentialLR):
        part = bisect_right(scheduler._milestones, calls)
        return rates_at(scheduler._schedulers[part], calls - (scheduler._milestones[part - 1] if part else 0))
    if isinstance(scheduler, torch_schedulers.CosineAnnealingWarmRestarts):
        scheduler.step(calls)
        return scheduler.get_last_lr()
    scheduler.last_epoch = calls
    if type(scheduler) in _BY_LAST_EPOCH:
        return scheduler.get_lr()
    return scheduler._get_closed_form_lr()


def natural_length(scheduler: Any) -> int | None:
    """Calls after which a scheduler has reached its end, by its own arguments; None where they do not say.

    Example:
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
        >>> natural_length(torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=500))
        500
    """
    s = torch_schedulers
    if isinstance(scheduler, s.SequentialLR):
        # Of a constant tail after a warmup there is no end; of a decay there is.
        last = natural_length(scheduler._schedulers[-1])
        return None if last is None else (scheduler._milestones[-1] if scheduler._milestones else 0) + last
    if isinstance(scheduler, s.ChainedScheduler):
        return max((n for part in scheduler._schedulers if (n := natural_length(part)) is not None), default=None)
    if isinstance(scheduler, s.CosineAnnealingLR):
        return int(scheduler.T_max)
    if isinstance(scheduler, s.OneCycleLR):
        return int(scheduler.total_steps)
    if isinstance(scheduler, s.LinearLR | s.PolynomialLR | s.ConstantLR):
        return int(scheduler.total_iters)
    if isinstance(scheduler, s.MultiStepLR):
        return max(scheduler.milestones, default=None)
    if isinstance(scheduler, RecipeLR):
        total = scheduler.schedule.total_steps
        return None if scheduler.schedule.kind == "constant" else total
    if isinstance(scheduler, s.LambdaLR):
        for function in scheduler.lr_lambdas:
            keywords = function.keywords if isinstance(function, partial) else {}
            if isinstance(keywords.get("num_training_steps"), int | float):
                return int(keywords["num_training_steps"])
        return None
    if is_timm(scheduler) and isinstance(getattr(scheduler, "t_initial", None), int | float):
        warmup = scheduler.warmup_t if getattr(scheduler, "warmup_prefix", False) else 0
        return int(scheduler.t_initial + warmup) if getattr(scheduler, "cycle_limit", 1) == 1 else None
    return None


class _StandIn(torch.optim.Optimizer):
    """Has the options of another optimizer's groups, and nothing to optimize."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Nothing."""


def stand_in(optimizer: Any) -> torch.optim.Optimizer:
    """An optimizer with the same options, and one dummy number in each group.

    Example:
        >>> adam = torch.optim.AdamW([torch.zeros(5)], lr=0.1)
        >>> stand_in(adam).param_groups[0]["lr"]
        0.1
    """
    options = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    for group in options:
        group.pop("param_names", None)
    defaults = dict(getattr(optimizer, "defaults", {}))
    return _StandIn([{"params": [torch.zeros(1)], **copy.deepcopy(group)} for group in options], defaults)
