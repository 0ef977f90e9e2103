"""Muon's two unit systems: learning rate, decay and scale of an override have to come from the same one. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lit_opt.optim.matrix.scale import UNITS, check_rate, check_units
from lit_opt.optim.registry import OptimizerRow
from lit_opt.recipes.schema import RecipeSpec


def unit_problems(spec: RecipeSpec, row: OptimizerRow, o: Mapping[str, Any]) -> list[str]:
    """A scale of the other unit system with the learning rate or decay of this one, or a learning rate of the other.

    Example:
        >>> from lit_opt.optim.registry import get_row
        >>> from lit_opt.recipes import get_recipe
        >>> o = {"optimizer_kwargs": {"scale": "match_rms_adamw"}, "lr": 3e-4}
        >>> [problem] = unit_problems(get_recipe("llm/muon"), get_row("muon"), o)
        >>> problem[:107]
        "optimizer_kwargs.scale: 'match_rms_adamw' takes AdamW's learning rates, but weight_decay=0.01 belongs to sc"
        >>> [problem] = unit_problems(get_recipe("llm/muon"), get_row("muon"), {"lr": 3e-4})
        >>> problem[:63]
        "lr: 0.0003 is AdamW's kind of rate, and scale 'original' takes "
    """
    kwargs = o.get("optimizer_kwargs", {})
    given = {key: o[key] for key in ("lr", "weight_decay") if key in o}
    if isinstance(kwargs, Mapping) and isinstance(kwargs.get("scale"), str):
        given["scale"] = kwargs["scale"]
    if "base_lr" in o:
        given["lr"] = o["base_lr"]
    published = published_units(spec, row)
    problems = check_units(published, given, where="optimizer_kwargs.")
    lr = given.get("lr")
    # Whoever names the scale beside the rate means it.
    if problems or "scale" in given or not isinstance(lr, int | float) or lr <= 0 or published["scale"] not in UNITS:
        return problems
    other = "match_rms_adamw" if UNITS[published["scale"]] == "Muon" else "original"
    ready = f", or Recipe('llm/muon{'_rms' * (other == 'match_rms_adamw')}')" * (spec.setting == "llm")
    return [
        f"{problem} For the other units give optimizer_kwargs={{'scale': {other!r}}} with lr= and weight_decay={ready}. If "
        f"you mean it, name the scale beside it: optimizer_kwargs={{'scale': {published['scale']!r}}}."
        for problem in check_rate(lr, published["scale"])
    ]


def published_units(spec: RecipeSpec, row: OptimizerRow) -> dict[str, Any]:
    """lr, weight_decay and scale that belong together: the recipe's, or the registry's for this setting.

    Example:
        >>> from lit_opt.optim.registry import get_row
        >>> from lit_opt.recipes import get_recipe
        >>> published_units(get_recipe("llm"), get_row("muon"))
        {'scale': 'original', 'lr': 0.02, 'weight_decay': 0.01}
    """
    scale = row.hyperparameters.get("scale")
    if row.name == spec.optimizer.number:
        own = spec.hyperparameters.get("scale")
        lr, weight_decay = spec.lr.base, spec.weight_decay
    elif spec.registry_key in row.settings:
        published = row.settings[spec.registry_key]
        own, lr, weight_decay = published.hyperparameters.get("scale"), published.lr, published.weight_decay
    else:
        return {"scale": scale}
    return {"scale": own.number if own else scale, "lr": lr.number, "weight_decay": weight_decay.number}


def units_note(row: OptimizerRow | None, o: Mapping[str, Any]) -> str:
    """Whose learning rates a matrix method takes with the scale that is given or by default, or "".

    Example:
        >>> from lit_opt.optim.registry import get_row
        >>> units_note(get_row("muon"), {"optimizer_kwargs": {"scale": "match_rms_adamw"}})[:61]
        " They are AdamW's (those that AdamW would have) with scale 'm"
    """
    if row is None or row.hyperparameters.get("scale") not in UNITS:
        return ""
    kwargs = o.get("optimizer_kwargs", {})
    scale = kwargs.get("scale") if isinstance(kwargs, Mapping) else None
    scale = scale if isinstance(scale, str) and scale in UNITS else row.hyperparameters["scale"]
    like = "lr about 0.02, weight_decay 0.01" if UNITS[scale] == "Muon" else "those that AdamW would have"
    other = "match_rms_adamw" if UNITS[scale] == "Muon" else "original"
    return (
        f" They are {UNITS[scale]}'s ({like}) with scale {scale!r}; for {UNITS[other]}'s give "
        f"optimizer_kwargs={{'scale': {other!r}}}."
    )
