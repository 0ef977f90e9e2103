"""The one exception for what a user can mend, and the wording that all such messages share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class RecipeError(ValueError):
    """Everything that is wrong with a configuration, in one message.

    Args:
        problems: One sentence or more for each problem: the argument, the value received, what is allowed,
            the nearest name, what to type next.

    Example:
        >>> str(RecipeError(["lr: -1.0 is not positive."]))
        'lr: -1.0 is not positive.'
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        super().__init__(
            self.problems[0]
            if len(self.problems) == 1
            else f"{len(self.problems)} problems:\n" + "\n".join(f"  - {p}" for p in self.problems)
        )

    def __reduce__(self) -> tuple[type[RecipeError], tuple[list[str]]]:
        return (type(self), (self.problems,))


def kind_of(thing: object) -> str:
    """The type of a value with its article.

    Example:
        >>> kind_of(3), kind_of("x"), kind_of([])
        ('an int', 'a str', 'a list')
    """
    name = thing.__name__ if isinstance(thing, type) else type(thing).__name__
    return f"an {name}" if name[:1].lower() in "aeiou" or name[:3] in ("EMA", "SGD") else f"a {name}"


def nearest(name: object, known: Iterable[str]) -> str:
    """A sentence part that names the closest known name, or "".

    Args:
        name: What was typed.
        known: What would have been right.

    Example:
        >>> nearest("adamv", ["adamw", "sgd"])
        " Did you mean 'adamw'?"
        >>> nearest("AdamW", ["adam", "adamw"])
        " Did you mean 'adamw'?"
        >>> nearest("lmm", ["llm", "vlm"])
        " Did you mean 'llm'?"
    """
    if not isinstance(name, str):
        return ""
    typed = name.lower()
    by_lower = {word.lower(): word for word in known}  # difflib takes "AdamW" to be nearer to "adam" than to "adamw"
    near = difflib.get_close_matches(typed, by_lower, n=5, cutoff=0.4)
    if not near:
        return ""
    # Of equally near ones that with the same first letter: "lmm" was meant to be "llm", not "vlm".
    best = max(near, key=lambda word: (difflib.SequenceMatcher(None, word, typed).ratio(), word[0] == typed[0]))
    return f" Did you mean {by_lower[best]!r}?"
