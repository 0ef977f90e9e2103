"""A dictionary for frozen dataclasses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

T = TypeVar("T")


class FrozenMapping(Mapping[str, T]):
    """A dictionary that cannot be changed, so that a recipe can be shared, hashed and pickled.

    Example:
        >>> FrozenMapping({})["eps"] = 1
        Traceback (most recent call last):
        TypeError: 'FrozenMapping' object does not support item assignment
    """

    def __init__(self, items: Mapping[str, T]) -> None:
        self._items = dict(items)

    def __getitem__(self, key: str) -> T:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return repr(self._items)
