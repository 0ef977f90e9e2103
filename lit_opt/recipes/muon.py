"""Values of Muon that the settings share. lr, weight_decay and scale belong to one unit system and travel together."""

from __future__ import annotations

from dataclasses import replace

from lit_opt.recipes.schema import LearningRate, Scaling, Value

_README = "KellerJordan/Muon README.md, muon.py"
_MOONLIGHT = "MoonshotAI/Moonlight examples/toy_train.py, arXiv:2502.16982"

MUON = Value(
    "muon",
    unit="registry name; embeddings, heads, norms, biases and vectors go to AdamW",
    common_practice="Muon in nanochat, Moonlight and Kimi K2 (torchtitan); AdamW elsewhere",
    source="KellerJordan/Muon muon.py, arXiv:2502.16982",
)

# Muon's own units.
LR = Value(
    0.02,
    unit="peak, per step, of the matrices, for scale original",
    range=(0.01, 0.05),
    common_practice="0.02 in KellerJordan/Muon, dion and nanochat",
    source=f"field guide; {_README}; microsoft/dion configs/muon_160m.yaml (0.02 at 1 M tokens)",
)
WEIGHT_DECAY = Value(
    0.01,
    unit="times lr (without scale), as in torch",
    range=(0.0, 0.01),
    common_practice="0 or 0.01; 0.1 belongs to AdamW's units",
    source=f"field guide; {_README}; microsoft/dion configs/muon_160m.yaml",
)
ORIGINAL = Value(
    "original",
    unit="factor sqrt(max(1, rows / cols)): Muon's own units, lr about 0.02",
    common_practice="original with lr 0.02; torch's default mixes it with 1e-3",
    source=f"{_README}; torch/optim/_muon.py adjust_lr_fn",
)
MOMENTUM = Value(
    0.9,
    unit="decay of the moving average per step",
    common_practice="0.95 in eight codebases; 0.85 rising to 0.97 in nanochat",
    source="field guide; 0.95: KellerJordan/Muon, torch, dion, timm, OLMo-core, Moonlight, Megatron-Bridge, epfml",
)

# AdamW's units.
MATCH_RMS = Value(
    "match_rms_adamw",
    unit="factor 0.2 sqrt(max(rows, cols)): AdamW's units, the lr and decay of AdamW",
    common_practice="match_rms_adamw with AdamW's lr and decay; timm's default mixes it with 0.02",
    source=f"{_MOONLIGHT}; torch/optim/_muon.py adjust_lr_fn",
)
MOMENTUM_95 = Value(
    0.95,
    unit="decay of the moving average per step",
    common_practice="0.95 in eight codebases; the field guide has 0.9",
    source=f"{_MOONLIGHT}; KellerJordan/Muon, torch, dion, timm, OLMo-core",
)

_NESTEROV = Value(
    True,
    unit="look one step ahead",
    common_practice="True in KellerJordan/Muon, torch and Moonlight; False in dion and timm",
    source=f"{_README}; {_MOONLIGHT}",
)
_STEPS = Value(
    5,
    unit="iterations of the orthogonalisation",
    common_practice="5",
    source=f"{_README}; {_MOONLIGHT}",
)

HYPERPARAMETERS = {"momentum": MOMENTUM, "nesterov": _NESTEROV, "scale": ORIGINAL, "ns_steps": _STEPS}
HYPERPARAMETERS_RMS = {"momentum": MOMENTUM_95, "nesterov": _NESTEROV, "scale": MATCH_RMS, "ns_steps": _STEPS}

NOT_SCALED = Value(
    "none",
    unit="rule",
    common_practice="not scaled; nanochat takes the square root and calls it an assumption, not studied",
    source="microsoft/dion configs; nanochat scripts/base_train.py:290",
)


def unscaled(lr: Value, reference_batch: Value, unit: str) -> LearningRate:
    """A peak that does not follow the batch.

    Args:
        lr: The peak.
        reference_batch: Where it was published.
        unit: "samples" or "tokens".

    Example:
        >>> batch = Value(2000, unit="images", common_practice="2000", source="airbench")
        >>> unscaled(LR, batch, "samples").scaling.rule.number
        'none'
    """
    return LearningRate(base=lr, scaling=Scaling(rule=NOT_SCALED, reference_batch=reference_batch, batch_unit=unit))


def transferred(value: Value, origin: str) -> Value:
    """The same number in a setting where nobody published it, labelled so.

    Example:
        >>> transferred(LR, "llm/muon").source.split("; ")[-1]
        'transferred from llm/muon, unverified'
    """
    return replace(value, source=f"{value.source}; transferred from {origin}, unverified")


def all_transferred(values: dict[str, Value], origin: str) -> dict[str, Value]:
    """`transferred` for each value.

    Example:
        >>> all_transferred({"lr": LR}, "llm/muon")["lr"].source.split(", ")[-1]
        'unverified'
    """
    return {key: transferred(value, origin) for key, value in values.items()}
