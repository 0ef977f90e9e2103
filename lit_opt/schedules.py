"""WHEN: learning-rate schedules as closed forms, lr = peak x factor(step). No torch, no state.

A closed form is exact on resume and right at once when the horizon changes, where SequentialLR, LambdaLR and
OneCycleLR are not (they accumulate, or keep the old horizon for a step).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# Kind -> the fields of a DecaySpec that it uses.
FIELDS_OF_KIND: dict[str, tuple[str, ...]] = {
    "cosine": ("final",),
    "linear": ("final",),
    "polynomial": ("final", "power"),
    "step": ("milestones", "gamma"),
    "constant": (),
    "wsd": ("final", "cooldown"),
}
KINDS = tuple(FIELDS_OF_KIND)


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """Linear warmup, then a decay.

    Args:
        total_steps: Horizon in optimizer steps; None is possible for "constant" only.
        warmup_steps: Optimizer steps of warmup.
        warmup_start: Fraction of the peak that the warmup starts from. Step 0 is already one part above it.
        kind: One of `KINDS`.
        final: Fraction of the peak at `total_steps`.
        power: Exponent of "polynomial".
        milestones: Optimizer steps at which "step" multiplies by `gamma`.
        gamma: Factor of "step".
        cooldown_steps: Length of the last, linear phase of "wsd" in optimizer steps.

    Example:
        >>> cosine = Schedule(total_steps=100, warmup_steps=10, kind="cosine", final=0.1)
        >>> round(factor(cosine, 10), 3), round(factor(cosine, 55), 3), round(factor(cosine, 100), 3)
        (1.0, 0.55, 0.1)
    """

    total_steps: int | None
    warmup_steps: int = 0
    warmup_start: float = 0.0
    kind: str = "cosine"
    final: float = 0.0
    power: float = 1.0
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    cooldown_steps: int = 0


def factor(schedule: Schedule, step: int) -> float:
    """Fraction of the peak learning rate at optimizer step `step`, counted from 0.

    The warmup reaches the peak at step `warmup_steps`; the decay reaches `final` at step `total_steps` and
    stays there.

    Example:
        >>> linear = Schedule(total_steps=10, warmup_steps=4, kind="linear")
        >>> [round(factor(linear, step), 2) for step in range(11)]
        [0.2, 0.4, 0.6, 0.8, 1.0, 0.83, 0.67, 0.5, 0.33, 0.17, 0.0]
    """
    s = schedule
    if step < s.warmup_steps:
        return s.warmup_start + (1.0 - s.warmup_start) * (step + 1) / (s.warmup_steps + 1)
    if s.kind == "constant":
        return 1.0
    if s.kind == "step":
        return s.gamma ** sum(step >= m for m in s.milestones)
    if s.total_steps is None:
        raise ValueError(f"total_steps: the schedule {s.kind!r} needs a horizon.")
    start = s.total_steps - s.cooldown_steps if s.kind == "wsd" else s.warmup_steps
    # A run of a few steps may have no cooldown: max() keeps its end from being divided by.
    progress = 1.0 if step >= s.total_steps else max(0.0, (step - start) / max(1, s.total_steps - start))
    return s.final + (1.0 - s.final) * _remaining(s, progress)


def _remaining(s: Schedule, progress: float) -> float:
    if s.kind == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    if s.kind in ("linear", "wsd"):
        return 1.0 - progress
    if s.kind == "polynomial":
        return float((1.0 - progress) ** s.power)
    raise ValueError(f"decay: {s.kind!r} is unknown. Known: {', '.join(KINDS)}.")
