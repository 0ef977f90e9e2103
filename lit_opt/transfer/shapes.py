"""The small model's shapes by name, with repeated blocks joined, and how they compare with the large one's. No torch."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lit_opt.errors import RecipeError, nearest

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")

Shape = tuple[int, ...]


def pattern_of(name: str) -> str:
    """A parameter's name with `*` for the number of its block.

    Example:
        >>> pattern_of("model.layers.11.mlp.weight"), pattern_of("conv2.weight")
        ('model.layers.*.mlp.weight', 'conv2.weight')
    """
    return _NUMBER.sub("*", name)


@dataclass(frozen=True)
class BaseShapes:
    """What is kept of the small model. Plain data.

    Args:
        name: Of the model, for messages.
        shapes: Pattern -> shape where all parameters of a pattern have one; else name -> shape.
        counts: Pattern -> how many parameters.
        residual_scale: The model's attribute of that name, None where it has none.

    Example:
        >>> shapes = BaseShapes.of("Tiny", {"blocks.0.w": (4, 4), "blocks.1.w": (4, 4), "head.w": (9, 4)})
        >>> shapes.shapes, shapes.shape_of("blocks.7.w")
        ({'blocks.*.w': (4, 4), 'head.w': (9, 4)}, (4, 4))
    """

    name: str
    shapes: Mapping[str, Shape]
    counts: Mapping[str, int]
    residual_scale: float | None = None

    @staticmethod
    def of(name: str, shapes: Mapping[str, Shape], residual_scale: float | None = None) -> BaseShapes:
        """Join the shapes of a model by name -> shape."""
        members: dict[str, dict[str, Shape]] = defaultdict(dict)
        for parameter, shape in shapes.items():
            members[pattern_of(parameter)][parameter] = tuple(shape)
        joined: dict[str, Shape] = {}
        for pattern, found in members.items():
            alike = len(set(found.values())) == 1
            joined |= {pattern: next(iter(found.values()))} if alike else found
        return BaseShapes(name, joined, {pattern: len(found) for pattern, found in members.items()}, residual_scale)

    def shape_of(self, name: str) -> Shape | None:
        """Of one parameter; None where the model has none of its name."""
        return self.shapes.get(name) or self.shapes.get(pattern_of(name))

    def as_dict(self) -> dict[str, Any]:
        """Plain lists and dictionaries."""
        return {
            "name": self.name,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "counts": dict(self.counts),
            "residual_scale": self.residual_scale,
        }

    @staticmethod
    def from_dict(saved: Mapping[str, Any]) -> BaseShapes:
        """The inverse of `as_dict`."""
        shapes = {name: tuple(shape) for name, shape in saved["shapes"].items()}
        return BaseShapes(saved.get("name", "base"), shapes, dict(saved["counts"]), saved.get("residual_scale"))


@dataclass(frozen=True)
class Comparison:
    """The large model beside the small one.

    Args:
        base: Name -> shape in the small model, for every parameter of the large one.
        repeats: Name -> how many times as often its pattern occurs as in the small model: depth's ratio within blocks.

    Example:
        >>> Comparison({"w": (2, 2)}, {"w": 1.0}).depth
        1.0
    """

    base: Mapping[str, Shape]
    repeats: Mapping[str, float]

    @property
    def depth(self) -> float:
        """Blocks over the base's."""
        return max(self.repeats.values(), key=lambda r: abs(r - 1), default=1.0)


def compare_shapes(base: BaseShapes, target: Mapping[str, Shape], *, depth: bool) -> Comparison:
    """Find each parameter's counterpart.

    Args:
        base: The small model.
        target: Name -> shape of the large one.
        depth: Whether the number of blocks may differ.

    Raises:
        RecipeError: Names that only one has, other dimensions, other numbers of blocks: all at once.

    Example:
        >>> base = BaseShapes.of("Tiny", {"blocks.0.w": (4, 4)})
        >>> compare_shapes(base, {"blocks.0.w": (8, 8), "blocks.1.w": (8, 8)}, depth=True).repeats["blocks.1.w"]
        2.0
        >>> compare_shapes(base, {"blocks.0.v": (8, 8)}, depth=False)
        Traceback (most recent call last):
        ...
        lit_opt.errors.RecipeError: transfer.base: the models differ in more than size: only in this model: 'blocks.*.v' \
(nearest: 'blocks.*.w'); only in Tiny: 'blocks.*.w'. The base has to be the same architecture, made smaller.
    """
    counts: dict[str, int] = defaultdict(int)
    for name in target:
        counts[pattern_of(name)] += 1
    parts = []
    only_here = [p for p in counts if p not in base.counts]
    only_there = [p for p in base.counts if p not in counts]
    if only_here:
        close = nearest(only_here[0], base.counts).removeprefix(" Did you mean ").removesuffix("?")
        parts.append(f"only in this model: {_some(only_here)}{f' (nearest: {close})' if close else ''}")
    if only_there:
        parts.append(f"only in {base.name}: {_some(only_there)}")
    found = {name: base.shape_of(name) for name in target if pattern_of(name) in base.counts}
    # Layers of several shapes under one pattern, as in a Sequential, have a counterpart of their own name alone.
    unmatched = [name for name, shape in found.items() if shape is None]
    if unmatched:
        parts.append(f"no counterpart of {_some(unmatched)}")
    ranks = [name for name, shape in found.items() if shape is not None and len(shape) != len(target[name])]
    if ranks:
        parts.append(
            f"other dimensions: {ranks[0]!r} is {_words(target[ranks[0]])} here and {_words(found[ranks[0]])} there"
        )
    if parts:
        raise RecipeError(
            [
                f"transfer.base: the models differ in more than size: {'; '.join(parts)}. The base has to be the same "
                "architecture, made smaller."
            ]
        )
    repeats = {pattern: count / base.counts[pattern] for pattern, count in counts.items()}
    ratios = sorted({r for r in repeats.values() if r != 1.0})
    if ratios and not depth:
        example = next(p for p, r in repeats.items() if r != 1.0)
        raise RecipeError(
            [
                f"transfer.base: the number of blocks differs ({counts[example]} of {example!r} here, "
                f"{base.counts[example]} in {base.name}), and depth=True was not given. Make the base as deep as this model, "
                "or give Transfer(..., depth=True)."
            ]
        )
    if len(ratios) > 1:
        raise RecipeError(
            [
                f"transfer.depth: blocks are repeated {' and '.join(f'{r:g}' for r in ratios)} times as often as in "
                f"{base.name}, so depth has no one ratio. Keep the base's proportions."
            ]
        )
    return Comparison(
        {name: shape for name, shape in found.items() if shape is not None},
        {name: repeats[pattern_of(name)] for name in target},
    )


def _some(names: list[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _words(shape: Shape | None) -> str:
    return " x ".join(map(str, shape or ())) or "scalar"
