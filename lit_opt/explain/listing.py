"""`lit-opt list`: recipes and optimizers, for a terminal, for a pipe (one line each) and as data. No torch."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from lit_opt.optim.registry import ROWS
from lit_opt.recipes import get_recipe, list_recipes


def listing() -> dict[str, list[dict[str, Any]]]:
    """Recipes and optimizers as plain data.

    Example:
        >>> [row["name"] for row in listing()["recipes"] if row["optimizer"] == "sgd"]
        ['cnn', 'large_batch/control']
    """
    specs = [get_recipe(name) for name in list_recipes()]
    return {
        "recipes": [
            {"name": s.name, "optimizer": s.optimizer.number, "summary": s.summary, "deviate": s.deviate} for s in specs
        ],
        "optimizers": [
            {
                "name": row.name,
                "provider": row.provider,
                "summary": row.summary,
                "evidence": row.evidence,
                "settings": list(row.settings),
            }
            for row in sorted(ROWS, key=lambda row: row.name)
        ],
    }


def listing_tables(*, folded: bool) -> list[Table]:
    """Two tables.

    Args:
        folded: Put the second text of a row under the first, for a terminal; else one line a row, for a pipe.
    """
    data = listing()
    tables = []
    for title, columns, rows in (
        ("Recipes", ("name", "optimizer", "summary", "deviate"), data["recipes"]),
        ("Optimizers", ("name", "provider", "summary", "evidence"), data["optimizers"]),
    ):
        table = Table(
            title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0)
        )
        for column in columns[:2]:
            table.add_column(column, no_wrap=True, style="cyan" if column == "name" else "")
        for column in columns[2:3] if folded else columns[2:]:
            table.add_column(column, overflow="fold", no_wrap=not folded)
        for row in rows:
            texts = [str(row[column]) for column in columns]
            if folded:
                note = f"deviate: {texts[3]}" if columns[3] == "deviate" else f"evidence: {texts[3]}"
                table.add_row(*texts[:2], Text.assemble(texts[2], "\n", (note, "dim")))
            else:
                table.add_row(*texts)
        tables.append(table)
    return tables
