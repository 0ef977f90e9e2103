"""A table of a deep model that a person can read: the same parameter of repeated blocks becomes one line."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from lit_opt.param_groups import ParamRow

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


@dataclass(frozen=True, kw_only=True, slots=True)
class Folded:
    """Parameters that differ in nothing but numbers of their names.

    Args:
        pattern: Name with `*` where every number occurs, or `{0-3,7}` where only some do.
        count: How many parameters.
        row: The first of them.

    Example:
        >>> row = ParamRow(name="0.w", shape=(2,), group="decay", algorithm="adamw", lr=1.0, weight_decay=0.0, reason="")
        >>> Folded(pattern="0.w", count=1, row=row).row.shape
        (2,)
    """

    pattern: str
    count: int
    row: ParamRow


def fold(rows: Sequence[ParamRow]) -> list[Folded]:
    """Join rows whose names differ in numbers alone and that are alike in everything else.

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
    members: dict[tuple[object, ...], list[tuple[ParamRow, tuple[int, ...]]]] = defaultdict(list)
    for row in rows:
        stem = _NUMBER.sub("*", row.name)
        numbers = tuple(int(number) for number in _NUMBER.findall(row.name))
        everywhere[stem].append(numbers)
        reason = _NUMBER.sub("*", row.reason)
        key = (stem, row.shape, row.group, row.algorithm, row.lr, row.weight_decay, reason)
        members[key].append((row, numbers))
    folded = []
    for place, found in members.items():
        pattern = _pattern(str(place[0]), [numbers for _, numbers in found], everywhere[str(place[0])])
        folded.append(Folded(pattern=pattern, count=len(found), row=found[0][0]))
    return folded


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
