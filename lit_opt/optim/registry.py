"""One row an optimizer: plain data that drives `build`, `resolve`, `list`, `explain` and the tests.

Adding an optimizer touches its own file (none for a library's) and one row here. No torch is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lit_opt.errors import RecipeError, nearest
from lit_opt.recipes.schema import Value

# Default of a hyperparameter that has to be given.
REQUIRED = "required"


@dataclass(frozen=True, kw_only=True)
class OptimizerRow:
    """What the package knows of an optimizer.

    Args:
        name: What a user types.
        factory: "module:name" of the torch.optim.Optimizer class.
        provider: Library that the class comes from.
        summary: One line.
        rule: The update in symbols (g gradient, m and v moments, w weights, lr, wd).
        source: Paper id and where the code was checked.
        evidence: The field guide's evidence label.
        hyperparameters: Keyword -> default (REQUIRED where there is none). These and no others are accepted.
        fixed: Keywords that are always passed and cannot be set; they close traps of the provider.
        decayed_group: Group options of decayed groups that differ from those of excluded ones.
        excluded_group: Group options of groups that are excluded from decay.
        settings: Setting -> published starting values for it ("lr", "weight_decay", and others by keyword).
        fused: The class has a `fused` option that wins where all tensors are on one CPU or CUDA device.
        clips_itself: The optimizer limits the gradient or the update itself.
    """

    name: str
    factory: str
    provider: str
    summary: str
    rule: str
    source: str
    evidence: str
    hyperparameters: Mapping[str, Any]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    decayed_group: Mapping[str, Any] = field(default_factory=dict)
    excluded_group: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, Value]] = field(default_factory=dict)
    fused: bool = False
    clips_itself: bool = False


ROWS: tuple[OptimizerRow, ...] = (
    OptimizerRow(
        name="adamw",
        factory="torch.optim:AdamW",
        provider="torch",
        summary="Adam with decoupled weight decay",
        rule="w <- (1 - lr wd) w - lr mhat / (sqrt(vhat) + eps)",
        source="arXiv:1711.05101; torch.optim.AdamW, equal to the formula in float64",
        evidence="standard",
        hyperparameters={
            "lr": REQUIRED,
            "betas": (0.9, 0.999),
            "eps": 1e-8,
            "weight_decay": 0.01,
        },
        fused=True,
    ),
)


def list_optimizers() -> list[str]:
    """Names of all optimizers, sorted.

    Example:
        >>> "adamw" in list_optimizers()
        True
    """
    return sorted(row.name for row in ROWS)


def get_row(name: str) -> OptimizerRow:
    """The row of that name.

    Raises:
        RecipeError: Unknown name; the message has the nearest one and the list.

    Example:
        >>> get_row("adamw").provider
        'torch'
    """
    for row in ROWS:
        if row.name == name:
            return row
    known = list_optimizers()
    raise RecipeError([f"optimizer: {name!r} is unknown.{nearest(name, known)} Known: {', '.join(known)}."])
