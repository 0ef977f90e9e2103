"""What a scheduler will do in a run, found by playing a copy of it on stand-in groups.

Nothing of the user's is stepped: the scheduler is copied, and in the copy a stand-in with the same groups and one dummy
number each takes the optimizer's place. Schedulers with a closed form are asked at any step; the others are stepped.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.optim import lr_scheduler as torch_schedulers

from lit_opt.preflight.schedulers import has_closed_form, is_timm, natural_length, rates_at, stand_in

# Schedulers without a closed form are stepped at most so far; up to so many steps each one is looked at.
MOST_STEPS = 10_000
EVERY_STEP = 2_000
# Doublings of the run within which an end of the schedule is looked for.
_DOUBLINGS = 13


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The learning rates of one optimizer over the run.

    Args:
        optimizer: Its index.
        scheduler: Class name of the scheduler, "" for none.
        interval: "step" or "epoch": what it is stepped after.
        frequency: Every how many of these.
        steps: Optimizer steps that were looked at, ascending from 0; empty where the curve is unknown.
        rates: For each of them the rate of each group.
        peaks: The highest rate of each group in the run; where the curve is unknown, what is known of it.
        bases: Rate that each group was given (`initial_lr`).
        calls: How often the scheduler is stepped in the run; None where unknown.
        length: Calls after which it has reached its end; None where it has none or hides it.
        fails_at: Optimizer step at which it raises, or None.
        unknown: Why there is no curve; "" where there is one.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
        >>> cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
        >>> curve = play(cosine, optimizer, index=0, interval="step", total_steps=11)
        >>> curve.length, [round(curve.rates[i][0], 3) for i in (0, 5, 10)]
        (10, [0.1, 0.05, 0.0])
    """

    optimizer: int
    scheduler: str = ""
    interval: str = "step"
    frequency: int = 1
    steps: tuple[int, ...] = ()
    rates: tuple[tuple[float, ...], ...] = ()
    peaks: tuple[float, ...] = ()
    bases: tuple[float, ...] = ()
    calls: int | None = None
    length: int | None = None
    fails_at: int | None = None
    unknown: str = ""

    def shape(self) -> list[float]:
        """The rates as fractions of the peak, of the group with the highest."""
        if not self.steps:
            return []
        g = max(range(len(self.peaks)), key=self.peaks.__getitem__)
        return [rates[g] / self.peaks[g] if self.peaks[g] else 0.0 for rates in self.rates]

    @property
    def warmup_steps(self) -> int:
        """Optimizer steps before the peak is reached, 0 where the run begins at it (or above 90 % of it)."""
        shape = self.shape()
        if not shape or shape[0] >= 0.9:
            return 0
        return self.steps[next(i for i, x in enumerate(shape) if x >= 1 - 1e-6)]


def constant(optimizer: Any, index: int) -> Curve:
    """The curve of an optimizer without a scheduler.

    Example:
        >>> import torch
        >>> constant(torch.optim.SGD([torch.zeros(1)], lr=0.1), 0).peaks
        (0.1,)
    """
    rates = tuple(float(group["lr"]) for group in optimizer.param_groups)
    return Curve(optimizer=index, steps=(0,), rates=(rates,), peaks=rates, bases=rates)


def play(
    scheduler: Any,
    optimizer: Any,
    *,
    index: int,
    interval: str,
    frequency: int = 1,
    total_steps: int | None,
    steps_per_epoch: float | None = None,
    accumulation: int = 1,
    keep: Sequence[object] = (),
) -> Curve:
    """Play a copy of a scheduler through the run, as Lightning would step it.

    Args:
        scheduler: Of torch, timm, transformers or one's own; it is not changed.
        optimizer: The one it belongs to; it is not changed.
        index: Of the optimizer.
        interval: "step" or "epoch".
        frequency: Every how many of these.
        total_steps: Optimizer steps of the run.
        steps_per_epoch: Optimizer steps an epoch.
        accumulation: Batches an optimizer step; Lightning counts `frequency` in batches.
        keep: Objects that the scheduler may hold and that are not to be copied, such as the module.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
        >>> drops = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2)
        >>> curve = play(drops, optimizer, index=0, interval="epoch", total_steps=40, steps_per_epoch=10)
        >>> curve.steps, [round(rates[0], 3) for rates in curve.rates], drops.last_epoch
        ((0, 10, 20, 30), [0.1, 0.1, 0.01, 0.01], 0)
    """
    bases = tuple(float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups)
    about: dict[str, Any] = {
        "optimizer": index,
        "scheduler": type(scheduler).__name__,
        "interval": interval,
        "frequency": frequency,
        "bases": bases,
    }
    if isinstance(scheduler, torch_schedulers.ReduceLROnPlateau):
        why = "ReduceLROnPlateau follows a metric, which is not known before the run"
        return Curve(**about, peaks=_now(optimizer), unknown=why)
    if is_timm(scheduler):
        # Its own unit decides, whatever `interval` says: the caller passes it the epoch or the number of updates.
        interval = "epoch" if scheduler.t_in_epochs else "step"
        about["interval"], frequency = interval, 1
    per_call = _steps_per_call(interval, frequency, steps_per_epoch, accumulation)
    try:
        player = _Player(scheduler, optimizer, keep)
    except Exception as error:  # somebody else's objects: whatever cannot be copied is not judged
        return Curve(**about, peaks=bases, unknown=f"{type(scheduler).__name__} cannot be copied ({error})")
    length = natural_length(scheduler)
    if total_steps is None or per_call is None:
        missing = "the horizon of the run is" if total_steps is None else "the steps of an epoch are"
        return Curve(**about, peaks=player.peaks(bases), length=length, unknown=f"{missing} unknown")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _played(player, about, total_steps, per_call, length, bases)


def _played(
    player: _Player, about: dict[str, Any], total: int, per_call: float, length: int | None, bases: tuple[float, ...]
) -> Curve:
    calls = int((total - 1) / per_call)
    steps, rates, fails_at, unknown = [], [], None, ""
    for call in _grid(calls, player.jumps):
        step = math.ceil(call * per_call)
        if call > MOST_STEPS and not player.jumps:
            unknown = f"it has no closed form, and only the first {MOST_STEPS:,} steps were played"
            break
        try:
            now = player.rates(call)
        except Exception as error:
            if player.jumps:
                fails_at = math.ceil(player.first_failure(call) * per_call)
            elif isinstance(error, ValueError | LookupError | ArithmeticError | RuntimeError):
                fails_at = step
            else:
                unknown = f"{about['scheduler']} could not be played ({type(error).__name__}: {error})"
            break
        steps.append(step)
        rates.append(now)
    if player.jumps and fails_at is None and steps:
        try:
            player.rates(calls + 1)  # the call after the last optimizer step
        except Exception:
            fails_at = total
    if not steps:
        unknown = unknown or f"{about['scheduler']} could not be played"
        return Curve(**about, peaks=bases, length=length, fails_at=fails_at, unknown=unknown)
    steps, rates = player.refine_peak(steps, rates, per_call)
    peaks = tuple(max(column) for column in zip(*rates, strict=True))
    if length is None and fails_at is None and not unknown:
        length = player.measured_length(max(calls, 1), peaks)
    return Curve(
        **about,
        steps=tuple(steps),
        rates=tuple(rates),
        peaks=peaks,
        calls=calls + 1,
        length=length,
        fails_at=fails_at,
        unknown=unknown,
    )


class _Player:
    """A copy of a scheduler on stand-in groups."""

    def __init__(self, scheduler: Any, optimizer: Any, keep: Sequence[object]) -> None:
        self.shell = stand_in(optimizer)
        memo: dict[int, Any] = {id(thing): thing for thing in keep}
        memo[id(optimizer)] = self.shell
        self.copy = copy.deepcopy(scheduler, memo)
        self.calls = 0
        self.jumps = is_timm(scheduler) or has_closed_form(self.copy)
        if not self.jumps and getattr(scheduler, "last_epoch", 0) != 0:
            raise ValueError("it has been stepped already, and it has no closed form")

    def rates(self, calls: int) -> tuple[float, ...]:
        """The rate of each group after so many calls; ascending where there is no closed form."""
        if is_timm(self.copy):
            (self.copy.step if self.copy.t_in_epochs else self.copy.step_update)(calls)
        elif self.jumps:
            return tuple(float(rate) for rate in rates_at(self.copy, calls))
        else:
            while self.calls < calls:
                self.copy.step()
                self.calls += 1
        return _now(self.shell)

    def peaks(self, bases: tuple[float, ...]) -> tuple[float, ...]:
        """The highest rates at powers of two, where the horizon is unknown."""
        found = [bases]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for power in range(18 if self.jumps else 12):
                try:
                    found.append(self.rates(2**power))
                except Exception:
                    break
        return tuple(max(column) for column in zip(*found, strict=True))

    def first_failure(self, fails: int) -> int:
        """The first call that raises, where call `fails` does."""
        works = 0
        while fails - works > 1:
            middle = (works + fails) // 2
            try:
                self.rates(middle)
                works = middle
            except Exception:
                fails = middle
        return fails

    def refine_peak(
        self, steps: list[int], rates: list[tuple[float, ...]], per_call: float
    ) -> tuple[list[int], list[tuple[float, ...]]]:
        """Look at each call around the highest point, where calls were left out."""
        top = max(range(len(rates)), key=lambda i: max(rates[i]))
        low, high = steps[max(top - 1, 0)], steps[min(top + 1, len(steps) - 1)]
        if not self.jumps or high - low <= 2 * per_call:
            return steps, rates
        seen = dict(zip(steps, rates, strict=True))
        first, last = int(low / per_call), int(high / per_call)
        for call in range(first, last + 1, max(1, (last - first) // EVERY_STEP)):
            seen.setdefault(math.ceil(call * per_call), self.rates(call))
        ordered = sorted(seen)
        return ordered, [seen[step] for step in ordered]

    def measured_length(self, calls: int, peaks: tuple[float, ...]) -> int | None:
        """Calls after which nothing changes any more; None where that is not seen within 2 ** 13 runs."""
        if not self.jumps or is_timm(self.copy):
            return None
        try:
            last = self.rates(calls << _DOUBLINGS)
            if self.rates(calls << (_DOUBLINGS - 1)) != last or last == peaks:
                return None
            low, high = 0, calls << (_DOUBLINGS - 1)
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (low, middle) if self.rates(middle) == last else (middle, high)
            # An exponential ends in underflow only, which is no end.
            return high if max(self.rates(high // 2)) > 1e-4 * max(peaks) else None
        except Exception:
            return None


def _grid(calls: int, jumps: bool) -> list[int]:
    if calls <= EVERY_STEP or not jumps:
        return list(range(calls + 1))
    start = range(0, 201)
    return sorted({*start, *(round(i * calls / (EVERY_STEP // 2)) for i in range(EVERY_STEP // 2 + 1))})


def _steps_per_call(interval: str, frequency: int, steps_per_epoch: float | None, accumulation: int) -> float | None:
    if interval == "epoch":
        return None if steps_per_epoch is None else steps_per_epoch * frequency
    return math.lcm(frequency, accumulation) / accumulation


def _now(optimizer: Any) -> tuple[float, ...]:
    return tuple(float(group["lr"]) for group in optimizer.param_groups)
