"""How a check's report looks: a table for people, plain data for machines."""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from lit_opt.explain.show import as_text
from lit_opt.preflight.check import Report

# Width of a report where the terminal does not say.
WIDTH = 100
_COLOURS = {"error": "bold red", "warning": "bold yellow", "note": "bold cyan"}


def report_text(report: Report) -> str:
    """The report as plain text; nothing is cut off, lines are folded.

    Args:
        report: From `lit_opt.preflight.check.judge`.

    Example:
        >>> print(report_text(Report(findings=(), unjudged=(), judged=12, setting="llm")))
        No findings: 12 checks, setting llm.
    """
    return as_text(*renderables(report), width=WIDTH)


def renderables(report: Report) -> list[RenderableType]:
    """The parts of a report for rich: a table of findings, what was not judged, one line of summary.

    Example:
        >>> len(renderables(Report(findings=(), unjudged=(), judged=1)))
        1
    """
    parts: list[RenderableType] = []
    if report.findings:
        table = Table(show_lines=True, expand=False)
        table.add_column("level", no_wrap=True)
        table.add_column("finding", overflow="fold")
        for finding in report.findings:
            text = Text()
            text.append(f"{finding.message}\n", style="bold")
            text.append(f"numbers: {finding.evidence}\n")
            text.append(f"why: {finding.why} [{finding.source}]\n")
            text.append(f"do: {finding.fix}\n")
            text.append(finding.id, style="dim")
            table.add_row(Text(finding.level, style=_COLOURS[finding.level]), text)
        parts.append(table)
    for item in report.unjudged:
        line = f"Not judged, since {item.reason}: {', '.join(item.checks)}."
        parts.append(Text(line + (f" To have it judged, {item.remedy}." if item.remedy else "")))
    if report.ignored:
        parts.append(Text(silenced(report)))
    parts.append(Text(summary(report), style="bold"))
    return parts


def silenced(report: Report) -> str:
    """One line: what `ignore` kept out of the table, and which of its ids found nothing.

    Example:
        >>> silenced(Report(findings=(), unjudged=(), judged=12, ignored=("adam-l2",)))
        'Silenced by ignore: no findings. Nothing to silence for adam-l2.'
    """
    levels = {one: [f.level for f in report.silenced if f.id == one] for one in report.ignored}
    each = [f"{one} ({', '.join(found)})" for one, found in levels.items() if found]
    idle = [one for one, found in levels.items() if not found]
    count = len(report.silenced)
    what = f"{count} finding{'s' * (count != 1)}: {', '.join(each)}" if count else "no findings"
    return f"Silenced by ignore: {what}." + (f" Nothing to silence for {', '.join(idle)}." if idle else "")


def summary(report: Report) -> str:
    """One line: how many findings of each level.

    Example:
        >>> summary(Report(findings=(), unjudged=(), judged=12))
        'No findings: 12 checks, setting unknown.'
    """
    apart = f" {len(report.silenced)} silenced." if report.silenced else ""
    counts = [
        f"{count} {level}{'s' * (count != 1)}"
        for level in _COLOURS
        if (count := sum(finding.level == level for finding in report.findings))
    ]
    what = ", ".join(counts) or "No findings"
    return f"{what}: {report.judged} checks, setting {report.setting or 'unknown'}.{apart}"


def report_json(report: Report) -> str:
    """The report as JSON: findings, unjudged, judged, setting, silenced, ignored.

    Example:
        >>> json.loads(report_json(Report(findings=(), unjudged=(), judged=2)))["judged"]
        2
    """
    return json.dumps(asdict(report), indent=2)


def problems(report: Report) -> list[str]:
    """The errors as sentences, for a `RecipeError`.

    Example:
        >>> problems(Report(findings=(), unjudged=(), judged=2))
        []
    """
    return [
        textwrap.shorten(f"{f.id}: {f.message} {f.evidence[:1].upper()}{f.evidence[1:]}. {f.fix}", 10_000)
        for f in report.findings
        if f.level == "error"
    ]
