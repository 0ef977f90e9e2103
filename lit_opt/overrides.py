"""What a user may override, and everything that is wrong with it, found before any run begins.

No torch: `lit-opt explain` and the command line use it as well.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from lit_opt.errors import nearest
from lit_opt.optim.registry import REQUIRED, get_row, list_optimizers
from lit_opt.recipes.schema import ClipSpec, DecaySpec, EMASpec, GroupRule, RecipeSpec
from lit_opt.schedules import KINDS

FIELDS = (
    "optimizer", "lr", "base_lr", "base_batch_size", "weight_decay", "betas", "momentum", "warmup", "decay",
    "clip", "ema", "batch_size", "batch_tokens", "total_steps", "optimizer_kwargs", "fallback", "groups",
    "layer_decay",
)  # fmt: skip

_DURATION = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(epochs?|steps?)\s*$")

S = TypeVar("S", ClipSpec, DecaySpec, EMASpec, GroupRule)


def find_problems(spec: RecipeSpec, overrides: Mapping[str, Any]) -> list[str]:
    """Every problem that can be seen without a run, each as one message.

    Example:
        >>> from lit_opt.recipes import get_recipe
        >>> find_problems(get_recipe("llm"), {"lr": -1.0})
        ['lr: -1.0 is not allowed; give a finite number above 0, such as 0.0003.']
    """
    known = {key: value for key, value in overrides.items() if key in FIELDS and value is not None}
    problems = [f"{key}: unknown field.{nearest(key, FIELDS)}" for key in overrides if key not in FIELDS]
    problems += _number_problems(known)
    problems += _optimizer_problems(spec, known)
    problems += _shape_problems(known)
    problems += _group_problems(known)
    return problems


def is_real(x: object) -> bool:
    """A finite number that is not a bool."""
    return isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)


def parse_duration(text: str) -> tuple[float, str] | None:
    """Read a length such as "5 epochs" or "500 steps": (5.0, "epochs"); None for anything else."""
    found = _DURATION.match(text)
    return (float(found[1]), found[2].rstrip("s") + "s") if found else None


def build_spec(kind: type[S], given: object) -> S:
    """A small spec from itself or from a dictionary of its fields (as YAML gives it).

    Raises:
        ValueError: Not a mapping, or unknown or missing keys.
    """
    if isinstance(given, kind):
        return given
    names = [f.name for f in fields(kind)]
    if not isinstance(given, Mapping):
        raise ValueError(f"{given!r} is a {type(given).__name__}; give a {kind.__name__}({', '.join(names)}).")
    unknown = [key for key in given if key not in names]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no field of {kind.__name__}.{nearest(unknown[0], names)}")
    missing = [f.name for f in fields(kind) if f.default is MISSING and f.name not in given]
    if missing:
        raise ValueError(f"{kind.__name__} needs {missing[0]!r}.")
    return kind(**given)


def _number_problems(o: Mapping[str, Any]) -> Iterator[str]:
    for name, example in (("lr", 3e-4), ("base_lr", 1e-3)):
        if name in o and not (is_real(o[name]) and o[name] > 0):
            yield f"{name}: {o[name]!r} is not allowed; give a finite number above 0, such as {example:g}."
    if "lr" in o and "base_lr" in o:
        yield (
            f"lr, base_lr: both are given ({o['lr']!r}, {o['base_lr']!r}). lr is the peak that the optimizer sees; "
            "base_lr belongs to base_batch_size and is scaled to the batch of the run. Keep one of them."
        )
    if "base_batch_size" in o and "base_lr" not in o:
        yield f"base_batch_size: {o['base_batch_size']!r} belongs to base_lr, which is not given. Add base_lr=."
    for name in ("base_batch_size", "batch_size", "batch_tokens", "total_steps"):
        if name in o and not (isinstance(o[name], int) and not isinstance(o[name], bool) and o[name] > 0):
            yield f"{name}: {o[name]!r} is not allowed; give a whole number above 0."
    if "weight_decay" in o and not (is_real(o["weight_decay"]) and o["weight_decay"] >= 0):
        yield f"weight_decay: {o['weight_decay']!r} is not allowed; give a finite number from 0 up."
    if "momentum" in o and not (is_real(o["momentum"]) and 0 <= o["momentum"] < 1):
        yield f"momentum: {o['momentum']!r} is not allowed; give a number in [0, 1)."
    if "betas" in o and not are_betas(o["betas"]):
        yield f"betas: {o['betas']!r} is not allowed; give two numbers in [0, 1), such as (0.9, 0.95)."
    if "layer_decay" in o and not (is_real(o["layer_decay"]) and 0 < o["layer_decay"] <= 1):
        yield f"layer_decay: {o['layer_decay']!r} is not allowed; give a number in (0, 1], such as 0.75."


def are_betas(x: object) -> bool:
    """Two numbers in [0, 1)."""
    return isinstance(x, tuple | list) and len(x) == 2 and all(is_real(b) and 0 <= b < 1 for b in x)


def _optimizer_problems(spec: RecipeSpec, o: Mapping[str, Any]) -> Iterator[str]:
    optimizer = o.get("optimizer", spec.optimizer.number)
    if isinstance(optimizer, type):
        accepted = class_keywords(optimizer)
        if accepted is None:
            yield f"optimizer: {optimizer.__name__} is no torch.optim.Optimizer class."
            return
        name = optimizer.__name__
        required = [k for k in ("lr", "weight_decay") if k in accepted and k not in o]
        if required:
            yield (
                f"optimizer: {name} is your own class, so no value is published for it; "
                f"give {' and '.join(f'{k}=' for k in required)}."
            )
    elif not isinstance(optimizer, str) or optimizer not in list_optimizers():
        yield (
            f"optimizer: {optimizer!r} is unknown.{nearest(optimizer, list_optimizers())} "
            f"Known: {', '.join(list_optimizers())}, or a torch.optim.Optimizer class."
        )
        return
    else:
        name, row = optimizer, get_row(optimizer)
        accepted = {k: v is REQUIRED for k, v in row.hyperparameters.items()}
        if optimizer != spec.optimizer.number and spec.setting not in row.settings:
            required = [k for k in ("lr", "weight_decay") if k in accepted and k not in o]
            if "base_lr" in o or not required:
                required = [k for k in required if k != "lr"]
            if required:
                yield (
                    f"optimizer: no starting values are published for {name!r} in the setting {spec.setting!r}, and "
                    f"another optimizer's are not inherited; give {' and '.join(f'{k}=' for k in required)}."
                )
    for key in ("betas", "momentum", "weight_decay"):
        if key in o and key not in accepted:
            other = {"betas": "momentum", "momentum": "betas"}.get(key)
            instead = f" It has {other}=." if other in accepted else ""
            yield f"{key}: {name} has no {key}.{instead} Its keywords: {', '.join(accepted)}."
    yield from _keyword_problems(name, accepted, o)


def _keyword_problems(name: str, accepted: Mapping[str, bool], o: Mapping[str, Any]) -> Iterator[str]:
    if "fallback" in o:
        yield (
            f"fallback: {name} is no matrix optimizer and leaves nothing to AdamW. "
            "Remove fallback=, or choose a matrix optimizer."
        )
    kwargs = o.get("optimizer_kwargs", {})
    if not isinstance(kwargs, Mapping):
        yield f"optimizer_kwargs: {kwargs!r} is a {type(kwargs).__name__}; give a dictionary of keywords."
        return
    own = {"lr", "weight_decay", "betas", "momentum"} & set(kwargs)
    for key in sorted(own):
        yield f"optimizer_kwargs: {key!r} has its own argument; write Recipe(..., {key}={kwargs[key]!r})."
    for key in kwargs:
        if key not in accepted and key not in own:
            rest = [k for k in accepted if k not in ("lr", "weight_decay", "betas", "momentum")]
            yield (
                f"optimizer_kwargs: {name} has no {key!r}.{nearest(key, rest)} It takes: {', '.join(rest) or 'none'}."
            )


def class_keywords(optimizer: type) -> dict[str, bool] | None:
    """Keyword -> required, of an optimizer class; None where the class is no optimizer."""
    if not any(
        base.__module__.startswith("torch.optim") and base.__name__ == "Optimizer" for base in optimizer.__mro__
    ):
        return None
    parameters = list(inspect.signature(optimizer).parameters.values())[1:]
    return {p.name: p.default is p.empty for p in parameters if p.kind is not p.VAR_KEYWORD}


def _shape_problems(o: Mapping[str, Any]) -> Iterator[str]:
    warmup = o.get("warmup")
    if isinstance(warmup, str) and parse_duration(warmup) is None:
        yield f'warmup: {warmup!r} is not understood; write "5 epochs", "500 steps", 500 (steps) or 0.02 (of the run).'
    elif warmup is not None and not isinstance(warmup, str):
        fraction = isinstance(warmup, float)
        if not is_real(warmup) or warmup < 0 or (fraction and warmup >= 1):
            yield (
                f"warmup: {warmup!r} is not allowed; a float is a fraction of the run in [0, 1), "
                'a whole number counts steps, "5 epochs" counts epochs.'
            )
    if "decay" in o:
        yield from _decay_problems(o["decay"])
    if "clip" in o:
        yield from _clip_problems(o["clip"])
    if "ema" in o:
        yield from _ema_problems(o["ema"])


def _decay_problems(given: object) -> Iterator[str]:
    try:
        decay = DecaySpec(kind=given) if isinstance(given, str) else build_spec(DecaySpec, given)
    except ValueError as error:
        yield f"decay: {error} Kinds: {', '.join(KINDS)}."
        return
    if decay.kind is not None and decay.kind not in KINDS:
        yield f"decay: {decay.kind!r} is unknown.{nearest(decay.kind, KINDS)} Known: {', '.join(KINDS)}."
    if decay.final is not None and not (is_real(decay.final) and decay.final >= 0):
        yield f"decay.final: {decay.final!r} is not allowed; give a fraction of the peak from 0 up."
    if decay.power is not None and not (is_real(decay.power) and decay.power > 0):
        yield f"decay.power: {decay.power!r} is not allowed; give a number above 0."
    if decay.gamma is not None and not (is_real(decay.gamma) and 0 < decay.gamma <= 1):
        yield f"decay.gamma: {decay.gamma!r} is not allowed; give a number in (0, 1]."
    if decay.cooldown is not None and not (is_real(decay.cooldown) and decay.cooldown > 0):
        yield f"decay.cooldown: {decay.cooldown!r} is not allowed; give a fraction of the run or a number of steps."
    if decay.milestones is not None and not (
        len(decay.milestones) > 0
        and all(is_real(m) and 0 < m < 1 for m in decay.milestones)
        and list(decay.milestones) == sorted(decay.milestones)
    ):
        yield f"decay.milestones: {decay.milestones!r} is not allowed; give rising fractions of the run in (0, 1)."


def _clip_problems(given: object) -> Iterator[str]:
    if isinstance(given, int | float):
        given = ClipSpec(limit=given) if not isinstance(given, bool) else given
    try:
        clip = build_spec(ClipSpec, given)
    except ValueError as error:
        yield f"clip: {error} A number is the largest global gradient norm; 0 turns it off."
        return
    if not (is_real(clip.limit) and clip.limit >= 0):
        yield f"clip: {clip.limit!r} is not allowed; give the largest gradient norm, or 0 to turn it off."
    if clip.kind not in ("norm", "value"):
        yield f"clip.kind: {clip.kind!r} is unknown; 'norm' or 'value'."


def _ema_problems(given: object) -> Iterator[str]:
    if isinstance(given, bool):
        return
    try:
        ema = EMASpec(decay=given) if isinstance(given, int | float) else build_spec(EMASpec, given)
    except ValueError as error:
        yield f"ema: {error} A number is the decay per step; True and False turn it on and off."
        return
    if not (is_real(ema.decay) and 0 <= ema.decay < 1):
        yield f"ema: {ema.decay!r} is not allowed; give a decay per step in [0, 1), such as 0.9999."
    if not (isinstance(ema.start_step, int) and ema.start_step >= 0):
        yield f"ema.start_step: {ema.start_step!r} is not allowed; give a number of optimizer steps from 0 up."
    if ema.checkpoint not in ("raw", "ema"):
        yield f"ema.checkpoint: {ema.checkpoint!r} is unknown; 'raw' or 'ema'."


def _group_problems(o: Mapping[str, Any]) -> Iterator[str]:
    groups = o.get("groups", [])
    if not isinstance(groups, list | tuple):
        yield f"groups: {groups!r} is a {type(groups).__name__}; give a list of GroupRule(match=..., lr_scale=...)."
        return
    for i, given in enumerate(groups):
        try:
            rule = build_spec(GroupRule, given)
        except ValueError as error:
            yield f"groups[{i}]: {error}"
            continue
        if not isinstance(rule.match, str) or not rule.match:
            yield f"groups[{i}].match: {rule.match!r} is not allowed; give a glob such as 'backbone.*'."
        if rule.lr_scale is not None and not (is_real(rule.lr_scale) and rule.lr_scale >= 0):
            yield f"groups[{i}].lr_scale: {rule.lr_scale!r} is not allowed; give a number from 0 up."
        if rule.weight_decay is not None and not (is_real(rule.weight_decay) and rule.weight_decay >= 0):
            yield f"groups[{i}].weight_decay: {rule.weight_decay!r} is not allowed; give a number from 0 up."
        if rule.algorithm is not None and rule.algorithm not in list_optimizers():
            yield (f"groups[{i}].algorithm: {rule.algorithm!r} is unknown.{nearest(rule.algorithm, list_optimizers())}")
        if rule.lr_scale is None and rule.weight_decay is None and rule.algorithm is None:
            yield f"groups[{i}]: the rule {rule.match!r} changes nothing; give lr_scale=, weight_decay= or algorithm=."
