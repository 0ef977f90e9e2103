"""How recipes and groups look in a terminal: rich tables, also as plain text. No torch, no lightning."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table

from lit_opt.resolve.resolved import Provenance, ResolvedRecipe


def as_text(*renderables: RenderableType, width: int = 110) -> str:
    """Render without colours, for logs and files.

    Example:
        >>> as_text("one", "two").split()
        ['one', 'two']
    """
    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    for renderable in renderables:
        console.print(renderable)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.rstrip().splitlines())


def number(x: Any) -> str:
    """A number as a person writes it.

    Example:
        >>> number(0.0003), number((0.9, 0.95)), number(1500000), number(True)
        ('0.0003', '(0.9, 0.95)', '1,500,000', 'on')
    """
    if isinstance(x, bool):
        return "on" if x else "off"
    if isinstance(x, int):
        return f"{x:,}"
    if isinstance(x, float):
        return f"{x:.4g}" if x == 0 or abs(x) >= 1e-3 else f"{x:.3g}"
    if isinstance(x, tuple | list):
        return "(" + ", ".join(number(item) for item in x) + ")"
    return str(x)


def recipe_table(resolved: ResolvedRecipe) -> Table:
    """The resolved recipe, one row a value: number, where it comes from, arithmetic, range.

    Example:
        >>> from lit_opt.recipes import get_recipe
        >>> from lit_opt.resolve import preview
        >>> text = as_text(recipe_table(preview(get_recipe("llm"), {"lr": 1e-3})))
        >>> [line.split() for line in text.splitlines() if line.startswith("lr")][0][:3]
        ['lr', '0.001', 'yours']
    """
    table = Table(title=f"Recipe {resolved.name}", title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("value", "number", "from", "note"):
        table.add_column(column, overflow="fold")
    for key, p in resolved.provenance.items():
        if key == "no_decay":
            continue
        notes = (p.note, _replaced(p), _outside(key, p))
        table.add_row(key, number(p.number), p.origin, "; ".join(note for note in notes if note))
    if resolved.schedule is not None and resolved.schedule.total_steps is not None:
        table.add_row("total_steps", number(resolved.schedule.total_steps), "run", "")
    return table


def _replaced(p: Provenance) -> str:
    """The published value that a user's takes the place of."""
    if p.origin != "yours" or p.value is None or p.number == p.value.number:
        return ""
    return f"instead of {number(p.value.number)} ({p.value.unit})"


def _outside(key: str, p: Provenance) -> str:
    """The range that a number has left; a warmup's is in its note, because it is counted in steps here."""
    judged = p.value.judge(p.number) if p.value and key != "warmup" else ""
    return judged if judged.startswith("outside") else ""
