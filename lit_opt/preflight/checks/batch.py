"""The global batch: whether the rate belongs to it, and whether the optimizer does."""

from __future__ import annotations

from collections.abc import Iterator

from lit_opt.preflight.evidence import Evidence
from lit_opt.preflight.finding import Check, Finding
from lit_opt.recipes import get_recipe
from lit_opt.resolve.lr import batch_rule
from lit_opt.scaling import batch_factor

# Below this nobody has published anything for LARS or LAMB; up to 8,192 tuned SGD and AdamW do as well.
_SMALL = 1024


def _not_scaled(e: Evidence) -> Iterator[Finding]:
    """The rate of a small batch at a large one."""
    group, batch = e.largest("adam", "sgd"), e.facts.global_batch
    if group is None or batch is None or group.lr <= 0:
        return
    row = e.row(group.method)
    rule = batch_rule(e.spec, row)
    own = row.settings.get(e.key) if row is not None else None
    value = e.spec.lr.base if e.spec.optimizer.number == group.method.name else own.lr if own is not None else None
    if rule is None or value is None or rule.unit != "samples":
        return
    published = float(value.number)  # type: ignore[arg-type]
    if batch < 4 * rule.reference:
        return
    wanted = published * batch_factor(batch, rule.reference, rule.rule, rule.limit)
    if group.lr > 1.2 * published or group.lr > 0.5 * wanted:
        return
    yield Finding(
        id="lr-not-scaled",
        level="note" if e.base == "diffusion" else "warning",
        message=f"The learning rate is one for a batch of {rule.reference:,}, and the batch of the run is {batch:,}.",
        evidence=f"{group.label}: lr {group.lr:g}; {published:g} at {rule.reference:,} is {wanted:.3g} at {batch:,} "
        f"({rule.rule.replace('_', ' ')})",
        why="A larger batch makes fewer steps; at the old rate they cover less ground, and the run ends early on its curve. "
        f"Practice: {value.common_practice}.",
        source=value.source,
        fix=f"lr={wanted:.3g}; Recipe scales it with the batch, base_lr= gives a rate that belongs to base_batch_size=.",
    )


def _large_batch_optimizer(e: Evidence) -> Iterator[Finding]:
    """LARS or LAMB at a batch where SGD or AdamW does as well."""
    batch = e.facts.global_batch
    group = e.largest("layerwise")
    spec = get_recipe("large_batch/lars")
    if group is None or batch is None or spec.moderate_batch is None:
        return
    moderate = int(spec.moderate_batch.number)  # type: ignore[arg-type]
    if batch > moderate:
        return
    name = group.method.name.upper()
    yield Finding(
        id="large-batch-optimizer",
        level="warning" if batch < _SMALL else "note",
        message=f"{name} is made for very large batches, and this one is {'small' if batch < _SMALL else 'moderate'}.",
        evidence=f"global batch {batch:,}; {name} is published at 2,048 to 65,536, and up to {moderate:,} tuned SGD or AdamW "
        "does as well",
        why="Trust ratios trade tuning for stability at batches where other methods diverge. Below, they add two "
        "hyperparameters and gain nothing.",
        source=spec.moderate_batch.source,
        fix='SGD with momentum (Recipe("cnn")) or AdamW (Recipe("vit")), with the rate scaled to the batch.',
    )


CHECKS = (
    Check(
        id="lr-not-scaled",
        looks_for="a rate that was not scaled with the batch",
        find=_not_scaled,
        needs=("batch",),
        settings=("vit", "cnn", "diffusion", "large_batch"),
    ),
    Check(
        id="large-batch-optimizer",
        looks_for="LARS or LAMB at a moderate batch",
        find=_large_batch_optimizer,
        needs=("batch",),
    ),
)
