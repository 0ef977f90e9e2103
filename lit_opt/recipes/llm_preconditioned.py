"""Language-model pretraining with methods that keep statistics of both sides of each matrix: SOAP, Shampoo, SPlus."""

from __future__ import annotations

from dataclasses import replace

from lit_opt.recipes import muon
from lit_opt.recipes.common import DECAYS, MUON_FALLBACK
from lit_opt.recipes.llm import PRETRAINING
from lit_opt.recipes.schema import Value

_ROUTED = "registry name; embeddings, heads, norms, biases and vectors go to AdamW"
_SOAP = "nikhilvyas/SOAP README.md, soap.py:47-62"
_SHAMPOO = "facebookresearch/optimizers distributed_shampoo/README.md example 4"
_SPLUS = "kvfrans/splus README.md"
_SPLUS_RUNS = "kvfrans/splus experiments/run_trials.py"

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
        Value(
            3e-3,
            unit="peak, per step, of the matrices and of AdamW beside them",
            common_practice="3e-3 in the README",
            source=_SOAP,
        ),
        Value(
            2**19,
            unit="tokens",
            common_practice="not named by the source: as large a batch as possible; the setting's own is taken",
            source="nikhilvyas/SOAP README.md; nanoGPT train.py (491,520)",
        ),
        "tokens",
    ),
    weight_decay=Value(0.01, unit="times lr, after the update", common_practice="0.01", source=_SOAP),
    hyperparameters={
        "betas": Value(
            (0.95, 0.95),
            unit="decay of the moments per step; the second is also that of the statistics",
            common_practice="(0.95, 0.95)",
            source=_SOAP,
        ),
        "precondition_frequency": Value(
            10, unit="steps from one change of the eigenbases to the next", common_practice="10", source=_SOAP
        ),
    },
    fallback={
        "betas": Value(
            (0.95, 0.95),
            unit="decay of the moments per step, of what is left to AdamW",
            common_practice="SOAP's own: the official code takes Adam with these for vectors",
            source=_SOAP,
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
    lr=muon.unscaled(
        Value(
            0.2,
            unit="peak, per step, of the matrices, times 2 / (rows + cols)",
            common_practice="0.2 for common transformers, or Adam's lr x hidden size x 2; the class's default is 0.1",
            source=_SPLUS,
        ),
        Value(
            2**18,
            unit="tokens",
            common_practice="1024 sequences of 256 tokens",
            source=f"{_SPLUS_RUNS} (batch_size 1024, sequence_length 256)",
        ),
        "tokens",
    ),
    weight_decay=Value(
        0.1,
        unit="times lr 2 / (rows + cols), after the update",
        common_practice="0.1 in the paper's runs; the class's default is 0.01",
        source=_SPLUS_RUNS,
    ),
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
