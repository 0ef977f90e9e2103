"""Starting values that several rows share, so that each number has one source."""

from __future__ import annotations

from lit_opt.recipes.schema import Value

_BETAS_UNIT = "decay of the moments per step"
_EPS_UNIT = "added to the root of the second moment"

BETAS_TORCH = Value(
    (0.9, 0.999),
    unit=_BETAS_UNIT,
    common_practice="(0.9, 0.999); (0.9, 0.95) for masked pretraining and large batches",
    source="DeiT main.py:50, Swin imagenet_bs1024_adamw_swin.py, ConvNeXt main.py:74, DiT train.py:154",
)

BETAS_LLM = Value(
    (0.9, 0.95),
    unit=_BETAS_UNIT,
    common_practice="(0.9, 0.95)",
    source="nanoGPT train.py:48-68, torchtitan optimizer.py:378, OLMo-core, NeMo, litgpt",
)

BETAS_LAMB = Value(
    (0.9, 0.999),
    unit=_BETAS_UNIT,
    common_practice="(0.9, 0.999)",
    source="arXiv:1904.00962; DeepLearningExamples BERT/run_pretraining.py:423-436",
)

EPS_ADAM = Value(
    1e-8,
    unit=_EPS_UNIT,
    common_practice="1e-8; NeMo 1e-5 is the outlier",
    source="arXiv:1412.6980; nanoGPT, torchtitan optimizer.py:378, DeiT, ConvNeXt",
)

EPS_LAMB = Value(
    1e-6,
    unit=_EPS_UNIT,
    common_practice="1e-6",
    source="arXiv:1904.00962; timm/optim/lamb.py",
)

MOMENTUM = Value(
    0.9,
    unit="decay of the momentum buffer per step",
    common_practice="0.9; NVIDIA 0.875",
    source="torchvision references/classification/train.py, mmpretrain imagenet_bs256.py",
)
