"""When the schedule turns, in steps, epochs and tokens."""

from __future__ import annotations

from dataclasses import dataclass

from lit_opt.resolve.resolved import RunFacts
from lit_opt.schedules import Schedule, factor


@dataclass(frozen=True, kw_only=True, slots=True)
class Milestone:
    """A step at which something happens.

    Args:
        what: In words.
        step: Optimizer step, from 0.
        epoch: Epochs done before it; None where the steps of an epoch are unknown.
        samples: Samples seen before it; None where the global batch is unknown.
        tokens: Tokens seen before it; None where the tokens of a batch are unknown.
        factor: Fraction of the peak learning rate that the step uses.

    Example:
        >>> Milestone(what="peak", step=10, factor=1.0).tokens is None
        True
    """

    what: str
    step: int
    epoch: float | None = None
    samples: int | None = None
    tokens: int | None = None
    factor: float


def milestones(schedule: Schedule, facts: RunFacts) -> list[Milestone]:
    """The turns of a schedule, in order.

    Args:
        schedule: Of a resolved recipe; one without a horizon has no end.
        facts: Steps of an epoch and the batch, where they are known.

    Example:
        >>> schedule = Schedule(total_steps=100, warmup_steps=10, kind="wsd", cooldown_steps=20)
        >>> for m in milestones(schedule, RunFacts(steps_per_epoch=50, tokens_per_batch=1000)):
        ...     print(m.step, m.what, m.epoch, m.tokens, round(m.factor, 3))
        0 first step 0.0 0 0.091
        10 peak, the warmup is over 0.2 10000 1.0
        50 half of the run 1.0 50000 1.0
        80 cooldown begins 1.6 80000 1.0
        99 last step 1.98 99000 0.05
    """
    total, warmup = schedule.total_steps, schedule.warmup_steps
    turns = [(0, "first step")]
    if warmup:
        turns.append((warmup, "peak, the warmup is over"))
    if total is not None:
        if schedule.kind == "step":
            turns += [(step, f"rate x {schedule.gamma:g}") for step in schedule.milestones if step < total]
        elif schedule.kind == "wsd" and schedule.cooldown_steps:
            turns.append((total - schedule.cooldown_steps, "cooldown begins"))
        if warmup < total // 2:
            turns.append((total // 2, "half of the run"))
        turns.append((total - 1, "last step"))
    words: dict[int, list[str]] = {}
    for step, what in sorted(turns, key=lambda turn: turn[0]):
        words.setdefault(step, []).append(what)
    return [
        Milestone(
            what=", ".join(what),
            step=step,
            epoch=None if facts.steps_per_epoch is None else step / facts.steps_per_epoch,
            samples=None if facts.global_batch is None else step * facts.global_batch,
            tokens=None if facts.tokens_per_batch is None else step * facts.tokens_per_batch,
            factor=factor(schedule, step),
        )
        for step, what in words.items()
    ]
