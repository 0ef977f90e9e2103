"""The options of `lit-opt compare`, without torch: `lit-opt compare --help` answers at once."""

from __future__ import annotations

import argparse
from collections.abc import Callable

EXAMPLES = """\
Every arm is tuned with the same number of trials on the same points, then its
winner is trained anew on fresh seeds; the target is frozen from the tuned
baseline before the others are confirmed. A verdict is "better", "worse" or
"not shown, n more seeds needed". docs/compare.md has the whole protocol.

The config is that of `lit-opt fit`; the others are its overrides. An arm is a
recipe (`lit-opt list`), a YAML file with a section `recipe:`, or TITLE=either.
The config's own recipe section counts for the arm of that recipe; with a
shipped config, so do those of the shipped configs of the other arms.

examples:
  lit-opt compare --config llm --arms llm,llm/muon --budget-steps 400 --dry-run
  lit-opt compare --config mine.yaml --arms llm,llm/muon,llm/soap \\
      --budget-steps 2000 --trials 16 --seeds 8 --out runs/optimizers
  lit-opt compare ... the same command ...          resumes after any stop
  lit-opt compare worker --out runs/optimizers      one more worker, also elsewhere
  lit-opt compare report --out runs/optimizers      the report, from the ledger
  lit-opt compare --config mine.yaml --arms first=a.yaml,second=b.yaml \\
      --budget-steps 2000 --metric val_acc --mode max

exit codes: 0 done, 2 something to mend (a message says what), 130 interrupted."""


def add_options(parser: argparse.ArgumentParser, one_of: Callable[..., Callable[[str], str]]) -> None:
    """Add them.

    Args:
        parser: Of the verb.
        one_of: Words -> a type that takes these alone.
    """
    parser.add_argument("--config", metavar="NAME_OR_FILE", help="a YAML file, or the name of a shipped config")
    parser.add_argument("--arms", metavar="A,B,...", help="recipes or YAML files, the baseline first")
    parser.add_argument("--baseline", metavar="NAME", help="another arm to compare with than the first")
    for option, help_ in (
        ("budget-steps", "optimizer steps of every run"),
        ("trials", "points of the search of each arm (16); 1: published starts, untuned"),
        ("seeds", "fresh seeds of the confirmation (6 for two arms, 8 for up to five, 10 beyond)"),
        ("eval-every", "steps between evaluations, a divisor of the budget (about 20 evaluations)"),
        ("studies", "repetitions of the whole with other points and seeds (1)"),
        ("extend", "rounds of widening where a best point stands at the edge of its box (0)"),
        ("seed", "of the comparison (0)"),
        ("workers", "processes on this machine (1); with more, times are left out"),
    ):
        parser.add_argument(f"--{option}", type=int, metavar="N", help=help_)
    parser.add_argument(
        "--horizons",
        metavar="X,Y,...",
        help="shares of the budget, such as 0.5,0.7,1.0: winners are trained with these as well, schedules fitted to each, "
        "which says how many fewer samples an arm needs",
    )
    parser.add_argument("--metric", metavar="NAME", help="the logged name that decides (the config's monitor)")
    parser.add_argument("--mode", type=one_of("min", "max"), help="min if lower is better")
    parser.add_argument("--readout", type=one_of("raw", "averages"), help="raw turns averages off in every arm")
    parser.add_argument("--decades", type=float, metavar="X", help="width of the box of each tuned value (2)")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="after which a run is stopped")
    parser.add_argument("--out", metavar="DIR", default="comparison", help="folder of ledger and report (comparison)")
    parser.add_argument("--dry-run", action="store_true", help="announce runs, samples and hours, and stop")
