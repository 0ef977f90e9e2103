"""Values of a user's in plain types: numbers, words that were meant to be numbers, and the small specs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields
from numbers import Integral, Real
from typing import Any, TypeVar

from lit_opt.errors import kind_of, nearest
from lit_opt.recipes.schema import ClipSpec, DecaySpec, EMASpec, GroupRule, PartSpec

# What other libraries call an argument of Recipe -> the argument.
OTHER_WORDS = {
    "learning_rate": "lr", "max_lr": "lr", "peak_lr": "lr", "initial_lr": "lr",
    "wd": "weight_decay", "beta1": "betas", "beta2": "betas", "opt": "optimizer", "optim": "optimizer",
    "warmup_steps": "warmup", "warmup_ratio": "warmup", "warmup_epochs": "warmup", "num_warmup_steps": "warmup",
    "scheduler": "decay", "schedule": "decay", "lr_scheduler": "decay", "lr_scheduler_type": "decay",
    "grad_clip": "clip", "clip_grad": "clip", "max_grad_norm": "clip", "gradient_clip_val": "clip",
    "ema_decay": "ema", "steps": "total_steps", "max_steps": "total_steps", "num_training_steps": "total_steps",
    "global_batch_size": "batch_size", "param_groups": "groups", "layer_wise_decay": "layer_decay",
    "eps": "optimizer_kwargs", "nesterov": "optimizer_kwargs",
}  # fmt: skip

S = TypeVar("S", ClipSpec, DecaySpec, EMASpec, GroupRule, PartSpec)


def plain(x: Any) -> Any:
    """Numbers of other libraries (numpy) as Python's, -0.0 as 0.0: checkpoints and JSON hold plain types only."""
    if isinstance(x, bool):
        return x
    if isinstance(x, Integral):
        return int(x)
    if isinstance(x, Real):
        return float(x) + 0.0
    if isinstance(x, Mapping):
        return {key: plain(item) for key, item in x.items()}
    if isinstance(x, list | tuple):
        items = [plain(item) for item in x]
        return items if isinstance(x, list) else tuple(items)
    return x


def is_real(x: object) -> bool:
    """A finite number that is not a bool."""
    return isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)


def is_whole(x: object, least: int = 1) -> bool:
    """A whole number from `least` up that is not a bool."""
    return isinstance(x, int) and not isinstance(x, bool) and x >= least


def is_number(x: object) -> bool:
    """A number that is not a bool, finite or not."""
    return isinstance(x, int | float) and not isinstance(x, bool)


def word_hint(x: object) -> str:
    """What to type for a number that arrived as a word, or "".

    Example:
        >>> word_hint("32"), word_hint("3e-4")
        (' It is a word here: leave the quotes away.', ' It is a word here: leave the quotes away, and in YAML write 3.0e-4 for 3e-4.')
    """
    try:
        float(x if isinstance(x, str) else "no")
    except ValueError:
        return ""
    exponent = ", and in YAML write 3.0e-4 for 3e-4" * ("e" in str(x).lower())
    return f" It is a word here: leave the quotes away{exponent}."


def build_spec(kind: type[S], given: object) -> S:
    """A small spec, in plain types, from itself or from a dictionary of its fields (as YAML gives it).

    Raises:
        ValueError: Not a mapping, or unknown or missing keys.

    Example:
        >>> build_spec(DecaySpec, {"kind": "step", "milestones": [0.5, 0.75]}).milestones
        (0.5, 0.75)
    """
    names = [f.name for f in fields(kind)]
    if isinstance(given, kind):
        given = {name: getattr(given, name) for name in names}
    if not isinstance(given, Mapping):
        raise ValueError(f"{given!r} is {kind_of(given)}; give {kind_of(kind)}({', '.join(names)}).")
    unknown = [key for key in given if key not in names]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no field of {kind.__name__}.{nearest(unknown[0], names)}")
    missing = [f.name for f in fields(kind) if f.default is MISSING and f.name not in given]
    if missing:
        raise ValueError(f"{kind.__name__} needs {missing[0]!r}.")
    values: dict[str, Any] = {key: tuple(x) if isinstance(x, list) else x for key, x in plain(given).items()}
    return kind(**values)


def part_spec(given: object) -> PartSpec:
    """A part from a glob, a list of globs, a PartSpec or a dictionary of its fields.

    Raises:
        ValueError: As `build_spec`.

    Example:
        >>> part_spec("bridge.*").match, part_spec(["a.*", "b.*"]).match, part_spec({"lr_scale": 5}).lr_scale
        (('bridge.*',), ('a.*', 'b.*'), 5)
    """
    if isinstance(given, str):
        given = [given]
    return build_spec(PartSpec, {"match": tuple(given)} if isinstance(given, list | tuple) else given)
