"""Extreme batches: LARS, LAMB, and the tuned control that should always run beside them."""

from __future__ import annotations

from dataclasses import replace

from lit_opt.recipes.cnn import (
    COSINE,
    LINEAR,
    REFERENCE_BATCH,
    SGD_LR,
    TO_ZERO,
    WARMUP_START,
)
from lit_opt.recipes.cnn import RECIPES as CNN
from lit_opt.recipes.schema import Decay, LearningRate, Scaling, Value, Warmup

_CNN = CNN[0]
_MLPERF = "mlcommons/training retired_benchmarks/resnet-tf2/tensorflow2/lars_util.py:77"
_RSB = "RSB A2, mmpretrain imagenet_bs2048_rsb.py; arXiv:2110.00476"
_DEVIATE = (
    "stay with the cnn recipe, or AdamW, if the batch is moderate (up to 8192 images) and the tuning budget "
    "is limited; tuned Nesterov and AdamW match LARS and LAMB at 32k (arXiv:2102.06356)"
)

# Below it the linear rule with a warmup holds for plain SGD, and nothing is gained by a trust ratio.
_MODERATE = Value(
    8192,
    unit="images",
    common_practice="SGD with a linear rate and warmup up to 8,192; NVIDIA's MLPerf v0.7 ResNet used SGD at 3,264 and "
    "LARS at 34,560 and 64,400",
    source="arXiv:1706.02677; mlcommons/training_results_v0.7 NVIDIA resnet config_DGXA100*.sh",
)


def _lars_lr(lr: float) -> Value:
    return Value(
        lr,
        unit="peak, times the trust ratio",
        common_practice="10 below 16,384, 25 below 32,768, 31.2 from there; NVIDIA 21.6 at 34,560 in another unit",
        source=_MLPERF,
    )


LARS = replace(
    _CNN,
    name="large_batch/lars",
    setting="large_batch",
    moderate_batch=_MODERATE,
    summary="CNNs at 4,096 to 65,536 images with LARS and polynomial decay",
    deviate=_DEVIATE,
    optimizer=Value("lars", unit="registry name", common_practice="LARS above 8k to 32k", source="arXiv:1708.03888"),
    lr=LearningRate(
        base=_lars_lr(10.0),
        by_batch=((16383, _lars_lr(10.0)), (32767, _lars_lr(25.0)), (float("inf"), _lars_lr(31.2))),
        scaling=Scaling(
            rule=Value("none", unit="rule", common_practice="a table by batch", source=_MLPERF),
            reference_batch=Value(4096, unit="images", common_practice="4096 or more", source=_MLPERF),
            batch_unit="samples",
        ),
    ),
    weight_decay=Value(
        2e-4, unit="inside the trust ratio", common_practice="2e-4; NVIDIA 1e-4 at 64,400", source=_MLPERF
    ),
    hyperparameters={
        "momentum": Value(0.9, unit="decay of the velocity per step", common_practice="0.9 to 0.95", source=_MLPERF),
        "trust_coeff": Value(0.001, unit="times norm(w) / norm(g)", common_practice="0.001", source=_MLPERF),
        "eps": Value(0.0, unit="added to the denominator", common_practice="0", source=_MLPERF),
    },
    warmup=Warmup(
        length=Value(
            0.08,
            unit="fraction of the run",
            common_practice="5 epochs below 32,768 images, 25 epochs from there",
            source=_MLPERF,
        ),
        start=Value(0.0, unit="fraction of the peak", common_practice="0", source=_MLPERF),
    ),
    decay=Decay(
        kind=Value("polynomial", unit="shape", common_practice="polynomial", source=_MLPERF),
        final=Value(1e-5, unit="fraction of the peak", common_practice="lr 1e-4 of 10", source=_MLPERF),
        power=Value(2.0, unit="exponent", common_practice="2", source=_MLPERF),
    ),
)

LAMB = replace(
    _CNN,
    name="large_batch/lamb",
    setting="large_batch",
    moderate_batch=_MODERATE,
    summary="Vision models at 2,048 images or more with LAMB",
    deviate=_DEVIATE,
    optimizer=Value(
        "lamb",
        unit="registry name",
        common_practice="LAMB for BERT at 32k to 65k, RSB",
        source="arXiv:1904.00962",
    ),
    lr=LearningRate(
        base=Value(
            5e-3,
            unit="peak, per step at 2,048 images",
            common_practice="5e-3 at 2048; DeiT III 3e-3; BERT 6e-3 at 65,536 sequences of 128 tokens",
            source=_RSB,
        ),
        scaling=Scaling(
            rule=Value("sqrt", unit="rule", common_practice="sqrt", source="arXiv:1904.00962; timm train.py:836"),
            reference_batch=Value(2048, unit="images", common_practice="2048", source=_RSB),
            batch_unit="samples",
        ),
    ),
    weight_decay=Value(0.02, unit="inside the trust ratio", common_practice="0.01 to 0.02; DeiT III 0.05", source=_RSB),
    hyperparameters={
        "betas": Value(
            (0.9, 0.999),
            unit="decay of the moments per step",
            common_practice="(0.9, 0.999)",
            source="arXiv:1904.00962; NVIDIA BERT run_pretraining.py:423",
        ),
        "eps": Value(1e-6, unit="added to the root of the second moment", common_practice="1e-6", source=_RSB),
    },
    warmup=Warmup(
        length=Value(
            0.05, unit="fraction of the run", common_practice="5 of 100 to 300 epochs; BERT 28 %", source=_RSB
        ),
        start=WARMUP_START,
    ),
    decay=Decay(kind=COSINE, final=TO_ZERO),
    # These rates were published with LAMB's own limit; the registry row turns that off, so that it is set once, here.
    clip=Value(
        1.0,
        unit="global gradient norm, 0 is off",
        common_practice="1.0, inside the optimizer in timm, apex and NVIDIA's BERT",
        source="timm/optim/lamb.py (max_grad_norm 1.0, as in RSB), NVIDIA lamb_amp_opt/fused_lamb/fused_lamb.py:13",
    ),
)

CONTROL = replace(
    _CNN,
    name="large_batch/control",
    setting="large_batch",
    moderate_batch=_MODERATE,
    summary="The control for LARS and LAMB: SGD with a linearly scaled rate and a longer warmup",
    deviate="LARS or LAMB when the batch is extreme and there is no budget to tune",
    lr=LearningRate(
        base=SGD_LR,
        scaling=Scaling(rule=LINEAR, reference_batch=REFERENCE_BATCH, batch_unit="samples", down=True),
    ),
    warmup=Warmup(
        length=Value(
            0.15,
            unit="fraction of the run",
            common_practice="2 to 4 times the usual 5 %",
            source="arXiv:2102.06356, arXiv:1706.02677",
        ),
        start=WARMUP_START,
    ),
)

RECIPES = (LARS, LAMB, CONTROL)
