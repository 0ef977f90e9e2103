"""WHAT to do: one module a setting, each a tuple `RECIPES` of plain data. No torch, no lightning."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from lit_opt.errors import RecipeError, nearest
from lit_opt.recipes.schema import RecipeSpec

# A bare setting name stands for its first choice.
ALIASES = {"large_batch": "large_batch/lars"}

_NOT_SETTINGS = {"frozen", "schema", "common", "muon", "preconditioned"}


@cache
def _all_recipes() -> dict[str, RecipeSpec]:
    modules = (m.name for m in pkgutil.iter_modules(__path__) if m.name not in _NOT_SETTINGS)
    found: dict[str, RecipeSpec] = {}
    for module in modules:
        for spec in importlib.import_module(f"{__name__}.{module}").RECIPES:
            if spec.name in found:
                raise ValueError(f"recipes/{module}.py: the name {spec.name!r} is taken; give each recipe its own.")
            found[spec.name] = spec
    return found


def list_recipes() -> list[str]:
    """Names of the recipes, sorted.

    Example:
        >>> "llm" in list_recipes()
        True
    """
    return sorted(_all_recipes())


def all_names() -> list[str]:
    """All names that `get_recipe` takes: settings alone as well.

    Example:
        >>> "large_batch" in all_names()
        True
    """
    return sorted({*_all_recipes(), *ALIASES})


def get_recipe(name: str) -> RecipeSpec:
    """The recipe of that name, frozen.

    Args:
        name: Such as "llm", "cnn", "large_batch/lars". A setting alone is its first choice.

    Raises:
        RecipeError: Unknown name; the message has the nearest one and the list.

    Example:
        >>> get_recipe("llm").weight_decay.number
        0.1
    """
    recipes = _all_recipes()
    resolved = ALIASES.get(name, name) if isinstance(name, str) else ""
    if resolved not in recipes:
        raise RecipeError(
            [
                f"recipe: {name!r} is unknown.{nearest(name, [*recipes, *ALIASES])} "
                f"Known: {', '.join(list_recipes())}. Try `lit-opt list`."
            ]
        )
    return recipes[resolved]
