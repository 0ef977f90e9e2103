"""The torch scheduler around a closed-form schedule: lr = peak x factor(step)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_opt.schedules import Schedule, factor


class RecipeLR(LRScheduler):
    """Sets each group's learning rate to its peak times the schedule's factor.

    The rate depends on the step alone, so a resume is bit-exact and a changed horizon is right at the next
    step. Groups that others add later (BackboneFinetuning) are left to them.

    Args:
        optimizer: Its groups hold their peaks in `lr`.
        schedule: The shape, in optimizer steps.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        >>> scheduler = RecipeLR(optimizer, Schedule(total_steps=4, kind="linear"))
        >>> _ = optimizer.step()
        >>> scheduler.step()
        >>> round(scheduler.get_last_lr()[0], 6)
        0.075
    """

    def __init__(self, optimizer: Optimizer, schedule: Schedule) -> None:
        self.schedule = schedule
        self.peaks = [float(group["lr"]) for group in optimizer.param_groups]
        super().__init__(optimizer)

    def get_lr(self) -> list[Any]:
        """Rates at the current step, one a group."""
        now = factor(self.schedule, self.last_epoch)
        others = self.optimizer.param_groups[len(self.peaks) :]
        return [peak * now for peak in self.peaks] + [group["lr"] for group in others]

    def apply(self, step: int) -> None:
        """Set the rates of optimizer step `step`, whatever was loaded or changed before."""
        self.last_epoch = step
        rates = self.get_lr()
        for group, lr in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = lr
        self._last_lr = rates

    def state_dict(self) -> dict[str, Any]:
        """Step, peaks and shape as plain data; loads with `torch.load(weights_only=True)`."""
        schedule = asdict(self.schedule) | {"milestones": list(self.schedule.milestones)}
        return {"last_epoch": self.last_epoch, "peaks": list(self.peaks), "schedule": schedule}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the step. Peaks and shape stay as configured: the schedule has no other memory."""
        self.apply(int(state_dict["last_epoch"]))
