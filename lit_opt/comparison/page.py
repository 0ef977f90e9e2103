"""The report as one HTML page: no network, no script, pictures inside, readable on a telephone."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from lit_opt.comparison.horizon_report import CAPTION, fitted_table
from lit_opt.comparison.tables import table, tables
from lit_opt.comparison.words import caveats

Results = dict[str, Any]

_STYLE = """
:root { color-scheme: light; --ink: #1b1f24; --soft: #59636e; --line: #d7dce1; --paper: #ffffff; --wash: #f4f6f8; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem 1rem 4rem; max-width: 60rem; color: var(--ink); background: var(--paper);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0.5rem 0; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 0.6rem; border-bottom: 1px solid var(--line); padding-bottom: 0.2rem; }
p, li { max-width: 44rem; }
figure { margin: 1.2rem 0; }
img { max-width: 100%; height: auto; display: block; }
figcaption, .soft { color: var(--soft); font-size: 0.9rem; max-width: 44rem; }
.maps { display: flex; flex-wrap: wrap; gap: 0.5rem; }
.maps figure { flex: 1 1 18rem; max-width: 27rem; margin: 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 0.93rem; }
th, td { text-align: left; vertical-align: top; padding: 0.35rem 0.8rem 0.35rem 0; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; }
th, td:first-child { overflow-wrap: normal; }
.better { color: #00694c; } .worse { color: #a63d00; } .verdict { font-weight: 700; }
sup a { text-decoration: none; color: var(--soft); }
details { margin: 0.6rem 0; } summary { cursor: pointer; }
code { font-size: 0.85rem; }
.warn { background: #fff4e5; border-left: 4px solid #d55e00; padding: 0.5rem 0.9rem; }
@media (max-width: 640px) {
  thead { display: none; }
  table, tbody, tr, td { display: block; width: 100%; }
  tr { border: 1px solid var(--line); border-radius: 6px; margin: 0.6rem 0; padding: 0.3rem 0.7rem; }
  td, td:first-child { border: 0; padding: 0.1rem 0; overflow-wrap: anywhere; }
  td::before { content: attr(data-label) " "; color: var(--soft); font-size: 0.85rem; }
}
"""

CAPTIONS = {
    "difference": "What decides. Each dot is one seed: the arm's final metric minus the baseline's with the same weights at the start "
    "and the same data. Diamond and bar: mean and 95 % interval of one comparison. The verdict is Holm's over all arms.",
    "curve_samples": "Mean over the confirmed seeds; the band is their range. The mean ends where a seed failed.",
    "curve_flops": "The same against floating-point operations of model and optimizer.",
    "curve_seconds": "The same against the clock, without evaluation.",
    "needed": "Until the frozen target. A seed counts at its first evaluation past it; the triangle is the first evaluation at "
    "which the mean over seeds is past it.",
    "speedup": "How much less an arm needs than the baseline, over paired seeds, with 95 % intervals.",
    "best_after": "The best of k trials drawn from the search (mean; thin lines: the middle 90 %). These runs chose the points; "
    "as results they would be too good.",
    "profile": "Share of problems (a ladder of targets times seeds) solved with at most tau times the samples of the best arm. "
    "It depends on the set of arms.",
}
_MAP = (
    "Every trial of the search, coloured by its final metric. Ring: chosen. Square: the published start. Cross: failed."
)


def page(results: Results, pictures: Mapping[str, bytes], rows: Sequence[Mapping[str, object]], note: str = "") -> str:
    """The whole page.

    Args:
        results: Of `lit_opt.comparison.results.compute`.
        pictures: PNG bytes by name.
        rows: The table of runs, as in runs.csv.
        note: A sentence for the head of the page, such as why there are no pictures.

    Example:
        >>> from lit_opt.comparison.records import Arm, Protocol
        >>> from lit_opt.comparison.results import compute
        >>> arm = Arm("a", "llm", {}, {"lr": 1e-3}, {})
        >>> page(compute(Protocol((arm,), "a", "loss", "min", 2, (2,), 1, 1), []), {}, []).startswith("<!DOCTYPE html>")
        True
    """
    plan = results["protocol"]
    better = "lower is better" if plan["mode"] == "min" else "higher is better"
    made = tables(results)
    title = f"Fair comparison: {plan['metric']}"
    maps = "".join(_picture(pictures, f"search_{name}", f"Search of {name}") for name in results["arms"])
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<p class=soft>{escape(better)}; {plan['budget_steps']:,} steps a run; {plan['trials']} "
        f"{'trial' if plan['trials'] == 1 else 'trials'} of search an arm; {plan['seeds']} fresh paired seeds; baseline "
        f"{escape(plan['baseline'])}.</p>",
        f"<p class=warn>{escape(note)}</p>" if note else "",
        made["violations"],
        made["verdicts"],
        _picture(pictures, "difference"),
        "<h2>How training went</h2>",
        *(_picture(pictures, f"curve_{quantity}") for quantity in ("samples", "flops", "seconds")),
        made["finals"],
        "<h2>What the target took</h2>",
        made["targets"],
        _picture(pictures, "needed"),
        _picture(pictures, "speedup"),
        fitted_table(results),
        _picture(pictures, "horizons", CAPTION),
        _picture(pictures, "profile"),
        "<h2>The search</h2>",
        f"<div class=maps>{maps}</div>" + (f"<p class=soft>{_MAP}</p>" if maps else ""),
        made["searches"],
        _picture(pictures, "best_after"),
        "<h2>Cost of a step</h2>",
        made["steps"],
        "<h2>What this does not say</h2>",
        f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in caveats(results))}</ul>",
        "<h2>Protocol</h2>",
        made["protocol"],
        "<h2>Where the numbers come from</h2>",
        "<p class=soft>Each number carries the group of runs that it was computed from. Line numbers are those of ledger.jsonl.</p>",
        made["sources"],
        f"<details><summary>All {len(rows)} runs</summary>{table(rows)}</details>" if rows else "",
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>\n"
        + "\n".join(filter(None, body))
        + "\n</body></html>\n"
    )


def _picture(pictures: Mapping[str, bytes], name: str, caption: str = "") -> str:
    if name not in pictures:
        return ""
    text = escape(caption or CAPTIONS[name])
    data = base64.b64encode(pictures[name]).decode()
    return f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'
