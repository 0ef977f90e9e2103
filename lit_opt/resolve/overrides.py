"""What a user may override, and everything that is wrong with it, found before any run begins.

No torch: `lit-opt explain` and the command line use it as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lit_opt.errors import nearest
from lit_opt.recipes.schema import ClipSpec, DecaySpec, EMASpec, RecipeSpec
from lit_opt.resolve.overrides_groups import group_problems, part_problems
from lit_opt.resolve.overrides_optimizer import optimizer_problems
from lit_opt.resolve.plain import OTHER_WORDS, build_spec, is_number, is_real, is_whole, plain, word_hint
from lit_opt.schedules import FIELDS_OF_KIND, KINDS
from lit_opt.transfer.spec import transfer_problems

FIELDS = (
    "optimizer", "lr", "base_lr", "base_batch_size", "weight_decay", "betas", "momentum", "warmup", "decay",
    "clip", "ema", "batch_size", "batch_tokens", "total_steps", "optimizer_kwargs", "fallback", "groups",
    "layer_decay", "parts", "transfer",
)  # fmt: skip

_DURATION = re.compile(r"^\s*(?:(\d+(?:\.\d+)?)\s*epochs?|(\d+)\s*steps?)\s*$")


def find_problems(spec: RecipeSpec, overrides: Mapping[str, Any]) -> list[str]:
    """Every problem that can be seen without a run, each as one message.

    Example:
        >>> from lit_opt.recipes import get_recipe
        >>> find_problems(get_recipe("llm"), {"lr": -1.0})
        ['lr: -1.0 is not allowed; give a finite number above 0, such as 0.0003.']
    """
    known = {key: value for key, value in clean(overrides).items() if key in FIELDS}
    problems = [f"{key}: unknown field.{nearest_field(key)}" for key in overrides if key not in FIELDS]
    problems += _number_problems(known)
    problems += optimizer_problems(spec, known)
    problems += _warmup_problems(known.get("warmup"))
    if "decay" in known:
        problems += _decay_problems(spec, known["decay"])
    if "clip" in known:
        problems += _clip_problems(known["clip"])
    if "ema" in known:
        problems += _ema_problems(known["ema"])
    problems += group_problems(known.get("groups", ()))
    if "parts" in known:
        problems += part_problems(spec, known["parts"])
    problems += transfer_problems(known)
    return problems


def nearest_field(word: str, more: Sequence[str] = ()) -> str:
    """As `lit_opt.errors.nearest`, which other libraries' words for a field lead to as well.

    Example:
        >>> nearest_field("learning_rate"), nearest_field("weight_deacy")
        (" Did you mean 'lr'?", " Did you mean 'weight_decay'?")
    """
    return nearest(OTHER_WORDS.get(word, word), [*FIELDS, *more])


def clean(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides that are given, in plain types.

    Example:
        >>> clean({"lr": None, "weight_decay": -0.0, "betas": [0, 0.95]})
        {'weight_decay': 0.0, 'betas': [0, 0.95]}
    """
    return {key: plain(value) for key, value in overrides.items() if value is not None}


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
            counted = is_allowed is is_whole and isinstance(o[name], float) and o[name].is_integer() and o[name] > 0
            hint = f" Type {int(o[name])}." if counted else word_hint(o[name])
            yield f"{name}: {o[name]!r} is not allowed; give {allowed}.{hint}"
    if "lr" in o and "base_lr" in o:
        yield (
            f"lr, base_lr: both are given ({o['lr']!r}, {o['base_lr']!r}). lr is the peak that the optimizer sees; "
            "base_lr belongs to base_batch_size and is scaled to the batch of the run. Keep one of them."
        )
    if "base_batch_size" in o and "base_lr" not in o:
        yield f"base_batch_size: {o['base_batch_size']!r} belongs to base_lr, which is not given. Add base_lr=."


def _are_betas(x: object) -> bool:
    return isinstance(x, tuple | list) and len(x) == 2 and all(is_real(b) and 0 <= b < 1 for b in x)


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
            yield f"decay.{name}: {number!r} is not allowed; give {allowed}.{word_hint(number)}"


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
