"""How a coordinate check looks: a table for a terminal and Markdown, and a picture."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from lit_opt.preflight.coordinate_check import CoordinateCheck
from lit_opt.workloads.require import require

HEAD = ("layer", "slope", "over seeds", "without transfer", "at the start", "at the start, without")


def check_lines(found: CoordinateCheck) -> list[tuple[str, ...]]:
    """Cells of one line for each layer, and of one for the attention scores.

    Example:
        >>> check_lines(CoordinateCheck(title="t", widths=(8, 16), steps=1, seeds=1, layers=(), attention=(0.0, 0.5)))
        [('attention scores', '', '', '', '+0.00', '+0.50')]
    """
    lines: list[tuple[str, ...]] = [
        (
            line.layer,
            f"{line.slope:+.2f}" + ("" if line.flat else " !"),
            f"+- {line.spread:.2f}",
            f"{line.without:+.2f}",
            f"{line.at_start:+.2f}",
            f"{line.at_start_without:+.2f}",
        )
        for line in found.layers
    ]
    if found.attention is not None:
        lines.append(("attention scores", "", "", "", f"{found.attention[0]:+.2f}", f"{found.attention[1]:+.2f}"))
    return lines


def check_table(found: CoordinateCheck) -> Table:
    """For a terminal; "!" marks a slope that is farther than 0.1 from 0.

    Example:
        >>> check_table(CoordinateCheck(title="t", widths=(8, 16), steps=1, seeds=1, layers=(), attention=None)).row_count
        0
    """
    widths = ", ".join(map(str, found.widths))
    table = Table(
        title=f"{found.title}: slope of log(RMS of the change) against log({found.along}), {found.along}s {widths}, "
        f"{found.steps} steps, {found.seeds} seeds",
        title_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    for name in HEAD:
        table.add_column(name, justify="left" if name == "layer" else "right", overflow="fold")
    for cells in check_lines(found):
        table.add_row(*cells)
    return table


def check_markdown(found: CoordinateCheck) -> list[str]:
    """Lines of a Markdown table.

    Example:
        >>> check_markdown(CoordinateCheck(title="t", widths=(8, 16), steps=1, seeds=1, layers=(), attention=None))[1]
        '|---|---:|---:|---:|---:|---:|'
    """
    return [
        f"| {' | '.join(HEAD)} |",
        "|---|" + "---:|" * (len(HEAD) - 1),
        *(f"| {' | '.join(cells).replace('*', chr(92) + '*')} |" for cells in check_lines(found)),
    ]


def check_plot(found: CoordinateCheck, path: str | Path) -> Path:
    """Write the changes against the width as PNG, with the transfer and without it, on common axes.

    Raises:
        RecipeError: matplotlib is missing.

    Example:
        >>> import tempfile
        >>> found = CoordinateCheck(title="t", widths=(8, 16), steps=1, seeds=1, layers=(), attention=None)
        >>> check_plot(found, Path(tempfile.mkdtemp()) / "check.png").name
        'check.png'
    """
    require("matplotlib", "the picture of a coordinate check")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, sharey=True)
    for place, (panel, words) in enumerate(zip(axes, ("with the transfer", "without it"), strict=True)):
        for line in found.layers:
            ys = line.change_without if place else line.change
            slope = line.without if place else line.slope
            panel.plot(
                found.widths, ys, marker="o", ms=3, lw=1.2, label=f"{line.layer.split('.', 2)[-1]}  {slope:+.2f}"
            )
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_xticks(found.widths, [str(width) for width in found.widths])
        panel.set_xlabel("width" if found.along == "width" else "number of blocks")
        panel.set_title(words, fontsize=10)
        panel.grid(alpha=0.25)
        if found.layers:
            panel.legend(fontsize=6, title="layer, slope", title_fontsize=7)
    axes[0].set_ylabel(f"RMS of the change after {found.steps} steps")
    figure.suptitle(found.title, fontsize=11)
    target = Path(path)
    figure.savefig(target, dpi=110)
    return target
