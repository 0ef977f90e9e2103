"""From what a user types for arms to recipes with names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lit_opt.callbacks.recipe import Recipe
from lit_opt.errors import RecipeError, nearest
from lit_opt.recipes import list_recipes
from lit_opt.resolve import preview

ArmLike = str | Recipe | Mapping[str, Any]
# Of a recipe, but not of an arm: optimizers are replaced, nothing is resumed, and a loss that is not finite is a result.
_HAS_NO_SAY = ("existing", "on_resume", "on_nonfinite")
Named = dict[str, tuple[str, dict[str, Any]]]


def read_arms(arms: Sequence[ArmLike] | Mapping[str, ArmLike], readout: str | None, least: int = 2) -> Named:
    """Name of each arm -> (recipe, keywords).

    Args:
        arms: Names of recipes or `Recipe` objects; or a mapping from the arms' names to either of them or to keywords
            of `Recipe` ("name" is the recipe; the arm's own name where it is missing).
        readout: "raw" turns averages off in every arm; "averages" and None leave them.
        least: How many are needed.

    Raises:
        RecipeError: All that is wrong, at once.

    Example:
        >>> read_arms(["llm", Recipe("llm/muon", lr=0.01)], None)
        {'llm': ('llm', {}), 'llm/muon': ('llm/muon', {'lr': 0.01})}
        >>> read_arms({"AdamW": "llm", "SGD": {"name": "llm", "optimizer": "sgd", "lr": 0.1, "weight_decay": 0.0}}, None)["SGD"]
        ('llm', {'optimizer': 'sgd', 'lr': 0.1, 'weight_decay': 0.0})
    """
    pairs = list(arms.items()) if isinstance(arms, Mapping) else [(_name_of(arm), arm) for arm in arms]
    problems: list[str] = []
    found: Named = {}
    for name, arm in pairs:
        if name in found:
            problems.append(
                f"arms: {name!r} is there twice. Give them names of their own: arms={{'first': ..., 'second': ...}}."
            )
            continue
        try:
            found[name] = _read(name, arm)
        except RecipeError as error:
            problems += [f"arms, {name}: {text}" for text in error.problems]
    if len(pairs) < least:
        problems.append(f"arms: {len(pairs)} given, and a comparison needs at least two, such as llm,llm/muon.")
    if problems:
        raise RecipeError(problems)
    if readout == "raw":
        off = {
            name: preview(Recipe(recipe).spec, keywords).ema is not None for name, (recipe, keywords) in found.items()
        }
        found = {
            name: (recipe, {**keywords, "ema": 0.0} if off[name] else keywords)
            for name, (recipe, keywords) in found.items()
        }
    return found


def _name_of(arm: ArmLike) -> str:
    if isinstance(arm, Recipe):
        return arm.spec.name
    return str(arm.get("name", "")) if isinstance(arm, Mapping) else str(arm)


def _read(name: str, arm: ArmLike) -> tuple[str, dict[str, Any]]:
    if isinstance(arm, str):
        recipe, keywords = arm, {}
    elif isinstance(arm, Recipe):
        if arm.existing not in (None, "replace"):
            raise RecipeError(
                [f"existing={arm.existing!r}: an arm brings its own optimizer, so only 'replace' can be compared."]
            )
        recipe, keywords = arm.spec.name, dict(arm.overrides)
    elif isinstance(arm, Mapping):
        keywords = {key: value for key, value in arm.items() if key != "name" and value is not None}
        recipe = str(arm.get("name", name))
    else:
        raise RecipeError([f"{type(arm).__name__} is no arm. Give a recipe's name, a Recipe, or keywords of one."])
    if recipe not in list_recipes():
        raise RecipeError(
            [
                f"{recipe!r} is no recipe.{nearest(recipe, list_recipes())} `lit-opt list` has them all; keywords need name=."
            ]
        )
    if "total_steps" in keywords:
        raise RecipeError(["total_steps: the budget decides it, budget_steps= of the comparison. Leave it out."])
    Recipe(recipe, **keywords)  # its own checks
    return recipe, {key: value for key, value in keywords.items() if key not in _HAS_NO_SAY}


def common_readout(averages: Mapping[str, bool], readout: str | None) -> Literal["raw", "averages"]:
    """The weights by which all arms are read.

    Args:
        averages: Name of an arm -> whether it averages its weights.
        readout: What the user asked for.

    Raises:
        RecipeError: Some arms average and others do not: averages against raw weights is no comparison of optimizers.

    Example:
        >>> common_readout({"a": True, "b": True}, None)
        'averages'
        >>> common_readout({"a": True, "b": False}, None)
        Traceback (most recent call last):
            ...
        lit_opt.errors.RecipeError: readout: a would be read by its averages, b by its raw weights, which says more about averaging than about optimizers. Give readout='raw' (--readout raw), which turns averages off in every arm, or ema= to b.
    """
    with_them = [name for name, has in averages.items() if has]
    without = [name for name, has in averages.items() if not has]
    if with_them and without:
        raise RecipeError(
            [
                f"readout: {', '.join(with_them)} would be read by its averages, {', '.join(without)} by its raw weights, which "
                "says more about averaging than about optimizers. Give readout='raw' (--readout raw), which turns averages "
                f"off in every arm, or ema= to {', '.join(without)}."
            ]
        )
    if readout == "averages" and without:
        raise RecipeError([f"readout: 'averages', and {', '.join(without)} has none. Give ema= to each arm."])
    return "averages" if with_them else "raw"
