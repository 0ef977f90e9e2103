"""What an optimizer keeps of each parameter, and what its step needs beside that. Plain data, no torch.

Every registry row says it in its own words (`OptimizerRow.state`, `OptimizerRow.scratch`); tests hold it against the
tensors of a real step. `lit_opt.preflight.memory` adds it up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Buffer:
    """One tensor of the state of one parameter.

    Args:
        name: Key in the optimizer's state.
        numbers: How many numbers it holds, of the whole parameter.
        dtype: torch's name of its dtype; "" for the parameter's.
        sharded: It is cut like the parameter under FSDP2; otherwise every process holds all of it, or an owner does
            (lit_opt.optim.matrix.owned).
        precise: Where dtype says the parameter's: in float32 for parameters of a lower precision.

    Example:
        >>> Buffer(name="exp_avg", numbers=12).sharded
        True
    """

    name: str
    numbers: int
    dtype: str = ""
    sharded: bool = True
    precise: bool = False


# (shape of a parameter, options of its group with "algorithm") -> what is kept of it. It is asked for every parameter
# of the optimizer, those included that a matrix method leaves to AdamW.
StateOf = Callable[[Shape, Mapping[str, Any]], tuple[Buffer, ...]]


@dataclass(frozen=True, kw_only=True)
class Scratch:
    """What a step needs beside gradients and state, in copies of weights.

    Args:
        everything: Copies of all weights that it steps on, on any device.
        lists: The same where torch steps over lists of tensors: on CUDA, unless the step is fused.
        largest: Copies of the largest weight, where it goes from one to the next.
        throughout: Copies of all weights that are there beside all of this, as SAM's.
        own: What it needs of each parameter beside all of this, by a law as that of the state.

    Example:
        >>> Scratch().largest
        0.0
    """

    everything: float = 0.0
    lists: float = 0.0
    largest: float = 0.0
    throughout: float = 0.0
    own: StateOf | None = None


# torch counts the steps of each parameter in a float32.
STEP = Buffer(name="step", numbers=1, dtype="float32", sharded=False)


def like_parameter(shape: Shape, *names: str) -> tuple[Buffer, ...]:
    """Buffers of the parameter's shape and dtype.

    Example:
        >>> [buffer.numbers for buffer in like_parameter((3, 4), "exp_avg", "exp_avg_sq")]
        [12, 12]
    """
    return tuple(Buffer(name=name, numbers=math.prod(shape)) for name in names)


def adam_state(shape: Shape, options: Mapping[str, Any]) -> tuple[Buffer, ...]:
    """Two moments and a step count; amsgrad keeps the largest second moment as well.

    Example:
        >>> [buffer.name for buffer in adam_state((2,), {"amsgrad": True})]
        ['exp_avg', 'exp_avg_sq', 'max_exp_avg_sq', 'step']
    """
    names = ("exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if options.get("amsgrad") else ()))
    return (*like_parameter(shape, *names), STEP)


def momentum_state(shape: Shape, options: Mapping[str, Any]) -> tuple[Buffer, ...]:
    """A momentum buffer, none where the momentum is 0.

    Example:
        >>> momentum_state((2,), {"momentum": 0.0})
        ()
    """
    return like_parameter(shape, "momentum_buffer") if options.get("momentum") else ()


def nothing(shape: Shape, options: Mapping[str, Any]) -> tuple[Buffer, ...]:
    """No state of its own.

    Example:
        >>> nothing((2,), {})
        ()
    """
    return ()


def kept(*names: str, steps: bool = False) -> StateOf:
    """A law with buffers of the parameter's shape and dtype.

    Args:
        names: Keys in the optimizer's state.
        steps: It counts steps as torch does.

    Example:
        >>> [buffer.name for buffer in kept("sum", steps=True)((2,), {})]
        ['sum', 'step']
    """
    return lambda shape, options: (*like_parameter(shape, *names), *((STEP,) if steps else ()))
