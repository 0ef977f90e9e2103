"""What a user may override, and everything that is wrong with it, found before any run begins.

No torch: `lit-opt explain` and the command line use it as well.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from numbers import Integral, Real
from typing import Any, TypeVar

from lit_opt.errors import nearest
from lit_opt.recipes.schema import ClipSpec, DecaySpec, EMASpec, GroupRule, PartSpec, RecipeSpec
from lit_opt.resolve.overrides_optimizer import optimizer_problems
from lit_opt.schedules import FIELDS_OF_KIND, KINDS
from lit_opt.transfer.spec import transfer_problems

FIELDS = (
    "optimizer", "lr", "base_lr", "base_batch_size", "weight_decay", "betas", "momentum", "warmup", "decay",
    "clip", "ema", "batch_size", "batch_tokens", "total_steps", "optimizer_kwargs", "fallback", "groups",
    "layer_decay", "parts", "transfer",
)  # fmt: skip

_DURATION = re.compile(r"^\s*(?:(\d+(?:\.\d+)?)\s*epochs?|(\d+)\s*steps?)\s*$")

S = TypeVar("S", ClipSpec, DecaySpec, EMASpec, GroupRule, PartSpec)


def find_problems(spec: RecipeSpec, overrides: Mapping[str, Any]) -> list[str]:
    """Every problem that can be seen without a run, each as one message.

    Example:
        >>> from lit_opt.recipes import get_recipe
        >>> find_problems(get_recipe("llm"), {"lr": -1.0})
        ['lr: -1.0 is not allowed; give a finite number above 0, such as 0.0003.']
    """
    known = {key: value for key, value in clean(overrides).items() if key in FIELDS}
    problems = [f"{key}: unknown field.{nearest(key, FIELDS)}" for key in overrides if key not in FIELDS]
    problems += _number_problems(known)
    problems += optimizer_problems(spec, known)
    problems += _warmup_problems(known.get("warmup"))
    if "decay" in known:
        problems += _decay_problems(spec, known["decay"])
    if "clip" in known:
        problems += _clip_problems(known["clip"])
    if "ema" in known:
        problems += _ema_problems(known["ema"])
    problems += _group_problems(known.get("groups", ()))
    if "parts" in known:
        problems += _part_problems(spec, known["parts"])
    problems += transfer_problems(known)
    return problems


def clean(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides that are given, in plain types.

    Example:
        >>> clean({"lr": None, "weight_decay": -0.0, "betas": [0, 0.95]})
        {'weight_decay': 0.0, 'betas': [0, 0.95]}
    """
    return {key: plain(value) for key, value in overrides.items() if value is not None}


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


def parse_duration(text: str) -> tuple[float, str] | None:
    """Read a length such as "2.5 epochs" or "500 steps"; None for anything else.

    Example:
        >>> parse_duration("2.5 epochs"), parse_duration("500 steps"), parse_duration("1 week")
        ((2.5, 'epochs'), (500.0, 'steps'), None)
    """
    found = _DURATION.match(text)
    if not found:
        return None
    return (float(found[1]), "epochs") if found[1] else (float(found[2]), "steps")


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
        raise ValueError(f"{given!r} is a {type(given).__name__}; give a {kind.__name__}({', '.join(names)}).")
    unknown = [key for key in given if key not in names]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no field of {kind.__name__}.{nearest(unknown[0], names)}")
    missing = [f.name for f in fields(kind) if f.default is MISSING and f.name not in given]
    if missing:
        raise ValueError(f"{kind.__name__} needs {missing[0]!r}.")
    values: dict[str, Any] = {key: tuple(x) if isinstance(x, list) else x for key, x in plain(given).items()}
    return kind(**values)


def _number_problems(o: Mapping[str, Any]) -> Iterator[str]:
    positive = "a finite number above 0, such as"
    rules = (
        ("lr", f"{positive} 0.0003", lambda x: is_real(x) and x > 0),
        ("base_lr", f"{positive} 0.001", lambda x: is_real(x) and x > 0),
        ("base_batch_size", "a whole number above 0", is_whole),
        ("batch_size", "a whole number above 0", is_whole),
        ("batch_tokens", "a whole number above 0", is_whole),
        ("total_steps", "a whole number above 0", is_whole),
        ("weight_decay", "a finite number from 0 up", lambda x: is_real(x) and x >= 0),
        ("momentum", "a number in [0, 1)", lambda x: is_real(x) and 0 <= x < 1),
        ("betas", "two numbers in [0, 1), such as (0.9, 0.95)", _are_betas),
        ("layer_decay", "a number in (0, 1], such as 0.75", lambda x: is_real(x) and 0 < x <= 1),
    )
    for name, allowed, is_allowed in rules:
        if name in o and not is_allowed(o[name]):
            yield f"{name}: {o[name]!r} is not allowed; give {allowed}.{_word_hint(o[name])}"
    if "lr" in o and "base_lr" in o:
        yield (
            f"lr, base_lr: both are given ({o['lr']!r}, {o['base_lr']!r}). lr is the peak that the optimizer sees; "
            "base_lr belongs to base_batch_size and is scaled to the batch of the run. Keep one of them."
        )
    if "base_batch_size" in o and "base_lr" not in o:
        yield f"base_batch_size: {o['base_batch_size']!r} belongs to base_lr, which is not given. Add base_lr=."


def _are_betas(x: object) -> bool:
    return isinstance(x, tuple | list) and len(x) == 2 and all(is_real(b) and 0 <= b < 1 for b in x)


def _word_hint(x: object) -> str:
    """A number in quotes, or 3e-4 in YAML 1.1, arrives as a word."""
    try:
        float(x if isinstance(x, str) else "no")
    except ValueError:
        return ""
    return " It is a word here: leave the quotes away, and in YAML write 3.0e-4 for 3e-4."


def _warmup_problems(warmup: object) -> Iterator[str]:
    if warmup is None or (isinstance(warmup, str) and parse_duration(warmup)):
        return
    if isinstance(warmup, str):
        yield f'warmup: {warmup!r} is not understood; write "5 epochs", "500 steps", 500 (steps) or 0.02 (of the run).'
    elif not (is_whole(warmup, 0) or (isinstance(warmup, float) and 0 <= warmup < 1)):
        yield (
            f"warmup: {warmup!r} is not allowed; give a fraction of the run in [0, 1) such as 0.02, a whole number of "
            'steps such as 500, or "5 epochs".'
        )


def _decay_problems(spec: RecipeSpec, given: object) -> Iterator[str]:
    try:
        decay = build_spec(DecaySpec, {"kind": given} if isinstance(given, str) else given)
    except ValueError as error:
        yield f"decay: {error} Kinds: {', '.join(KINDS)}."
        return
    kind = spec.decay.kind.number if decay.kind is None else decay.kind
    if kind not in KINDS:
        yield f"decay: {kind!r} is unknown.{nearest(kind, KINDS)} Known: {', '.join(KINDS)}."
        return
    used = FIELDS_OF_KIND[str(kind)]
    rules = (
        ("final", "a fraction of the peak from 0 up", lambda x: is_real(x) and x >= 0),
        ("power", "a number above 0", lambda x: is_real(x) and x > 0),
        ("gamma", "a number in (0, 1]", lambda x: is_real(x) and 0 < x <= 1),
        ("milestones", "rising fractions of the run in (0, 1]", _are_milestones),
        (
            "cooldown",
            "a fraction of the run in (0, 1), or a whole number of steps",
            lambda x: is_whole(x) or (isinstance(x, float) and 0 < x < 1),
        ),
    )
    for name, allowed, is_allowed in rules:
        number = getattr(decay, name)
        if number is None:
            continue
        if name not in used:
            yield f"decay.{name}: the kind {kind!r} does not use it. It uses: {', '.join(used) or 'none'}."
        elif not is_allowed(number):
            yield f"decay.{name}: {number!r} is not allowed; give {allowed}.{_word_hint(number)}"


def _are_milestones(x: object) -> bool:
    if not isinstance(x, tuple) or not x or not all(is_real(m) and 0 < m <= 1 for m in x):
        return False
    return list(x) == sorted(x)


def _clip_problems(given: object) -> Iterator[str]:
    try:
        clip = build_spec(ClipSpec, {"limit": given} if is_number(given) else given)
    except ValueError as error:
        yield f"clip: {error} A number is the largest global gradient norm; 0 turns it off."
        return
    if not (is_real(clip.limit) and clip.limit >= 0):
        yield f"clip: {clip.limit!r} is not allowed; give the largest gradient norm, or 0 to turn it off."
    if clip.kind not in ("norm", "value"):
        yield f"clip.kind: {clip.kind!r} is unknown; 'norm' or 'value'."


def _ema_problems(given: object) -> Iterator[str]:
    try:
        ema = build_spec(EMASpec, {} if isinstance(given, bool) else {"decay": given} if is_number(given) else given)
    except ValueError as error:
        yield f"ema: {error} A number is the decay per step; True and False turn it on and off."
        return
    if not (is_real(ema.decay) and 0 <= ema.decay < 1):
        yield f"ema: {ema.decay!r} is not allowed; give a decay per step in [0, 1), such as 0.9999."
    if not is_whole(ema.start_step, 0):
        yield f"ema.start_step: {ema.start_step!r} is not allowed; give a number of optimizer steps from 0 up."
    for name, first in (("kind", "swa"), ("checkpoint", "raw")):
        if getattr(ema, name) not in (first, "ema"):
            yield f"ema.{name}: {getattr(ema, name)!r} is unknown; {first!r} or 'ema'."
    if not is_whole(ema.every) or (ema.every > 1 and ema.kind == "ema"):
        yield f"ema.every: {ema.every!r} is not allowed; give optimizer steps from 1 up, for kind='swa' (an EMA takes every one)."
    for name in ("warmup", "offload", "buffers"):
        if not isinstance(getattr(ema, name), bool):
            yield f"ema.{name}: {getattr(ema, name)!r} is not allowed; give True or False."


def is_number(x: object) -> bool:
    """A number that is not a bool, finite or not."""
    return isinstance(x, int | float) and not isinstance(x, bool)


def _group_problems(groups: object) -> Iterator[str]:
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
        for name in ("lr_scale", "weight_decay"):
            number = getattr(rule, name)
            if number is not None and not (is_real(number) and number >= 0):
                yield f"groups[{i}].{name}: {number!r} is not allowed; give a number from 0 up.{_word_hint(number)}"
        yield from _split_problems(f"groups[{i}]", rule)
        if all(getattr(rule, f.name) is None for f in fields(rule) if f.name != "match"):
            yield f"groups[{i}]: the rule {rule.match!r} changes nothing; give lr_scale=, weight_decay= or algorithm=."


def _split_problems(where: str, rule: GroupRule) -> Iterator[str]:
    sizes, heads = rule.split_sizes, rule.num_heads
    sizes = sizes if isinstance(sizes, str | tuple | None) else (sizes,)
    if sizes is not None and heads is not None:
        yield f"{where}: split_sizes and num_heads are both given for {rule.match!r}. Keep one."
    if isinstance(sizes, str) and sizes != "qkv":
        yield f"{where}.split_sizes: {sizes!r} is unknown; 'qkv' (three equal parts), or outputs such as [768, 256, 256]."
    elif isinstance(sizes, tuple) and not (len(sizes) > 1 and all(map(is_whole, sizes))):
        yield (
            f"{where}.split_sizes: {sizes!r} is not allowed; give the outputs of two or more parts, such as "
            "[768, 256, 256], or 'qkv' for three equal ones."
        )
    if heads is not None and not is_whole(heads, 2):
        yield f"{where}.num_heads: {heads!r} is not allowed; give a whole number from 2 up."
    if rule.algorithm == "adamw" and (sizes is not None or heads is not None):
        yield f"{where}: {rule.match!r} goes to adamw, which splits nothing. Remove split_sizes= and num_heads=, or algorithm=."


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


def _part_problems(spec: RecipeSpec, given: object) -> Iterator[str]:
    if not spec.parts:
        yield (
            f"parts: the recipe {spec.name!r} has one learning rate for the whole model. Use Recipe('vlm'), or "
            "groups=[GroupRule(match=..., lr_scale=...)]."
        )
        return
    if not isinstance(given, Mapping):
        yield f"parts: {given!r} is a {type(given).__name__}; give a dictionary such as {{'projector': '*.bridge.*'}}."
        return
    for name, value in given.items():
        if name not in spec.parts:
            yield (
                f"parts: {name!r} is unknown.{nearest(name, spec.parts)} Known: {', '.join(spec.parts)}; for another "
                "part give groups=[GroupRule(match=..., lr_scale=...)]."
            )
            continue
        try:
            part = part_spec(value)
        except ValueError as error:
            yield f"parts.{name}: {error} A glob, or a list of globs, says where the part lies."
            continue
        globs = (part.match,) if isinstance(part.match, str) else part.match or ()
        if not isinstance(globs, tuple) or not all(isinstance(glob, str) and glob for glob in globs):
            yield f"parts.{name}: {part.match!r} is not allowed; give a glob such as '*.bridge.*', or a list of them."
        if part.lr_scale is not None and not (is_real(part.lr_scale) and part.lr_scale >= 0):
            yield f"parts.{name}.lr_scale: {part.lr_scale!r} is not allowed; give a number from 0 up.{_word_hint(part.lr_scale)}"
