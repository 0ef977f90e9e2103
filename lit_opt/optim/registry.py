"""One row an optimizer: plain data that drives `build`, `resolve`, `list`, `explain` and the tests.

Adding an optimizer touches its own file (none for a library's) and one row in `lit_opt.optim.rows`. No torch is
imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lit_opt.errors import RecipeError, nearest
from lit_opt.optim.rows import ROWS
from lit_opt.optim.schema import REQUIRED, OptimizerRow, Published
from lit_opt.optim.state import Scratch
from lit_opt.recipes.schema import Value

__all__ = ["REQUIRED", "ROWS", "OptimizerRow", "Published", "get_row", "list_optimizers", "row_of", "run_row"]


def list_optimizers() -> list[str]:
    """Names of all optimizers, sorted.

    Example:
        >>> "adamw" in list_optimizers()
        True
    """
    return sorted(row.name for row in ROWS)


def get_row(name: str, base: str | None = None, *, setting: str = "") -> OptimizerRow:
    """The row of that name; for an optimizer around another one with what its base has.

    Args:
        name: Of the optimizer.
        base: Of the optimizer inside, where `name` takes one; by default the one for the setting.
        setting: Decides the base that is taken by default.

    Raises:
        RecipeError: Unknown name; the message has the nearest one and the list.

    Example:
        >>> get_row("adamw").provider
        'torch'
        >>> get_row("sam", "adamw").hyperparameters["betas"], get_row("sam", setting="vit").hyperparameters["base"]
        ((0.9, 0.999), 'adamw')
    """
    row = _row(name, "optimizer", list_optimizers())
    if not row.wraps:
        return row
    inside = _row(base or row.wraps.get(setting, row.wraps[""]), "base", _bases(row))
    own = {"base": _chosen(inside.name), **row.own_values}
    return replace(
        row,
        hyperparameters={**inside.hyperparameters, **row.hyperparameters, "base": inside.name},
        fixed=inside.fixed,
        decayed_group=inside.decayed_group,
        excluded_group=inside.excluded_group,
        global_only=(*inside.global_only, *row.hyperparameters),
        settings={
            setting: replace(published, hyperparameters={**published.hyperparameters, **own})
            for setting, published in inside.settings.items()
        },
        fused=inside.fused,
        clips_itself=inside.clips_itself,
        averages_itself=inside.averages_itself,
        choices={**inside.choices, **row.choices, "base": _bases(row)},
        matrix=inside.matrix,
        of_whole=inside.of_whole,
        exact=inside.exact,
        units=inside.units,
        limits={**inside.limits, **row.limits},
        group_options=inside.group_options,
        role_options=inside.role_options,
        extra=row.extra or inside.extra,
        state=lambda shape, options: (*inside.state(shape, options), *row.state(shape, options)),
        scratch=_scratch_around(row, inside),
    )


def _scratch_around(row: OptimizerRow, inside: OptimizerRow) -> Scratch | None:
    own, base = row.scratch, inside.scratch
    if own is None or base is None:
        return None
    return replace(base, throughout=own.throughout, largest=max(own.largest, base.largest))


def run_row(optimizer: str, kwargs: object, published: object, setting: str) -> OptimizerRow:
    """The row of an optimizer in a run: its base is the user's, or the recipe's, or the one for the setting.

    Args:
        optimizer: Registry name.
        kwargs: The user's optimizer_kwargs.
        published: The recipe's keywords of the same optimizer, or None.
        setting: The recipe's.

    Example:
        >>> run_row("sam", {"base": "lion"}, None, "vit").hyperparameters["base"]
        'lion'
    """
    for source in (kwargs, published):
        base = source.get("base") if isinstance(source, Mapping) else None
        base = getattr(base, "number", base)
        if isinstance(base, str):
            return get_row(optimizer, base)
    return get_row(optimizer, setting=setting)


def row_of(name: str, hyperparameters: Mapping[str, Any]) -> OptimizerRow:
    """The row of an optimizer with these keywords, which say what is inside it.

    Example:
        >>> row_of("lookahead", {"base": "muon"}).matrix
        True
    """
    base = hyperparameters.get("base")
    return get_row(name, base if isinstance(base, str) else None)


def _row(name: object, key: str, known: Sequence[str]) -> OptimizerRow:
    for row in ROWS:
        if row.name == name and name in known:
            return row
    raise RecipeError([f"{key}: {name!r} is unknown.{nearest(name, known)} Known: {', '.join(known)}."])


def _bases(wrapper: OptimizerRow) -> tuple[str, ...]:
    """What it can go around: no second wrapper, nothing with keywords of the same name, averages or hooks of its own."""
    return tuple(
        sorted(
            row.name
            for row in ROWS
            if not (row.wraps or row.averages_itself or row.needs_module or row.exchanges)
            and not set(row.hyperparameters) & set(wrapper.hyperparameters)
        )
    )


def _chosen(name: str) -> Value:
    return Value(name, unit="registry name of the optimizer inside", common_practice=name, source="lit-opt's choice")
