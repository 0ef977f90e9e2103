"""What is wrong with the user's rules for parameters: `groups` by name, `parts` of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields

from lit_opt.errors import kind_of, nearest
from lit_opt.recipes.schema import GroupRule, RecipeSpec
from lit_opt.resolve.plain import build_spec, is_real, is_whole, part_spec, word_hint


def group_problems(groups: object) -> Iterator[str]:
    """What is wrong with `groups`, whatever the optimizer.

    Args:
        groups: As it was given.

    Example:
        >>> list(group_problems([{"match": "head.*"}]))
        ["groups[0]: the rule 'head.*' changes nothing; give lr_scale=, weight_decay= or algorithm=."]
    """
    if not isinstance(groups, list | tuple):
        yield f"groups: {groups!r} is {kind_of(groups)}; give a list of GroupRule(match=..., lr_scale=...)."
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
                yield f"groups[{i}].{name}: {number!r} is not allowed; give a number from 0 up.{word_hint(number)}"
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


def part_problems(spec: RecipeSpec, given: object) -> Iterator[str]:
    """What is wrong with `parts` under a recipe.

    Args:
        spec: The recipe.
        given: As it was given.

    Example:
        >>> from lit_opt.recipes import get_recipe
        >>> next(part_problems(get_recipe("vlm"), {"projecter": "bridge.*"}))[:59]
        "parts: 'projecter' is unknown. Did you mean 'projector'? Kn"
    """
    if not spec.parts:
        yield (
            f"parts: the recipe {spec.name!r} has one learning rate for the whole model. Use Recipe('vlm'), or "
            "groups=[GroupRule(match=..., lr_scale=...)]."
        )
        return
    if not isinstance(given, Mapping):
        yield f"parts: {given!r} is {kind_of(given)}; give a dictionary such as {{'projector': '*.bridge.*'}}."
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
            yield f"parts.{name}.lr_scale: {part.lr_scale!r} is not allowed; give a number from 0 up.{word_hint(part.lr_scale)}"
