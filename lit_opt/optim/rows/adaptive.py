"""Adaptive methods beside Adam: torch's, timm's and pytorch_optimizer's, and what is ours because none was correct."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lit_opt.optim.rows.common import EPS_ADAM
from lit_opt.optim.rows.first_order import ADAMW_SETTINGS
from lit_opt.optim.schema import REQUIRED, OptimizerRow, Published
from lit_opt.optim.state import STEP, Buffer, Scratch, Shape, adam_state, kept, like_parameter, momentum_state
from lit_opt.recipes.common import ADAFACTOR_MOMENTUM, ADAFACTOR_SOURCE
from lit_opt.recipes.schema import Value

_ADAM = {"lr": REQUIRED, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
_AVERAGE = {"warmup_steps": 0, "r": 0.0, "weight_lr_power": 2.0}
_EQUAL_BETAS = Value(
    (0.95, 0.95),
    unit="decay of both moments per step",
    common_practice="equal betas; 0.95 is a common value, not confirmed from the paper's tables",
    source="arXiv:2505.21829",
)


def _rmsprop_state(shape: Shape, options: Mapping[str, Any]) -> tuple[Buffer, ...]:
    return (*like_parameter(shape, "square_avg"), *momentum_state(shape, options), STEP)


def _nadam_state(shape: Shape, options: Mapping[str, Any]) -> tuple[Buffer, ...]:
    return (*adam_state(shape, options), replace(STEP, name="mu_product"))


def _adabound_state(shape: Shape, options: Mapping[str, Any]) -> tuple[Buffer, ...]:
    largest = ("max_exp_avg_sq",) if options.get("ams_bound") else ()
    return like_parameter(shape, "exp_avg", "exp_avg_sq", *largest)


def _adafactor_state(shape: Shape, options: Mapping[str, Any]) -> tuple[Buffer, ...]:
    if len(shape) < 2:
        return (Buffer(name="second_moment", numbers=math.prod(shape), dtype="float32"), STEP)
    rows = Buffer(name="row_means", numbers=shape[0], dtype="float32")
    return (rows, Buffer(name="column_means", numbers=math.prod(shape[1:]), dtype="float32", sharded=False), STEP)


def _big_vision_state(shape: Shape, options: Mapping[str, Any]) -> tuple[Buffer, ...]:
    numbers = math.prod(shape)
    momentum = Buffer(name="exp_avg", numbers=numbers, dtype="bfloat16")
    order = sorted(range(len(shape)), key=lambda dim: (shape[dim], dim))
    if len(shape) < 2 or shape[order[-2]] < 16:
        return (Buffer(name="second_moment", numbers=numbers, dtype="float32"), momentum, STEP)
    # Means over the first dimension, which FSDP2 cuts, are on every device.
    means = zip(("row_means", "column_means"), (order[-1], order[-2]), strict=True)
    buffers = (Buffer(name=n, numbers=numbers // shape[dim], dtype="float32", sharded=dim != 0) for n, dim in means)
    return (*buffers, momentum, STEP)


def _equal_betas() -> dict[str, Published]:
    """AdamW's values with one beta for both moments."""
    return {
        setting: replace(values, hyperparameters={"betas": _EQUAL_BETAS, "eps": EPS_ADAM})
        for setting, values in ADAMW_SETTINGS.items()
    }


def _as_adamw(source: str, **hyperparameters: Value) -> dict[str, Published]:
    """AdamW's rate and decay in each setting, for a method that is published to take them unchanged."""
    return {
        setting: replace(
            values,
            lr=replace(values.lr, source=f"{values.lr.source}; unchanged: {source}"),
            weight_decay=replace(values.weight_decay, source=f"{values.weight_decay.source}; unchanged: {source}"),
            hyperparameters=hyperparameters,
        )
        for setting, values in ADAMW_SETTINGS.items()
    }


ROWS = (
    OptimizerRow(
        name="adagrad",
        state=kept("sum", steps=True),
        scratch=Scratch(lists=2.0, largest=3.0),
        factory="torch.optim:Adagrad",
        provider="torch",
        summary="Adagrad: the sum of all squared gradients; decay as L2",
        rule="u = g + wd w; h <- h + u^2; w <- w - lr u / (sqrt(h) + eps)",
        source="Duchi et al. 2011; torch.optim.Adagrad, equal to the formula in float64",
        evidence="standard",
        hyperparameters={"lr": REQUIRED, "eps": 1e-10, "initial_accumulator_value": 0.0, "weight_decay": 0.0},
    ),
    OptimizerRow(
        name="rmsprop",
        state=_rmsprop_state,
        scratch=Scratch(lists=2.0, largest=3.0),
        factory="torch.optim:RMSprop",
        provider="torch",
        summary="RMSProp: a moving average of squared gradients; decay as L2",
        rule="u = g + wd w; h <- a h + (1 - a) u^2; v <- mu v + u / (sqrt(h) + eps); w <- w - lr v",
        source="Tieleman and Hinton 2012; torch.optim.RMSprop, equal to the formula in float64. timm's RMSpropTF has "
        "another rule (h starts at 1, eps inside the root)",
        evidence="standard",
        hyperparameters={"lr": REQUIRED, "alpha": 0.99, "eps": 1e-8, "momentum": 0.0, "weight_decay": 0.0},
    ),
    OptimizerRow(
        name="adadelta",
        state=kept("square_avg", "acc_delta", steps=True),
        scratch=Scratch(lists=3.0, largest=4.0),
        factory="torch.optim:Adadelta",
        provider="torch",
        summary="Adadelta: steps as long as past updates; lr is a factor, 1 in the paper; decay as L2",
        rule="u = g + wd w; h <- rho h + (1 - rho) u^2; d = sqrt(s + eps) / sqrt(h + eps) u; "
        "s <- rho s + (1 - rho) d^2; w <- w - lr d",
        source="arXiv:1212.5701; torch.optim.Adadelta, equal to the formula in float64",
        evidence="standard",
        hyperparameters={"lr": REQUIRED, "rho": 0.9, "eps": 1e-6, "weight_decay": 0.0},
        limits={"rho": (0.0, 1.0)},
    ),
    OptimizerRow(
        name="radam",
        state=adam_state,
        scratch=Scratch(lists=1.0, largest=2.0),
        factory="torch.optim:RAdam",
        provider="torch",
        summary="RAdam: Adam without the variance of its first steps; decoupled decay",
        rule="r_t from the length of the average; while it is at most 5, w <- w - lr mhat; then "
        "w <- w - lr r_t mhat / (sqrt(vhat) + eps); both after w <- (1 - lr wd) w",
        source="arXiv:1908.03265; torch.optim.RAdam (threshold 5; the paper has 4)",
        evidence="standard",
        hyperparameters=_ADAM,
        fixed={"decoupled_weight_decay": True},
    ),
    OptimizerRow(
        name="nadam",
        state=_nadam_state,
        scratch=Scratch(lists=1.0, largest=3.0),
        factory="torch.optim:NAdam",
        provider="torch",
        summary="NAdam: Adam with Nesterov momentum; decoupled decay",
        rule="mu_t = b1 (1 - 0.5 0.96^(t psi)); w <- (1 - lr wd) w - lr (mu_t+1 m + (1 - mu_t) g, each bias-corrected) "
        "/ (sqrt(vhat) + eps)",
        source="Dozat 2016; torch.optim.NAdam",
        evidence="standard",
        hyperparameters={**_ADAM, "momentum_decay": 0.004},
        fixed={"decoupled_weight_decay": True},
    ),
    OptimizerRow(
        name="adam_equal_betas",
        state=adam_state,
        factory="torch.optim:AdamW",
        provider="torch",
        summary="AdamW with one beta for both moments (Adam's secret sauce)",
        rule="AdamW with b1 = b2 = b: up to bias correction, sign(m) / sqrt(1 + b EMA[(m' - g)^2] / m^2)",
        source="arXiv:2505.21829; torch.optim.AdamW, equal to the formula in float64",
        evidence="small scale",
        hyperparameters={**_ADAM, "betas": (0.95, 0.95)},
        settings=_equal_betas(),
        fused=True,
    ),
    OptimizerRow(
        name="signum",
        state=kept("exp_avg"),
        scratch=Scratch(lists=1.0, largest=2.0),
        factory="lit_opt.optim.signum:Signum",
        provider="timm",
        summary="The sign of a moving average: the baseline of the equal-betas study",
        rule="m <- mu m + (1 - mu) g; w <- (1 - lr wd) w - lr sign(m)",
        source="arXiv:1802.04434; timm's Lion with equal betas, equal to the formula in float64",
        evidence="small scale",
        hyperparameters={"lr": REQUIRED, "momentum": 0.95, "weight_decay": 0.0},
    ),
    OptimizerRow(
        name="lion",
        state=kept("exp_avg"),
        scratch=Scratch(lists=1.0, largest=2.0),
        factory="timm.optim:Lion",
        provider="timm",
        summary="Lion: the sign of an interpolated momentum; rates 3 to 10 times below AdamW's, decay as much above",
        rule="w <- (1 - lr wd) w - lr sign(b1 m + (1 - b1) g); m <- b2 m + (1 - b2) g",
        source="arXiv:2302.06675; timm, equal to the formula in float64",
        evidence="published (arXiv:2302.06675); open source",
        hyperparameters={"lr": REQUIRED, "betas": (0.9, 0.99), "weight_decay": 0.0},
    ),
    OptimizerRow(
        name="adabelief",
        state=kept("exp_avg", "exp_avg_var"),
        scratch=Scratch(lists=2.0, largest=4.0),
        factory="timm.optim:AdaBelief",
        provider="timm",
        summary="AdaBelief: the variance of the gradient around its average; decoupled decay, not rectified",
        rule="s <- b2 s + (1 - b2) (g - m)^2 + eps; w <- (1 - lr wd) w - lr mhat / (sqrt(shat) + eps)",
        source="arXiv:2010.07468; timm with rectify=False (its default is True), equal to the formula in float64",
        evidence="standard",
        hyperparameters={**_ADAM, "eps": 1e-16},
        fixed={"rectify": False, "decoupled_decay": True},
    ),
    OptimizerRow(
        name="adabound",
        state=_adabound_state,
        scratch=Scratch(everything=1.0),
        factory="lit_opt.optim.adabound:AdaBound",
        provider="pytorch_optimizer",
        extra="optimizers",
        summary="AdaBound: Adam whose steps are held between bounds that close around an SGD rate; decoupled decay",
        rule="a = lr sqrt(1 - b2^t) / (1 - b1^t) / (sqrt(v) + eps), held in final_lr lr / peak (1 -+ 1 / (gamma t)); "
        "w <- (1 - lr wd) w - a m",
        source="arXiv:1902.09843; pytorch_optimizer, 1e-11 from Luolc/AdaBound, which has no 1 / sqrt(t)",
        evidence="standard; unmaintained since 2019",
        hyperparameters={**_ADAM, "final_lr": 0.1, "gamma": 1e-3, "amsbound": False},
        limits={"gamma": (1e-12, math.inf)},
        global_only=("amsbound",),
    ),
    OptimizerRow(
        name="adafactor",
        of_whole="the means of rows and columns",
        state=_adafactor_state,
        scratch=Scratch(largest=3.0),
        factory="lit_opt.optim.adafactor:Adafactor",
        provider="lit_opt",
        summary="Adafactor, the paper's: second moments from row and column means, steps relative to the weights",
        rule="V = R C / mean(R); U = G / sqrt(V), at most d in RMS; "
        "w <- (1 - lr wd) w - max(eps2, RMS(w)) min(lr, 1 / sqrt(t)) U",
        source="arXiv:1804.04235 algorithm 4; equal to torch.optim.Adafactor on matrices in float64, and runs on FSDP2",
        evidence="published; open source",
        hyperparameters={
            "lr": REQUIRED,
            "beta2_decay": -0.8,
            "eps": (1e-30, 1e-3),
            "d": 1.0,
            "scale_parameter": True,
            "weight_decay": 0.0,
        },
        clips_itself=True,
    ),
    OptimizerRow(
        name="adafactor_bv",
        of_whole="the means of rows and columns",
        state=_big_vision_state,
        scratch=Scratch(largest=4.0),
        factory="lit_opt.optim.adafactor_bv:AdafactorBigVision",
        provider="lit_opt",
        summary="Adafactor, big_vision's: AdamW's rate and decay, factored second moment, bfloat16 momentum",
        rule="V from row and column means, b2 = min(0.999, 1 - t^-0.8); U = G / sqrt(V); m <- b1 m + (1 - b1) U; "
        "w <- w - lr (m + wd w)",
        source="arXiv:2106.04560; google-research/big_vision; equal to timm's bit for bit in float32, and FSDP2 saves it",
        evidence="published for vision transformers (arXiv:2106.04560); open source",
        hyperparameters={"lr": REQUIRED, "momentum": 0.9, "weight_decay": 0.0, "beta2_cap": 0.999, "eps": 1e-30},
        fixed={"min_dim_size_to_factor": 16},
        settings=_as_adamw(
            ADAFACTOR_SOURCE,
            momentum=ADAFACTOR_MOMENTUM,
        ),
    ),
    OptimizerRow(
        name="schedule_free_adamw",
        state=kept("z", "exp_avg_sq"),
        scratch=Scratch(everything=2.0),
        factory="lit_opt.optim.schedule_free:ScheduleFreeAdamW",
        provider="schedulefree",
        extra="optimizers",
        summary="AdamW with an average of the weights in place of a decaying rate",
        rule="y = (1 - b1) z + b1 x; z <- z - lr (g(y) / (sqrt(vhat) + eps) + wd y); x averages z by lr^2",
        source="arXiv:2405.15682; facebookresearch/schedule_free, equal to the formula in float64",
        evidence="published (arXiv:2405.15682); open source",
        hyperparameters={**_ADAM, **_AVERAGE},
        averages_itself=True,
        group_state=("k", "weight_sum", "lr_max", "scheduled_lr", "train_mode"),
    ),
    OptimizerRow(
        name="schedule_free_sgd",
        state=kept("z"),
        scratch=Scratch(everything=1.0),
        factory="lit_opt.optim.schedule_free:ScheduleFreeSGD",
        provider="schedulefree",
        extra="optimizers",
        summary="SGD with an average of the weights in place of a decaying rate",
        rule="y = (1 - mu) z + mu x; z <- z - lr (g(y) + wd y); x averages z by lr^2",
        source="arXiv:2405.15682; facebookresearch/schedule_free",
        evidence="small scale; open source",
        hyperparameters={"lr": REQUIRED, "momentum": 0.9, "weight_decay": 0.0, **_AVERAGE},
        averages_itself=True,
        group_state=("k", "weight_sum", "lr_max", "scheduled_lr", "train_mode"),
    ),
)
