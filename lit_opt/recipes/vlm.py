"""Vision-language models: the llm recipe at 1e-4 with a rate for each part of the model."""

from __future__ import annotations

from dataclasses import replace

from lit_opt.recipes.llm import RECIPES as LLM
from lit_opt.recipes.schema import LearningRate, Scaling, Value

_LLM = LLM[0]
_SOURCE = "LLaVA scripts/v1_5, nanoVLM models/config.py:59"


def _part(scale: float, practice: str) -> Value:
    return Value(scale, unit="times lr", common_practice=practice, source=_SOURCE)


RECIPES = (
    replace(
        _LLM,
        name="vlm",
        setting="vlm",
        summary="Vision-language training with AdamW and a learning rate for each part",
        lr=LearningRate(
            base=Value(
                1e-4,
                unit="peak, per step at 128 to 256 samples",
                range=(1e-4, 6e-4),
                common_practice="projector 1e-3 to 5e-3, language model and vision tower 2e-5 to 5e-5",
                source=_SOURCE,
            ),
            scaling=Scaling(
                rule=Value("none", unit="rule", common_practice="not scaled", source=_SOURCE),
                reference_batch=Value(256, unit="samples", common_practice="128 to 256", source=_SOURCE),
                batch_unit="samples",
            ),
        ),
        weight_decay=replace(
            _LLM.weight_decay,
            common_practice="0.1 for language models; LLaVA 0, nanoVLM 0.01 by torch's default",
            source="nanoGPT train.py:48-68, torchtitan optimizer.py:378; LLaVA scripts/v1_5, nanoVLM train.py:249",
        ),
        warmup=replace(
            _LLM.warmup,
            length=Value(
                0.03,
                unit="fraction of the run",
                range=(0.01, 0.05),
                common_practice="0.03",
                source="LLaVA scripts/v1_5/pretrain.sh, nanoVLM train.py",
            ),
        ),
        parts={
            "projector": _part(10.0, "1e-3 in LLaVA stage 1, 5.1e-3 in nanoVLM"),
            "language_model": _part(0.5, "5e-5 in nanoVLM, 2e-5 in LLaVA"),
            "vision_tower": _part(0.5, "5e-5 in nanoVLM, frozen in LLaVA"),
        },
    ),
)
