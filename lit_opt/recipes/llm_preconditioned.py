"""Language-model pretraining with methods that keep statistics of both sides of each matrix: SOAP, Shampoo, SPlus."""

from __future__ import annotations

from dataclasses import replace

from lit_opt.recipes import muon
from lit_opt.recipes.common import (
    DECAYS,
    MUON_FALLBACK,
    SOAP_DECAY,
    SOAP_LR,
    SOAP_SOURCE,
    SPLUS_BATCH,
    SPLUS_DECAY,
    SPLUS_LR,
)
from lit_opt.recipes.common import SOAP as SOAP_VALUES
from lit_opt.recipes.llm import PRETRAINING
from lit_opt.recipes.schema import Value

_ROUTED = "registry name; embeddings, heads, norms, biases and vectors go to AdamW"
_SHAMPOO = "facebookresearch/optimizers distributed_shampoo/README.md example 4"

_ADAMW = PRETRAINING.hyperparameters
SOAP = replace(
    PRETRAINING,
    name="llm/soap",
    summary="Language-model pretraining with SOAP: Adam in the eigenbasis of each matrix's gradient statistics",
    deviate="llm/muon for a third of the memory and no decompositions; llm for small batches",
    optimizer=Value(
        "soap",
        unit=_ROUTED,
        common_practice="the official code rotates embeddings and heads as well, but not a side above 10,000",
        source="arXiv:2409.11321, nikhilvyas/SOAP soap.py",
    ),
    lr=muon.unscaled(
        SOAP_LR,
        Value(
            2**19,
            unit="tokens",
            common_practice="not named by the source: as large a batch as possible; the setting's own is taken",
            source="nikhilvyas/SOAP README.md; nanoGPT train.py (491,520)",
        ),
        "tokens",
    ),
    weight_decay=SOAP_DECAY,
    hyperparameters=SOAP_VALUES,
    fallback={
        "betas": Value(
            (0.95, 0.95),
            unit="decay of the moments per step, of what is left to AdamW",
            common_practice="SOAP's own: the official code takes Adam with these for vectors",
            source=SOAP_SOURCE,
        ),
        "eps": _ADAMW["eps"],
    },
)

SHAMPOO = replace(
    PRETRAINING,
    name="llm/shampoo",
    summary="Language-model pretraining with Shampoo at the length of AdamW's steps, with AdamW's rate and decay",
    deviate="llm/soap, which changes its scales in every step and not only its inverse roots every 100",
    optimizer=Value(
        "shampoo",
        unit=_ROUTED,
        common_practice="with grafting from Adam; embeddings in blocks of their own in the official code",
        source="arXiv:2309.06497, facebookresearch/optimizers distributed_shampoo",
    ),
    hyperparameters={
        "betas": Value(
            (0.9, 0.95),
            unit="decay of the moments and of the statistics per step",
            common_practice="those of the AdamW run that Shampoo replaces",
            source=f"{_SHAMPOO}; nanoGPT train.py",
        ),
        "eps": Value(
            1e-12, unit="added to the eigenvalues of the statistics", common_practice="1e-12", source=_SHAMPOO
        ),
        "grafting": Value(
            "adam",
            unit="whose length each update has, so that AdamW's rate fits",
            common_practice="Adam, in place of an AdamW run",
            source=_SHAMPOO,
        ),
        "precondition_frequency": Value(
            100,
            unit="steps from one computation of inverse roots to the next",
            common_practice="100",
            source=_SHAMPOO,
        ),
        "max_preconditioner_dim": Value(
            8192,
            unit="longest side of a block",
            common_practice="8192; the class's default is 1024",
            source=_SHAMPOO,
        ),
    },
    fallback=_ADAMW,
)

SPLUS = replace(
    PRETRAINING,
    name="llm/splus",
    summary="Language-model pretraining with SPlus: signs in an eigenbasis, a constant rate, averaged weights to validate",
    deviate="llm/soap or llm/muon when a decaying rate is wanted",
    optimizer=Value(
        "splus",
        unit=_ROUTED,
        common_practice="the official code takes signs for vectors, at a thousandth of the rate",
        source="arXiv:2506.07254, kvfrans/splus torch/splus.py",
    ),
    lr=muon.unscaled(SPLUS_LR, SPLUS_BATCH, "tokens"),
    weight_decay=SPLUS_DECAY,
    hyperparameters={
        "betas": Value(
            (0.9, 0.999),
            unit="decay of the momentum and of the statistics per step",
            common_practice="(0.9, 0.999)",
            source="kvfrans/splus torch/splus.py",
        ),
        "ema_rate": Value(
            0.999,
            unit="decay per step of the averages that validation uses",
            common_practice="0.999",
            source="kvfrans/splus torch/splus.py",
        ),
        "precondition_frequency": Value(
            100,
            unit="steps from one eigendecomposition to the next",
            common_practice="100",
            source="kvfrans/splus torch/splus.py (inverse_every)",
        ),
    },
    decay=DECAYS["constant"],
    fallback=MUON_FALLBACK,
)
RECIPES = (SOAP, SHAMPOO, SPLUS)
