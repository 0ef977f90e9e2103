"""Initial weights of a large model from those of a small one: the scale that transferred rates assume."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import torch
from torch import nn

from lit_opt.errors import RecipeError
from lit_opt.param_groups.base import build_base
from lit_opt.param_groups.snapshot import snapshot_parameters
from lit_opt.param_groups.transfer import kind_of, sides_of
from lit_opt.transfer.shapes import BaseShapes, compare_shapes, pattern_of


@torch.no_grad()
def scale_initial(module: nn.Module, base: Any) -> dict[str, float]:
    """Multiply fresh weights so that their standard deviation is the base's times what the width asks for.

    It falls as 1 / sqrt(fan-in) in hidden matrices and as 1 / fan-in in the head; embeddings have the base's. Vectors, and weights that are zero or constant, stay as they are. Call it on a model that has not been trained.

    Args:
        module: The large model with its weights, in place.
        base: As in `Transfer`; it is built with its weights, and the random states are left as they are.

    Returns:
        Name -> factor, where it is not 1.

    Raises:
        RecipeError: The models differ in more than size; a model on the meta device.

    Source: arXiv:2203.03466, table 3; arXiv:2310.17813.

    Example:
        >>> def make(width):
        ...     net = nn.Sequential(nn.Linear(width, width, bias=False), nn.Linear(width, 2, bias=False))
        ...     for p in net.parameters():
        ...         nn.init.normal_(p, std=0.02)
        ...     return net
        >>> factors = scale_initial(make(256), lambda: make(64))
        >>> round(factors["0.weight"], 1), round(factors["1.weight"], 1)
        (0.5, 0.2)
    """
    small = build_base(base, meta=False)
    there = snapshot_parameters(small)
    here = snapshot_parameters(module)
    if any(p.is_meta for p in (*small.parameters(), *module.parameters())):
        raise RecipeError(["scale_initial: weights on the meta device have no scale yet. Call it when they are made."])
    shapes = BaseShapes.of(type(small).__name__, {info.name: info.shape for info in there.parameters})
    compared = compare_shapes(shapes, {info.name: info.shape for info in here.parameters}, depth=True)
    theirs, ours = _deviations(small), _deviations(module)
    weights = dict(module.named_parameters())
    factors = {}
    for info in here.parameters:
        kind, key = kind_of(info), info.name
        was = theirs.get(key) or theirs.get(pattern_of(key), 0.0)
        now = ours[key]
        if kind == "vector" or not was or not now:
            continue
        b, t = sides_of(kind, info, compared.base[key], {})[0], sides_of(kind, info, info.shape, {})[0]
        grown = t.inputs / b.inputs
        wanted = was * (grown**-0.5 if kind == "hidden" else 1 / grown)
        # Samples of two models of one law differ a little; a factor within that is none.
        numbers = min(math.prod(compared.base[key]), math.prod(info.shape))
        factor = wanted / now
        if abs(factor - 1) > 4 / math.sqrt(2 * numbers):
            weights[key].mul_(factor)
            factors[key] = factor
    return factors


def _deviations(module: nn.Module) -> dict[str, float]:
    """Name -> standard deviation, and pattern -> its root mean square over the blocks."""
    found: dict[str, float] = {}
    squares: dict[str, list[float]] = defaultdict(list)
    for name, p in module.named_parameters():
        spread = float(p.float().std()) if p.numel() > 1 else 0.0
        found[name] = spread
        squares[pattern_of(name)].append(spread**2)
    return {pattern: math.sqrt(sum(all_) / len(all_)) for pattern, all_ in squares.items()} | found
