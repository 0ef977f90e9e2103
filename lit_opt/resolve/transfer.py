"""Batch and horizon of a transfer, applied to a recipe's numbers. What follows sizes is applied to groups later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lit_opt.optim.schema import OptimizerRow
from lit_opt.resolve.resolved import Provenance, RunFacts
from lit_opt.transfer.run import forget_faster, run_factors
from lit_opt.transfer.spec import Transfer

# Decays of moving averages over steps.
_AVERAGES = ("betas", "beta2", "momentum", "alpha", "shampoo_beta")


def follow_run(
    asked: Transfer,
    row: OptimizerRow,
    numbers: Mapping[str, Any],
    fallback: Mapping[str, Any],
    facts: RunFacts,
    origins: dict[str, Provenance],
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """The numbers at the batch and length of the run, and what stands in the way in sentences.

    Args:
        asked: What the user asks for.
        row: Of the optimizer.
        numbers: lr, weight_decay and the optimizer's other keywords.
        fallback: Of what a matrix optimizer leaves.
        facts: What is known of the run.
        origins: Provenance of all numbers; the notes of changed ones are completed in place.

    Example:
        >>> from lit_opt.optim.registry import get_row
        >>> asked = Transfer(base=dict, batch="sqrt", base_batch_size=64)
        >>> given = {"lr": 1e-3, "weight_decay": 0.1, "betas": (0.9, 0.95)}
        >>> found, _, _ = follow_run(asked, get_row("adamw"), given, {}, RunFacts(global_batch=256), {})
        >>> found["lr"], [round(beta, 3) for beta in found["betas"]]
        (0.002, [0.6, 0.8])
    """
    factors, problems = run_factors(asked, row.name, facts.global_batch, facts.total_steps)
    if problems or not factors.words:
        return dict(numbers), dict(fallback), problems
    new, rest = dict(numbers), dict(fallback)
    own = {"lr": factors.lr, "weight_decay": factors.weight_decay}
    for prefix, found in (("", new), ("fallback.", rest)):
        changed = []
        for key, factor in own.items():
            if found.get(key):
                found[key] = found[key] * factor
                changed.append(key)
        if found.get("eps") is not None and row.name != "normuon":
            found["eps"] = found["eps"] * factors.eps
            changed.append("eps")
        for key in _AVERAGES if factors.forgetting != 1.0 else ():
            if found.get(key) is not None:
                found[key], problem = _faster(found[key], factors.forgetting, f"{prefix}{key}", row)
                problems += problem
                changed.append(key)
        for key in changed:
            _note(origins, f"{prefix}{key}", found[key], factors.words)
    return new, rest, problems


def _faster(value: Any, factor: float, key: str, row: OptimizerRow) -> tuple[Any, list[str]]:
    if row.name == "scion" and key == "momentum":  # the weight of the new gradient
        value, fits = value * factor, value * factor <= 0.5 or value == 1
        beta = 1 - value
    elif isinstance(value, tuple | list):
        found = [forget_faster(beta, factor) for beta in value]
        fits = None not in found
        beta, value = max(value), tuple(value if b is None else b for b, value in zip(found, value, strict=True))
    else:
        faster = forget_faster(value, factor)
        fits, beta, value = faster is not None, value, value if faster is None else faster
    if fits:
        return value, []
    return value, [
        f"transfer.batch: {key} would forget within one step (1 - {beta:g}, times {factor:g}). The batch is too large for "
        f"the rule; tune the base at a larger batch, or leave batch out."
    ]


def _note(origins: dict[str, Provenance], key: str, number: Any, words: tuple[str, ...]) -> None:
    if key in origins:
        before = origins[key].note
        origins[key] = replace(origins[key], number=number, note="; ".join(filter(None, (before, *words))))
