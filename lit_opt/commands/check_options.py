"""The options of `lit-opt check`, light enough for `--help`: no torch."""

from __future__ import annotations

import argparse
from collections.abc import Callable

EXAMPLES = """\
The config is that of `lit-opt fit`, with or without a `recipe:` section; a
model with its own configure_optimizers is judged as well. No Trainer is built
and no device is used: a config for eight GPUs can be checked on a laptop.

levels:
  error     the run breaks, or trains something else than was asked for
  warning   known to cost quality, and published recipes avoid it
  note      unlike published practice, or without effect; may well be meant

exit codes:
  0   nothing found, or notes only
  1   errors or warnings; with --strict notes as well
  2   the config cannot be read, or arguments are wrong (a message says what)

examples:
  lit-opt check --config llm
  lit-opt check --config mine.yaml --setting vit/finetune
  lit-opt check --config mine.yaml --trainer.max_steps=500 --format json
  lit-opt check --config mine.yaml --strict              in CI
  lit-opt check --config mine.yaml --ignore beta2-llm,ema-missing

Every finding ends with its id. What is ignored neither fails nor is hidden: the
last lines say how many findings were silenced, and --format json has them.

In Python, with the real Trainer:
  Trainer(callbacks=[lit_opt.RecipeCheck("vit", on_error="raise", ignore=["beta2-llm"])])"""


def add_options(parser: argparse.ArgumentParser, one_of: Callable[..., Callable[[str], str]]) -> None:
    """Add them to a parser.

    Args:
        parser: Of the verb.
        one_of: Makes the type of an option that takes one of some words.
    """
    parser.add_argument("--config", metavar="NAME_OR_FILE", help="a YAML file, or the name of a shipped config")
    parser.add_argument("--setting", metavar="X", help="llm, vit, cnn, ... or vit/finetune; a recipe says it itself")
    parser.add_argument("--format", type=one_of("text", "json"), default="text", help="text (default) or json")
    parser.add_argument(
        "--ignore",
        metavar="ID[,ID]",
        action="append",
        default=[],
        help="findings that are meant: they do not count for the exit code (may be repeated)",
    )
    parser.add_argument("--strict", action="store_true", help="notes count as findings")
