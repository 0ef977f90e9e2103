"""The options of `lit-opt transfer check`, without torch: its help answers at once."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from lit_opt.errors import RecipeError


def add_options(parser: argparse.ArgumentParser, one_of: Callable[..., Callable[[str], str]]) -> None:
    """Add them.

    Args:
        parser: Of the verb.
        one_of: Words -> a type that takes these alone.
    """
    parser.add_argument("what", metavar="check", type=one_of("check"), help="the coordinate check")
    parser.add_argument("--factors", default="1,2,4", metavar="X", help="widths, in base widths (1,2,4)")
    parser.add_argument("--steps", default="3", metavar="N", help="optimizer steps (3)")
    parser.add_argument("--seeds", default="3", metavar="N", help="how many initial weights (3)")
    parser.add_argument("--plot", metavar="PNG", help="write a picture")
    parser.add_argument("--format", type=one_of("text", "json"), default="text", help="text (default) or json")


def read_options(given: dict[str, Any]) -> dict[str, Any]:
    """The same with numbers for words.

    Raises:
        RecipeError: What is no whole number above 0.
    """
    try:
        read = {name: [int(part) for part in given[name].split(",")] for name in ("factors", "steps", "seeds")}
        if min(number for numbers in read.values() for number in numbers) < 1:
            raise ValueError
        return given | {"factors": read["factors"], "steps": read["steps"][0], "seeds": read["seeds"][0]}
    except ValueError:
        words = "factors, steps, seeds: whole numbers above 0 are needed, such as --factors 1,2,4 --steps 3 --seeds 3."
        raise RecipeError([words]) from None
