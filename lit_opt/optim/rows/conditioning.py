"""Scion and ARO: lit_opt's own, on the matrix engine (lit_opt.optim.matrix)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lit_opt.optim.matrix.coefficients import PRESETS
from lit_opt.optim.schema import REQUIRED, OptimizerRow, Published
from lit_opt.optim.state import Buffer, Scratch, Shape, adam_state, like_parameter
from lit_opt.recipes.common import SCION, SCION_DECAY, SCION_LR


def _scion_state(shape: Shape, options: Mapping[str, Any]) -> tuple[Buffer, ...]:
    vector = len(shape) < 2 and options.get("norm", "Auto") not in ("Auto", "BiasRMS")
    if options["algorithm"] == "adamw" or vector:
        return adam_state(shape, options)
    return like_parameter(shape, "momentum_buffer")


def _aro_state(shape: Shape, options: Mapping[str, Any]) -> tuple[Buffer, ...]:
    """The rotations are whole in every process, in float32 at least."""
    if options["algorithm"] == "adamw" or len(shape) < 2:
        return adam_state(shape, options)
    layout = options.get("layout") or ""
    experts = layout.startswith("experts")
    first, second, *kernel = shape[1:] if experts else shape
    if layout in ("transposed", "conv_transposed", "experts_transposed"):
        first, second = second, first
    cols = second * math.prod(kernel)
    heads = options.get("num_heads") or 1
    parts = options.get("split_sizes") or [first // heads] * heads
    sides = [rows if options["orientation"] == "rows" else min(rows, cols) for rows in parts]
    count = shape[0] if experts else 1
    numbers = count * sum(side * side for side in sides)
    return (*like_parameter(shape, "momentum_buffer"), Buffer(name="rotation", numbers=numbers, sharded=False))


_ORTHOGONAL = {"orthogonalize": "polar_express", "ns_steps": 5, "ns_dtype": "auto"}
_GROUP_OPTIONS = ("layout", "split_sizes", "num_heads")
_NORMS = ("Auto", "Spectral", "SpectralConv", "Sign", "ColNorm", "RowNorm", "BiasRMS")

ROWS = (
    OptimizerRow(
        name="scion",
        factory="lit_opt.optim.matrix.scion:Scion",
        provider="lit_opt",
        summary="Steepest descent in a norm for each layer: spectral for matrices, sign for head and embedding",
        rule="d <- (1 - a) d + a g; w <- (1 - lr) w - lr radius LMO(d), a = momentum; spectral LMO: sqrt(m/n) polar(d)",
        source="arXiv:2502.07529; LIONS-EPFL/scion scion.py, equal in float64 up to its Newton-Schulz epsilon",
        evidence="theory, open source",
        state=_scion_state,
        scratch=Scratch(largest=2.0),
        hyperparameters={
            "lr": REQUIRED,
            "momentum": 0.1,
            "norm": "Auto",
            "norm_kwargs": {},
            "scale": 1.0,
            "last_scale": 1.0,
            "unconstrained": False,
            "weight_decay": 1.0,
            **_ORTHOGONAL,
        },
        choices={"norm": _NORMS, "orthogonalize": PRESETS, "ns_dtype": ("auto", "bfloat16", "float32", "float64")},
        limits={"momentum": (0.0, math.nextafter(1.0, 2.0))},
        settings={
            "llm": Published(
                lr=SCION_LR,
                weight_decay=SCION_DECAY,
                reference_batch=None,
                rule="none",
                batch_unit="tokens",
                hyperparameters=SCION,
            ),
        },
        matrix=True,
        role_options={"head": {"last": True}, "embedding": {"last": True}},
        group_options=(*_GROUP_OPTIONS, "last"),
    ),
    OptimizerRow(
        name="aro",
        factory="lit_opt.optim.matrix.aro:Aro",
        provider="lit_opt",
        summary="Momentum normalised by rows and columns in a basis that follows it; AdamW for what is no matrix",
        rule="R <- QR(M f(R'M)'); w <- (1 - lr wd) w - lr R f(R'M) at an RMS of 0.2, f: Sinkhorn",
        source="arXiv:2602.09006, from the formula: no official code was found",
        evidence="1B+, protocol",
        state=_aro_state,
        hyperparameters={
            "lr": REQUIRED,
            "momentum": 0.95,
            "weight_decay": 0.1,
            "base": "sinkhorn",
            "sinkhorn": "simultaneous",
            "sinkhorn_iters": 5,
            "sinkhorn_eps": 1e-6,
            "qr_shift": 0.0,
            "orientation": "smaller_side",
            "update_rms": 0.2,
        },
        choices={
            "base": ("sinkhorn", "row", "sign"),
            "sinkhorn": ("simultaneous", "alternating"),
            "orientation": ("smaller_side", "rows"),
        },
        matrix=True,
        units="AdamW",
        group_options=_GROUP_OPTIONS,
    ),
)
