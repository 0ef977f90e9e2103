"""Adam's moments in few bits: torchao, and bitsandbytes where torchao is not the choice. The extra `lowbit`."""

from __future__ import annotations

from dataclasses import replace

from lit_opt.optim.rows.first_order import ADAMW_SETTINGS
from lit_opt.optim.schema import REQUIRED, OptimizerRow

_HYPERPARAMETERS = {"lr": REQUIRED, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
_UNCHANGED = "unchanged: bitsandbytes' documentation (no hyperparameter tuning)"

_SETTINGS = {
    setting: replace(
        published,
        lr=replace(published.lr, source=f"{published.lr.source}; {_UNCHANGED}"),
        weight_decay=replace(published.weight_decay, source=f"{published.weight_decay.source}; {_UNCHANGED}"),
    )
    for setting, published in ADAMW_SETTINGS.items()
}

_RULE = "AdamW, m and v rounded after each step to {bits} with a scale for each block of {block}"

ROWS = (
    OptimizerRow(
        name="adamw_8bit",
        factory="lit_opt.optim.low_bit:adamw_8bit",
        provider="torchao or bitsandbytes",
        extra="lowbit",
        summary="AdamW with moments of 8 bits, a quarter of the state; AdamW's values",
        rule=_RULE.format(bits="8 bits", block=256),
        source="arXiv:2110.02861; torchao on CUDA and DTensors, else bitsandbytes; 1 % off AdamW's update after 10 steps",
        evidence="published up to 1.5B; open source",
        hyperparameters=_HYPERPARAMETERS,
        settings=_SETTINGS,
        exact=False,
    ),
    OptimizerRow(
        name="adamw_fp8",
        factory="lit_opt.optim.low_bit_torchao:AdamWFp8",
        provider="torchao",
        extra="lowbit",
        summary="AdamW with moments in float8, a quarter of the state",
        rule=_RULE.format(bits="float8 (e4m3)", block=256),
        source="pytorch/ao; 3 % off AdamW's update after 10 steps",
        evidence="open source",
        hyperparameters=_HYPERPARAMETERS,
        compiles=True,
        exact=False,
    ),
    OptimizerRow(
        name="adamw_4bit",
        factory="lit_opt.optim.low_bit_torchao:AdamW4bit",
        provider="torchao",
        extra="lowbit",
        summary="AdamW with moments of 4 bits, an eighth of the state",
        rule=_RULE.format(bits="4 bits", block=128),
        source="arXiv:2309.01507; pytorch/ao; 19 % off AdamW's update after 10 steps",
        evidence="small scale; open source",
        hyperparameters=_HYPERPARAMETERS,
        compiles=True,
        exact=False,
    ),
)
