"""Adam's moments in few bits: torchao, and bitsandbytes where torchao is not the choice. The extra `lowbit`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from lit_opt.optim.rows.first_order import ADAMW_SETTINGS
from lit_opt.optim.schema import REQUIRED, OptimizerRow
from lit_opt.optim.state import Buffer, Scratch, Shape
from lit_opt.recipes.common import EIGHT_BIT_SOURCE

_HYPERPARAMETERS = {"lr": REQUIRED, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}

_SETTINGS = {
    setting: replace(
        published,
        lr=replace(published.lr, source=f"{published.lr.source}; unchanged: {EIGHT_BIT_SOURCE}"),
        weight_decay=replace(
            published.weight_decay, source=f"{published.weight_decay.source}; unchanged: {EIGHT_BIT_SOURCE}"
        ),
    )
    for setting, published in ADAMW_SETTINGS.items()
}

_RULE = "AdamW, m and v rounded after each step to {bits} with a scale for each block of {block}"


# Rare tokens leave an embedding's moments uneven, and 8 bits of them were seen to be unstable: bitsandbytes' documentation
# (StableEmbedding, GlobalOptimManager), and transformers' Trainer, which overrides every nn.Embedding to 32 bits.
_EMBEDDINGS = {role: {"optim_bits": 32} for role in ("embedding", "position")}


def _state(shape: Shape, options: Mapping[str, Any], *, bits: int, block: int, maps: int) -> tuple[Buffer, ...]:
    """Two moments, a float32 for each block, and the map from bits to numbers beside each moment."""
    numbers = math.prod(shape)
    if numbers < 4096 or options.get("optim_bits") == 32:
        return tuple(Buffer(name=name, numbers=numbers, dtype="float32") for name in ("m", "v"))
    moments = (Buffer(name=name, numbers=numbers * bits // 8, dtype="uint8") for name in ("m", "v"))
    scales = Buffer(name="scales", numbers=2 * math.ceil(numbers / block), dtype="float32")
    return (*moments, scales, Buffer(name="maps", numbers=maps * 2**bits, dtype="float32", sharded=False))


ROWS = (
    OptimizerRow(
        name="adamw_8bit",
        state=partial(_state, bits=8, block=256, maps=2),
        scratch=Scratch(largest=5.0),  # bitsandbytes on the CPU, which unpacks; CUDA kernels need less
        factory="lit_opt.optim.low_bit:adamw_8bit",
        provider="torchao or bitsandbytes",
        extra="lowbit",
        summary="AdamW with moments of 8 bits, a quarter of the state; embeddings keep 32; AdamW's values",
        rule=_RULE.format(bits="8 bits", block=256),
        source="arXiv:2110.02861; torchao on CUDA and DTensors, else bitsandbytes; 1 % off AdamW's update after 10 steps",
        evidence="published (arXiv:2110.02861); open source",
        hyperparameters=_HYPERPARAMETERS,
        group_options=("optim_bits",),
        role_options=_EMBEDDINGS,
        settings=_SETTINGS,
        exact=False,
    ),
    OptimizerRow(
        name="adamw_fp8",
        state=partial(_state, bits=8, block=256, maps=0),
        scratch=None,
        factory="lit_opt.optim.low_bit_torchao:AdamWFp8",
        provider="torchao",
        extra="lowbit",
        summary="AdamW with moments in float8, a quarter of the state; embeddings keep 32 bits",
        rule=_RULE.format(bits="float8 (e4m3)", block=256),
        source="pytorch/ao; 3 % off AdamW's update after 10 steps",
        evidence="open source",
        hyperparameters=_HYPERPARAMETERS,
        group_options=("optim_bits",),
        role_options=_EMBEDDINGS,
        compiles=True,
        exact=False,
    ),
    OptimizerRow(
        name="adamw_4bit",
        state=partial(_state, bits=4, block=128, maps=2),
        scratch=None,
        factory="lit_opt.optim.low_bit_torchao:AdamW4bit",
        provider="torchao",
        extra="lowbit",
        summary="AdamW with moments of 4 bits, an eighth of the state; embeddings keep 32",
        rule=_RULE.format(bits="4 bits", block=128),
        source="arXiv:2309.01507; pytorch/ao; 19 % off AdamW's update after 10 steps",
        evidence="small scale; open source",
        hyperparameters=_HYPERPARAMETERS,
        group_options=("optim_bits",),
        role_options=_EMBEDDINGS,
        compiles=True,
        exact=False,
    ),
)
