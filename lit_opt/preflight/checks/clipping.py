"""Gradient clipping: missing, twice, or refused."""

from __future__ import annotations

from collections.abc import Iterator

from lit_opt.preflight.evidence import Evidence
from lit_opt.preflight.finding import Check, Finding


def _no_clipping(e: Evidence) -> Iterator[Finding]:
    """A language model from scratch without clipping."""
    t = e.trainer
    assert t is not None
    by_hand = e.code.mentions("clip_grad") or e.code.mentions("clip_gradients")
    if t.clip > 0 or t.own_clipping or by_hand or not t.automatic:
        return
    kinds = {group.method.kind for group in e.groups if group.size}
    if "adam" not in kinds or "matrix" in kinds:
        return  # Muon's update has a fixed length: nanochat, Moonlight and KellerJordan/Muon do not clip
    yield Finding(
        id="no-clipping",
        level="warning",
        message="Gradients are not clipped.",
        evidence="gradient_clip_val is not set",
        why="A batch with an unusual gradient then moves every weight, and Adam's second moment remembers it. Nearly all "
        "language models are trained with a global norm of 1.",
        source=e.spec.clip.source,
        fix=f"Trainer(gradient_clip_val={e.spec.clip.number:g}); Recipe brings it.",
    )


def _clipping_twice(e: Evidence) -> Iterator[Finding]:
    """Clipping in front of an optimizer that limits by itself."""
    t = e.trainer
    assert t is not None
    if t.clip <= 0:
        return
    for group in e.groups:
        if not group.method.clips or not group.members:
            continue
        yield Finding(
            id="clipping-twice",
            level="note" if group.method.kind == "factored" else "warning",
            message=f"Gradients are clipped, and {group.method.name} limits them or its update as well.",
            evidence=f"{t.clip_by} {t.clip:g}; {group.label}: {group.method.clips}",
            why="Two limits act one after the other, and neither number means what it says. Transformers' documentation "
            "advises against clipping beside Adafactor; LARS and LAMB are published without it or with their own."
            if group.method.kind == "factored"
            else "Two limits act one after the other, and neither number means what it says: the outer one changes nothing or "
            "breaks the ratio that the optimizer was tuned for.",
            source="timm/optim/lamb.py max_grad_norm, mlcommons/training lars_optimizer.py; transformers Adafactor",
            fix="Keep one: gradient_clip_val=None (Recipe: clip=0), or max_grad_norm=None for timm's Lamb.",
        )
        return


def _fused_clipping(e: Evidence) -> Iterator[Finding]:
    """A fused step that unscales by itself, with Lightning's clipping under mixed precision."""
    t = e.trainer
    assert t is not None
    if t.clip <= 0 or t.own_clipping or not t.precision.endswith("-mixed") or not t.automatic:
        return
    for optimizer in e.optimizers:
        if not getattr(optimizer, "_step_supports_amp_scaling", False):
            continue
        yield Finding(
            id="fused-clipping",
            level="error",
            message=f"Lightning cannot clip for a fused {type(optimizer).__name__} under {t.precision}, and raises.",
            evidence=f"gradient_clip_val {t.clip:g}, precision {t.precision!r}, fused=True",
            why="A fused step unscales gradients inside, after clipping would have to happen.",
            source="Lightning plugins/precision/amp.py clip_gradients, Lightning#21435",
            fix="fused=False; or, since bf16 needs no scaling, optimizer._step_supports_amp_scaling = False; Recipe does that.",
        )
        return


CHECKS = (
    Check(
        id="no-clipping",
        looks_for="no clipping for a language model",
        find=_no_clipping,
        needs=("trainer",),
        settings=("llm",),
    ),
    Check(
        id="clipping-twice",
        looks_for="clipping beside an optimizer that clips",
        find=_clipping_twice,
        needs=("trainer",),
    ),
    Check(id="fused-clipping", looks_for="fused plus clipping under AMP", find=_fused_clipping, needs=("trainer",)),
)
