"""Methods with statistics of both sides of a matrix: lit_opt's own engine, see lit_opt.optim.matrix.preconditioned."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from lit_opt.optim.schema import REQUIRED, OptimizerRow, Published
from lit_opt.optim.state import STEP, Buffer, Shape, StateOf, adam_state
from lit_opt.recipes.common import SOAP, SOAP_DECAY, SOAP_LR, SPLUS_DECAY, SPLUS_LR, SPLUS_TOKENS

_GROUP_OPTIONS = ("layout", "split_sizes", "num_heads")
_CHOICES = {"refresh": ("spread", "together")}

# (rows, cols, options) -> numbers of each buffer of one matrix
Numbers = Callable[[int, int, Mapping[str, Any]], dict[str, int]]


def _matrices(shape: Shape, options: Mapping[str, Any]) -> list[tuple[int, int, int]]:
    """(count, rows, cols) of each block of a weight, as lit_opt.optim.matrix.layout cuts it."""
    layout = options.get("layout") or ""
    if layout.startswith("experts"):
        count, rows, cols = shape
        blocks = [(count, cols, rows, 1) if layout == "experts_transposed" else (count, rows, cols, 1)]
    else:
        rows, inner, kernel = shape[0], shape[1], math.prod(shape[2:])
        if layout in ("transposed", "conv_transposed"):
            rows, inner = inner, rows
        heads = options.get("num_heads") or 1
        sizes = options.get("split_sizes") or [rows // heads]
        blocks = [(heads, size, inner, kernel) for size in sizes]
    largest = options.get("block_size")
    cut = []
    for count, rows, inner, kernel in blocks:
        if not largest or max(rows, inner * kernel) <= largest:
            cut.append((count, rows, inner * kernel))
            continue
        channels = max(1, largest // kernel)
        for first in range(0, rows, largest):
            for inside in range(0, inner, channels):
                cut.append((count, min(largest, rows - first), min(channels, inner - inside) * kernel))
    return cut


def _kept(numbers: Numbers, *, everything: tuple[str, ...] = ()) -> StateOf:
    """What a method keeps of its matrices, not cut into shards and in float32 at least; AdamW's for the rest."""

    def law(shape: Shape, options: Mapping[str, Any]) -> tuple[Buffer, ...]:
        more = tuple(Buffer(name=name, numbers=math.prod(shape), precise=True) for name in everything)
        if options["algorithm"] == "adamw" or len(shape) < 2:
            return (*adam_state(shape, options), *more)
        found = [
            Buffer(name=f"{name}_{index}" if index else name, numbers=count * size, precise=True, sharded=False)
            for index, (count, rows, cols) in enumerate(_matrices(shape, options))
            for name, size in numbers(rows, cols, options).items()
        ]
        return (*found, STEP, *more)

    return law


def _sides(rows: int, cols: int, options: Mapping[str, Any], *names: str) -> dict[str, int]:
    return {
        f"{side}_{name}": length * length
        for side, length in (("left", rows), ("right", cols))
        if length <= options["max_preconditioner_dim"]
        for name in names
    }


def _soap_numbers(rows: int, cols: int, options: Mapping[str, Any]) -> dict[str, int]:
    return {"exp_avg": rows * cols, "exp_avg_sq": rows * cols, **_sides(rows, cols, options, "factor", "basis")}


def _splus_numbers(rows: int, cols: int, options: Mapping[str, Any]) -> dict[str, int]:
    return {"exp_avg": rows * cols, **_sides(rows, cols, options, "factor", "basis")}


def _shampoo_numbers(rows: int, cols: int, options: Mapping[str, Any]) -> dict[str, int]:
    squares = {"exp_avg_sq": rows * cols} if options["grafting"] else {}
    sides = {f"{side}_{name}": n * n for name in ("factor", "root") for side, n in (("left", rows), ("right", cols))}
    return {"exp_avg": rows * cols, **squares, **sides}


ROWS = (
    OptimizerRow(
        name="soap",
        factory="lit_opt.optim.matrix.soap:Soap",
        provider="lit_opt",
        summary="Adam in the eigenbasis of Shampoo's statistics; AdamW for what is no matrix",
        rule="G' = Q_L^T G Q_R; m, v as Adam of G'; w <- (w - lr Q_L (mhat / sqrt(vhat)) Q_R^T) (1 - lr wd)",
        source="arXiv:2409.11321; nikhilvyas/SOAP soap.py: equal in float64 where the statistics have full rank",
        evidence="open source; arXiv:2409.11321",
        state=_kept(_soap_numbers),
        scratch=None,
        hyperparameters={
            "lr": REQUIRED,
            "betas": (0.95, 0.95),
            "shampoo_beta": None,
            "eps": 1e-8,
            "weight_decay": 0.01,
            "precondition_frequency": 10,
            "max_preconditioner_dim": 10000,
            "refresh": "spread",
        },
        choices=_CHOICES,
        settings={
            "llm": Published(
                lr=SOAP_LR,
                weight_decay=SOAP_DECAY,
                reference_batch=None,
                rule="none",
                batch_unit="tokens",
                hyperparameters=SOAP,
            )
        },
        matrix=True,
        units="AdamW",
        group_options=_GROUP_OPTIONS,
    ),
    OptimizerRow(
        name="splus",
        factory="lit_opt.optim.matrix.splus:SPlus",
        provider="lit_opt",
        summary="Sign of the momentum in the eigenbasis of Shampoo's statistics; validates on averaged weights",
        rule="w <- (w - s Q_L sign(Q_L^T M Q_R) Q_R^T) (1 - s wd), s = lr 2 / (rows + cols); averages w",
        source="arXiv:2506.07254; kvfrans/splus torch/splus.py: equal in float64 where the statistics have full rank",
        evidence="open source; arXiv:2506.07254",
        state=_kept(_splus_numbers, everything=("average",)),
        scratch=None,
        hyperparameters={
            "lr": REQUIRED,
            "betas": (0.9, 0.999),
            "ema_rate": 0.999,
            "weight_decay": 0.01,
            "precondition_frequency": 100,
            "max_preconditioner_dim": 10000,
            "refresh": "spread",
        },
        choices=_CHOICES,
        global_only=("ema_rate",),
        settings={
            "llm": Published(
                lr=SPLUS_LR,
                weight_decay=SPLUS_DECAY,
                reference_batch=SPLUS_TOKENS,
                rule="none",
                batch_unit="tokens",
            )
        },
        matrix=True,
        group_options=_GROUP_OPTIONS,
        averages_itself=True,
    ),
    OptimizerRow(
        name="shampoo",
        factory="lit_opt.optim.matrix.shampoo:Shampoo",
        provider="lit_opt",
        summary="Gradients between inverse fourth roots of both sides' statistics, at Adam's length if grafted",
        rule="L = avg G G^T, R = avg G^T G; w <- (1 - lr wd) w - lr s L^-1/4 M R^-1/4, s = |adam| / |...| or 1",
        source="arXiv:1802.09568, 2309.06497; facebookresearch/optimizers distributed_shampoo, equal in float64 to 2e-8",
        evidence="open source; facebookresearch/optimizers",
        state=_kept(_shampoo_numbers),
        scratch=None,
        hyperparameters={
            "lr": REQUIRED,
            "betas": (0.9, 0.99),
            "eps": 1e-12,
            "weight_decay": 0.01,
            "precondition_frequency": 1,
            "start_preconditioning_step": None,
            "max_preconditioner_dim": 1024,
            "grafting": None,
            "exponent": 0.25,
            "kl": False,
            "refresh": "spread",
        },
        choices={**_CHOICES, "grafting": ("adam",)},
        limits={"betas": (0.0, math.nextafter(1.0, 2.0))},
        matrix=True,
        units="AdamW",
        group_options=_GROUP_OPTIONS,
    ),
)
