"""How an explanation looks: text for a terminal, JSON, Markdown. (YAML: `lit_opt.explain.recipe_yaml`.) No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lit_opt.explain.values import Entry, short
from lit_opt.optim.schema import REQUIRED, OptimizerRow
from lit_opt.recipes.schema import RecipeSpec


def recipe_text(spec: RecipeSpec, entries: Sequence[Entry]) -> RenderableType:
    """The explanation for a terminal of any width; nothing is cut, long lines are folded."""
    parts: list[RenderableType] = [
        Text.assemble(("Recipe ", "bold"), (spec.name, "bold cyan"), "  ", spec.summary),
        Text.assemble(("Deviate  ", "bold"), spec.deviate),
    ]
    parts += [Text(), *entry_sections(entries)]
    parts += [
        Text("Try it", style="bold underline"),
        Text(f"  lit-opt explain {spec.name} --lr 1e-3      your value beside the recipe's"),
        Text(f"  lit-opt explain {spec.name} --format yaml  a section for your own config"),
        Text(f'  Trainer(callbacks=[Recipe("{spec.name}")])'),
    ]
    return Group(*parts)


def entry_sections(entries: Sequence[Entry]) -> Iterator[RenderableType]:
    """The entries under their headings."""
    for section, group in groupby(entries, key=lambda e: e.section):
        yield Text(section, style="bold underline")
        yield from _entries(group)
        yield Text()


def _entries(entries: Iterable[Entry]) -> Iterator[RenderableType]:
    """The name and the number in a line, the reasons below it over nearly the whole width: a path stays in one piece."""
    for e in entries:
        first = Text(headline(e), style="yellow" if e.judgement == "outside" else "")
        first.stylize("bold", 0, len(_numbers(e)))
        line = Table.grid(padding=(0, 2, 0, 0))
        line.add_column(min_width=16, no_wrap=True, style="cyan")
        line.add_column(overflow="fold")
        line.add_row(e.name, first)
        yield line
        source = f"source of {short(e.default)}" if e.default is not None else "source"
        for label, text in (*(("", note) for note in e.notes), ("practice: ", e.practice), (f"{source}: ", e.source)):
            if text:
                yield Padding(Text(label + text, style="dim" if label else ""), (0, 0, 0, 4))


def headline(e: Entry) -> str:
    """Number, range and unit in one line.

    Example:
        >>> headline(Entry(section="", name="lr", number=1e-3, default=3e-4, origin="yours", range=(1e-4, 6e-4)))
        '3e-4 -> 1e-3 (yours), outside 1e-4 .. 6e-4'
        >>> headline(Entry(section="", name="clip", number=1.0, unit="global gradient norm"))
        '1  global gradient norm'
    """
    words = _numbers(e)
    if e.range is not None:
        words += f", {e.judgement or 'range'} {short(e.range[0])} .. {short(e.range[1])}"
    return f"{words}  {e.unit}".rstrip()


def _numbers(e: Entry) -> str:
    if e.origin != "yours":
        return short(e.number)
    return f"{short(e.default)} -> {short(e.number)} (yours)" if e.default is not None else f"{short(e.number)} (yours)"


def recipe_json(spec: RecipeSpec, entries: Sequence[Entry]) -> str:
    """The explanation as JSON, for scripts."""
    return to_json(
        {
            "name": spec.name,
            "summary": spec.summary,
            "deviate": spec.deviate,
            "values": [
                {
                    "section": e.section,
                    "name": e.name,
                    "number": e.number,
                    "default": e.default,
                    "origin": e.origin,
                    "unit": e.unit,
                    "range": e.range,
                    "judgement": e.judgement,
                    "practice": e.practice,
                    "source": e.source,
                    "notes": e.notes,
                }
                for e in entries
            ],
        }
    )


def to_json(value: Any) -> str:
    """Strict JSON: infinity, which JSON does not have, becomes the word."""
    return json.dumps(_plain(value), indent=2, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def recipe_markdown(spec: RecipeSpec, entries: Sequence[Entry]) -> str:
    """The explanation as Markdown tables, for documentation."""
    lines = [f"# Recipe `{spec.name}`", "", f"{spec.summary}.", "", f"**Deviate**: {spec.deviate}."]
    return "\n".join([*lines, *entry_tables(entries)])


def entry_tables(entries: Sequence[Entry]) -> list[str]:
    """The entries as one Markdown table a section."""
    lines: list[str] = []
    for section, group in groupby(entries, key=lambda e: e.section):
        lines += [
            "",
            f"## {section}",
            "",
            "| value | number | unit | practice | source |",
            "| --- | --- | --- | --- | --- |",
        ]
        for e in group:
            number = headline(Entry(**{**_fields(e), "unit": ""}))
            practice = "; ".join((*e.notes, e.practice) if e.practice else e.notes)
            lines.append(
                "| " + " | ".join(markdown_cell(c) for c in (f"`{e.name}`", number, e.unit, practice, e.source)) + " |"
            )
    return lines


def _fields(e: Entry) -> dict[str, Any]:
    return {name: getattr(e, name) for name in Entry.__dataclass_fields__}


def markdown_cell(text: str) -> str:
    """Text that stays in one cell of a Markdown table.

    Example:
        >>> markdown_cell("one cell")
        'one cell'
    """
    return text.replace("|", "\\|").replace("\n", " ")


def optimizer_text(row: OptimizerRow) -> RenderableType:
    """One registry row for a terminal."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("name", width=16, overflow="fold", style="cyan")
    table.add_column("what", overflow="fold", ratio=1)
    for name, text in _row_facts(row):
        table.add_row(name, text)
    parts: list[RenderableType] = [
        Text.assemble(("Optimizer ", "bold"), (row.name, "bold cyan"), "  ", row.summary),
        Text(),
        Padding(table, (0, 0, 1, 0)),
    ]
    for setting, published in row.settings.items():
        values = [("lr", published.lr), ("weight_decay", published.weight_decay), *published.hyperparameters.items()]
        entries = [
            Entry(section=setting, name=n, number=v.number, unit=v.unit, range=v.range, practice=v.common_practice, source=v.source)
            for n, v in values
        ]  # fmt: skip
        reference = f"{published.reference_batch:,} {published.batch_unit}" if published.reference_batch else "none"
        heading = f"Published for {setting}  (reference batch {reference}, scaling {published.rule})"
        parts += [Text(heading, style="bold underline"), *_entries(entries), Text()]
    if not row.settings:
        parts.append(Text("No starting values are published in any setting: a recipe asks for lr= and weight_decay=."))
    return Group(*parts)


def _row_facts(row: OptimizerRow) -> list[tuple[str, str]]:
    keywords = ", ".join(
        f"{key} (required)" if value is REQUIRED else f"{key}={short(value)}"
        for key, value in row.hyperparameters.items()
    )
    facts = [
        ("update", row.rule),
        ("provider", f"{row.provider} ({row.factory})"),
        ("evidence", row.evidence),
        ("keywords", keywords),
        ("always set", ", ".join(f"{key}={short(value)}" for key, value in row.fixed.items())),
        ("clipping", "limits the gradient or the update itself" if row.clips_itself else ""),
        ("source", row.source),
    ]
    return [(name, text) for name, text in facts if text]


def optimizer_dict(row: OptimizerRow) -> dict[str, Any]:
    """One registry row as plain data, for JSON and Markdown."""
    settings = {
        setting: {
            "reference_batch": p.reference_batch,
            "batch_unit": p.batch_unit,
            "rule": p.rule,
            "values": {
                name: {"number": v.number, "unit": v.unit, "range": v.range, "practice": v.common_practice, "source": v.source}
                for name, v in (("lr", p.lr), ("weight_decay", p.weight_decay), *p.hyperparameters.items())
            },
        }
        for setting, p in row.settings.items()
    }  # fmt: skip
    return {
        "name": row.name,
        "summary": row.summary,
        "provider": row.provider,
        "factory": row.factory,
        "update": row.rule,
        "evidence": row.evidence,
        "source": row.source,
        "hyperparameters": dict(row.hyperparameters),
        "settings": settings,
    }


def optimizer_markdown(row: OptimizerRow) -> str:
    """One registry row as Markdown."""
    lines = [f"# Optimizer `{row.name}`", "", f"{row.summary}.", ""]
    lines += [f"- **{name}**: {text}" for name, text in _row_facts(row)]
    for setting, p in row.settings.items():
        lines += [
            "",
            f"## Published for `{setting}`",
            "",
            "| value | number | unit | practice | source |",
            "| --- | --- | --- | --- | --- |",
        ]
        for name, v in (("lr", p.lr), ("weight_decay", p.weight_decay), *p.hyperparameters.items()):
            cells = (f"`{name}`", short(v.number), v.unit, v.common_practice, v.source)
            lines.append("| " + " | ".join(markdown_cell(c) for c in cells) + " |")
    return "\n".join(lines)
