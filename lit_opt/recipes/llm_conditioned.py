"""Language-model pretraining with Scion and ARO: what their authors published, or what follows from it, labelled so."""

from __future__ import annotations

from dataclasses import replace

from lit_opt.recipes.common import MUON_FALLBACK, NO_DECAY, SCION_DECAY, SCION_LR, SCION_SOURCE
from lit_opt.recipes.common import SCION as SCION_VALUES
from lit_opt.recipes.llm import PRETRAINING
from lit_opt.recipes.muon import transferred, unscaled
from lit_opt.recipes.schema import Decay, Value, Warmup

_ARO = "arXiv:2602.09006"

SCION = replace(
    PRETRAINING,
    name="llm/scion",
    summary="Language-model pretraining with Scion: a norm for each layer, weights kept within a radius",
    deviate="llm/muon, whose numbers do not hang on radii that were tuned for one architecture",
    optimizer=Value(
        "scion",
        unit="registry name; norms and biases go to AdamW",
        common_practice="Scion in its authors' nanoGPT runs; AdamW and Muon elsewhere",
        source=SCION_SOURCE,
    ),
    lr=unscaled(
        SCION_LR,
        Value(2**19, unit="tokens", common_practice="0.5 M", source="train_gpt_scion.py (512 x 1024)"),
        "tokens",
    ),
    weight_decay=SCION_DECAY,
    hyperparameters=SCION_VALUES,
    # The radius is the decay's doing, and the embedding (tied to the head there) has one.
    no_decay=replace(
        NO_DECAY, number=("bias", "norm", "position", "token", "scale", "ssm", "vector"), source=SCION_SOURCE
    ),
    warmup=Warmup(
        length=Value(0.0, unit="fraction of the run", common_practice="none", source=SCION_SOURCE),
        start=Value(0.0, unit="fraction of the peak", common_practice="0", source=SCION_SOURCE),
    ),
    decay=Decay(
        kind=Value("wsd", unit="shape", common_practice="constant, then linear", source=SCION_SOURCE),
        final=Value(0.0, unit="fraction of the peak", common_practice="0", source=SCION_SOURCE),
        cooldown=Value(
            0.28,
            unit="fraction of the run, or steps from 1 up",
            common_practice="1450 of 5100 steps",
            source="LIONS-EPFL/scion examples/modded-nanogpt/train_gpt_scion.py",
        ),
    ),
    clip=Value(
        0.0,
        unit="global gradient norm, 0 is off",
        common_practice="off: only the gradient's direction counts",
        source=SCION_SOURCE,
    ),
    fallback=MUON_FALLBACK,
)

ARO = replace(
    PRETRAINING,
    name="llm/aro",
    summary="Language-model pretraining with ARO at AdamW's rates, which its update of RMS 0.2 fits; unverified",
    deviate="llm/muon, whose numbers are published; no code of ARO's authors was found",
    optimizer=Value(
        "aro",
        unit="registry name; embeddings, heads, norms, biases and vectors go to AdamW",
        common_practice="ARO in one group's report",
        source=_ARO,
    ),
    lr=replace(
        PRETRAINING.lr,
        base=transferred(PRETRAINING.lr.base, "llm"),
        by_parameters=tuple((count, transferred(value, "llm")) for count, value in PRETRAINING.lr.by_parameters),
    ),
    weight_decay=transferred(PRETRAINING.weight_decay, "llm"),
    hyperparameters={
        "momentum": Value(0.95, unit="decay of the moving average per step", common_practice="0.95", source=_ARO),
        "update_rms": Value(
            0.2, unit="root mean square of the update", common_practice="0.2, AdamW's usual one", source=_ARO
        ),
    },
    fallback=PRETRAINING.hyperparameters,
)

RECIPES = (SCION, ARO)
