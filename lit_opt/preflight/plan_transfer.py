"""How a plan shows a transfer: one line a rule in a group, with its multipliers and its source."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from lit_opt.explain.values import short
from lit_opt.param_groups.transfer import TransferRow

COLUMNS = ("group", "kind", "sizes", "lr", "decay", "eps", "rule and source")


def transfer_cells(row: TransferRow) -> tuple[str, ...]:
    """One line; multipliers are relative to the small model.

    Example:
        >>> row = TransferRow(
        ...     group="decay", kind="hidden", lr=0.25, weight_decay=4.0, eps=1.0, sizes="4 x 4 -> 16 x 16", rule="r", source="s")
        >>> transfer_cells(row)
        ('decay', 'hidden', '4 x 4 -> 16 x 16', 'x 0.25', 'x 4', 'x 1', 'r (s)')
    """
    numbers = (f"x {short(x)}" for x in (row.lr, row.weight_decay, row.eps))
    return (row.group, row.kind, row.sizes, *numbers, f"{row.rule} ({row.source})")


def transfer_table(rows: Sequence[TransferRow]) -> Table:
    """A plain table for a terminal.

    Example:
        >>> transfer_table([]).row_count
        0
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in COLUMNS:
        table.add_column(name, overflow="fold", no_wrap=name in ("lr", "decay", "eps"))
    for row in rows:
        table.add_row(*transfer_cells(row))
    return table
