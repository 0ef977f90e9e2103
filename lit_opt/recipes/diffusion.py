"""Diffusion and flow matching: AdamW at a constant rate, and averaged weights."""

from __future__ import annotations

from dataclasses import replace

from lit_opt.recipes.common import (
    ADAFACTOR_MOMENTUM,
    ADAFACTOR_PRACTICE,
    ADAFACTOR_SOURCE,
    ADAM_EPS,
    BF16,
    EIGHT_BIT_SOURCE,
    NO_DECAY,
    optimizer_name,
)
from lit_opt.recipes.schema import Decay, LearningRate, RecipeSpec, Scaling, Value, Warmup

FROM_SCRATCH = RecipeSpec(
    name="diffusion",
    setting="diffusion",
    summary="Diffusion and flow matching with AdamW at a constant rate and EMA of the weights",
    deviate="Adafactor or low-precision states when memory dominates",
    optimizer=Value(
        "adamw",
        unit="registry name",
        common_practice="AdamW",
        source="DiT train.py:155, SiT train.py:181, diffusers, flow_matching",
    ),
    lr=LearningRate(
        base=Value(
            1e-4,
            unit="peak, per step at 256 images",
            common_practice="1e-4 at 256; 2e-4 at 1024",
            source="DiT train.py:154, SiT, guided-diffusion image_train.py:64; LightningDiT at 1024",
        ),
        scaling=Scaling(
            rule=Value(
                "sqrt",
                unit="rule",
                common_practice="LightningDiT's 2e-4 at 1024 lies on it",
                source="arXiv:2205.10287; LightningDiT configs",
            ),
            reference_batch=Value(256, unit="images", common_practice="256", source="DiT train.py:40"),
            batch_unit="samples",
        ),
    ),
    weight_decay=Value(
        0.0,
        unit="decoupled, times lr",
        common_practice="0; FLUX in torchtitan 0.1, diffusers 1e-2 or 1e-6",
        source="DiT, SiT, LightningDiT, guided-diffusion",
    ),
    hyperparameters={
        "betas": Value(
            (0.9, 0.999),
            unit="decay of the moments per step",
            common_practice="(0.9, 0.999); (0.9, 0.95) for a batch of 1024 or more",
            source="DiT train.py:154, SiT; LightningDiT, flow_matching",
        ),
        "eps": ADAM_EPS,
    },
    no_decay=NO_DECAY,
    warmup=Warmup(
        length=Value(
            0.01,
            unit="fraction of the run",
            common_practice="none in DiT and SiT; 500 steps in diffusers, 3000 for FLUX",
            source="diffusers train_unconditional.py:171, torchtitan flux config_registry.py:140",
        ),
        max_steps=Value(
            3000,
            unit="steps",
            common_practice="500 to 3000",
            source="torchtitan flux config_registry.py:140",
        ),
        start=Value(0.0, unit="fraction of the peak", common_practice="0", source="diffusers optimization.py"),
    ),
    decay=Decay(
        kind=Value(
            "constant",
            unit="shape",
            common_practice="constant; cosine in diffusers' unconditional example",
            source="DiT, SiT, LightningDiT, torchtitan flux",
        ),
    ),
    clip=Value(
        1.0,
        unit="global gradient norm, 0 is off",
        common_practice="1.0; none in DiT",
        source="diffusers train_unconditional.py, torchtitan flux",
    ),
    ema=Value(
        0.9999,
        unit="decay per optimizer step, warmed up by min(decay, (1+n)/(10+n))",
        common_practice="0.9999; 0.999 for runs of about 10,000 steps",
        source="DiT train.py:40, SiT; diffusers training_utils.py:636, flow_matching models/ema.py:50",
    ),
    hints={"precision": BF16},
)

_TEXT_TO_IMAGE = "diffusers examples/text_to_image/train_text_to_image.py and README.md"

FINETUNE = replace(
    FROM_SCRATCH,
    name="diffusion/finetune",
    finetunes=True,
    summary="Fine-tuning of a diffusion model with AdamW at a low constant rate and EMA of the weights",
    deviate="adapters (LoRA at 1e-4) when memory is short or the images are few",
    lr=LearningRate(
        base=Value(
            1e-5,
            unit="peak, per step at 4 to 64 images",
            common_practice="1e-5 in the README's commands; the script's own default is 1e-4",
            source=_TEXT_TO_IMAGE,
        ),
        scaling=Scaling(
            rule=Value(
                "none",
                unit="rule",
                common_practice="not scaled; the script's --scale_lr is off",
                source=_TEXT_TO_IMAGE,
            ),
            reference_batch=Value(64, unit="images", common_practice="4 to 64", source=_TEXT_TO_IMAGE),
            batch_unit="samples",
        ),
    ),
    weight_decay=Value(1e-2, unit="decoupled, times lr", common_practice="1e-2", source=_TEXT_TO_IMAGE),
    warmup=Warmup(
        length=Value(
            0.1,
            unit="fraction of the run",
            common_practice="500 steps; a tenth of the run below 5,000 steps is lit-opt's",
            source=_TEXT_TO_IMAGE,
        ),
        max_steps=Value(500, unit="steps", common_practice="500", source=_TEXT_TO_IMAGE),
        start=Value(0.0, unit="fraction of the peak", common_practice="0", source="diffusers optimization.py"),
    ),
    decay=Decay(kind=Value("constant", unit="shape", common_practice="constant", source=_TEXT_TO_IMAGE)),
    clip=Value(1.0, unit="global gradient norm, 0 is off", common_practice="1.0", source=_TEXT_TO_IMAGE),
    ema=Value(
        0.9999,
        unit="decay per optimizer step, warmed up by min(decay, (1+n)/(10+n))",
        common_practice="0.9999 (--use_ema), with the same warm-up",
        source="diffusers train_text_to_image.py, training_utils.py:636",
    ),
)

ADAFACTOR = replace(
    FROM_SCRATCH,
    name="diffusion/adafactor",
    summary="Diffusion and flow matching with big_vision's Adafactor at AdamW's values: when optimizer memory is short",
    deviate="diffusion when memory is enough; diffusion/adamw_8bit to stay closer to AdamW",
    optimizer=optimizer_name("adafactor_bv", ADAFACTOR_PRACTICE, ADAFACTOR_SOURCE),
    hyperparameters={"momentum": ADAFACTOR_MOMENTUM},
)

ADAMW_8BIT = replace(
    FROM_SCRATCH,
    name="diffusion/adamw_8bit",
    summary="Diffusion and flow matching with AdamW's moments in 8 bits: a quarter of the optimizer memory",
    deviate="diffusion when memory is enough",
    optimizer=optimizer_name(
        "adamw_8bit", "AdamW's values unchanged (--use_8bit_adam)", f"diffusers; {EIGHT_BIT_SOURCE}"
    ),
)

RECIPES = (FROM_SCRATCH, ADAFACTOR, ADAMW_8BIT, FINETUNE)
