"""What the verbs of the command share: parsers with one message, words that are allowed, and tables on the terminal."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from lit_opt.errors import RecipeError, nearest

# What argparse calls the types of options.
_TYPES = {"int": "a whole number", "float": "a number"}

# Options of `lit-opt fit` without a dot; those with one, such as --recipe.lr, are its parser's to judge.
_FIT_OPTIONS = (
    "-c", "--config", "--recipe", "--trainer", "--model", "--data", "--ckpt_path", "--weights_only", "--seed_everything",
    "--print_config",
)  # fmt: skip


class Parser(argparse.ArgumentParser):
    """argparse with one message instead of a page of usage.

    Example:
        >>> Parser(prog="lit-opt list").prog
        'lit-opt list'
    """

    def error(self, message: str) -> NoReturn:
        """Argparse's message in our words: the argument first, the value, what is allowed, and where help is."""
        see = f"See `{self.prog} --help`."
        option, _, problem = message.removeprefix("argument ").partition(": ")
        option = option.rpartition("/")[2]
        if option == "the following arguments are required":
            words = [str(a.metavar or a.dest) for a in self._actions if not a.option_strings]
            raise RecipeError([f"{problem}: needed. Type: {self.prog} {' '.join(words)}. {see}"])
        if problem == "expected one argument":
            problem = "a value is needed"
        elif wrong := re.match(r"invalid (\w+) value: (.*)", problem):
            problem = f"{wrong[2]} is not allowed; give {_TYPES.get(wrong[1], wrong[1])}"
        raise RecipeError([f"{option}: {problem}. {see}"])


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
    options = [arg for arg in unknown if arg.startswith("-")]
    problems = [_unknown_option(parser, arg) for arg in options]
    if not options:  # what follows an unknown option may be its value
        several = any(re.fullmatch(r"[\d.,eE+-]+", arg) for arg in unknown)
        hint = " Several numbers are one word, such as 0.9,0.95." if several else ""
        problems = [f"{arg}: unknown argument.{hint} See `{parser.prog} --help`." for arg in unknown]
    if problems:
        raise RecipeError(problems)
    return given


def parse_beside_config(parser: Parser, args: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parse the verb's own options; the others are those of `lit-opt fit`.

    Args:
        parser: Of the verb.
        args: What follows the verb.

    Returns:
        The options, and the arguments for the parser of `fit`.

    Raises:
        RecipeError: An option that neither has, with the nearest one. So much is known without torch.

    Example:
        >>> parser = make_parser("choose", "", "")
        >>> parse_beside_config(parser, ["--recipe.lr=1"])[1]
        ['--recipe.lr=1']
        >>> parse_beside_config(parser, ["--confg", "llm"])
        Traceback (most recent call last):
            ...
        lit_opt.errors.RecipeError: --confg: unknown argument. Did you mean '--config'? See `lit-opt choose --help`.
    """
    given, others = parser.parse_known_args(args)
    words = [arg.partition("=")[0] for arg in others if arg.startswith("--")]
    problems = [
        _unknown_option(parser, word, _FIT_OPTIONS) for word in words if "." not in word and word not in _FIT_OPTIONS
    ]
    if problems:
        raise RecipeError(problems)
    return given, others


def _unknown_option(parser: Parser, arg: str, more: Sequence[str] = ()) -> str:
    options = [option for action in parser._actions for option in action.option_strings]
    near = nearest(arg.partition("=")[0], [*options, *more])
    return f"{arg}: unknown argument.{near} See `{parser.prog} --help`."


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
