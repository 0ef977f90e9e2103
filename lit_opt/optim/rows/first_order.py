"""torch's SGD and Adam family."""

from __future__ import annotations

from typing import Literal

from lit_opt.optim.rows.common import BETAS_LLM, BETAS_TORCH, EPS_ADAM, MOMENTUM
from lit_opt.optim.schema import REQUIRED, OptimizerRow, Published
from lit_opt.optim.state import Scratch, adam_state, momentum_state
from lit_opt.recipes.schema import Value

_L2 = "L2, added to the gradient"
_DECOUPLED = "decoupled, times lr"


def _sgd(lr_practice: str, lr_source: str, decay_practice: str) -> Published:
    return Published(
        lr=Value(
            0.1,
            unit="peak, per step at 256 images",
            range=(0.01, 0.1),
            common_practice=lr_practice,
            source=lr_source,
        ),
        weight_decay=Value(
            1e-4,
            unit=_L2,
            range=(1e-4, 5e-4),
            common_practice=decay_practice,
            source="torchvision references/classification/train.py, mmpretrain imagenet_bs256.py",
        ),
        reference_batch=256,
        rule="linear",
        hyperparameters={"momentum": MOMENTUM},
    )


_CNN_DECAY = "1e-4; CIFAR 5e-4; long runs with heavy augmentation 2e-5 to 3e-5"
_LARGE_DECAY = "1e-4; NVIDIA MLPerf v0.7 2.5e-5 with lr 6 at 3,264"
_LARGE_SOURCE = "arXiv:1706.02677 (linear up to 8,192 with 5 epochs of warmup)"

_SGD_SETTINGS = {
    "cnn": _sgd(
        "0.1 at 256",
        "torchvision references/classification/train.py (0.1 at 8x32), mmpretrain imagenet_bs256.py",
        _CNN_DECAY,
    ),
    "large_batch": _sgd("linear up to 8,192; NVIDIA MLPerf v0.7 6 at 3,264", _LARGE_SOURCE, _LARGE_DECAY),
}

_NESTEROV_SETTINGS = {
    "cnn": _sgd(
        "0.1 at 256, the value of plain momentum",
        "torchvision references/classification/train.py (sgd_nesterov at the default rate); else transferred from sgd",
        _CNN_DECAY,
    ),
    "large_batch": _sgd(
        "transferred from sgd, unverified; tuned Nesterov reaches LARS at 32,768 (arXiv:2102.06356)",
        _LARGE_SOURCE,
        _LARGE_DECAY,
    ),
}


def _adam(
    lr: Value,
    weight_decay: Value,
    reference_batch: int | None,
    rule: Literal["linear", "sqrt", "none"],
    *,
    betas: Value = BETAS_TORCH,
    batch_unit: Literal["samples", "tokens"] = "samples",
) -> Published:
    return Published(
        lr=lr,
        weight_decay=weight_decay,
        reference_batch=reference_batch,
        rule=rule,
        batch_unit=batch_unit,
        hyperparameters={"betas": betas, "eps": EPS_ADAM},
    )


_LLM_DECAY = Value(
    0.1,
    unit=_DECOUPLED,
    range=(0.01, 0.1),
    common_practice="0.1 in 9 of 15 pretraining runs",
    source="nanoGPT train.py:48-68, torchtitan optimizer.py:378, OLMo3-7B",
)
_CONVNEXT_DECAY = Value(
    0.05,
    unit=_DECOUPLED,
    common_practice="0.05 with strong augmentation",
    source="ConvNeXt main.py:74-106",
)
_DIFFUSION_LR = Value(
    1e-4,
    unit="peak, per step at 256 images",
    common_practice="1e-4; 2e-4 at 1024",
    source="DiT train.py:155, SiT train.py:181, guided-diffusion; LightningDiT for the square root",
)

ADAMW_SETTINGS = {
    # "none": 3e-4 was published at 0.5 M and at 4.2 M tokens. Model size moves it more than the batch does.
    "llm": _adam(
        Value(
            3e-4,
            unit="peak, per step at 0.5 M tokens",
            range=(1e-4, 6e-4),
            common_practice="6e-4 at 124 M, 3e-4 at 7-8 B, 1.5e-4 at 70 B",
            source="torchtitan llama3 8B, OLMo3-7B, NeMo llama3_8b.py:186; nanoGPT train.py:48-68",
        ),
        _LLM_DECAY,
        2**19,
        "none",
        betas=BETAS_LLM,
        batch_unit="tokens",
    ),
    "vlm": _adam(
        Value(
            1e-4,
            unit="peak, per step; the sources name no common batch",
            range=(1e-4, 6e-4),
            common_practice="projector 1e-3 to 5e-3, language model and vision tower 5e-5",
            source="lit-opt, between LLaVA v1_5 pretrain.sh (1e-3) and nanoVLM models/config.py:59-65 (5e-5)",
        ),
        _LLM_DECAY,
        None,
        "none",
        betas=BETAS_LLM,
    ),
    "vit": _adam(
        Value(
            2.5e-4,
            unit="peak, per step at 256 images",
            range=(1e-4, 3e-4),
            common_practice="1e-3 at 1024, 4e-3 at 4096; MAE 1.5e-4",
            source="DeiT main.py:50-150, Swin imagenet_bs1024_adamw_swin.py, ConvNeXt main.py:74-106",
        ),
        Value(
            0.05,
            unit=_DECOUPLED,
            range=(0.01, 0.3),
            common_practice="0.05; 0.1 without strong augmentation, 0.3 with SAM",
            source="DeiT, MAE PRETRAIN.md, Swin, ConvNeXt",
        ),
        256,
        "linear",
    ),
    "cnn": _adam(
        Value(
            1e-3,
            unit="peak, per step at 1024 images",
            common_practice="1e-3 at 1024 for ConvNeXt and DeiT; transferred to other CNNs, unverified",
            source="ConvNeXt main.py:74-106 (4e-3 at 4096), DeiT main.py:50",
        ),
        _CONVNEXT_DECAY,
        1024,
        "linear",
    ),
    "diffusion": _adam(
        _DIFFUSION_LR,
        Value(
            0.0,
            unit=_DECOUPLED,
            common_practice="0; FLUX in torchtitan 0.1, diffusers 1e-2 or 1e-6",
            source="DiT train.py:155, SiT train.py:181, LightningDiT, guided-diffusion image_train.py:64",
        ),
        256,
        "sqrt",
    ),
    "large_batch": _adam(
        Value(
            4e-3,
            unit="peak, per step at 4096 images",
            common_practice="4e-3 at 4096; MAE 2.4e-3; tuned AdamW reaches LAMB at 32,768 (arXiv:2102.06356)",
            source="ConvNeXt main.py:74-106; arXiv:2205.10287 for the square root",
        ),
        _CONVNEXT_DECAY,
        4096,
        "sqrt",
    ),
}

_ADAM_SETTINGS = {
    "diffusion": _adam(
        _DIFFUSION_LR,
        Value(
            0.0,
            unit=_L2,
            common_practice="0, where Adam and AdamW are the same rule",
            source="DiT train.py:155, SiT train.py:181 (AdamW with decay 0)",
        ),
        256,
        "sqrt",
    ),
}

_ADAM_HYPERPARAMETERS = {"lr": REQUIRED, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}

ROWS = (
    OptimizerRow(
        name="sgd",
        factory="torch.optim:SGD",
        provider="torch",
        summary="SGD with Polyak momentum (heavy ball)",
        rule="v <- mu v + (g + wd w); w <- w - lr v",
        source="Polyak 1964; torch.optim.SGD, equal to the formula in float64",
        evidence="standard",
        state=momentum_state,
        scratch=Scratch(lists=1.0, largest=1.0),
        hyperparameters={"lr": REQUIRED, "momentum": 0.9, "weight_decay": 0.0, "nesterov": False},
        settings=_SGD_SETTINGS,
    ),
    OptimizerRow(
        name="nesterov",
        factory="torch.optim:SGD",
        provider="torch",
        summary="SGD with Nesterov momentum, in torch's form (gradient at the current point)",
        rule="u = g + wd w; v <- mu v + u; w <- w - lr (u + mu v)",
        source="Nesterov 1983, rewritten by Sutskever et al. 2013; torch.optim.SGD, equal to the formula in float64",
        evidence="standard",
        state=momentum_state,
        scratch=Scratch(largest=2.0),
        hyperparameters={"lr": REQUIRED, "momentum": 0.9, "weight_decay": 0.0},
        fixed={"nesterov": True},
        settings=_NESTEROV_SETTINGS,
    ),
    OptimizerRow(
        name="adam",
        factory="torch.optim:Adam",
        provider="torch",
        summary="Adam; its weight decay is L2 in the gradient, adamw's is decoupled",
        rule="m, v <- moving averages of g + wd w and its square; w <- w - lr mhat / (sqrt(vhat) + eps)",
        source="arXiv:1412.6980; torch.optim.Adam, equal to the formula in float64",
        evidence="standard",
        state=adam_state,
        hyperparameters=_ADAM_HYPERPARAMETERS,
        settings=_ADAM_SETTINGS,
        fused=True,
    ),
    OptimizerRow(
        name="amsgrad",
        factory="torch.optim:Adam",
        provider="torch",
        summary="Adam with the running maximum of v, in torch's form (bias-corrected; the paper's is not)",
        rule="vmax <- max(vmax, v); w <- w - lr mhat / (sqrt(vmax / (1 - b2^t)) + eps)",
        source="arXiv:1904.09237 has no bias correction; torch.optim.Adam(amsgrad=True) has it, and is what is built",
        evidence="standard",
        state=adam_state,
        hyperparameters=_ADAM_HYPERPARAMETERS,
        fixed={"amsgrad": True},
        fused=True,
    ),
    OptimizerRow(
        name="adamw",
        factory="torch.optim:AdamW",
        provider="torch",
        summary="Adam with decoupled weight decay",
        rule="w <- (1 - lr wd) w - lr mhat / (sqrt(vhat) + eps)",
        source="arXiv:1711.05101; torch.optim.AdamW, equal to the formula in float64",
        evidence="standard",
        state=adam_state,
        hyperparameters={"lr": REQUIRED, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01},
        settings=ADAMW_SETTINGS,
        fused=True,
    ),
)
