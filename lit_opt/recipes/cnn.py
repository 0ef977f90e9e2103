"""Convolutional networks: SGD with momentum at 0.1 per 256 images."""

from __future__ import annotations

from dataclasses import replace

from lit_opt.recipes import muon
from lit_opt.recipes.common import (
    ADAM_EPS,
    BF16,
    CHANNELS_LAST,
    CLIP_OFF,
    EMA_OFF,
    MUON_FALLBACK,
    NO_DECAY,
    label_smoothing,
    optimizer_name,
    sam,
)
from lit_opt.recipes.schema import Decay, LearningRate, RecipeSpec, Scaling, Value, Warmup

SGD = Value(
    "sgd",
    unit="registry name",
    common_practice="SGD with momentum; RSB uses LAMB",
    source="torchvision references/classification/train.py, mmpretrain, NVIDIA DeepLearningExamples",
)

SGD_LR = Value(
    0.1,
    unit="peak, per step at 256 images",
    range=(0.01, 0.1),
    common_practice="0.1 at 256; NVIDIA 0.256, torchvision v2 0.125",
    source="torchvision references train.py, mmpretrain imagenet_bs256.py, big_vision bit_i1k.py:63",
)

SGD_WEIGHT_DECAY = Value(
    1e-4,
    unit="L2, added to the gradient",
    range=(1e-4, 5e-4),
    common_practice="1e-4; CIFAR 5e-4; 2e-5 to 3e-5 in runs of 250 to 600 epochs with heavy augmentation",
    source="torchvision references train.py, mmpretrain imagenet_bs256.py",
)

SGD_HYPERPARAMETERS = {
    "momentum": Value(
        0.9,
        unit="decay of the velocity per step",
        common_practice="0.9; NVIDIA 0.875",
        source="torchvision references train.py, mmpretrain, field guide",
    ),
}

REFERENCE_BATCH = Value(256, unit="images", common_practice="256", source="arXiv:1706.02677, torchvision references")

LINEAR = Value(
    "linear",
    unit="rule",
    common_practice="linear for SGD",
    source="arXiv:1706.02677 (to 8192 images on ImageNet)",
)

COSINE = Value(
    "cosine",
    unit="shape",
    common_practice="cosine, or steps of 0.1 at 1/3, 2/3 and 8/9 of the run",
    source="torchvision ResNet50 v2 (pytorch/vision#3995), NVIDIA ConvNets; mmpretrain milestones 30/60/90",
)

TO_ZERO = Value(
    0.0, unit="fraction of the peak", common_practice="0", source="torchvision ResNet50 v2, NVIDIA ConvNets"
)

WARMUP_START = Value(
    0.01, unit="fraction of the peak", common_practice="0.01", source="torchvision references train.py"
)

SGD_RECIPE = RecipeSpec(
    name="cnn",
    setting="cnn",
    summary="Convolutional networks with SGD, momentum and cosine decay",
    deviate="AdamW for transformer-heavy stacks or faster early convergence",
    optimizer=SGD,
    lr=LearningRate(
        base=SGD_LR,
        scaling=Scaling(
            rule=LINEAR,
            reference_batch=REFERENCE_BATCH,
            batch_unit="samples",
            limit=Value(
                8192,
                unit="images",
                common_practice="beyond it the linear rule breaks: see large_batch",
                source="arXiv:1706.02677",
            ),
            down=True,
        ),
    ),
    weight_decay=SGD_WEIGHT_DECAY,
    hyperparameters=SGD_HYPERPARAMETERS,
    no_decay=NO_DECAY,
    warmup=Warmup(
        length=Value(
            0.05,
            unit="fraction of the run",
            common_practice="5 epochs of 100; NVIDIA 8 of 90",
            source="torchvision ResNet50 v2 (pytorch/vision#3995), NVIDIA ConvNets configs.yml",
        ),
        start=WARMUP_START,
    ),
    decay=Decay(kind=COSINE, final=TO_ZERO),
    clip=CLIP_OFF,
    ema=EMA_OFF,
    hints={
        "precision": BF16,
        "channels_last": CHANNELS_LAST,
        "label_smoothing": label_smoothing("NVIDIA ConvNets, RSB, torchvision ResNet50 v2"),
    },
)

MUON = replace(
    SGD_RECIPE,
    name="cnn/muon",
    summary="Convolutional networks with Muon on kernels as (out, in x height x width); the stem on AdamW; unverified",
    deviate="cnn, whose numbers are published",
    optimizer=muon.transferred(muon.MUON, "llm/muon"),
    lr=muon.unscaled(
        replace(
            muon.transferred(muon.LR, "llm/muon"),
            common_practice="0.02 to start; airbench 0.24 with momentum 0.6 at 2,000 images is a speedrun",
        ),
        Value(
            2000,
            unit="images",
            common_practice="2,000 in airbench, the one public run with convolutions that was read",
            source="cifar10-airbench airbench94_muon.py",
        ),
        "samples",
    ),
    weight_decay=muon.transferred(muon.WEIGHT_DECAY, "llm/muon"),
    hyperparameters=muon.all_transferred(muon.HYPERPARAMETERS, "llm/muon"),
    fallback=muon.all_transferred(MUON_FALLBACK, "llm/muon"),
)

SAM = replace(
    SGD_RECIPE,
    name="cnn/sam",
    summary="Convolutional networks with SAM around SGD: for better generalisation at twice the cost a step",
    deviate="cnn, at half the cost a step, when the budget is counted in time",
    optimizer=optimizer_name("sam", "SGD; SAM where generalisation is worth a second gradient", "arXiv:2010.01412"),
    hyperparameters={**SGD_HYPERPARAMETERS, **sam("sgd", "SGD with momentum")},
)

_CONVNEXT = "ConvNeXt main.py:74-106"

ADAMW = replace(
    SGD_RECIPE,
    name="cnn/adamw",
    summary="Convolutional networks with AdamW: for transformer-like stacks (ConvNeXt) and faster early convergence",
    deviate="cnn for plain ResNets, whose published results are SGD's",
    optimizer=optimizer_name("adamw", "AdamW in ConvNeXt; SGD for ResNets", _CONVNEXT),
    lr=LearningRate(
        base=Value(
            1e-3,
            unit="peak, per step at 1024 images",
            common_practice="1e-3 at 1024 (4e-3 at 4096) for ConvNeXt; transferred to other CNNs, unverified",
            source=_CONVNEXT,
        ),
        scaling=Scaling(
            rule=LINEAR,
            reference_batch=Value(1024, unit="images", common_practice="4096", source=_CONVNEXT),
            batch_unit="samples",
            limit=Value(4096, unit="images", common_practice="4096, the published batch", source=_CONVNEXT),
        ),
    ),
    weight_decay=Value(
        0.05, unit="decoupled, times lr", common_practice="0.05 with strong augmentation", source=_CONVNEXT
    ),
    hyperparameters={
        "betas": Value(
            (0.9, 0.999), unit="decay of the moments per step", common_practice="(0.9, 0.999)", source=_CONVNEXT
        ),
        "eps": ADAM_EPS,
    },
)

RECIPES = (SGD_RECIPE, MUON, SAM, ADAMW)
