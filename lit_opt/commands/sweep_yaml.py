"""The YAML that a sweep writes: the tuned recipe with its transfer, alone or in the large model's config."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from lit_opt.errors import RecipeError

_WIDTH = 110


def recipe_text(recipe: Mapping[str, Any], said: Sequence[str], notes: Mapping[str, str]) -> str:
    """The section `recipe:` with comments.

    Args:
        recipe: What it holds, in this order.
        said: Lines of the comment above it.
        notes: Key -> comment behind it.
    """
    lines = [f"# {line}".rstrip() for line in said] + ["recipe:"]
    for key, value in recipe.items():
        dumped = yaml.safe_dump({key: value}, sort_keys=False, width=_WIDTH, allow_unicode=True).rstrip().splitlines()
        if key in notes:
            dumped[0] += f"  # {notes[key]}"
        lines += [f"  {line}" for line in dumped]
    return "\n".join(lines) + "\n"


def put_recipe(config: str, section: str) -> str:
    """A config with another section `recipe:`; the rest stays as it was typed.

    Args:
        config: YAML.
        section: Of `recipe_text`.
    """
    wanted = {**(yaml.safe_load(config) or {}), **yaml.safe_load(section)}
    first, last = _lines_of(config, "recipe")
    lines = config.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    gap = ["\n"] if first and lines[first - 1].strip() else []
    text = "".join([*lines[:first], *gap, section, *lines[last:]])
    try:
        same = yaml.safe_load(text) == wanted
    except yaml.YAMLError:  # an anchor that the old section held
        same = False
    if same:
        return text
    rest = {key: value for key, value in wanted.items() if key != "recipe"}
    return yaml.safe_dump(rest, sort_keys=False, width=_WIDTH, allow_unicode=True) + "\n" + section


def _lines_of(config: str, key: str) -> tuple[int, int]:
    """First line of a section and the line after it; both the end of the file where there is none.

    Comments that stand unindented before the next section belong to that, comments directly above are left.
    """
    lines = config.splitlines()
    root = yaml.compose(config, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    for name, value in root.value:
        if name.value == key:
            first, last = name.start_mark.line, min(value.end_mark.line, len(lines))
            last = max(last, first + 1)
            while last > first + 1 and (not lines[last - 1].strip() or lines[last - 1].startswith("#")):
                last -= 1
            return first, last
    return len(lines), len(lines)


def writable(value: Any, where: str) -> Any:
    """Plain data for YAML.

    Args:
        value: Of a parsed config.
        where: Its name, for the message.

    Raises:
        RecipeError: An object that YAML has no word for.
    """
    if isinstance(value, Mapping):
        return {str(key): writable(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [writable(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise RecipeError(
        [f"{where}: {type(value).__name__} {value!r} cannot be written into a config. Give numbers, words or lists."]
    )
