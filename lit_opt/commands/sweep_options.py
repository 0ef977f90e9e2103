"""The options of `lit-opt sweep`, without torch: `lit-opt sweep --help` answers at once."""

from __future__ import annotations

import argparse
from collections.abc import Callable

EXAMPLES = """\
The config is that of `lit-opt fit`, with the small model and a section recipe:;
further arguments are its overrides. One value is tried on an even grid of its
logarithm around the config's own, both on scattered points. The mean over the
seeds decides. OUT gets ledger.jsonl, sweep.png and transferred.yaml: the config
of the large model with the tuned recipe and `transfer:`, or without --target
the section recipe: alone.

A best value at the edge of what was tried is not written; --extend adds points
beyond it, also to a sweep that has ended. Nothing but --extend, --target,
--batch, --horizon, --depth and --workers may change in the same OUT.

examples:
  lit-opt sweep --config small.yaml --param lr --budget-steps 400 --dry-run
  lit-opt sweep --config small.yaml --param lr --budget-steps 400 \\
      --target large.yaml --out runs/sweep
  lit-opt sweep ... the same command ...            resumes after any stop
  lit-opt sweep ... the same command ... --extend 2
  lit-opt sweep --config small.yaml --param lr --param weight_decay \\
      --trials 16 --budget-steps 400 --target large.yaml --out runs/both
  lit-opt plan --config runs/sweep/transferred.yaml  rates of each group
  lit-opt fit --config runs/sweep/transferred.yaml

exit codes: 0 done, 1 the best stands at an edge or every point failed (nothing
is written), 2 something to mend (a message says what), 130 interrupted."""


def add_options(parser: argparse.ArgumentParser, one_of: Callable[..., Callable[[str], str]]) -> None:
    """Add them.

    Args:
        parser: Of the verb.
        one_of: Words -> a type that takes these alone.
    """
    parser.add_argument("--config", metavar="NAME_OR_FILE", help="the small model's: a YAML file or a shipped config")
    parser.add_argument(
        "--param", action="append", default=[], metavar="NAME", help="lr or weight_decay; may be repeated"
    )
    for option, help_ in (
        ("budget-steps", "optimizer steps of every run"),
        ("trials", "points (9 for one value, 16 for two)"),
        ("seeds", "runs of each point (3)"),
        ("extend", "rounds of half as many points beyond an edge where the best stands there (0)"),
        ("workers", "processes on this machine (1)"),
    ):
        parser.add_argument(f"--{option}", type=int, metavar="N", help=help_)
    parser.add_argument("--decades", type=float, metavar="X", help="width of what is tried, around the start (2)")
    parser.add_argument("--metric", metavar="NAME", help="the logged name that decides (the config's monitor)")
    parser.add_argument("--mode", type=one_of("min", "max"), help="min if lower is better")
    parser.add_argument("--target", metavar="NAME_OR_FILE", help="the large model's config")
    parser.add_argument("--depth", action="store_true", help="the large model has more blocks: Transfer(depth=True)")
    parser.add_argument("--batch", type=one_of("sqrt", "linear"), help="values follow the batch: Transfer(batch=...)")
    parser.add_argument(
        "--horizon", type=one_of("lr", "weight_decay"), help="they follow the length: Transfer(horizon=...)"
    )
    parser.add_argument("--out", metavar="DIR", default="sweep", help="folder of ledger, picture and YAML (sweep)")
    parser.add_argument("--dry-run", action="store_true", help="announce runs and hours, and stop")
