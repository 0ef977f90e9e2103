"""What the verbs of the command share: parsers with one message, words that are allowed, and tables on the terminal."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any, NoReturn

from lit_opt.errors import RecipeError, nearest


class Parser(argparse.ArgumentParser):
    """argparse with one message instead of a page of usage.

    Example:
        >>> Parser(prog="lit-opt list").prog
        'lit-opt list'
    """

    def error(self, message: str) -> NoReturn:
        """Argparse's message, and where help is."""
        raise RecipeError([f"{message[:1].upper()}{message[1:]}. See `{self.prog} --help`."])


def make_parser(verb: str, description: str, examples: str) -> Parser:
    """The parser of a verb.

    Args:
        verb: As it is typed.
        description: One sentence.
        examples: What `--help` ends with.

    Example:
        >>> make_parser("list", "Recipes and optimizers.", "").prog
        'lit-opt list'
    """
    return Parser(
        prog=f"lit-opt {verb}",
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def parse(parser: Parser, args: list[str]) -> argparse.Namespace:
    """Parse all arguments.

    Args:
        parser: Of the verb.
        args: What follows the verb.

    Raises:
        RecipeError: Unknown arguments, each with the nearest option.

    Example:
        >>> parser = make_parser("list", "", "")
        >>> parse(parser, ["--fromat"])
        Traceback (most recent call last):
            ...
        lit_opt.errors.RecipeError: --fromat: unknown argument. See `lit-opt list --help`.
    """
    given, unknown = parser.parse_known_args(args)
    options = [option for action in parser._actions for option in action.option_strings]
    unknown = [arg for arg in unknown if arg.startswith("-")] or unknown
    if unknown:
        raise RecipeError(
            [
                f"{arg}: unknown argument.{nearest(arg.partition('=')[0], options)} See `{parser.prog} --help`."
                for arg in unknown
            ]
        )
    return given


def one_of(*words: str) -> Callable[[str], str]:
    """A type for argparse: one of some words, with the nearest one where it is none.

    Args:
        words: Those that are allowed.

    Example:
        >>> one_of("text", "json")("json")
        'json'
    """

    def check(text: str) -> str:
        if text not in words:
            raise argparse.ArgumentTypeError(f"{text!r} is unknown.{nearest(text, words)} Known: {', '.join(words)}")
        return text

    return check


def value_of(text: str) -> Any:
    """What was typed as a whole number, a float, a tuple of them, or the text itself, which is judged later.

    Args:
        text: What was typed.

    Example:
        >>> value_of("3"), value_of("0.9,0.95"), value_of("auto")
        (3, (0.9, 0.95), 'auto')
    """
    parts = text.strip("()[] ").split(",")
    if len(parts) > 1:
        return tuple(value_of(part.strip()) for part in parts)
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def show(*renderables: Any, width: int | None) -> None:
    """Print rich renderables without trailing blanks.

    Args:
        renderables: Tables and texts.
        width: Of the page; None for the terminal's.

    Example:
        >>> show("lr", width=20)
        lr
    """
    from rich.console import Console

    if "COLUMNS" in os.environ:
        width = None  # rich reads COLUMNS itself
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    with console.capture() as captured:
        for renderable in renderables:
            console.print(renderable, soft_wrap=False)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))
