"""Write docs/cards anew from the registry, the recipes and what was measured: `python -m lit_opt.commands.generate_cards`.

It reads docs/methods.md, benchmarks/results and benchmarks/evidence of a checkout, and is run in one (`make cards`).
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lit_opt.explain.cards import Evidence, optimizer_card, optimizer_index, recipe_card, recipe_index
from lit_opt.explain.shipped_configs import shipped_configs
from lit_opt.explain.strategies import strategy_cells
from lit_opt.optim.registry import ROWS, get_row
from lit_opt.recipes import get_recipe, list_recipes

CHECKOUT = Path(__file__).parents[2]


def cards(checkout: Path = CHECKOUT) -> dict[str, str]:
    """Path below docs/cards -> its text.

    Args:
        checkout: A clone of the repository.
    """
    head, methods, notes = _methods((checkout / "docs" / "methods.md").read_text(encoding="utf-8"))
    results = {
        f"results/{path.name}": path.read_text(encoding="utf-8")
        for path in sorted((checkout / "benchmarks/results").glob("*.md"))
    }
    compared = [
        json.loads(path.read_text()) for path in sorted((checkout / "benchmarks/evidence").glob("*/results.json"))
    ]
    pages = {"optimizers/index.md": optimizer_index(ROWS), "recipes/index.md": recipe_index()}
    for row in ROWS:
        words = dict(zip(head, methods.get(row.name, ()), strict=False))
        told = [note for note in notes if any(f"({note.partition('.')[0]})" in word for word in words.values())]
        seen = {column: word for column, word in words.items() if column not in ("method", "from", "extra")}
        pages[f"optimizers/{row.name}.md"] = optimizer_card(get_row(row.name), seen, told, _measured(results, row.name))
    cells = strategy_cells()
    for name in list_recipes():
        mine = [cell for cell in cells if cell.recipe == name]
        text = recipe_card(
            get_recipe(name), mine, list(shipped_configs()), _trained(results, name) + _compared(compared, name)
        )
        pages[f"recipes/{name.replace('/', '-')}.md"] = text
    return pages


def _methods(page: str) -> tuple[list[str], dict[str, list[str]], list[str]]:
    """Columns, cells by method, and notes of the table that the tests write."""
    table = page.partition("<!-- methods:")[2].partition("<!-- end")[0].splitlines()
    rows = [line.strip("| ").split(" | ") for line in table if line.startswith("|")]
    return rows[0], {row[0]: row for row in rows[2:]}, [line for line in table if re.match(r"\d+\. ", line)]


def _tables(text: str) -> Iterator[list[str]]:
    """The tables of a Markdown page, each as its lines."""
    table: list[str] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            table.append(line)
        else:
            if len(table) > 2:  # fewer lines are a formula that begins with a bar
                yield table
            table = []


def _cells(line: str) -> list[str]:
    return line.strip("| ").split(" | ")


def _measured(results: Mapping[str, str], optimizer: str) -> list[Evidence]:
    """The results that have the optimizer in a table, without their rows."""
    name = re.compile(rf"(?<![\w./]){re.escape(optimizer)}(?![\w./])")
    files = [
        file for file, text in results.items() if any(name.search(row) for rows in _tables(text) for row in rows[2:])
    ]
    return [Evidence(file=file, title=_title(results[file])) for file in files]


def _trained(results: Mapping[str, str], recipe: str) -> list[Evidence]:
    """The rows of training runs: tables with a column "arm" that begins with the recipe's name."""
    name = re.compile(rf"`?{re.escape(recipe)}`?(, .*| \(.*|)")
    found = []
    for file, text in results.items():
        for head, line, *rows in _tables(text):
            arm = _cells(head).index("arm") if "arm" in _cells(head) else None
            mine = tuple(row for row in rows if arm is not None and name.fullmatch(_cells(row)[arm]))
            if mine:
                found.append(Evidence(file=file, title=_title(text), head=(head, line), rows=mine))
    return found


def _compared(comparisons: Iterable[Mapping[str, Any]], recipe: str) -> list[Evidence]:
    """The verdicts of `lit-opt compare` in which the recipe is an arm or the baseline."""
    rows = []
    for found in comparisons:
        protocol = found["protocol"]
        base = protocol["baseline"]
        for arm, one in found["comparisons"].items():
            if recipe in (arm, base):
                final = [f"{found['arms'][name]['final']['mean']:.4g}" for name in (arm, base)]
                rows.append(
                    f"| {arm} | {base} | {protocol['metric']} | {' | '.join(final)} | {one['said']} | "
                    f"{protocol['budget_steps']} | {protocol['trials']} | {protocol['seeds']} |"
                )
    head = (
        "| arm | against | metric | arm's mean | other's mean | verdict | steps | trials | seeds |",
        "|---|---|---|---|---|---|---|---|---|",
    )
    return (
        [Evidence(file="evidence/README.md", title="Our own comparisons", head=head, rows=tuple(rows))] if rows else []
    )


def _title(text: str) -> str:
    return text.partition("\n")[0].removeprefix("# ")


def main(checkout: Path = CHECKOUT) -> int:
    """Write all cards, and remove those that nothing stands behind any more."""
    folder, pages = checkout / "docs" / "cards", cards(checkout)
    for stale in {path.relative_to(folder).as_posix() for path in folder.rglob("*.md")} - set(pages):
        (folder / stale).unlink()
    for name, text in pages.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    print(f"{len(pages)} pages in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
