"""`lit-opt list --strategies`: every recipe under every strategy and precision. No torch.

A cell is refused by the rules of `lit_opt.resolve.strategies`; else it was tested, if the tests have noted so in
strategies.json beside this file (`make tables`); else it works by contract.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lit_opt.recipes import get_recipe, list_recipes
from lit_opt.resolve import preview
from lit_opt.resolve.strategies import PRECISIONS, STRATEGIES, lightning_refuses, missing, refusals

RECORD = Path(__file__).with_name("strategies.json")
SIGNS = {"tested": "+", "contract": "o", "refused": "-"}
_LEGEND = f"Four signs a cell, for {', '.join(PRECISIONS)}: + works, tested; o works by contract, not run; - refused, see below."


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One recipe under one strategy and precision.

    Args:
        recipe: Its name.
        strategy: Key of `lit_opt.resolve.strategies.STRATEGIES`.
        precision: Lightning's word.
        status: "tested", "contract" (works by contract, was not run) or "refused".
        why: What was missing to run it, or the reasons of the refusal, each with what to use instead.

    Example:
        >>> [cell.status for cell in strategy_cells() if cell.recipe == "llm/muon" and cell.strategy == "fsdp1"]
        ['refused', 'refused', 'refused', 'refused']
    """

    recipe: str
    strategy: str
    precision: str
    status: str
    why: tuple[str, ...] = ()


def strategy_cells() -> list[Cell]:
    """All cells, recipe by recipe.

    Example:
        >>> cells = strategy_cells()
        >>> len(cells) == len(list_recipes()) * len(STRATEGIES) * len(PRECISIONS)
        True
    """
    runs = json.loads(RECORD.read_text())["runs"]
    cells = []
    for name in list_recipes():
        planned = preview(get_recipe(name))
        for strategy in STRATEGIES:
            for precision in PRECISIONS:
                theirs = lightning_refuses(strategy, precision)
                why = [theirs] if theirs else refusals(planned, strategy, precision)
                status = "refused"
                if not why:
                    tested = name in runs.get(strategy, {}).get(precision, ())
                    status, why = ("tested", []) if tested else ("contract", [missing(planned, strategy)])
                cells.append(Cell(recipe=name, strategy=strategy, precision=precision, status=status, why=tuple(why)))
    return cells


def strategies_dict() -> dict[str, Any]:
    """The table as plain data.

    Example:
        >>> table = strategies_dict()
        >>> table["recipes"]["llm"]["ddp"]["32-true"]["status"]
        'tested'
    """
    record = json.loads(RECORD.read_text())
    recipes: dict[str, Any] = {}
    for cell in strategy_cells():
        here = recipes.setdefault(cell.recipe, {}).setdefault(cell.strategy, {})
        here[cell.precision] = {"status": cell.status} | ({"why": list(cell.why)} if cell.why else {})
    return {
        "versions": record["versions"],
        "strategies": {key: {"name": s.name, "typed": s.typed} for key, s in STRATEGIES.items()},
        "recipes": recipes,
    }


def strategies_table() -> list[Any]:
    """The table, the reasons and the counts, for a terminal of 100 columns.

    Example:
        >>> strategies_table()[0].columns[0].header
        'recipe'
    """
    cells = strategy_cells()
    table = Table(title="Recipes and strategies", title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("recipe", style="cyan", no_wrap=True)
    for strategy in STRATEGIES.values():
        table.add_column(strategy.title, no_wrap=True)
    for name, signs in _rows(cells).items():
        table.add_row(name, *signs)
    parts: list[Any] = [table, "", _LEGEND, "", Text("Columns", style="bold")]
    parts += [Padding(f"{s.title:<6} {s.typed}", (0, 0, 0, 2)) for s in STRATEGIES.values()]
    parts += ["", Text("By contract: what was missing", style="bold")]
    parts += [Padding(line, (0, 0, 0, 2)) for line in _missing(cells)]
    parts += ["", Text("Refused: what to use instead", style="bold")]
    for where, reason in _reasons(cells):
        parts += [Padding(where, (0, 0, 0, 2)), Padding(Text(reason, style="dim"), (0, 0, 0, 4))]
    return [*parts, "", _counts(cells)]


def strategies_markdown() -> str:
    """The table, the reasons and the counts in Markdown: docs/strategies.md.

    Example:
        >>> strategies_markdown().splitlines()[0]
        '# Recipes and strategies'
    """
    cells = strategy_cells()
    versions = json.loads(RECORD.read_text())["versions"]
    lines = [
        "# Recipes and strategies",
        "",
        "Written by the tests (`make tables`); `lit-opt list --strategies` prints the same.",
        "",
        _LEGEND,
        "",
        "| recipe | " + " | ".join(s.title for s in STRATEGIES.values()) + " |",
        "|---" * (len(STRATEGIES) + 1) + "|",
    ]
    lines += [f"| `{name}` | " + " | ".join(f"`{s}`" for s in signs) + " |" for name, signs in _rows(cells).items()]
    lines += ["", _counts(cells), "", "## Columns", ""]
    lines += [f"- **{s.title}**: `{s.typed}`" for s in STRATEGIES.values()]
    lines += ["", "## What a cell that was tested has shown", "", *_SHOWN]
    lines += ["", "## By contract: what was missing", "", *(f"- {line}" for line in _missing(cells))]
    lines += ["", "## Refused: what to use instead", ""]
    for where, reason in _reasons(cells):
        lines += [f"- **{where}**", f"  {reason}"]
    lines += ["", "## Versions", "", *(f"- {what}: {words}" for what, words in versions.items())]
    return "\n".join(lines) + "\n"


_SHOWN = (
    "Two processes on a CPU (HSDP four; one device, ZeRO and XLA one) train a small network with every kind of layer",
    "for three steps on the same global batch as one process. Groups, decay and rates are those of one process; so",
    "are, in 32-true, the weights (to 1e-4 of their way, matrix methods to 1e-3) and the norm before clipping (to",
    "1e-5); all processes hold the same weights, bit for bit. The bases of SOAP, SPlus and ARO follow the gradients,",
    "which have few directions here, and rounding turns the rest: these are within 0.05 of their way, with",
    "losses and norms equal to 1e-3. In 32-true a run resumed from the checkpoint of its second step ends in the same",
    "weights, bit for bit. In low precision the weights are within a fifth of their way from one process in the same",
    "precision; matrix methods turn rounding into directions, so there only the losses agree (to 2 %). SAM under DDP",
    "goes up by each process's own gradient (as in the paper), so there processes are compared with one another",
    "alone. ZeRO on one process cuts nothing into parts, but steps, clips and schedules by its engine. ZeRO and spawn",
    "were not resumed. XLA is one CPU device of torch_xla, beside the CPU itself: groups, decay and rates are the",
    "same; so are, in 32-true, losses and norms (to 1e-4) and weights (to 1e-3 of their way; Adafactor, whose",
    "momentum is bfloat16, 0.05, SOAP and SPlus 0.1, ARO 0.6). There `diffusion`, `large_batch/lamb`, `llm` and",
    "`llm/muon` were resumed, to 1e-6 of their way. In bf16-true XLA holds every float32 tensor in bfloat16,",
    "statistics and sums of squares among them: norms agree to a tenth. More than one device of XLA was not run, and",
    "no TPU. FSDP1, DeepSpeed, XLA and float16 on a CPU need Lightning's guards taken off in the test. Nothing was",
    "run on a GPU.",
)


def _rows(cells: list[Cell]) -> dict[str, list[str]]:
    rows: dict[str, dict[str, str]] = {}
    for cell in cells:
        signs = rows.setdefault(cell.recipe, dict.fromkeys(STRATEGIES, ""))
        signs[cell.strategy] += SIGNS[cell.status]
    return {name: list(signs.values()) for name, signs in rows.items()}


def _missing(cells: list[Cell]) -> list[str]:
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.status == "contract":
            groups.setdefault(cell.why[0], []).append(cell)
    return [f"{_titles(group)}: {why or 'not run'} ({len(group)} cells)" for why, group in groups.items()]


def _reasons(cells: list[Cell]) -> list[tuple[str, str]]:
    """(recipes, strategies and precisions), reason with its remedy; what differs in the strategy's name alone is one."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        for reason in cell.why if cell.status == "refused" else ():
            groups.setdefault(without_place(reason), []).append(cell)
    found = []
    for reason, group in groups.items():
        names = list(dict.fromkeys(cell.recipe for cell in group))
        precisions = list(dict.fromkeys(cell.precision for cell in group))
        everyone = len(names) == len(list_recipes())
        where = f"{'all recipes' if everyone else ', '.join(names)} under {_titles(group)}"
        found.append((where + (f" in {', '.join(precisions)}" if len(precisions) < len(PRECISIONS) else ""), reason))
    return found


def without_place(reason: str) -> str:
    """A reason without the strategy's name in brackets, so that those of several strategies are one.

    Args:
        reason: Of a refusal.

    Example:
        >>> without_place("it makes them flat shards (FSDP1), in which rows are lost")
        'it makes them flat shards, in which rows are lost'
    """
    return re.sub(r" \((FSDP1|ZeRO stage \d)\)", "", reason)


def _titles(cells: list[Cell]) -> str:
    return ", ".join(dict.fromkeys(STRATEGIES[cell.strategy].title for cell in cells))


def _counts(cells: list[Cell]) -> str:
    counts: Mapping[str, int] = {status: sum(cell.status == status for cell in cells) for status in SIGNS}
    return f"{len(cells):,} cells: {counts['tested']} tested, {counts['contract']} by contract, {counts['refused']} refused."
