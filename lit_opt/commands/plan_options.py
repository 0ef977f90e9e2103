"""The options of `lit-opt plan`, without torch: `lit-opt plan --help` answers at once."""

from __future__ import annotations

import argparse
from collections.abc import Callable

EXAMPLES = """\
The config and its overrides are those of `lit-opt fit`; nothing is trained, and no GPU is needed.

examples:
  lit-opt plan --config llm
  lit-opt plan --config mine.yaml --recipe.lr=1e-3 --rows
  lit-opt plan --config mine.yaml --devices 8 --strategy fsdp2 --precision bf16-mixed
  lit-opt plan --config mine.yaml --batch-size 512 --total-steps 100000
  lit-opt plan --config vit --plot lr.png
  lit-opt plan --config vit --format markdown > plan.md

In Python: print(Recipe("llm").plan(module, batch_size=256, total_steps=10_000))"""


def add_options(parser: argparse.ArgumentParser, one_of: Callable[..., Callable[[str], str]]) -> None:
    """Add them.

    Args:
        parser: Of the verb.
        one_of: Words -> a type that takes these alone.
    """
    parser.add_argument("--config", "-c", metavar="NAME_OR_FILE", action="append", help="a YAML file or a shipped name")
    for option, help_ in (
        ("batch-size", "global batch in samples, in place of the config's"),
        ("batch-tokens", "global batch in tokens"),
        ("total-steps", "optimizer steps of the run"),
        ("devices", "devices of a node"),
        ("num-nodes", "nodes"),
    ):
        parser.add_argument(f"--{option}", type=int, metavar="N", help=help_)
    parser.add_argument("--strategy", metavar="S", help="ddp, fsdp2, fsdp, deepspeed_stage_2, ...")
    parser.add_argument("--precision", metavar="P", help="32-true, bf16-mixed, bf16-true, 16-mixed, ...")
    parser.add_argument("--rows", action="store_true", help="every parameter, without joining repeated blocks")
    parser.add_argument("--plot", metavar="FILE", help="write the learning rate of every group as PNG")
    formats = one_of("text", "json", "markdown")
    parser.add_argument("--format", type=formats, default="text", help="text (default), json or markdown")
