"""How a plan looks: text for a terminal of any width from 80 columns on, and Markdown."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lit_opt.explain.formats import entry_sections, entry_tables, markdown_cell
from lit_opt.explain.values import short
from lit_opt.preflight.folding import Folded, joined_group, unfolded
from lit_opt.preflight.lr_plot import text_plot
from lit_opt.preflight.memory import gigabytes
from lit_opt.preflight.placement import KINDS
from lit_opt.preflight.plan import Plan
from lit_opt.preflight.plan_transfer import COLUMNS, transfer_cells, transfer_table

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
    parts: list[RenderableType] = [title, *(Padding(Text(line), _INDENT) for line in _facts(plan)), Text()]
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
    parts += [_heading("Operations of the optimizer"), *(Padding(Text(line), _INDENT) for line in _flops(plan)), Text()]
    parts += entry_sections(plan.values)
    return Group(*parts[:-1])


def _facts(plan: Plan) -> Iterator[str]:
    numbers, place, known = plan.parameters, plan.placement, plan.resolved.facts
    yield f"{plan.summary}."
    frozen = f", {numbers['frozen']:,} frozen" if numbers["frozen"] else ""
    yield f"{numbers['trainable']:,} trainable numbers, {numbers['outside_embeddings']:,} outside of embeddings{frozen}"
    devices = f"{place.devices:,} devices: {KINDS[place.kind]}" if place.devices > 1 else "1 device"
    yield f"{devices}; precision {place.precision}"
    if known.global_batch is not None:
        counted = (known.loader_batch, known.accumulation)
        line = f"global batch {known.global_batch:,}"
        if None not in counted and known.data_parallel_size is not None:
            line += (
                f" = loader {counted[0]:,} x accumulation {counted[1]:,} x data-parallel {known.data_parallel_size:,}"
            )
        yield line
    if known.tokens_per_batch is not None:
        yield f"{known.tokens_per_batch:,} tokens a step"
    if known.total_steps is not None:
        epoch = f", {known.steps_per_epoch:,.0f} an epoch" if known.steps_per_epoch else ""
        yield f"{known.total_steps:,} optimizer steps{epoch}"


def _group_table(plan: Plan, listed: Sequence[Folded]) -> Table:
    table = _table(
        ("group", False), ("algorithm", False), ("lr", True), ("decay", True), ("tensors", True), ("numbers", True)
    )
    for name, found in _by_group(listed).items():
        first, tensors = found[0], sum(f.count for f in found)
        numbers = sum(f.count * math.prod(f.shape) for f in found)
        table.add_row(name, first.algorithm, _rates(found), short(first.weight_decay), f"{tensors:,}", f"{numbers:,}")
    return table


def _by_group(listed: Sequence[Folded]) -> dict[str, list[Folded]]:
    """Lines of each group; groups of layers are one here where their lines are joined."""
    groups: dict[str, list[Folded]] = {}
    for f in listed:
        groups.setdefault(f.group, []).append(f)
    return groups


def _rates(found: Sequence[Folded]) -> str:
    low, high = min(f.lr[0] for f in found), max(f.lr[1] for f in found)
    return short(high) if low == high else f"{short(_rounded(low))} .. {short(_rounded(high))}"


def _rounded(x: float) -> float:
    return float(f"{x:.2e}")


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
        heading = f": {first.algorithm}, lr {_rates(found)}, weight decay {short(first.weight_decay)}, "
        heading += f"{tensors:,} tensor{'s' if tensors > 1 else ''}"
        yield Padding(Text.assemble((name, "bold cyan"), heading), _INDENT)
        table = Table.grid(padding=(0, 2, 0, 0))
        shapes = [_shape(f.shape) for f in found]
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


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(f"{n}" for n in shape) or "scalar"


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


def _flops(plan: Plan) -> Iterator[str]:
    flops = plan.flops
    if flops is None:
        yield "unknown: the optimizer has no registry row"
        return
    if flops.share is not None and flops.model is not None:
        total = _power(flops.optimizer + flops.model)
        yield f"{percent(flops.share)} of a device's operations in a step: {_power(flops.optimizer)} of {total}"
    else:
        yield f"{_power(flops.optimizer)} operations a step; the model's are unknown"
    if flops.examples and max(flops.examples.values()) < 0.001:
        yield f"  less than 0.1 % from {min(flops.examples):,} tokens a step on"
        flops = replace(flops, examples={})
    for tokens, share in flops.examples.items():
        yield f"  with {tokens:,} tokens a step it would be {percent(share)}"
    if flops.sent is not None:
        yield f"for its matrices a device sends up to {gigabytes(flops.sent)} to others in a step"
    yield from flops.how


def percent(share: float) -> str:
    """A share as a person reads it.

    Example:
        >>> percent(0.123), percent(0.0123), percent(0.00001)
        ('12 %', '1.2 %', 'less than 0.1 %')
    """
    if share < 0.001:
        return "less than 0.1 %"
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def _power(operations: int) -> str:
    return short(float(f"{operations:.1e}"))


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


def plan_markdown(plan: Plan, *, rows: bool = False) -> str:
    """The plan as Markdown.

    Args:
        plan: From `make_plan`.
        rows: Every parameter instead of patterns.
    """
    lines = [f"# Plan of `{plan.recipe}` for {plan.model}", "", *(f"- {line}" for line in _facts(plan))]
    if plan.notes:
        lines += ["", "Mind:", "", *(f"- {note}" for note in plan.notes)]
    listed = [unfolded(row) for row in plan.rows] if rows else plan.folded
    lines += ["", "## Parameters", ""]
    lines += _markdown_table(
        ("parameter", "count", "shape", "group", "algorithm", "lr", "weight decay", "reason"),
        [
            (
                f"`{f.pattern}`",
                f"{f.count:,}",
                _shape(f.shape),
                f.group,
                f.algorithm,
                _rates([f]),
                short(f.weight_decay),
                f.reason,
            )
            for f in listed
        ],
    )
    if plan.transfer:
        lines += ["", "## Transfer from a small model", ""]
        lines += _markdown_table(COLUMNS, [transfer_cells(row) for row in plan.transfer])
    lines += ["", "## Schedule", ""]
    if plan.resolved.schedule is None:
        lines.append("Unknown, since the horizon is.")
    else:
        lines += _markdown_table(
            ("step", "epoch", "samples", "tokens", "lr", "what"),
            [
                (
                    f"{m.step:,}",
                    "" if m.epoch is None else f"{m.epoch:,.2f}",
                    "" if m.samples is None else f"{m.samples:,}",
                    "" if m.tokens is None else f"{m.tokens:,}",
                    short(float(f"{plan.resolved.lr * m.factor:.3g}")),
                    m.what,
                )
                for m in plan.milestones
            ],
        )
    lines += ["", "## Memory per device", ""]
    if plan.memory.unknown:
        lines.append(f"{plan.memory.unknown}.")
    else:
        lines += _markdown_table(
            ("part", "size", "when", "how it was counted"),
            [
                (line.name, gigabytes(line.bytes), "CPU memory" if line.on_host else line.when, line.how)
                for line in plan.memory.lines
            ],
        )
        lines += [
            "",
            f"Held between steps: {gigabytes(plan.memory.held)}; in the optimizer's step: {gigabytes(plan.memory.peak)}. "
            "An estimate, 1 GB is 10^9 bytes. Left out:",
            "",
            *(f"- {text}" for text in plan.memory.left_out),
        ]
    lines += ["", "## Operations of the optimizer", "", *(f"- {line.strip()}" for line in _flops(plan))]
    return "\n".join([*lines, *entry_tables(plan.values)])


def _markdown_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    return [
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        *(f"| {' | '.join(markdown_cell(cell) for cell in row)} |" for row in rows),
    ]
