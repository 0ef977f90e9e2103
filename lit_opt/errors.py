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
    """
    by_lower = {word.lower(): word for word in known}  # difflib takes "AdamW" to be nearer to "adam" than to "adamw"
    near = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.4)
    return f" Did you mean {by_lower[near[0]]!r}?" if near else ""
