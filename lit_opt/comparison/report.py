"""The report on disk: results.json, runs.csv, curves.csv, report.html and summary.md, each replaced whole."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Sequence
from pathlib import Path

from lit_opt.comparison.horizon_report import fitted_picture, sentence
from lit_opt.comparison.measures import arm_named, final_cost, sign
from lit_opt.comparison.page import page
from lit_opt.comparison.plots import pictures
from lit_opt.comparison.records import Protocol, Run
from lit_opt.comparison.results import Results, to_json
from lit_opt.comparison.words import summary

FILES = ("results.json", "runs.csv", "curves.csv", "report.html", "summary.md")
_ORDER = ("tune", "confirm", "horizon")


def write(out: Path, protocol: Protocol, runs: Sequence[Run], results: Results) -> None:
    """Write the report. Without matplotlib the page has no pictures and says how to get them.

    Args:
        out: Folder; made if it is not there.
        protocol: The comparison's.
        runs: All of them.
        results: Of `lit_opt.comparison.results.compute`.

    Example:
        >>> from lit_opt.comparison.records import Arm
        >>> from lit_opt.comparison.results import compute
        >>> protocol = Protocol((Arm("a", "llm", {}, {"lr": 1e-3}, {}),), "a", "loss", "min", 2, (2,), 1, 1)
        >>> write(Path("report"), protocol, [], compute(protocol, []))
        >>> sorted(path.name for path in Path("report").iterdir())
        ['curves.csv', 'report.html', 'results.json', 'runs.csv', 'summary.md']
    """
    out.mkdir(parents=True, exist_ok=True)
    note = ""
    try:
        fitted = fitted_picture(results)
        drawn = pictures(results) | ({} if fitted is None else {"horizons": fitted})
    except ImportError:
        drawn = {}
        note = "No pictures: matplotlib is not installed. Type: pip install 'lit-opt[workloads]', and write the report again."
    rows = run_rows(protocol, runs)
    texts = (
        to_json(results) + "\n",
        _csv(rows),
        _csv(curve_rows(protocol, runs)),
        page(results, drawn, rows, note),
        summary(results, sentence(results)),
    )
    for name, text in zip(FILES, texts, strict=True):
        _put(out / name, text)


def run_rows(protocol: Protocol, runs: Sequence[Run]) -> list[dict[str, object]]:
    """One row a run: what it was, how it ended, what it reached and what it cost. Empty where there is no number.

    Example:
        >>> run_rows(Protocol((), "a", "loss", "min", 2, (2,), 1, 1), [])
        []
    """
    names = sorted({name for run in runs for name in run.values})
    rows: list[dict[str, object]] = []
    for run in _in_order(runs):
        readings = run.readings.get(arm_named(protocol, run.arm).readout, ())
        cost = final_cost(protocol, run)
        last = readings[-1] if readings else None
        rows.append(
            {
                "key": run.key,
                "stage": run.stage,
                "study": run.study,
                "arm": run.arm,
                "point": run.point,
                "seed": run.seed,
                **{name: run.values.get(name, "") for name in names},
                "state": run.state,
                protocol.metric: sign(protocol) * cost if math.isfinite(cost) else "",
                "steps": last.step if last else 0,
                "samples": last.samples if last else 0,
                "flops": last.flops if last else 0,
                "seconds": last.seconds if last and math.isfinite(last.seconds) else "",
                "ledger_lines": " ".join(map(str, run.lines)),
            }
        )
    return rows


def curve_rows(protocol: Protocol, runs: Sequence[Run]) -> list[dict[str, object]]:
    """One row an evaluation of every run, those that failed included. Empty where there is no number.

    Example:
        >>> curve_rows(Protocol((), "a", "loss", "min", 2, (2,), 1, 1), [])
        []
    """
    return [
        {
            "key": run.key,
            "stage": run.stage,
            "study": run.study,
            "arm": run.arm,
            "point": run.point,
            "seed": run.seed,
            "budget_steps": run.steps or protocol.budget_steps,
            "readout": readout,
            "step": one.step,
            "samples": one.samples,
            "flops": one.flops,
            "seconds": one.seconds if math.isfinite(one.seconds) else "",
            protocol.metric: one.metric if math.isfinite(one.metric) else "",
        }
        for run in _in_order(runs)
        for readout, readings in run.readings.items()
        for one in readings
    ]


def _in_order(runs: Sequence[Run]) -> list[Run]:
    return sorted(runs, key=lambda r: (_ORDER.index(r.stage), r.study, r.arm, r.point, r.seed, r.steps or 0, r.key))


def _csv(rows: Sequence[dict[str, object]]) -> str:
    table = io.StringIO()
    if rows:
        writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return table.getvalue()


def _put(path: Path, text: str) -> None:
    """Several processes may write the same report: each file appears whole."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)
