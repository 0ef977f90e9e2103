"""What the text and the Markdown of a plan say in the same words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from lit_opt.explain.values import short
from lit_opt.preflight.finding import percent
from lit_opt.preflight.folding import Folded
from lit_opt.preflight.memory import gigabytes
from lit_opt.preflight.placement import KINDS
from lit_opt.preflight.plan import Plan


def fact_lines(plan: Plan) -> Iterator[str]:
    """What the plan was made for: the model, its numbers, devices, batch and horizon, a line each."""
    numbers, place, known = plan.parameters, plan.placement, plan.resolved.facts
    yield f"{plan.summary}."
    frozen = f", {numbers['frozen']:,} frozen" if numbers["frozen"] else ""
    yield f"{numbers['trainable']:,} trainable numbers, {numbers['outside_embeddings']:,} outside of embeddings{frozen}"
    devices = f"{place.devices:,} devices: {KINDS[place.kind]}" if place.devices > 1 else "1 device"
    yield f"{devices}; precision {place.precision}"
    if known.global_batch is not None:
        counted = (known.loader_batch, known.accumulation)
        line = f"global batch {known.global_batch:,}"
        if None not in counted and known.data_parallel_size is not None:
            line += (
                f" = loader {counted[0]:,} x accumulation {counted[1]:,} x data-parallel {known.data_parallel_size:,}"
            )
        yield line
    if known.tokens_per_batch is not None:
        yield f"{known.tokens_per_batch:,} tokens a step"
    if known.total_steps is not None:
        epoch = f", {known.steps_per_epoch:,.0f} an epoch" if known.steps_per_epoch else ""
        yield f"{known.total_steps:,} optimizer steps{epoch}"


def flops_lines(plan: Plan) -> Iterator[str]:
    """What the optimizer computes and sends beside the model; indented lines belong to the one before."""
    flops = plan.flops
    if flops is None:
        yield "unknown: the optimizer has no registry row"
        return
    if flops.share is not None and flops.model is not None:
        total = _power(flops.optimizer + flops.model)
        yield f"{_percent(flops.share)} of a device's operations in a step: {_power(flops.optimizer)} of {total}"
    else:
        yield f"{_power(flops.optimizer)} operations a step; the model's are unknown"
    if flops.examples and max(flops.examples.values()) < 0.001:
        yield f"  less than 0.1 % from {min(flops.examples):,} tokens a step on"
        flops = replace(flops, examples={})
    for tokens, share in flops.examples.items():
        yield f"  with {tokens:,} tokens a step it would be {_percent(share)}"
    if flops.sent is not None:
        yield f"for its matrices a device sends up to {gigabytes(flops.sent)} to others in a step"
    yield from flops.how


def _percent(share: float) -> str:
    return "less than 0.1 %" if share < 0.001 else percent(share)


def _power(operations: int) -> str:
    return short(float(f"{operations:.1e}"))


def rates(found: Sequence[Folded]) -> str:
    """The learning rate of some lines of the plan, or its range."""
    low, high = min(f.lr[0] for f in found), max(f.lr[1] for f in found)
    return short(high) if low == high else f"{short(_rounded(low))} .. {short(_rounded(high))}"


def _rounded(x: float) -> float:
    return float(f"{x:.2e}")


def shape_text(shape: tuple[int, ...]) -> str:
    """A shape as it is read aloud.

    Example:
        >>> shape_text((768, 3072)), shape_text(())
        ('768 x 3072', 'scalar')
    """
    return " x ".join(f"{n}" for n in shape) or "scalar"
