"""The length of an orthogonal update, in torch's words, and the two unit systems that follow from it. No torch.

An orthogonal (rows, cols) matrix has entries with a root mean square (RMS) of 1 / sqrt(max(rows, cols)). In Muon's own
units (`original`, `spectral_unclamped`, `unit`) the learning rate is about 0.02. `match_rms_adamw` gives the update
0.2 times the learning rate as RMS, whatever the shape, so that AdamW's learning rate and decay fit (Moonlight,
arXiv:2502.16982). lr, weight_decay and scale therefore belong together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

FORMULAS = {
    "original": "sqrt(max(1, rows / cols))",
    "spectral_unclamped": "sqrt(rows / cols)",
    "match_rms_adamw": "0.2 sqrt(max(rows, cols))",
    "unit": "1",
}
# Scale -> whose learning rates it takes.
UNITS = {"original": "Muon", "spectral_unclamped": "Muon", "unit": "Muon", "match_rms_adamw": "AdamW"}

# Unit system -> usual rate, and beyond which a rate is the other system's: an order of magnitude from what is published.
USUAL_RATE = {"Muon": 0.02, "AdamW": 3e-4}
LOWEST_MUON, HIGHEST_ADAMW = 1e-3, 1e-2


def scale_factor(scale: str, rows: int, cols: int) -> float:
    """What an orthogonal update of that shape is multiplied by, beside the learning rate.

    Args:
        scale: A key of `FORMULAS`, in the words of torch.optim.Muon; "unit" is torch's no adjustment.
        rows: Outputs of the layer (fan out).
        cols: Inputs of the layer (fan in); for a convolution in x kernel height x kernel width.

    Example:
        >>> scale_factor("match_rms_adamw", 100, 400)
        4.0
        >>> scale_factor("original", 400, 100), scale_factor("original", 100, 400)
        (2.0, 1.0)
    """
    if scale == "original":
        return math.sqrt(max(1.0, rows / cols))
    if scale == "spectral_unclamped":
        return math.sqrt(rows / cols)
    if scale == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, cols))
    return 1.0


def update_rms(lr: float, scale: str, rows: int, cols: int) -> float:
    """Root mean square of the entries of one update, for an exactly orthogonal matrix.

    Example:
        >>> f"{update_rms(0.02, 'original', 1024, 1024):.1e}", f"{update_rms(3e-4, 'match_rms_adamw', 1024, 1024):.1e}"
        ('6.3e-04', '6.0e-05')
    """
    return lr * scale_factor(scale, rows, cols) / math.sqrt(max(rows, cols))


def check_rate(lr: float, scale: str) -> list[str]:
    """Refuse a learning rate of the other unit system.

    Args:
        lr: Peak learning rate.
        scale: A key of `FORMULAS`.

    Returns:
        One problem in words, or an empty list.

    Example:
        >>> check_rate(0.005, "original"), check_rate(1e-5, "match_rms_adamw")
        ([], [])
        >>> print(check_rate(3e-4, "original")[0])
        lr: 0.0003 is AdamW's kind of rate, and scale 'original' takes Muon's, about 0.02 (not below 0.001). The update lr * sqrt(max(1, rows / cols)) * P(G) would have an RMS of 9.4e-06 a step at 1024 x 1024, against 6.3e-04 at 0.02.
    """
    own = UNITS[scale]
    if (own == "Muon" and lr >= LOWEST_MUON) or (own == "AdamW" and lr <= HIGHEST_ADAMW):
        return []
    other, bound = ("AdamW", f"below {LOWEST_MUON:g}") if own == "Muon" else ("Muon", f"above {HIGHEST_ADAMW:g}")
    usual = USUAL_RATE[own]
    return [
        f"lr: {lr:g} is {other}'s kind of rate, and scale {scale!r} takes {own}'s, about {usual:g} (not {bound}). "
        f"The update lr * {FORMULAS[scale]} * P(G) would have an RMS of {update_rms(lr, scale, 1024, 1024):.1e} a step at "
        f"1024 x 1024, against {update_rms(usual, scale, 1024, 1024):.1e} at {usual:g}."
    ]


def check_units(base: Mapping[str, Any], given: Mapping[str, Any], *, where: str = "") -> list[str]:
    """Refuse a scale of the other unit system where lr and weight_decay do not come with it.

    Args:
        base: lr, weight_decay and scale that belong together, such as a recipe's or those of all groups.
        given: What replaces some of them, such as a user's override or the keys of one group.
        where: Put in front of a problem.

    Returns:
        One problem in words, or an empty list.

    Example:
        >>> recipe = {"lr": 0.02, "weight_decay": 0.01, "scale": "original"}
        >>> check_units(recipe, {"scale": "match_rms_adamw", "lr": 3e-4, "weight_decay": 0.1})
        []
        >>> print(check_units(recipe, {"scale": "match_rms_adamw"})[0])
        scale: 'match_rms_adamw' takes AdamW's learning rates, but lr=0.02 and weight_decay=0.01 belong to scale 'original' (Muon's). The update lr * 0.2 sqrt(max(rows, cols)) * P(G) would have an RMS of 4.0e-03 a step at 1024 x 1024, against 6.3e-04 for lr * sqrt(max(1, rows / cols)) * P(G). Give lr and weight_decay with scale.
    """
    old, new = base.get("scale"), given.get("scale", base.get("scale"))
    if old not in UNITS or new not in UNITS or UNITS[old] == UNITS[new]:
        return []
    missing = [key for key in ("lr", "weight_decay") if key not in given and base.get(key)]
    if not missing:
        return []
    lr = given.get("lr", base.get("lr"))
    rms = ""
    if isinstance(lr, int | float):
        rms = (
            f" The update lr * {FORMULAS[new]} * P(G) would have an RMS of {update_rms(lr, new, 1024, 1024):.1e} a "
            f"step at 1024 x 1024, against {update_rms(lr, old, 1024, 1024):.1e} for lr * {FORMULAS[old]} * P(G)."
        )
    values = " and ".join(f"{key}={base[key]:g}" for key in missing)
    return [
        f"{where}scale: {new!r} takes {UNITS[new]}'s learning rates, but {values} belong{'s' * (len(missing) == 1)} to "
        f"scale {old!r} ({UNITS[old]}'s).{rms} Give lr and weight_decay with scale."
    ]
