"""Layer-wise trust ratios: LARS and LAMB, timm's classes with their traps closed.

Both classes skip the ratio in groups without decay unless `always_adapt` is set. So with weight_decay=0 LARS
would be plain SGD without a word, and LAMB plain Adam. Here groups adapt, and those that are excluded from decay
(biases, norms) do not, as in MLPerf and in the papers' code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lit_opt.optim.rows.common import BETAS_LAMB, EPS_LAMB, MOMENTUM
from lit_opt.optim.schema import REQUIRED, OptimizerRow, Published
from lit_opt.optim.state import Buffer, Scratch, Shape, like_parameter, momentum_state
from lit_opt.recipes.schema import Value

_LARS_LARGE_BATCH = Published(
    lr=Value(
        10.0,
        unit="peak, per step at 4,096 to 16,384 images",
        common_practice="10 below 16,384 images, 25 up to 32,768, 31.2 from there",
        source="mlcommons/training resnet-tf2 lars_util.py:77-107",
    ),
    weight_decay=Value(
        2e-4,
        unit="L2, inside the trust ratio",
        common_practice="2e-4; NVIDIA 1e-4 at 64,400",
        source="mlcommons/training resnet-tf2 README.md:99-136",
    ),
    # The published rates are a table over the batch, not a rule.
    reference_batch=None,
    rule="none",
    hyperparameters={
        "momentum": MOMENTUM,
        "trust_coeff": Value(
            0.001,
            unit="eta, times |w| / |g + wd w|",
            common_practice="0.001",
            source="arXiv:1708.03888; mlcommons/training resnet-tf2 lars_optimizer.py:56-80",
        ),
        "eps": Value(
            0.0,
            unit="added to the denominator of the trust ratio",
            common_practice="0",
            source="mlcommons/training resnet-tf2 lars_optimizer.py:56-80",
        ),
    },
)

_LAMB_HYPERPARAMETERS = {"betas": BETAS_LAMB, "eps": EPS_LAMB}
_LAMB_DECAY_UNIT = "inside the update, then times the trust ratio"

_LAMB_CNN = Published(
    lr=Value(
        5e-3,
        unit="peak, per step at 2048 images",
        common_practice="5e-3 (RSB A1, A2), 8e-3 (A3); BERT 6e-3 at 65,536 x 128 tokens, then 4e-3 at 32,768 x 512",
        source="RSB A2, mmpretrain imagenet_bs2048_rsb.py; timm train.py:836 and arXiv:1904.00962 for the square root",
    ),
    weight_decay=Value(
        0.02,
        unit=_LAMB_DECAY_UNIT,
        common_practice="0.02; RSB A1 and BERT 0.01",
        source="RSB A2, mmpretrain imagenet_bs2048_rsb.py; DeepLearningExamples BERT run_pretraining.py:423-436",
    ),
    reference_batch=2048,
    rule="sqrt",
    hyperparameters=_LAMB_HYPERPARAMETERS,
)

_LAMB_SETTINGS = {
    "cnn": _LAMB_CNN,
    # Both recipes of this setting are for images, so BERT's rates are named as practice only.
    "large_batch": _LAMB_CNN,
    "vit": Published(
        lr=Value(
            3e-3,
            unit="peak, per step at 2048 images",
            common_practice="3e-3 for B, L and H; 4e-3 for S",
            source="DeiT III README_revenge.md:81; timm train.py:836 for the square root",
        ),
        weight_decay=Value(
            0.05,
            unit=_LAMB_DECAY_UNIT,
            common_practice="0.05; 0.02 on ImageNet-21k",
            source="DeiT III README_revenge.md:81,412",
        ),
        reference_batch=2048,
        rule="sqrt",
        hyperparameters=_LAMB_HYPERPARAMETERS,
    ),
}


def _lamb_state(shape: Shape, options: Mapping[str, Any]) -> tuple[Buffer, ...]:
    return like_parameter(shape, "exp_avg", "exp_avg_sq")  # the step count is the group's


ROWS = (
    OptimizerRow(
        name="lars",
        factory="timm.optim.lars:Lars",
        provider="timm",
        summary="SGD with momentum and one trust ratio a layer; weight_decay=0 is the form eta |w| / |g|",
        rule="r = eta |w| / (|g| + wd |w| + eps), 1 if either norm is 0; v <- mu v + r (g + wd w); w <- w - lr v",
        source="arXiv:1708.03888 (which has lr inside v); timm/optim/lars.py, equal to the formula in float64",
        evidence="published at 8k to 64k images; tuned Nesterov reaches the same at 32k (arXiv:2102.06356)",
        state=momentum_state,
        scratch=Scratch(lists=1.0, largest=1.0),
        hyperparameters={
            "lr": REQUIRED,
            "momentum": 0.9,
            "weight_decay": 0.0,
            "nesterov": False,
            "trust_coeff": 0.001,
            "eps": 0.0,
            "trust_clip": False,
        },
        of_whole="the norm of each layer",
        decayed_group={"always_adapt": True},
        excluded_group={"always_adapt": False},
        settings={"large_batch": _LARS_LARGE_BATCH},
    ),
    OptimizerRow(
        name="lamb",
        factory="timm.optim.lamb:Lamb",
        provider="timm",
        summary="Adam's update with one trust ratio a layer; no gradient clipping unless max_grad_norm is given",
        rule="u = mhat / (sqrt(vhat) + eps) + wd w; w <- w - lr |w| / |u| u, the ratio 1 if either norm is 0",
        source="arXiv:1904.00962; timm/optim/lamb.py, equal to the formula in float64; its step count is per group",
        evidence="published at 512 to 65k sequences; tuned AdamW reaches the same at 32k (arXiv:2102.06356)",
        state=_lamb_state,
        scratch=Scratch(lists=2.0, largest=4.0),
        hyperparameters={
            "lr": REQUIRED,
            "betas": (0.9, 0.999),
            "eps": 1e-6,
            "weight_decay": 0.01,
            "bias_correction": True,
            # timm's default of 1.0 clips inside step, a second time where the Trainer clips already.
            "max_grad_norm": None,
            "trust_clip": False,
        },
        of_whole="the norm of each layer",
        decayed_group={"always_adapt": True},
        excluded_group={"always_adapt": False},
        global_only=("max_grad_norm",),
        settings=_LAMB_SETTINGS,
    ),
)
