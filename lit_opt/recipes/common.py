"""Values that several recipes share, so that each number has one source."""

from __future__ import annotations

from lit_opt.recipes.schema import Value

# Roles are decided in lit_opt.param_groups, which gives the reason for each parameter.
NO_DECAY = Value(
    ("bias", "norm", "embedding", "position", "token", "scale", "ssm", "vector"),
    unit="roles of parameters",
    common_practice="biases and norms: nearly all; embeddings: OLMo and SmolLM3 exclude them, nanoGPT does not",
    source="nanoGPT model.py:263, timm/optim/_param_groups.py:19, OLMo-core optim/config.py:106, SmolLM3 stage1_8T.yaml",
)

CLIP_OFF = Value(
    0.0,
    unit="global gradient norm, 0 is off",
    common_practice="none; big_vision's BiT clips at 1.0",
    source="torchvision references, mmpretrain, NVIDIA DeepLearningExamples ConvNets",
)

EMA_OFF = Value(
    0.0,
    unit="decay per optimizer step, 0 is off",
    common_practice="off; ConvNeXt and torchvision v2 offer it",
    source="DeiT, MAE, nanoGPT, OLMo-core: no EMA in the base recipe",
)

ADAM_EPS = Value(
    1e-8,
    unit="added to the root of the second moment",
    common_practice="1e-8; NeMo 1e-5 is the outlier",
    source="nanoGPT train.py, torchtitan optimizer.py:378, OLMo-core",
)

BF16 = Value(
    "bf16-mixed",
    unit="Trainer(precision=...)",
    common_practice="bf16 with float32 master weights and reductions",
    source="torchtitan, OLMo-core, litgpt",
)

CHANNELS_LAST = Value(
    True,
    unit="memory format of the module",
    common_practice="NHWC on recent GPUs",
    source="NVIDIA DeepLearningExamples ConvNets/resnet50v1.5/README.md",
)


def label_smoothing(source: str) -> Value:
    """Label smoothing 0.1 as read in `source`."""
    return Value(0.1, unit="label smoothing of the loss", common_practice="0.1", source=source)
