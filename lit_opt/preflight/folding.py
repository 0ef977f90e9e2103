"""A table of a deep model that a person can read: the same parameter of repeated blocks becomes one line."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lit_opt.param_groups import ParamRow

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


# What layer-wise rates put into groups and reasons.
_LAYER = re.compile(r"layer_\d+")
_LAYER_REASON = re.compile(r"layer \d+ of (\d+): lr x [^;]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Folded:
    """Parameters that differ in nothing but numbers of their names, and in their layer's rate.

    Args:
        pattern: Name with `*` where every number occurs, or `{0-3,7}` where only some do.
        count: How many parameters.
        shape: Of each.
        group: With `layer_*` for layer-wise rates.
        algorithm: As in `ParamRow`.
        lr: The lowest and the highest rate.
        weight_decay: As in `ParamRow`.
        reason: Of the first, with `*` for a layer.

    Example:
        >>> row = ParamRow(name="0.w", shape=(2,), group="decay", algorithm="adamw", lr=1.0, weight_decay=0.0, reason="")
        >>> unfolded(row).pattern
        '0.w'
    """

    pattern: str
    count: int
    shape: tuple[int, ...]
    group: str
    algorithm: str
    lr: tuple[float, float]
    weight_decay: float
    reason: str


def joined_group(name: str) -> str:
    """A group's name with `*` for its layer.

    Example:
        >>> joined_group("decay/layer_07")
        'decay/layer_*'
    """
    return _LAYER.sub("layer_*", name)


def unfolded(row: ParamRow) -> Folded:
    """One row alone.

    Example:
        >>> row = ParamRow(name="w", shape=(2,), group="decay", algorithm="adamw", lr=1.0, weight_decay=0.0, reason="")
        >>> unfolded(row).count
        1
    """
    return _joined(row.name, [row], row.group, row.reason)


def fold(rows: Sequence[ParamRow]) -> list[Folded]:
    """Join rows whose names differ in numbers alone and that are alike in everything else but a layer's rate.

    Args:
        rows: In the module's own order.

    Returns:
        In the order of the first of each; counts add up to the number of rows.

    Example:
        >>> def row(name, group):
        ...     return ParamRow(
        ...         name=name, shape=(2,), group=group, algorithm="adamw", lr=1.0, weight_decay=0.0, reason="vector")
        >>> rows = [row(f"layers.{i}.norm", "a") for i in range(4)] + [row("layers.0.w", "a"), row("layers.1.w", "b")]
        >>> [(f.pattern, f.count) for f in fold(rows)]
        [('layers.*.norm', 4), ('layers.0.w', 1), ('layers.1.w', 1)]
    """
    everywhere: dict[str, list[tuple[int, ...]]] = defaultdict(list)
    members: dict[tuple[Any, ...], dict[tuple[int, ...], ParamRow]] = defaultdict(dict)
    for row in rows:
        stem = _NUMBER.sub("*", row.name)
        numbers = tuple(int(number) for number in _NUMBER.findall(row.name))
        everywhere[stem].append(numbers)
        group = joined_group(row.group)
        lr = row.lr if group == row.group else None
        reason = _NUMBER.sub("*", _LAYER_REASON.sub(r"lr by layer, the last is \1", row.reason))
        members[stem, row.shape, group, row.algorithm, lr, row.weight_decay, reason][numbers] = row
    order = {row.name: place for place, row in enumerate(rows)}
    found = []
    for (stem, _, group, *_), row_of in members.items():
        for part in _products(list(row_of)):
            joined = [row_of[numbers] for numbers in part]
            reason = joined[0].reason
            if len(joined) > 1:
                reason = _LAYER_REASON.sub(r"lr by layer, the last is \1", reason)
            line = _joined(_pattern(stem, part, everywhere[stem]), joined, group, reason)
            found.append((order[joined[0].name], line))
    return [line for _, line in sorted(found, key=lambda pair: pair[0])]


def _joined(pattern: str, rows: Sequence[ParamRow], group: str, reason: str) -> Folded:
    first, rates = rows[0], [row.lr for row in rows]
    return Folded(
        pattern=pattern,
        count=len(rows),
        shape=first.shape,
        group=group,
        algorithm=first.algorithm,
        lr=(min(rates), max(rates)),
        weight_decay=first.weight_decay,
        reason=reason,
    )


def _products(found: list[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    """Parts in which every number of one place occurs with every number of the others, so that ranges tell the truth."""
    places = [set(place) for place in zip(*found, strict=True)]
    if math.prod(map(len, places)) == len(found):
        return [found]
    varying = next(i for i, numbers in enumerate(places) if len(numbers) > 1)
    parts: dict[int, list[tuple[int, ...]]] = defaultdict(list)
    for numbers in found:
        parts[numbers[varying]].append(numbers)
    return [product for part in parts.values() for product in _products(part)]


def _pattern(stem: str, found: list[tuple[int, ...]], everywhere: list[tuple[int, ...]]) -> str:
    """The stem with each place filled in: the number, `*` for all of them, or ranges."""
    places = []
    for here, all_ in zip(zip(*found, strict=True), zip(*everywhere, strict=True), strict=True):
        seen = sorted(set(here))
        if len(seen) == 1:
            places.append(str(seen[0]))
        else:
            places.append("*" if seen == sorted(set(all_)) else f"{{{_ranges(seen)}}}")
    parts = stem.split("*")
    return "".join(part + place for part, place in zip(parts, [*places, ""], strict=True))


def _ranges(numbers: list[int]) -> str:
    """Sorted numbers as a person writes them, such as 0-3,7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs)
