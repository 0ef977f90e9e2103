"""What a check says: frozen plain data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from lit_opt.preflight.evidence import Evidence

Level = Literal["error", "warning", "note"]

# What `Evidence.setting` can be.
SETTINGS = (
    "llm",
    "llm/finetune",
    "vlm",
    "vit",
    "vit/finetune",
    "cnn",
    "diffusion",
    "diffusion/finetune",
    "large_batch",
)

LEVELS: dict[Level, str] = {
    "error": "the run breaks, or trains something else than was asked for",
    "warning": "known to cost quality, and published recipes avoid it",
    "note": "unlike published practice, or without effect; may well be meant",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that a check has found.

    Args:
        id: Of the check, such as "decay-on-norms".
        level: "error", "warning" or "note", see `LEVELS`.
        message: What is the case, in one sentence.
        evidence: The numbers that show it.
        why: Why it matters.
        source: Where that can be read.
        fix: What to type.

    Example:
        >>> Finding(id="x", level="note", message="m", evidence="1 of 2", why="w", source="s", fix="f").level
        'note'
    """

    id: str
    level: Level
    message: str
    evidence: str
    why: str
    source: str
    fix: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """A check and what it has to know before it may speak.

    Args:
        id: Stable name; every finding of it carries the same.
        looks_for: What it looks for, in a few words.
        find: Evidence -> findings, none where all is well.
        needs: Keys of `Evidence.missing`; where one is missing, the check is silent and the report says so.
        settings: The settings it speaks in, () for all. With settings given, "setting" is needed.

    Example:
        >>> Check(id="x", looks_for="nothing", find=lambda evidence: ()).needs
        ()
    """

    id: str
    looks_for: str
    find: Callable[[Evidence], Iterable[Finding]]
    needs: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()


# How many names a message gives.
SHOWN = 3


def some(names: Sequence[str]) -> str:
    """The first names of a list, in quotes.

    Example:
        >>> some(["a.weight", "b.weight", "c", "d"])
        "'a.weight', 'b.weight', 'c' and 1 more"
    """
    shown = ", ".join(map(repr, names[:SHOWN]))
    return shown + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def tensors(count: int) -> str:
    """A number of tensors in words.

    Example:
        >>> tensors(1), tensors(1200)
        ('1 tensor', '1,200 tensors')
    """
    return f"{count:,} tensor{'s' * (count != 1)}"


def percent(share: float) -> str:
    """A share in percent with as many digits as it needs.

    Example:
        >>> percent(0.5), percent(0.0123), percent(0.0004)
        ('50 %', '1.2 %', '0.04 %')
    """
    x = 100 * share
    if x == 0 or x >= 10:
        return f"{x:.0f} %"
    return f"{x:.2g} %"
