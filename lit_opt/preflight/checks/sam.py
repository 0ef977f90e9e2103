"""SAM: two gradients a step, which accumulation and the gradient scaler break."""

from __future__ import annotations

from collections.abc import Iterator

from lit_opt.preflight.evidence import Evidence
from lit_opt.preflight.finding import Check, Finding
from lit_opt.preflight.methods import is_sam


def _accumulation(e: Evidence) -> Iterator[Finding]:
    """SAM with accumulated gradients."""
    assert e.trainer is not None
    name = _sam(e)
    if not name or e.trainer.accumulation <= 1 or not e.trainer.automatic:
        return
    n = e.trainer.accumulation
    yield Finding(
        id="sam-accumulation",
        level="error",
        message=f"{name} and accumulate_grad_batches={n} do not go together.",
        evidence=f"the second pass adds to the {n} micro-batches of the first: its gradient is {1 + 1 / n:.2g} times as long, "
        "measured",
        why="Lightning clears gradients once for each accumulated step, so the second of SAM's two passes sums over the first. "
        "Nothing raises.",
        source="Lightning loops/optimization/automatic.py; Lightning#16143",
        fix="accumulate_grad_batches=1 with a larger batch_size, or an optimizer with one pass.",
    )


def _precision(e: Evidence) -> Iterator[Finding]:
    """SAM with the gradient scaler."""
    assert e.trainer is not None
    name = _sam(e)
    if not name or not e.trainer.precision.startswith("16-mixed"):
        return
    yield Finding(
        id="sam-precision",
        level="error",
        message=f"{name} cannot run under 16-mixed.",
        evidence="under 16-mixed Lightning calls optimizer.step() without the closure, which SAM needs for its second pass",
        why="The gradients of the two passes would be scaled differently as well.",
        source="Lightning plugins/precision/amp.py",
        fix='Trainer(precision="bf16-mixed"), which needs no scaler.',
    )


def _sam(e: Evidence) -> str:
    return next((type(optimizer).__name__ for optimizer in e.optimizers if is_sam(optimizer)), "")


CHECKS = (
    Check(id="sam-accumulation", looks_for="SAM with accumulation", find=_accumulation, needs=("trainer",)),
    Check(id="sam-precision", looks_for="SAM under 16-mixed", find=_precision, needs=("trainer",)),
)
