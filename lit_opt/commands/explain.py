"""`lit-opt explain NAME`: a recipe or an optimizer, in any of the formats. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType

from lit_opt import recipes
from lit_opt.errors import RecipeError, nearest
from lit_opt.explain import formats
from lit_opt.explain.recipe_yaml import recipe_section
from lit_opt.explain.values import explain
from lit_opt.optim.registry import get_row, list_optimizers
from lit_opt.resolve import RunFacts


def explain_name(
    name: str, overrides: Mapping[str, Any], *, parameters: Any = None, form: str = "text"
) -> str | RenderableType:
    """The explanation of a recipe or an optimizer.

    Args:
        name: Of either.
        overrides: The user's values, for a recipe.
        parameters: Trainable parameters without the embeddings, where the learning rate depends on them.
        form: "text" (a rich renderable), "yaml", "json" or "markdown".

    Raises:
        RecipeError: Unknown name, or problems of the overrides.

    Example:
        >>> explain_name("llm", {"lr": 1e-3}, form="yaml").splitlines()[:2]
        ['recipe:', '  name: llm']
    """
    known = [*recipes.all_names(), *list_optimizers()]
    if name not in known:
        raise RecipeError(
            [
                f"name: {name!r} is neither a recipe nor an optimizer.{nearest(name, known)} "
                f"Recipes: {', '.join(recipes.list_recipes())}. Optimizers: {', '.join(list_optimizers())}."
            ]
        )
    if name not in recipes.all_names():
        return _optimizer(name, overrides, form)
    if parameters is not None and not (isinstance(parameters, int) and parameters > 0):
        raise RecipeError([f"parameters: {parameters!r} is not allowed; give a whole number above 0."])
    spec, facts = recipes.get_recipe(name), RunFacts(parameter_count=parameters)
    entries = explain(spec, overrides, facts)
    if form == "yaml":
        return "\n".join(recipe_section(spec, overrides, facts))
    if form == "json":
        return formats.recipe_json(spec, entries)
    if form == "markdown":
        return formats.recipe_markdown(spec, entries)
    return formats.recipe_text(spec, entries)


def _optimizer(name: str, overrides: Mapping[str, Any], form: str) -> str | RenderableType:
    row = get_row(name)
    problems = [
        f"{key}: {name!r} is an optimizer; your values belong to a recipe: lit-opt explain RECIPE --optimizer {name}."
        for key in overrides
    ]
    if form == "yaml":
        problems.append(f"format: {name!r} is an optimizer, and only a recipe has YAML. Known: text, json, markdown.")
    if problems:
        raise RecipeError(problems)
    if form == "json":
        return formats.to_json(formats.optimizer_dict(row))
    return formats.optimizer_markdown(row) if form == "markdown" else formats.optimizer_text(row)
