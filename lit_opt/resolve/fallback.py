"""AdamW's numbers for what a matrix optimizer leaves: by override, by recipe, or in the matrices' own units. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lit_opt.optim.check import check_hyperparameters
from lit_opt.optim.matrix.scale import UNITS
from lit_opt.optim.registry import OptimizerRow, get_row
from lit_opt.recipes.common import MUON_FALLBACK
from lit_opt.recipes.schema import RecipeSpec, Value
from lit_opt.resolve.resolved import Provenance


def resolve_fallback(
    spec: RecipeSpec,
    row: OptimizerRow | None,
    o: Mapping[str, Any],
    lr: float,
    weight_decay: float,
    hyperparameters: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Provenance]]:
    """lr, betas, eps and weight_decay, and their provenance; nothing where the optimizer is no matrix method.

    In AdamW's units (scale match_rms_adamw, or a method that takes AdamW's rates) rate and decay are those of the
    matrices. In Muon's they are numbers of their own, since 0.02 would be far too much for AdamW.

    Args:
        spec: The recipe. Its fallback belongs to its own optimizer.
        row: Registry row of the optimizer, None for a user's class.
        o: Overrides that are not None, already checked.
        lr: Peak rate of the matrices.
        weight_decay: Of the matrices.
        hyperparameters: Of the matrices; "scale" says the units, where they have one.

    Example:
        >>> from lit_opt.recipes import get_recipe
        >>> spec, row = get_recipe("llm/muon"), get_row("muon")
        >>> resolve_fallback(spec, row, {"fallback": {"lr": 1e-3}}, 0.02, 0.01, {"scale": "original"})[0]
        {'lr': 0.001, 'betas': (0.9, 0.95), 'eps': 1e-08, 'weight_decay': 0.01}
    """
    if row is None or not row.matrix:
        return {}, {}
    own = row.name == spec.optimizer.number and bool(spec.fallback)
    published: Mapping[str, Value] = spec.fallback if own else MUON_FALLBACK
    shares_units = UNITS.get(hyperparameters.get("scale", ""), row.units) == "AdamW"
    which = f"scale {hyperparameters['scale']}" if "scale" in hyperparameters else f"{row.name} takes AdamW's"
    given, _ = check_hyperparameters(get_row("adamw"), o.get("fallback", {}))
    shared = {"lr": lr, "weight_decay": weight_decay} if shares_units else {}
    numbers: dict[str, Any] = {}
    origins = {}
    for key in ("lr", "betas", "eps", "weight_decay"):
        value = None if key in shared else published.get(key, MUON_FALLBACK[key])
        numbers[key] = given.get(key, shared.get(key, value.number if value else None))
        origin = "yours" if key in given else "recipe" if own and value is not None else "default"
        note = f"the matrices' own ({which})" if key in shared and key not in given else ""
        origins[f"fallback.{key}"] = Provenance(number=numbers[key], origin=origin, note=note, value=value)
    return numbers, origins
