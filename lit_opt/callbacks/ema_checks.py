"""What `lit_opt.EMA` refuses, in words."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from torch.optim import Optimizer

from lit_opt.callbacks.facts import strategy_kind
from lit_opt.errors import nearest
from lit_opt.resolve.strategies import WITHOUT_AVERAGES, averaging_problem

_CHECKPOINT_WORDS = ("raw", "ema")
_KINDS = ("ema", "swa")
# By name: WeightAveraging came with Lightning 2.6, and pytorch_lightning has classes of its own.
_RIVALS = {"EMA", "WeightAveraging", "StochasticWeightAveraging"}


def argument_problems(
    decay: object,
    start_step: object,
    checkpoint: object,
    kind: object,
    every: object,
    switches: dict[str, object],
) -> list[str]:
    """What is wrong with the arguments of EMA; `switches` are those that are True or False."""
    problems = []
    if kind not in _KINDS:
        problems.append(f"EMA: kind={kind!r} is neither 'ema' nor 'swa'.{nearest(kind, _KINDS)}")
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        problems.append(f"EMA: every={every!r} is not a number of optimizer steps from 1 up.")
    elif every > 1 and kind == "ema":
        problems.append(f"EMA: every={every} is for kind='swa'; an exponential average takes every step.")
    if isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 <= decay < 1:
        problems.append(f"EMA: decay={decay!r} is not in [0, 1). Usual values are 0.999 to 0.9999.")
    if isinstance(start_step, bool) or not isinstance(start_step, int) or start_step < 0:
        problems.append(f"EMA: start_step={start_step!r} is not a number of optimizer steps (0, 1, 2, ...).")
    if checkpoint not in _CHECKPOINT_WORDS:
        problems.append(
            f"EMA: checkpoint={checkpoint!r} is neither 'raw' nor 'ema' (what state_dict holds)."
            f"{nearest(checkpoint, _CHECKPOINT_WORDS)}"
        )
    for name, value in switches.items():
        if not isinstance(value, bool):
            problems.append(f"EMA: {name}={value!r} is not True or False.")
    return problems


def trainer_problems(ema: Callback, trainer: pl.Trainer) -> list[str]:
    """Callbacks and strategies that EMA cannot work with."""
    problems = []
    rivals = [
        type(callback).__name__
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        if callback is not ema and _RIVALS & {base.__name__ for base in type(callback).__mro__}
    ]
    if rivals:
        problems.append(
            f"EMA: {', '.join(rivals)} averages the weights as well, and two callbacks that swap weights "
            "undo each other. Remove one; a Recipe with averages is switched off by Recipe(..., ema=False)."
        )
    flat = strategy_problem(trainer)
    if flat:
        problems.append(f"EMA: {flat}, {WITHOUT_AVERAGES}.")
    return problems


def strategy_problem(trainer: pl.Trainer, shards: bool = True) -> str:
    """Why weights cannot be averaged by name under the Trainer's strategy; "" where they can.

    Args:
        trainer: A Trainer.
        shards: Whether who asks can average FSDP1's flat shards.
    """
    kind = strategy_kind(trainer)
    if kind == "fsdp1" and not shards:
        return "under FSDPStrategy the weights are flattened. Use ModelParallelStrategy (FSDP2) or DDP"
    return averaging_problem(kind, str(trainer.precision))


def optimizer_problems(trainer: pl.Trainer) -> list[str]:
    """Optimizers whose steps cannot be counted."""
    return [
        f"EMA: the steps of {type(optimizer).__name__} cannot be counted, because it is not a "
        "torch.optim.Optimizer. Derive it from that class, or switch averaging off (Recipe(..., ema=False))."
        for optimizer in trainer.optimizers
        if not isinstance(optimizer, Optimizer)
    ]
