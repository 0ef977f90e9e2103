"""Arguments of `Recipe` that it does not have, said with the nearest name instead of Python's TypeError."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

from lit_opt.errors import RecipeError
from lit_opt.recipes import list_recipes
from lit_opt.resolve.overrides import nearest_field

Init = TypeVar("Init", bound=Callable[..., None])


def refuse_misspelled(init: Init) -> Init:
    """Let an `__init__` say what was probably meant; its signature stays what it is.

    Args:
        init: Of `Recipe`: self, the recipe's name, and keywords.
    """
    names = list(inspect.signature(init).parameters)[2:]

    @functools.wraps(init)
    def checked(*args: Any, **kwargs: Any) -> None:
        problems = _problems(list(args[1:]), kwargs, names)
        if problems:
            raise RecipeError(problems)
        init(*args, **kwargs)

    return cast(Init, checked)


def _problems(given: list[Any], keywords: dict[str, Any], names: list[str]) -> list[str]:
    problems = []
    if not given and "name" not in keywords:
        problems.append(f"name: a recipe is needed, such as Recipe('llm'). Known: {', '.join(list_recipes())}.")
    if len(given) > 1:
        rest = ", ".join(map(repr, given[1:]))
        problems.append(f"{rest}: only the recipe's name has no keyword. Write Recipe({given[0]!r}, lr=...).")
    known = ("name", *names)
    problems += [
        f"{word}: Recipe has no such argument.{nearest_field(word, names)} It has: {', '.join(names)}."
        for word in keywords
        if word not in known
    ]
    if len(given) == 1 and "name" in keywords:
        problems.append(f"name: given twice, as {given[0]!r} and as {keywords['name']!r}. Keep one.")
    return problems
