"""Language-model pretraining with Scion and ARO: what their authors published, or what follows from it, labelled so."""

from __future__ import annotations

from dataclasses import replace

from lit_opt.recipes.common import MUON_FALLBACK, NO_DECAY
from lit_opt.recipes.llm import PRETRAINING
from lit_opt.recipes.muon import transferred, unscaled
from lit_opt.recipes.schema import Decay, Value, Warmup

_SCION = "LIONS-EPFL/scion README.md, examples/modded-nanogpt/train_gpt_scion.py, arXiv:2502.07529"
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
        source=_SCION,
    ),
    lr=unscaled(
        Value(
            2**-12,
            unit="peak, per step; multiplies the decay too, and belongs to radius 50",
            common_practice="2^-12; 3.6e-4 at 0.5 M tokens in modded-nanogpt",
            source=_SCION,
        ),
        Value(2**19, unit="tokens", common_practice="0.5 M", source="train_gpt_scion.py (512 x 1024)"),
        "tokens",
    ),
    weight_decay=Value(
        1.0,
        unit="times lr; 1 is the constrained method, 0 the unconstrained one",
        common_practice="1 (constrained)",
        source=_SCION,
    ),
    hyperparameters={
        "momentum": Value(
            0.1,
            unit="weight of the new gradient; others call it 0.9",
            common_practice="0.1; up to 0.5 for short runs with little noise",
            source=_SCION,
        ),
        "norm": Value("Spectral", unit="norm of the hidden matrices", common_practice="Spectral", source=_SCION),
        "scale": Value(50.0, unit="radius of the hidden matrices", common_practice="50", source=_SCION),
        "last_scale": Value(
            3000.0, unit="radius of head and embedding, norm Sign", common_practice="3000", source=_SCION
        ),
    },
    # The radius is the decay's doing, and the embedding (tied to the head there) has one.
    no_decay=replace(NO_DECAY, number=("bias", "norm", "position", "token", "scale", "ssm", "vector"), source=_SCION),
    warmup=Warmup(
        length=Value(0.0, unit="fraction of the run", common_practice="none", source=_SCION),
        start=Value(0.0, unit="fraction of the peak", common_practice="0", source=_SCION),
    ),
    decay=Decay(
        kind=Value("wsd", unit="shape", common_practice="constant, then linear", source=_SCION),
        final=Value(0.0, unit="fraction of the peak", common_practice="0", source=_SCION),
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
        source=_SCION,
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
