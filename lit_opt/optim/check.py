"""Checks of hyperparameters against a registry row. No torch, so that `resolve` can use them as well."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from lit_opt.errors import nearest
from lit_opt.optim.schema import REQUIRED, OptimizerRow

# Word -> (lowest, first number that is too high). Words that are not listed have any finite number.
_LIMITS: dict[str, tuple[float, float]] = {
    "lr": (0.0, math.inf),
    "weight_decay": (0.0, math.inf),
    "eps": (0.0, math.inf),
    "trust_coeff": (0.0, math.inf),
    "max_grad_norm": (0.0, math.inf),
    "momentum": (0.0, 1.0),
    "betas": (0.0, 1.0),
    "beta2": (0.0, 1.0),
    "gamma": (0.0, math.inf),
    "damping": (0.0, math.inf),
    "factor_decay": (0.0, 1.0),
    "kl_clip": (0.0, math.inf),
    "inverse_every": (1.0, math.inf),
    "freeze_step": (1.0, math.inf),
    "shampoo_beta": (0.0, 1.0),
    "precondition_frequency": (1.0, math.inf),
    "start_preconditioning_step": (1.0, math.inf),
    "max_preconditioner_dim": (1.0, math.inf),
    "rho": (0.0, math.inf),
    "eta": (0.0, math.inf),
    "k": (1.0, math.inf),
    "alpha": (0.0, 1.0),
    "final_lr": (0.0, math.inf),
    "initial_accumulator_value": (0.0, math.inf),
    "d": (0.0, math.inf),
}


def check_hyperparameters(
    row: OptimizerRow, given: Mapping[str, Any], *, where: str = ""
) -> tuple[dict[str, Any], list[str]]:
    """Compare keywords with a row and bring numbers to plain Python types.

    Args:
        row: The optimizer.
        given: Keyword -> value, from a call or from a group.
        where: Put in front of each problem, such as "groups[1] ('no_decay'): ".

    Returns:
        The values as bool, int, float or tuple of floats, and the problems in words. A value with a problem is left
        out. Plain types matter: torch.load(weights_only=True) refuses a checkpoint that holds numpy scalars.

    Example:
        >>> from lit_opt.optim import get_row
        >>> check_hyperparameters(get_row("adamw"), {"lr": 1, "betas": [0.9, 0.95]})
        ({'lr': 1.0, 'betas': (0.9, 0.95)}, [])
        >>> check_hyperparameters(get_row("adamw"), {"beta": 0.9})[1][0][:48]
        "beta: adamw has no such keyword. Did you mean 'b"
    """
    clean: dict[str, Any] = {}
    problems: list[str] = []
    for key, value in given.items():
        if key not in row.hyperparameters:
            problems.append(where + _unknown(row, key, value))
            continue
        try:
            words, default = row.choices.get(key), row.hyperparameters[key]
            none = value is None and default is None
            limits = row.limits.get(key) or _LIMITS.get(key, (-math.inf, math.inf))
            clean[key] = _word(value, words) if words and not none else _plain(value, default, limits)
        except ValueError as problem:
            problems.append(f"{where}{key}: {problem}")
    return clean, problems


def check_momentum(row: OptimizerRow, values: Mapping[str, Any], *, where: str = "") -> list[str]:
    """Where a momentum of 0 has no meaning: Nesterov's look-ahead is along it, and Schedule-Free mixes the average in by it.

    Example:
        >>> from lit_opt.optim import get_row
        >>> check_momentum(get_row("sgd"), {"nesterov": True, "momentum": 0.0})[0][:43]
        'momentum: 0.0 with Nesterov momentum. It ha'
    """
    if values.get("momentum") != 0:
        return []
    if values.get("nesterov") or row.fixed.get("nesterov"):
        plain = "nesterov=False" if "nesterov" in row.hyperparameters else 'the optimizer "sgd"'
        return [
            f"{where}momentum: 0.0 with Nesterov momentum. It has to be above 0, such as 0.9; for none use {plain}."
        ]
    if row.averages_itself:
        return [
            f"{where}momentum: 0.0 with {row.name}, whose gradients are taken between the average and the newest weights "
            'by it. It has to be above 0, such as 0.9; for none use the optimizer "sgd".'
        ]
    return []


def missing_lr(row: OptimizerRow) -> str:
    """The message for a learning rate that was not given, with the published starting values.

    Example:
        >>> from lit_opt.optim import get_row
        >>> missing_lr(get_row("amsgrad"))
        'lr: missing. amsgrad has no default and no published starting value here; type lr=...'
    """
    published = "; ".join(f"{s} {p.lr.number:g} ({p.lr.unit})" for s, p in row.settings.items())
    if not published:
        return f"lr: missing. {row.name} has no default and no published starting value here; type lr=..."
    return f"lr: missing. {row.name} has no default; type lr=... Published starting values: {published}."


def _unknown(row: OptimizerRow, key: str, value: object) -> str:
    allowed = ", ".join(row.hyperparameters)
    if key in row.fixed:
        return f"{key}: {value!r} cannot be set, {row.name} always has {key}={row.fixed[key]!r}. Allowed: {allowed}."
    return f"{key}: {row.name} has no such keyword.{nearest(key, row.hyperparameters)} Allowed: {allowed}."


def _plain(value: Any, default: Any, limits: tuple[float, float]) -> Any:
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise ValueError(f"{value!r} is not True or False.")
        return value
    if default is None and value is None:
        return None
    if isinstance(default, tuple):
        if not isinstance(value, tuple | list) or len(value) != len(default):
            raise ValueError(f"{value!r} is not {len(default)} numbers, such as {default!r}.")
        return tuple(_number(item, limits, "") for item in value)
    if isinstance(default, Mapping):
        if not isinstance(value, Mapping):
            raise ValueError(f"{value!r} is not a dict. Give one, such as {dict(default)}.")
        return dict(value)
    known = isinstance(default, Real) and default is not REQUIRED
    number = _number(value, limits, f" Give one, such as {default:g}." if known else "")
    if isinstance(default, int) and default is not REQUIRED:
        if number != int(number):
            raise ValueError(f"{value!r} is not a whole number, such as {default}.")
        return int(number)
    if default is None and number == 0:
        raise ValueError("0 would stop all training. Allowed: a number above 0, or None for none.")
    return number


def _word(value: object, words: Sequence[str]) -> str:
    if isinstance(value, str) and value in words:
        return value
    raise ValueError(f"{value!r} is unknown.{nearest(value, words)} Known: {', '.join(words)}.")


def _number(value: object, limits: tuple[float, float], example: str) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{value!r} is not a number.{_hint(value) or example}")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{number} is not a finite number.")
    low, high = limits
    if not low <= number < high:
        allowed = f"{low:g} or more" if high == math.inf else f"{low:g} or more and below {high:g}"
        raise ValueError(f"{number:g} is out of bounds. Allowed: {allowed}.")
    return number


def _hint(value: object) -> str:
    """YAML 1.1 reads 3e-4 as a word, 3.0e-4 as a number."""
    if not isinstance(value, str):
        return " A tensor: write float(...)." if type(value).__name__ == "Tensor" else ""
    try:
        number = float(value)
    except ValueError:
        return ""
    mantissa, _, exponent = value.partition("e")
    if exponent and "." not in mantissa:
        return f" Without quotes; in YAML write {mantissa}.0e{exponent}."
    return f" Write {number:g} without quotes."
