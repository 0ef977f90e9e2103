"""A plan as Markdown."""

from __future__ import annotations

from lit_opt.explain.formats import entry_tables, markdown_cell
from lit_opt.explain.values import short
from lit_opt.preflight.folding import unfolded
from lit_opt.preflight.memory import gigabytes
from lit_opt.preflight.plan import Plan
from lit_opt.preflight.plan_lines import fact_lines, flops_lines, rates, shape_text
from lit_opt.preflight.plan_transfer import COLUMNS, transfer_cells


def plan_markdown(plan: Plan, *, rows: bool = False) -> str:
    """The plan as Markdown.

    Args:
        plan: From `make_plan`.
        rows: Every parameter instead of patterns.
    """
    lines = [f"# Plan of `{plan.recipe}` for {plan.model}", "", *(f"- {line}" for line in fact_lines(plan))]
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
                shape_text(f.shape),
                f.group,
                f.algorithm,
                rates([f]),
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
    lines += ["", "## Operations of the optimizer", "", *(f"- {line.strip()}" for line in flops_lines(plan))]
    return "\n".join([*lines, *entry_tables(plan.values)])


def _markdown_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    return [
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        *(f"| {' | '.join(markdown_cell(cell) for cell in row)} |" for row in rows),
    ]
