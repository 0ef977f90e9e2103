"""What a recipe hints at and a callback cannot set: precision, label smoothing, memory format."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from lit_opt.preflight.evidence import Evidence
from lit_opt.preflight.finding import SETTINGS, Check, Finding
from lit_opt.recipes.schema import Value

_GPU = ("cuda", "gpu")


def _precision(e: Evidence) -> Iterator[Finding]:
    """Another precision than published, on a GPU."""
    hint = e.spec.hints.get("precision")
    t = e.trainer
    if hint is None or t is None or t.accelerator not in _GPU or t.precision.startswith("bf16"):
        return
    yield _hint(
        "precision-hint",
        hint,
        f"The run is in {t.precision}, published runs in {hint.number}.",
        f"precision {t.precision!r} on {t.accelerator}",
        "bf16 has the range of float32, so it needs no loss scaling; it is about twice as fast and takes half of the memory "
        "of activations.",
        f'Trainer(precision="{hint.number}")',
    )


def _label_smoothing(e: Evidence) -> Iterator[Finding]:
    """A classification loss without label smoothing."""
    hint = e.spec.hints.get("label_smoothing")
    if hint is None:
        return
    losses = [(name, m) for name, m in e.module.named_modules() if type(m) is nn.CrossEntropyLoss]
    plain = [name for name, m in losses if m.label_smoothing == 0]
    in_code = e.code.known and e.code.mentions("cross_entropy") and not e.code.mentions("label_smoothing")
    soft = e.code.mentions("mixup") or e.code.mentions("Mixup")
    if soft or not (plain or (in_code and not e.code.mentions("smooth"))):
        return
    yield _hint(
        "label-smoothing-hint",
        hint,
        "The loss has no label smoothing.",
        f"self.{plain[0]} is CrossEntropyLoss(label_smoothing=0.0)"
        if plain
        else "cross_entropy without label_smoothing=",
        "Published image recipes of this kind smooth labels; accuracies are compared with theirs.",
        f"nn.CrossEntropyLoss(label_smoothing={hint.number:g})",
    )


def _channels_last(e: Evidence) -> Iterator[Finding]:
    """Convolutions in torch's default memory format, on a GPU."""
    hint = e.spec.hints.get("channels_last")
    t = e.trainer
    if hint is None or t is None or t.accelerator not in _GPU:
        return
    kernels = [m.weight for m in e.module.modules() if isinstance(m, nn.Conv2d) and m.weight.shape[1] > 1]
    wide = [k for k in kernels if max(k.shape[2:]) > 1]
    plain = [k for k in wide if not k.is_contiguous(memory_format=torch.channels_last)]
    if not wide or not plain:
        return
    yield _hint(
        "channels-last-hint",
        hint,
        "Convolutions are in torch's default memory format.",
        f"{len(plain):,} of {len(wide):,} kernels are not channels_last",
        "Tensor cores work on NHWC; otherwise each convolution transposes.",
        "self.net.to(memory_format=torch.channels_last), and the same for the images",
    )


def _hint(id_: str, hint: Value, message: str, evidence: str, why: str, fix: str) -> Finding:
    return Finding(
        id=id_,
        level="note",
        message=message,
        evidence=evidence,
        why=f"{why} Practice: {hint.common_practice}.",
        source=hint.source,
        fix=fix,
    )


CHECKS = (
    Check(
        id="precision-hint",
        looks_for="another precision than published",
        find=_precision,
        needs=("trainer",),
        settings=SETTINGS,
    ),
    Check(
        id="label-smoothing-hint",
        looks_for="a missing label smoothing",
        find=_label_smoothing,
        settings=("vit", "vit/finetune", "cnn", "large_batch"),
    ),
    Check(
        id="channels-last-hint",
        looks_for="convolutions not in channels_last",
        find=_channels_last,
        needs=("trainer",),
        settings=("cnn", "large_batch"),
    ),
)
