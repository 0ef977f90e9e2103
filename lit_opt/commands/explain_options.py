"""The options of `lit-opt explain`, without torch."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any


def add_options(parser: argparse.ArgumentParser, value: Callable[[str], Any], one_of: Callable[..., Any]) -> None:
    """Add them.

    Args:
        parser: Of the verb.
        value: Text -> a number, a tuple of them, or the text.
        one_of: Words -> a type that takes these alone.
    """
    for option, help_ in (
        ("optimizer", "another optimizer, by registry name"),
        ("lr", "peak learning rate, never rescaled"),
        ("base-lr", "peak that belongs to --base-batch-size, scaled to the batch of the run"),
        ("base-batch-size", "batch of --base-lr"),
        ("weight-decay", "torch's unit: times the learning rate"),
        ("betas", "decay of Adam's moments, such as 0.9,0.95"),
        ("momentum", "decay of SGD's velocity"),
        ("warmup", '0.02 of the run, 500 steps, or "5 epochs"'),
        ("decay", "cosine, linear, polynomial, step, constant or wsd"),
        ("clip", "largest gradient norm; 0 is off"),
        ("ema", "decay of averaged weights; 0 is off"),
        ("layer-decay", "learning-rate factor per layer below the head"),
        ("batch-size", "global batch in samples: loader x accumulation x devices"),
        ("batch-tokens", "global batch in tokens"),
        ("total-steps", "optimizer steps of the run"),
        ("parameters", "trainable parameters without the embeddings"),
    ):
        parser.add_argument(f"--{option}", type=value, metavar="X", help=help_)
    formats = one_of("text", "yaml", "json", "markdown")
    parser.add_argument("--format", type=formats, default="text", help="text (default), yaml, json or markdown")
