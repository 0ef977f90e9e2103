"""The number of the format of a recipe's part of a checkpoint, and how older ones become the present one.

A change of what `resume.pack` writes raises `FORMAT` by one and adds a function to `_FROM`, which turns the part as the
last format had it into the new one. tests/fixtures/earlier has files of earlier versions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Any

from lit_opt.errors import RecipeError
from lit_opt.recipes.schema import ClipSpec, EMASpec, GroupRule
from lit_opt.schedules import Schedule

FORMAT = 2
_NEEDED = ("name", "optimizer", "schedule", "hyperparameters")


def current(saved: object) -> dict[str, Any]:
    """A recipe's part of a checkpoint as this version writes it.

    Args:
        saved: As it was found.

    Raises:
        RecipeError: It is of a newer lit-opt, or no such part.

    Example:
        >>> recipe = {"name": "llm", "optimizer": "adamw", "schedule": {}, "hyperparameters": {}, "ema": {"decay": 0.9}}
        >>> old = {"format": 1, "recipe": recipe, "groups": []}
        >>> new = current(old)
        >>> new["format"], new["recipe"]["ema"]["kind"], new["steps"]
        (2, 'ema', {})
    """
    found = saved.get("format") if isinstance(saved, Mapping) else None
    if not isinstance(saved, Mapping) or isinstance(found, bool) or not isinstance(found, int) or found < 1:
        raise RecipeError(
            [
                "checkpoint: its lit-opt part was not written by lit-opt (it has no format). Give a checkpoint of a run with "
                "a recipe, or remove the key 'lit_opt' from it to go on as from a foreign one."
            ]
        )
    if found > FORMAT:
        wrote = saved.get("version", "a newer one")
        raise RecipeError(
            [
                f"checkpoint: its lit-opt part has format {found}, written by lit-opt {wrote}, and this version reads up to "
                f"{FORMAT}. Install the lit-opt that wrote it, or a newer one."
            ]
        )
    part = dict(saved)
    try:
        for number in range(found, FORMAT):
            part = _FROM[number](part) | {"format": number + 1}
        for key in _NEEDED:
            part["recipe"][key], part["groups"]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise RecipeError(
            [
                f"checkpoint: its lit-opt part has format {found} and is not complete ({type(error).__name__}: {error}). "
                "Give an older checkpoint of the run."
            ]
        ) from error
    return part


def _from_1(part: dict[str, Any]) -> dict[str, Any]:
    """Format 1 was written while fields were still being added: the missing ones had the values that are defaults now."""
    recipe = {"layer_decay": None, "fallback": {}, "parts": {}, "part_globs": {}} | part["recipe"]
    for key, spec in (("ema", EMASpec), ("clip", ClipSpec), ("schedule", Schedule)):
        if recipe.get(key):
            recipe[key] = _defaults(spec) | recipe[key]
    recipe["groups"] = [_defaults(GroupRule) | rule for rule in recipe.get("groups", [])]
    # Before groups had one, all parameters were stepped on by the recipe's optimizer.
    groups = [{"algorithm": recipe["optimizer"]} | group for group in part["groups"]]
    return part | {"recipe": recipe, "groups": groups, "steps": {}}


def _defaults(spec: Any) -> dict[str, Any]:
    """Defaults as a checkpoint has them: lists for tuples."""
    found = {field.name: field.default for field in fields(spec) if field.default is not MISSING}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


_FROM: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_1}
