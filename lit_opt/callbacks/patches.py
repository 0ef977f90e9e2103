"""Methods put on a module for the length of a run, and taken off again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any

from lit_opt.errors import RecipeError

_MARK = "_lit_opt_recipe"


class Patches:
    """Instance methods installed on one module, in order; `remove` leaves the module as it was found.

    A patched function carries the name of the method: a bound method pickles as getattr(module, name), so an
    unpickled module is simply unpatched.
    """

    def __init__(self) -> None:
        self._installed: list[tuple[Any, str, Any]] = []

    def install(self, module: Any, name: str, function: Callable[..., Any], owner: object = None) -> None:
        """Put `function(module, ...)` in the place of the method `name`."""
        function.__name__ = name
        setattr(function, _MARK, owner)
        self._installed.append((module, name, module.__dict__.get(name)))
        setattr(module, name, MethodType(function, module))

    def remove(self) -> None:
        """Take off what was installed, last first. Safe to call twice."""
        while self._installed:
            module, name, before = self._installed.pop()
            if before is None:
                module.__dict__.pop(name, None)
            else:
                setattr(module, name, before)

    def __bool__(self) -> bool:
        return bool(self._installed)

    def __getstate__(self) -> dict[str, Any]:
        # Patches live in one process; a copy of the module is unpatched.
        return {"_installed": []}


def patched_by(module: Any, name: str) -> object:
    """The recipe that patched this method, or None."""
    return getattr(getattr(module.__dict__.get(name), "__func__", None), _MARK, None)


def is_overridden(module: Any, name: str) -> bool:
    """Whether the module has its own method `name`. Works in both Lightning namespaces."""
    method = getattr(module, name, None)
    return method is not None and getattr(method, "__qualname__", "") != f"LightningModule.{name}"


def refuse_other_owners(module: Any, recipe: object, callbacks: list[Any]) -> None:
    """Two recipes, or a recipe beside a LightningCLI optimizer, are an error: the last would win silently."""
    others = [c for c in callbacks if type(c) is type(recipe) and c is not recipe]
    before = patched_by(module, "configure_optimizers")
    if others or (before is not None and before is not recipe):
        names = sorted({repr(c) for c in [recipe, *others, before] if c is not None})
        raise RecipeError([f"callbacks: two recipes want to set the optimizer ({', '.join(names)}). Keep one of them."])
    own = module.__dict__.get("configure_optimizers")
    if isinstance(getattr(own, "__func__", None), partial):
        raise RecipeError(
            [
                "optimizer: the command line (LightningCLI --optimizer) and the recipe both set the optimizer. Remove "
                "--optimizer and --lr_scheduler, or the recipe; a recipe takes its optimizer by Recipe(optimizer=...)."
            ]
        )
