"""The small model of a transfer: built, read, and let go."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from lit_opt.errors import RecipeError
from lit_opt.param_groups.snapshot import snapshot_parameters
from lit_opt.transfer.shapes import BaseShapes, compare_shapes
from lit_opt.transfer.spec import Transfer, name_of

# Attribute of a module that multiplies every residual branch, which CompleteP needs.
RESIDUAL_SCALE = "residual_scale"


def settle_base(asked: Transfer, module: nn.Module | None = None) -> Transfer:
    """The same with the base's shapes in place of the base.

    Args:
        asked: What the user asks for.
        module: The large model, where depth is asked for: its `residual_scale` is checked.

    Raises:
        RecipeError: The base cannot be built, or the module does not scale its residual branches as depth needs it.

    Example:
        >>> settle_base(Transfer(base=lambda: nn.Linear(2, 3))).base.shapes
        {'weight': (3, 2), 'bias': (3,)}
    """
    base = asked.base if isinstance(asked.base, BaseShapes) else read_base(asked.base)
    if asked.depth and module is not None:
        target = {info.name: info.shape for info in snapshot_parameters(module).parameters}
        deeper = compare_shapes(base, target, depth=True).depth
        here = residual_scale(module)
        wanted = None if base.residual_scale is None else base.residual_scale / deeper
        if wanted is None or here is None or not math.isclose(here, wanted, rel_tol=1e-6):
            lacking = "has no residual_scale" if here is None else f"has residual_scale={here:g}"
            need = (
                f", and residual_scale={wanted:g} is needed here ({deeper:g} times the base's blocks)" if wanted else ""
            )
            raise RecipeError(
                [
                    f"transfer.depth: CompleteP needs a module that multiplies every residual branch by its attribute "
                    f"residual_scale; {type(module).__name__} {lacking}, {base.name} has {base.residual_scale}{need}. Add it, "
                    "or make the base as deep as this model and leave depth out."
                ]
            )
    return replace(asked, base=base)


def residual_scale(module: nn.Module) -> float | None:
    """The first `residual_scale` of a module or of one inside it.

    Example:
        >>> residual_scale(nn.Linear(2, 2)) is None
        True
    """
    found = (getattr(child, RESIDUAL_SCALE, None) for child in module.modules())
    return next((float(scale) for scale in found if isinstance(scale, int | float)), None)


def read_base(base: Any) -> BaseShapes:
    """Shapes of a base: a function that makes the model, its class, the model, or a class path with arguments.

    Example:
        >>> read_base({"class_path": "torch.nn.Linear", "init_args": {"in_features": 2, "out_features": 3}}).name
        'torch.nn.Linear(in_features=2, out_features=3)'
    """
    module = build_base(base, meta=True)
    snapshot = snapshot_parameters(module)
    return BaseShapes.of(name_of(base), {info.name: info.shape for info in snapshot.parameters}, residual_scale(module))


def build_base(base: Any, *, meta: bool) -> nn.Module:
    """The small model, on the meta device where that is asked for and possible; random states are left as they are.

    Raises:
        RecipeError: It cannot be built, or is no module.

    Example:
        >>> build_base(lambda: nn.Linear(2, 2), meta=True).weight.device.type
        'meta'
    """
    if isinstance(base, nn.Module):
        return base
    make = _from_class_path(base) if isinstance(base, Mapping) else base
    module = None
    with torch.random.fork_rng(devices=[]):
        if meta:
            try:
                with torch.device("meta"):
                    module = _built(make)
            except Exception:  # somebody else's code: whatever fails on meta may work on the CPU
                module = None
        if module is None:
            try:
                module = _built(make)
            except Exception as error:
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                raise RecipeError([f"transfer.base: {name_of(base)} cannot be made ({reason})."]) from error
    if not isinstance(module, nn.Module):
        raise RecipeError(
            [f"transfer.base: {name_of(base)} made a {type(module).__name__}. It has to make a torch.nn.Module."]
        )
    return module


def _built(make: Any) -> Any:
    module = make()
    if isinstance(module, nn.Module) and callable(configure := getattr(module, "configure_model", None)):
        configure()  # a LightningModule that makes its layers there
    return module


def _from_class_path(base: Mapping[str, Any]) -> Any:
    path = str(base.get("class_path"))
    where, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(where), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise RecipeError([f"transfer.base: class_path {path!r} cannot be imported ({error})."]) from error
    arguments = dict(base.get("init_args") or {})
    return lambda: found(**arguments)
