"""Small real training tasks, each a LightningModule and a LightningDataModule; no download; to be copied.

None of the modules has a `configure_optimizers`: that is what a recipe brings.

    python -c "
    from lightning.pytorch import Trainer
    from lit_opt import Recipe
    from lit_opt.workloads import ByteText, LanguageModel
    Trainer(max_epochs=1, callbacks=[Recipe('llm')]).fit(LanguageModel(), ByteText())"

`pip install lit-opt[workloads]` brings what they need beside torch and lightning.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lit_opt.workloads.data_module import ResumableDataModule as ResumableDataModule
    from lit_opt.workloads.diffusion import DiffusionModel as DiffusionModel
    from lit_opt.workloads.frechet import digit_features as digit_features
    from lit_opt.workloads.frechet import frechet_distance as frechet_distance
    from lit_opt.workloads.glyphs import Glyphs as Glyphs
    from lit_opt.workloads.hugging_face import HuggingFaceImages as HuggingFaceImages
    from lit_opt.workloads.hugging_face import HuggingFaceText as HuggingFaceText
    from lit_opt.workloads.image_classifier import ImageClassifier as ImageClassifier
    from lit_opt.workloads.image_data import CIFAR10 as CIFAR10
    from lit_opt.workloads.image_data import Digits as Digits
    from lit_opt.workloads.image_data import ImageFolder as ImageFolder
    from lit_opt.workloads.language_model import LanguageModel as LanguageModel
    from lit_opt.workloads.loader import EvaluationLoader as EvaluationLoader
    from lit_opt.workloads.loader import ResumableLoader as ResumableLoader
    from lit_opt.workloads.text_data import ByteText as ByteText
    from lit_opt.workloads.vision_language import VisionLanguageModel as VisionLanguageModel

_LAZY = {
    "ByteText": "lit_opt.workloads.text_data",
    "CIFAR10": "lit_opt.workloads.image_data",
    "DiffusionModel": "lit_opt.workloads.diffusion",
    "Digits": "lit_opt.workloads.image_data",
    "EvaluationLoader": "lit_opt.workloads.loader",
    "Glyphs": "lit_opt.workloads.glyphs",
    "HuggingFaceImages": "lit_opt.workloads.hugging_face",
    "HuggingFaceText": "lit_opt.workloads.hugging_face",
    "ImageClassifier": "lit_opt.workloads.image_classifier",
    "ImageFolder": "lit_opt.workloads.image_data",
    "LanguageModel": "lit_opt.workloads.language_model",
    "ResumableDataModule": "lit_opt.workloads.data_module",
    "ResumableLoader": "lit_opt.workloads.loader",
    "VisionLanguageModel": "lit_opt.workloads.vision_language",
    "digit_features": "lit_opt.workloads.frechet",
    "frechet_distance": "lit_opt.workloads.frechet",
}

__all__ = sorted(_LAZY)


def __getattr__(name: str) -> object:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'lit_opt.workloads' has no attribute {name!r}. Public names: {', '.join(__all__)}.")
