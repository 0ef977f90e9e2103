"""Lightning's learning-rate finder beside a recipe: it gives every group the same rate, ours keep their ratios."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer


def keep_ratios(trainer: Any, optimizer: Optimizer, peaks: list[float]) -> None:
    """While the finder runs, scale each group's rate by its share of the largest peak.

    The finder replaces the Trainer's callbacks and the scheduler, so the optimizer's own hooks are the only
    place left. Outside the finder they do nothing.
    """
    ratios = [peak / max(peaks) for peak in peaks]
    if all(ratio == 1.0 for ratio in ratios):
        return

    def scale(ratios: list[float]) -> None:
        if finder_is_running(trainer):
            for group, ratio in zip(optimizer.param_groups, ratios, strict=False):
                group["lr"] *= ratio

    optimizer.register_step_pre_hook(lambda *_: scale(ratios))
    optimizer.register_step_post_hook(lambda *_: scale([1.0 / r if r else 1.0 for r in ratios]))


def finder_is_running(trainer: Any) -> bool:
    """Whether the Trainer's schedule is the finder's."""
    return any(type(c.scheduler).__module__.endswith("tuner.lr_finder") for c in trainer.lr_scheduler_configs)


def suggested_lr(trainer: Any) -> float | None:
    """The suggestion of a LearningRateFinder among the Trainer's callbacks."""
    for callback in trainer.callbacks:
        found = getattr(callback, "optimal_lr", None)
        if type(callback).__name__ == "LearningRateFinder" and found is not None:
            suggestion = found.suggestion()
            return None if suggestion is None else float(suggestion)
    return None
