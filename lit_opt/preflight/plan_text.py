"""A plan as text for a terminal of any width from 80 columns on."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lit_opt.explain.formats import entry_sections
from lit_opt.explain.values import short
from lit_opt.preflight.folding import Folded, joined_group, unfolded
from lit_opt.preflight.lr_plot import text_plot
from lit_opt.preflight.memory import gigabytes
from lit_opt.preflight.plan import Plan
from lit_opt.preflight.plan_lines import fact_lines, flops_lines, rates, shape_text
from lit_opt.preflight.plan_transfer import transfer_table

_INDENT = (0, 0, 0, 2)
# A reason has so many columns, or fewer where all are shorter; the name has the rest, and is broken where it is longer.
_REASON_WIDTH = 34


def plan_text(plan: Plan, *, rows: bool = False, width: int = 100) -> RenderableType:
    """The plan for a terminal; nothing is cut, long texts are folded.

    Args:
        plan: From `make_plan`.
        rows: Every parameter instead of patterns.
        width: Columns of the plot.
    """
    title = Text.assemble(("Plan  ", "bold"), (plan.recipe, "bold cyan"), " for ", (plan.model, "bold cyan"))
    parts: list[RenderableType] = [title, *(Padding(Text(line), _INDENT) for line in fact_lines(plan)), Text()]
    if plan.notes:
        parts += [_heading("Mind"), *(_bullet(note) for note in plan.notes), Text()]
    listed = _lines(plan, rows)
    parts += [_heading("Groups"), Padding(_group_table(plan, listed), _INDENT), Text()]
    if plan.transfer:
        parts += [_heading("Transfer from a small model"), Padding(transfer_table(plan.transfer), _INDENT), Text()]
    words = "Parameters" if rows else "Parameters, repeated blocks joined"
    parts += [_heading(words), *_parameters(listed, width), Text()]
    parts += [_heading("Schedule"), *_schedule(plan, width), Text()]
    parts += [_heading("Memory per device"), *_memory(plan), Text()]
    parts += [
        _heading("Operations of the optimizer"),
        *(Padding(Text(line), _INDENT) for line in flops_lines(plan)),
        Text(),
    ]
    parts += entry_sections(plan.values)
    return Group(*parts[:-1])


def _group_table(plan: Plan, listed: Sequence[Folded]) -> Table:
    table = _table(
        ("group", False), ("algorithm", False), ("lr", True), ("decay", True), ("tensors", True), ("numbers", True)
    )
    for name, found in _by_group(listed).items():
        first, tensors = found[0], sum(f.count for f in found)
        numbers = sum(f.count * math.prod(f.shape) for f in found)
        table.add_row(name, first.algorithm, rates(found), short(first.weight_decay), f"{tensors:,}", f"{numbers:,}")
    return table


def _by_group(listed: Sequence[Folded]) -> dict[str, list[Folded]]:
    """Lines of each group; groups of layers are one here where their lines are joined."""
    groups: dict[str, list[Folded]] = {}
    for f in listed:
        groups.setdefault(f.group, []).append(f)
    return groups


def _lines(plan: Plan, rows: bool) -> list[Folded]:
    """Patterns, or every parameter; sorted by the optimizer's groups, in the module's order within each."""
    if rows:
        order = {group.name: place for place, group in enumerate(plan.groups)}
        return [unfolded(row) for row in sorted(plan.rows, key=lambda row: order[row.group])]
    joined: dict[str, int] = {}
    for place, group in enumerate(plan.groups):
        joined.setdefault(joined_group(group.name), place)
    return sorted(plan.folded, key=lambda f: joined[f.group])


def _parameters(listed: Sequence[Folded], width: int) -> Iterator[RenderableType]:
    """One table a group, so that its columns need not repeat what the group says."""
    for name, found in _by_group(listed).items():
        first, tensors = found[0], sum(f.count for f in found)
        heading = f": {first.algorithm}, lr {rates(found)}, weight decay {short(first.weight_decay)}, "
        heading += f"{tensors:,} tensor{'s' if tensors > 1 else ''}"
        yield Padding(Text.assemble((name, "bold cyan"), heading), _INDENT)
        table = Table.grid(padding=(0, 2, 0, 0))
        shapes = [shape_text(f.shape) for f in found]
        counts = [f"x {f.count:,}" if f.count > 1 else "" for f in found]
        reasons = min(_REASON_WIDTH, max(len(f.reason) for f in found))
        names = max(30, width - 4 - 6 - max(map(len, shapes)) - max(map(len, counts)) - reasons)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, justify="right")
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold", style="dim")
        for f, count, shape in zip(found, counts, shapes, strict=True):
            table.add_row(_at_dots(f.pattern, names), count, shape, f.reason)
        yield Padding(table, (0, 0, 0, 4))


def _at_dots(name: str, width: int) -> str:
    """A long name in lines of at most `width`, broken before a dot where there is one."""
    lines, line = [], ""
    for part in re.split(r"(?=\.)", name):
        if line and len(line) + len(part) > width:
            lines.append(line)
            line = "  "
        line += part
        while len(line) > width:
            lines.append(line[:width])
            line = "  " + line[width:]
    return "\n".join([*lines, line])


def _schedule(plan: Plan, width: int) -> Iterator[RenderableType]:
    schedule = plan.resolved.schedule
    if schedule is None:
        yield Padding(Text("unknown, since the horizon is"), _INDENT)
        return
    peak = plan.resolved.lr
    columns = [("step", True), ("epoch", True), ("samples", True), ("tokens", True), ("lr", True), ("", False)]
    known = {
        "epoch": any(m.epoch is not None for m in plan.milestones),
        "samples": any(m.samples is not None for m in plan.milestones),
        "tokens": any(m.tokens is not None for m in plan.milestones),
    }
    table = _table(*(column for column in columns if known.get(column[0], True)))
    for m in plan.milestones:
        cells = [
            f"{m.step:,}",
            *([f"{m.epoch:,.2f}"] if m.epoch is not None else []),
            *([f"{m.samples:,}"] if m.samples is not None else []),
            *([f"{m.tokens:,}"] if m.tokens is not None else []),
            short(float(f"{peak * m.factor:.3g}")),
            m.what,
        ]
        table.add_row(*cells)
    yield Padding(Text(f"{schedule.kind}; the rates of all groups follow it, lr is the recipe's"), _INDENT)
    yield Padding(table, _INDENT)
    missing = [name for name, is_known in known.items() if not is_known]
    if missing:
        yield Padding(Text(f"unknown: {', '.join(missing)}", style="dim"), _INDENT)
    if schedule.total_steps is not None:
        lines = text_plot(schedule, [(g.name, g.lr) for g in plan.groups], width=width - 2)
        yield Text()
        yield Padding(Text("\n".join(lines), no_wrap=True), _INDENT)


def _memory(plan: Plan) -> Iterator[RenderableType]:
    memory = plan.memory
    if memory.unknown:
        yield Padding(Text(memory.unknown), _INDENT)
        return
    table = _table(("part", False), ("size", True), ("how it was counted", False))
    for line in memory.lines:
        if line.when == "held":
            table.add_row(line.name, gigabytes(line.bytes), line.how + (" (CPU memory)" if line.on_host else ""))
    table.add_row(Text("held between steps", style="bold"), Text(gigabytes(memory.held), style="bold"), "")
    for line in memory.lines:
        if line.when == "step":
            table.add_row(line.name, gigabytes(line.bytes), line.how + (" (CPU memory)" if line.on_host else ""))
    table.add_row(Text("in the optimizer's step", style="bold"), Text(gigabytes(memory.peak), style="bold"), "")
    yield Padding(table, _INDENT)
    yield Padding(Text("An estimate, 1 GB is 10^9 bytes. Left out:"), _INDENT)
    for text in memory.left_out:
        yield _bullet(text)


def _heading(text: str) -> Text:
    return Text(text, style="bold underline")


def _bullet(text: str) -> RenderableType:
    line = Table.grid(padding=(0, 1, 0, 0))
    line.add_column(no_wrap=True)
    line.add_column(overflow="fold")
    line.add_row("-", text)
    return Padding(line, _INDENT)


def _table(*columns: tuple[str, bool]) -> Table:
    """A plain table; True aligns a column of numbers to the right."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name, right in columns:
        table.add_column(name, justify="right" if right else "left", overflow="fold", no_wrap=right)
    return table
