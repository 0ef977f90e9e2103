"""The Muon family: lit_opt's own engine, see lit_opt.optim.matrix.

lr, weight_decay and scale belong to one unit system, so the published values carry their scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from lit_opt.optim.matrix.coefficients import PRESETS
from lit_opt.optim.matrix.scale import FORMULAS
from lit_opt.optim.schema import REQUIRED, OptimizerRow, Published
from lit_opt.optim.state import Buffer, Scratch, Shape, adam_state, like_parameter
from lit_opt.recipes.schema import Value

_DECAY_UNIT = "times lr (without scale), as in torch"
_README = "KellerJordan/Muon README.md; microsoft/dion configs (0.02, 0.01)"

_LR = Value(
    0.02,
    unit="peak, per step, for scale original; the rest is AdamW's",
    range=(0.01, 0.05),
    common_practice="0.02; the same optimizer in AdamW's units (match_rms_adamw) takes AdamW's 3e-4",
    source=_README,
)
_DECAY = Value(
    0.01, unit=_DECAY_UNIT, range=(0.0, 0.01), common_practice="0 or 0.01; 0.1 in AdamW's units", source=_README
)
_MOMENTUM = Value(
    0.9,
    unit="decay of the moving average per step",
    common_practice="0.95 in the eight codebases read; 0.85 rising to 0.97 in nanochat",
    source="the field guide; recipes of KellerJordan/Muon, Moonlight, dion, torch for 0.95",
)
_ORIGINAL = Value(
    "original",
    unit=f"factor {FORMULAS['original']}",
    common_practice="original with lr 0.02; match_rms_adamw with AdamW's lr (Moonlight)",
    source="KellerJordan/Muon muon.py; torch.optim.Muon adjust_lr_fn",
)
_MATCHED = Value(
    "match_rms_adamw",
    unit=f"factor {FORMULAS['match_rms_adamw']}",
    common_practice="0.2 is the update RMS of AdamW divided by lr",
    source="MoonshotAI/Moonlight examples/toy_train.py, arXiv:2502.16982",
)


def _published(transferred: str, unit: Literal["samples", "tokens"], **more: Value) -> Published:
    """Muon's own values; `transferred` says where they come from if not from this setting."""
    lr = replace(_LR, source=f"{_LR.source}; transferred from {transferred}, unverified") if transferred else _LR
    values = {"momentum": _MOMENTUM, "scale": _ORIGINAL, **more}
    return Published(
        lr=lr, weight_decay=_DECAY, reference_batch=None, rule="none", batch_unit=unit, hyperparameters=values
    )


_BETA2 = Value(
    0.95,
    unit="decay of the rows' second moment per step",
    common_practice="0.95",
    source="zichongli5/NorMuon normuon.py, microsoft/dion normuon.py",
)
_MARS_M = Published(
    lr=Value(
        1e-3,
        unit="peak, per step, for scale match_rms_adamw; the source names no batch",
        common_practice="1e-3",
        source="AGI-Arena/MARS MARS_M/optimizers/mars_m.py, the class's default",
    ),
    weight_decay=Value(
        0.1,
        unit=_DECAY_UNIT,
        common_practice="0.1",
        source="AGI-Arena/MARS MARS_M/optimizers/mars_m.py, the class's default",
    ),
    reference_batch=None,
    rule="none",
    batch_unit="tokens",
    hyperparameters={
        "momentum": Value(
            0.95,
            unit="decay of the moving average per step",
            common_practice="0.95",
            source="AGI-Arena/MARS MARS_M/optimizers/mars_m.py",
        ),
        "gamma": Value(
            0.025,
            unit="strength of the correction by the gradient's change",
            common_practice="0.025",
            source="AGI-Arena/MARS MARS_M/optimizers/mars_m.py",
        ),
        "scale": _MATCHED,
    },
)

_ORTHOGONAL = {"orthogonalize": "polar_express", "ns_steps": 5, "ns_dtype": "auto"}
_MUON = {
    "lr": REQUIRED,
    "momentum": 0.95,
    "nesterov": True,
    "weight_decay": 0.01,
    "scale": "original",
    **_ORTHOGONAL,
}
_CHOICES = {
    "scale": tuple(FORMULAS),
    "orthogonalize": PRESETS,
    "ns_dtype": ("auto", "bfloat16", "float32", "float64"),
}
_GROUP_OPTIONS = ("layout", "split_sizes", "num_heads")


def _left_to_adamw(shape: Shape, options: Mapping[str, Any]) -> bool:
    return options["algorithm"] == "adamw" or len(shape) < 2


def _muon_state(shape: Shape, options: Mapping[str, Any]) -> tuple[Buffer, ...]:
    if _left_to_adamw(shape, options):
        return adam_state(shape, options)
    return like_parameter(shape, "momentum_buffer")


def _normuon_state(shape: Shape, options: Mapping[str, Any]) -> tuple[Buffer, ...]:
    """The rows' second moments are whole in every process."""
    if _left_to_adamw(shape, options):
        return adam_state(shape, options)
    layout = options.get("layout") or ""
    rows = shape[1] if layout in ("transposed", "conv_transposed") else shape[0]
    if layout.startswith("experts"):
        rows = shape[0] * shape[2 if layout == "experts_transposed" else 1]
    return (*like_parameter(shape, "momentum_buffer"), Buffer(name="second_moment", numbers=rows, sharded=False))


def _mars_m_state(shape: Shape, options: Mapping[str, Any]) -> tuple[Buffer, ...]:
    """The exact variant evaluates the model at the last weights, all of them."""
    exact = options["variant"] == "exact"
    last = like_parameter(shape, "previous_weight") if exact else ()
    if _left_to_adamw(shape, options):
        return (*adam_state(shape, options), *last)
    gradient = like_parameter(shape, "previous_gradient") if options["variant"] != "efficient" else ()
    return (*like_parameter(shape, "momentum_buffer"), *gradient, *last)


ROWS = (
    OptimizerRow(
        name="muon",
        factory="lit_opt.optim.matrix.muon:Muon",
        provider="lit_opt",
        summary="Momentum, orthogonalised; AdamW for what is no matrix",
        rule="M <- mu M + (1 - mu) G; w <- (1 - lr wd) w - lr scale polar((1 - mu) G + mu M)",
        source="KellerJordan/Muon muon.py, torch.optim.Muon: equal in float64 up to their epsilon; arXiv:2502.16982",
        evidence="published up to a trillion parameters (RMS-matched update, weight decay); open source",
        state=_muon_state,
        hyperparameters=_MUON,
        choices=_CHOICES,
        settings={
            "llm": _published("", "tokens"),
            "cnn": _published(
                "KellerJordan/Muon's language models; airbench has 0.24 with momentum 0.6 at 2000 images", "samples"
            ),
        },
        matrix=True,
        group_options=_GROUP_OPTIONS,
    ),
    OptimizerRow(
        name="normuon",
        factory="lit_opt.optim.matrix.normuon:NorMuon",
        provider="lit_opt",
        summary="Muon with every row of the update brought to the same running length",
        rule="O = polar(M); v <- b2 v + (1 - b2) mean_row O^2; O <- O / sqrt(v), at O's length; then as Muon",
        source="arXiv:2510.05491; zichongli5/NorMuon normuon.py, equal in float64 up to its Newton-Schulz epsilon",
        evidence="1B+, open source",
        state=_normuon_state,
        hyperparameters={**_MUON, "beta2": 0.95, "eps": 1e-10},
        choices=_CHOICES,
        settings={"llm": _published("muon", "tokens", beta2=_BETA2)},
        matrix=True,
        group_options=_GROUP_OPTIONS,
    ),
    OptimizerRow(
        name="mars_m",
        factory="lit_opt.optim.matrix.mars_m:MarsM",
        provider="lit_opt",
        summary="Muon on a gradient corrected by its change (variance reduction)",
        rule="C = G + gamma mu / (1 - mu) (G - G'), |C| <= 1; then as Muon without Nesterov, with C for G",
        source="arXiv:2510.21800; AGI-Arena/MARS mars_m.py and mars_m_efficient.py, equal up to their epsilon",
        evidence="theory, small scale, open source",
        state=_mars_m_state,
        scratch=Scratch(everything=1.0),
        hyperparameters={
            **_MUON,
            "nesterov": False,
            "weight_decay": 0.1,
            "scale": "match_rms_adamw",
            "gamma": 0.025,
            "variant": "approx",
        },
        choices={**_CHOICES, "variant": ("approx", "exact", "efficient")},
        settings={"llm": _MARS_M},
        matrix=True,
        group_options=_GROUP_OPTIONS,
        clips_itself=True,
    ),
    OptimizerRow(
        name="teon",
        factory="lit_opt.optim.matrix.teon:Teon",
        provider="lit_opt",
        summary="Muon on query, key and value weights of two consecutive blocks side by side",
        rule="[O_1 | O_2] = polar([M_1 | M_2]); then each as Muon",
        source="arXiv:2601.23261, from the formula: no official code was found",
        evidence="theory, 1B range",
        state=_muon_state,
        hyperparameters=_MUON,
        choices=_CHOICES,
        matrix=True,
        group_options=(*_GROUP_OPTIONS, "stack"),
    ),
)
