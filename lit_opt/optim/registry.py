"""One row an optimizer: plain data that drives `build`, `resolve`, `list`, `explain` and the tests.

Adding an optimizer touches its own file (none for a library's) and one row in `lit_opt.optim.rows`. No torch is
imported.
"""

from __future__ import annotations

from lit_opt.errors import RecipeError, nearest
from lit_opt.optim.rows import ROWS
from lit_opt.optim.schema import REQUIRED, OptimizerRow, Published

__all__ = ["REQUIRED", "ROWS", "OptimizerRow", "Published", "get_row", "list_optimizers"]


def list_optimizers() -> list[str]:
    """Names of all optimizers, sorted.

    Example:
        >>> "adamw" in list_optimizers()
        True
    """
    return sorted(row.name for row in ROWS)


def get_row(name: str) -> OptimizerRow:
    """The row of that name.

    Raises:
        RecipeError: Unknown name; the message has the nearest one and the list.

    Example:
        >>> get_row("adamw").provider
        'torch'
    """
    for row in ROWS:
        if row.name == name:
            return row
    known = list_optimizers()
    raise RecipeError([f"optimizer: {name!r} is unknown.{nearest(name, known)} Known: {', '.join(known)}."])
