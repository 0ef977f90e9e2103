"""The learning rate over the run: warmup, decay, and whether both fit the run's length."""

from __future__ import annotations

import math
from collections.abc import Iterator

from lit_opt.preflight.curve import Curve
from lit_opt.preflight.evidence import Evidence
from lit_opt.preflight.finding import Check, Finding, Level, percent

# A warmup above this share of the run is long (Swin 6.7 %, RoBERTa 8 %, FLUX 10 %); large batches take up to 40 %.
_LONG = 0.2
_SHORT_RUN = 200
_DROPS = ("StepLR", "MultiStepLR")
_RESTARTS = ("CosineAnnealingWarmRestarts", "CyclicLR")


def _per_epoch(e: Evidence) -> Iterator[Finding]:
    """A schedule in steps that is stepped once an epoch."""
    total = e.facts.total_steps
    for curve in _known(e):
        if curve.interval != "epoch" or curve.calls is None or not total:
            continue
        epochs = curve.calls
        fix = (
            "t_in_epochs=False with step_update(num_updates=self.trainer.global_step), or lengths in epochs"
            if curve.scheduler.endswith("LRScheduler")  # timm's names
            else 'return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}'
        )
        if curve.length is not None and _nearer(curve.length, total, epochs) and curve.length >= 2 * epochs:
            yield Finding(
                id="schedule-per-epoch",
                level="error",
                message=f"{curve.scheduler} is {curve.length:,} long and is stepped once an epoch: that is steps, not epochs.",
                evidence=f"{_times(epochs)} in {total:,} optimizer steps; the rate goes from {_rate(curve, 0)} to "
                f"{_rate(curve, -1)}",
                why="Lightning's default interval is 'epoch', so a schedule made for steps hardly moves in the run.",
                source="Lightning configure_optimizers; lightning-bolts#716, Lightning#15340",
                fix=fix,
            )
        elif epochs <= 1 and total > 1 and curve.length is not None:
            yield Finding(
                id="schedule-per-epoch",
                level="warning",
                message=f"{curve.scheduler} is stepped after each epoch, and the run ends before that.",
                evidence=f"{total:,} optimizer steps in one epoch; the rate stays at {_rate(curve, 0)}",
                why="A schedule by epochs cannot move within an epoch.",
                source="Lightning configure_optimizers",
                fix=f"{fix} with its length in steps (self.trainer.estimated_stepping_batches).",
            )


def _nearer(length: int, steps: int, epochs: int) -> bool:
    return abs(math.log(length / steps)) < abs(math.log(max(length, 1) / max(epochs, 1)))


def _horizon(e: Evidence) -> Iterator[Finding]:
    """A schedule whose length is not the run's."""
    for curve in _known(e):
        found = _mismatch(e, curve)
        if found is None:
            continue
        level, message, evidence, why = found
        unit = "self.trainer.estimated_stepping_batches" if curve.interval == "step" else "self.trainer.max_epochs"
        yield Finding(
            id="horizon-mismatch",
            level=level,
            message=message,
            evidence=evidence,
            why=why,
            source="nanoGPT train.py (lr_decay_iters equals max_iters), arXiv:2203.15556 appendix B",
            fix=f"Take its length from the run: {unit}; Recipe does.",
        )


def _mismatch(e: Evidence, curve: Curve) -> tuple[Level, str, str, str] | None:
    total, shape = e.facts.total_steps, curve.shape()
    if not total or not shape or max(shape) == 0:
        return None
    name = curve.scheduler
    if curve.fails_at is not None:
        return (
            "error",
            f"{name} ends before the run does, and raises then.",
            f"it fails at optimizer step {curve.fails_at:,} of {total:,}"
            + (f" (its length is {curve.length:,})" if curve.length else ""),
            "The run stops with an exception there.",
        )
    calls = curve.calls or 0
    if name in _DROPS and max(shape) == min(shape) and total > 1:
        first = f"; its last drop is at {curve.length:,}" if curve.length else ""
        return (
            "warning",
            f"{name} never drops the rate in this run.",
            f"{_times(calls)}{first}",
            "The run ends before the schedule begins.",
        )
    if _rising(curve):
        return None  # an unfinished warmup has a check of its own
    length = curve.length
    peak = shape.index(max(shape))
    lowest = min(shape[peak:])
    ended = shape.index(lowest, peak)
    if name not in _RESTARTS and length is not None and length < 0.9 * calls and max(shape[ended:]) > lowest + 0.05:
        return (
            "error",
            f"{name} reaches its end within the run, and then the rate rises again.",
            f"lowest at optimizer step {curve.steps[ended]:,} of {total:,}, then up to "
            f"{percent(max(shape[ended:]))} of the peak; its length is {length:,}",
            "A cosine is periodic: past its end it climbs back to the peak.",
        )
    if name in _RESTARTS:
        return None
    alive = max(i for i, x in enumerate(shape) if x > 0.0101)
    vanished = alive + 1 if alive + 1 < len(shape) else None
    if vanished is not None and curve.steps[vanished] < 0.5 * total:
        unit = ", if its numbers are epochs, give interval='epoch'" if curve.interval == "step" else ""
        return (
            "error",
            f"{name} has brought the rate to nothing early in the run.",
            f"below 1 % of the peak from optimizer step {curve.steps[vanished]:,} of {total:,} on"
            + (f"; its length is {length:,}" if length else ""),
            f"Nothing is learned in {percent(1 - curve.steps[vanished] / total)} of the run{unit}.",
        )
    if name in _DROPS or length is None:
        return None
    if length > 1.1 * calls and not _nearer_steps(e, curve):
        return (
            "warning",
            f"{name} is longer than the run, so its end is never reached.",
            f"its length is {length:,}, the run steps it {calls:,} times and stops at {percent(shape[-1])} of the peak",
            "Most of what a decay gains is gained at its end: a schedule cut off early is worse than a shorter one.",
        )
    if length < 0.9 * calls and shape[-1] < 0.999 and lowest == shape[-1]:
        gone = shape[-1] <= 1e-3
        return (
            "warning" if gone else "note",
            f"{name} ends before the run does.",
            f"its length is {length:,}, the run steps it {calls:,} times: {percent(1 - length / calls)} of the run at "
            f"{percent(shape[-1])} of the peak",
            "Nothing is learned at that rate." if gone else "The tail runs at the lowest rate.",
        )
    return None


def _nearer_steps(e: Evidence, curve: Curve) -> bool:
    """Whether `per_epoch` says it already."""
    total = e.facts.total_steps or 0
    return (
        curve.interval == "epoch"
        and curve.length is not None
        and curve.length >= 2 * (curve.calls or 1)
        and _nearer(curve.length, total, curve.calls or 1)
    )


def _warmup_unfinished(e: Evidence) -> Iterator[Finding]:
    """A warmup that is longer than the run."""
    for curve in _known(e):
        if not _rising(curve) or _nearer_steps(e, curve):
            continue
        base = max(curve.bases, default=0.0)
        yield Finding(
            id="warmup-longer-than-run",
            level="error",
            message=f"{curve.scheduler} is still warming up when the run ends.",
            evidence=f"from {_rate(curve, 0)} to {_rate(curve, -1)} in {e.facts.total_steps:,} optimizer steps"
            + (f"; the optimizer was given {base:.3g}" if base > max(curve.peaks) * 1.001 else "")
            + (f"; stepped once an epoch, {_times(curve.calls or 0)}" if curve.interval == "epoch" else ""),
            why="The peak and all of the decay lie behind the end of the run.",
            source="field guide: warmup is 1 to 5 % of the steps",
            fix="A shorter warmup, or a longer run"
            + ('; and "interval": "step" if the warmup counts steps.' if curve.interval == "epoch" else "."),
        )


def _warmup_too_long(e: Evidence) -> Iterator[Finding]:
    """A warmup that takes a large part of the run."""
    total = e.facts.total_steps
    for curve in _known(e):
        if not total or _rising(curve) or curve.scheduler in ("OneCycleLR", *_RESTARTS):
            continue
        share = curve.warmup_steps / total
        large = e.base == "large_batch" or any(group.method.kind == "layerwise" for group in e.groups)
        if share <= (0.45 if large else _LONG):
            continue
        yield Finding(
            id="warmup-too-long",
            level="note" if curve.warmup_steps <= _SHORT_RUN else "warning",
            message=f"The warmup takes {percent(share)} of the run.",
            evidence=f"{curve.warmup_steps:,} of {total:,} optimizer steps",
            why="Published warmups are 0.05 to 10 % of a run (Swin 6.7 %, RoBERTa 8 %); only LARS and LAMB take up to 40 %. "
            "Steps below the peak are steps not used.",
            source="nanoGPT train.py (2000 of 600,000), arXiv:2106.10270; mlcommons/training for LARS",
            fix='warmup 2 % of the run, at most 2,000 steps for language models; Recipe(..., warmup="500 steps") sets it.',
        )


def _no_warmup(e: Evidence) -> Iterator[Finding]:
    """A run from scratch that begins at its peak."""
    batch = e.facts.global_batch or 0
    if any(group.method.kind == "matrix" for group in e.groups):
        return  # dion and modded-nanogpt begin at the peak
    for curve in e.curves:
        if curve.unknown or not curve.steps or curve.warmup_steps > 0:
            continue
        groups = [group for group in e.groups if group.optimizer == curve.optimizer and group.size]
        kinds = {group.method.kind for group in groups}
        if any(_needs_no_schedule(group.method.name) for group in groups):
            continue
        adam = "adam" in kinds and e.key in ("llm", "vit")
        large = bool(kinds & {"sgd", "layerwise"}) and e.base in ("cnn", "large_batch") and batch >= 1024
        if not adam and not large:
            continue
        recipe = e.spec.warmup.length
        if e.facts.total_steps and e.facts.total_steps * float(recipe.number) < 1:  # type: ignore[arg-type]
            continue  # too short a run for a step of it
        yield Finding(
            id="no-warmup",
            level="warning",
            message="The run begins at its peak learning rate: there is no warmup.",
            evidence=f"{_rate(curve, 0)} at step 0" + (f" with a batch of {batch:,}" if large else ""),
            why="Adam's second moment is an average over few steps at first, so its first updates are the largest and the "
            "least reliable; with a large batch the first steps diverge."
            if adam
            else "With a large batch and a rate scaled to it, the first steps diverge.",
            source=recipe.source if adam else "arXiv:1706.02677 (5 epochs of warmup)",
            fix=f"A linear warmup over {recipe.number:g} of the run" + ("; Recipe brings it." if adam else "."),
        )


def _no_schedule(e: Evidence) -> Iterator[Finding]:
    """A run from scratch at a constant rate."""
    for curve in e.curves:
        shape = curve.shape()
        if curve.unknown or not shape or min(shape) < 0.999 or (curve.length and curve.scheduler):
            continue
        if curve.scheduler in _DROPS or e.facts.total_steps == 1:
            continue
        if any(_needs_no_schedule(g.method.name) for g in e.groups if g.optimizer == curve.optimizer):
            continue
        decay = e.spec.decay.kind
        yield Finding(
            id="no-schedule",
            level="warning",
            message="The learning rate is constant: neither warmup nor decay.",
            evidence=f"{_rate(curve, 0)} throughout"
            + (f" ({curve.scheduler})" if curve.scheduler else ", no scheduler is configured"),
            why=f"Runs from scratch in this setting decay the rate ({decay.common_practice}); the last part of the decay is "
            "where much of the loss comes down.",
            source=decay.source,
            fix=f'Recipe("{e.key}") brings warmup and {decay.number}; by hand a LambdaLR with "interval": "step".',
        )


def _needs_no_schedule(name: str) -> bool:
    return "schedule_free" in name or name in ("prodigy", "dadaptadam", "radam", "splus")


def _known(e: Evidence) -> Iterator[Curve]:
    return (curve for curve in e.curves if curve.scheduler and not curve.unknown and curve.steps)


def _rising(curve: Curve) -> bool:
    """Begins low and has its highest rate only at the end of the run."""
    shape = curve.shape()
    last_rise = next((i for i, x in enumerate(shape) if x >= 1 - 1e-6), 0)
    return shape[0] < 0.9 and last_rise >= len(shape) - 1 and len(shape) > 1


def _rate(curve: Curve, at: int) -> str:
    return f"{max(curve.rates[at]):.3g}"


def _times(calls: int) -> str:
    return f"stepped {calls:,} time{'s' * (calls != 1)}"


_RUN = ("horizon", "schedule")
CHECKS = (
    Check(id="schedule-per-epoch", looks_for="a schedule in steps, stepped per epoch", find=_per_epoch, needs=_RUN),
    Check(id="horizon-mismatch", looks_for="a schedule that is not as long as the run", find=_horizon, needs=_RUN),
    Check(id="warmup-longer-than-run", looks_for="a warmup longer than the run", find=_warmup_unfinished, needs=_RUN),
    Check(id="warmup-too-long", looks_for="a long warmup", find=_warmup_too_long, needs=_RUN),
    Check(
        id="no-warmup",
        looks_for="a missing warmup",
        find=_no_warmup,
        needs=("schedule",),
        settings=("llm", "vit", "cnn", "large_batch"),
    ),
    Check(
        id="no-schedule",
        looks_for="a constant learning rate",
        find=_no_schedule,
        needs=("schedule",),
        settings=("llm", "vlm", "vit", "cnn", "large_batch"),
    ),
)
