"""Averaged weights: whether there are any, whether they are used, and what they remember."""

from __future__ import annotations

from collections.abc import Iterator

from lit_opt.averaging import ema_window
from lit_opt.preflight.evidence import Averaging, Evidence
from lit_opt.preflight.finding import Check, Finding, percent

# EDM2 tracks standard deviations of 5 and 10 % of the run; what is known to work is below this share.
_LARGEST = 0.15


def _window(e: Evidence) -> Iterator[Finding]:
    """An average that remembers too much of the run."""
    total = e.facts.total_steps
    assert total is not None
    for average in e.averages or ():
        if average.decay is None:
            continue
        updates = max(0, total - average.start) // average.every
        if updates == 0:
            yield _finding(
                average,
                "error",
                f"{average.what} never begins.",
                f"it starts at step {average.start:,}, the run has {total:,}",
                total,
            )
            continue
        held = min(ema_window(average.decay, average.warmup, updates), updates) * average.every
        start = average.decay**updates if not average.warmup else 0.0
        if start > 0.5:
            yield _finding(
                average,
                "error",
                f"{average.what} is mostly the weights that the run began with.",
                f"after {updates:,} updates they still hold {percent(start)} of the average",
                total,
            )
        elif held > _LARGEST * total:
            yield _finding(
                average,
                "warning",
                f"{average.what} averages over too much of the run.",
                f"half of its weight lies in the last {held:,} of {total:,} steps: {percent(held / total)} of the run"
                + (f"; the first weights still hold {percent(start)}" if start > 0.001 else ""),
                total,
            )


def _finding(average: Averaging, level: str, message: str, evidence: str, total: int) -> Finding:
    fitting = next((d for d in (0.9999, 0.9995, 0.999, 0.99) if ema_window(d, False, total) <= 0.1 * total), 0.9)
    return Finding(
        id="ema-window",
        level=level,  # type: ignore[arg-type]
        message=message,
        evidence=evidence,
        why="Old weights are worse weights: validation then shows a run that is behind itself. Published windows are 5 to 10 % "
        "of a run.",
        source="EDM2 training/phema.py (0.05 and 0.10 of the run); torchvision train.py rescales its decay with the run",
        fix=f"decay={fitting:g} for {total:,} steps, or the warm-up min(decay, (1 + n) / (10 + n)): lit_opt.EMA has it.",
    )


def _unused(e: Evidence) -> Iterator[Finding]:
    """An average that no evaluation looks at."""
    for average in e.averages or ():
        if average.evaluated is not False:
            continue
        yield Finding(
            id="ema-unused",
            level="warning",
            message=f"{average.what} is kept, and no evaluation uses it.",
            evidence="no method for validation, test, prediction or sampling mentions it",
            why="The averages are the better weights; a checkpoint chosen by the raw ones, and samples drawn from them, miss "
            "what was paid for.",
            source="DiT train.py and sample.py (samples come from the EMA weights); Lightning#10914",
            fix="lit_opt.EMA(decay=...) as a callback swaps the averages in for validation, test and prediction.",
        )


def _missing(e: Evidence) -> Iterator[Finding]:
    """Diffusion without averages."""
    if e.averages or any("schedule_free" in group.method.name or group.method.name == "splus" for group in e.groups):
        return
    spec = e.spec.ema
    yield Finding(
        id="ema-missing",
        level="warning",
        message="No averaged weights are kept.",
        evidence="no EMA among the callbacks or on the module",
        why="The loss of a diffusion model hardly shows it, its samples do: every published recipe draws them from averaged "
        f"weights. Practice: {spec.common_practice}.",
        source=spec.source,
        fix='Trainer(callbacks=[lit_opt.EMA(decay=0.9999)]), or Recipe("diffusion"), which brings it.',
    )


CHECKS = (
    Check(
        id="ema-window",
        looks_for="an average that remembers too much of the run",
        find=_window,
        needs=("averages", "horizon"),
    ),
    Check(id="ema-unused", looks_for="averages that no evaluation uses", find=_unused, needs=("averages",)),
    Check(
        id="ema-missing",
        looks_for="diffusion without averages",
        find=_missing,
        needs=("averages", "trainer"),
        settings=("diffusion",),
    ),
)
