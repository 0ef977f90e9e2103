"""What averaging callbacks share: a method of a module replaced for a run, and modules whose parameters change."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import nn

from lit_opt.averaging import Averages


def patch_method(module: nn.Module, function: Callable[..., None]) -> tuple[Callable[..., None], Callable[[], None]]:
    """Set `function` as a method of this one module; returns what it replaced and how to take it off."""
    name = function.__name__
    earlier = module.__dict__.get(name)
    patch = MethodType(function, module)
    setattr(module, name, patch)

    def replaced(self: nn.Module, checkpoint: dict[str, Any]) -> None:
        earlier(checkpoint) if earlier is not None else getattr(type(self), name)(self, checkpoint)

    def take_off() -> None:
        if module.__dict__.get(name) is not patch:
            return
        if earlier is None:
            delattr(module, name)
        else:
            setattr(module, name, earlier)

    return replaced, take_off


def follow_module(averages: Averages) -> None:
    """Take in parameters that became trainable, drop those that left, and say so."""
    joined, left = averages.refresh()
    if joined:
        rank_zero_info(f"EMA: {some_names(joined)} became trainable and joined, starting from the present weights.")
    if left:
        rank_zero_info(f"EMA: {some_names(left)} left the model; the averages of these were dropped.")


def some_names(names: list[str]) -> str:
    """How many, and the first three."""
    return f"{len(names)} parameters ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
