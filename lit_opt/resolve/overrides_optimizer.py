"""What is wrong with an optimizer override and the keywords given for it. No torch."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from lit_opt.errors import RecipeError, kind_of, nearest
from lit_opt.optim.check import check_hyperparameters, check_momentum
from lit_opt.optim.registry import REQUIRED, OptimizerRow, get_row, list_optimizers, run_row
from lit_opt.recipes.schema import RecipeSpec
from lit_opt.resolve.lr import batch_rule
from lit_opt.resolve.plain import OTHER_WORDS
from lit_opt.resolve.units import unit_problems, units_note

# Keywords that are arguments of Recipe themselves.
OWN_ARGUMENTS = ("lr", "weight_decay", "betas", "momentum")

# What AdamW takes of `fallback`.
FALLBACK_KEYS = ("lr", "betas", "eps", "weight_decay")

MATRIX = tuple(name for name in list_optimizers() if get_row(name).matrix)


def optimizer_problems(spec: RecipeSpec, o: Mapping[str, Any]) -> Iterator[str]:
    """Unknown optimizers, values that nobody published, keywords that the optimizer does not have.

    Args:
        spec: The recipe.
        o: Overrides in plain types, none of them None.

    Example:
        >>> from lit_opt.recipes import get_recipe
        >>> [problem] = optimizer_problems(get_recipe("cnn"), {"betas": (0.9, 0.95)})
        >>> problem
        'betas: sgd has no betas. It has momentum=. Its keywords: lr, momentum, weight_decay, nesterov.'
    """
    optimizer = o.get("optimizer", spec.optimizer.number)
    row: OptimizerRow | None = None
    accepted: Mapping[str, bool] | None
    if isinstance(optimizer, type):
        name, accepted = optimizer.__name__, class_keywords(optimizer)
        if accepted is None:
            yield f"optimizer: the class {name} is no torch.optim.Optimizer. Give one that is, or a name: {', '.join(list_optimizers())}."
            return
    elif isinstance(optimizer, str) and optimizer in list_optimizers():
        name = optimizer
        try:
            row = used_row(spec, o)
        except RecipeError as error:  # an unknown base
            yield from (f"optimizer_kwargs.{problem}" for problem in error.problems)
            return
        assert row is not None
        accepted = {key: default is REQUIRED for key, default in row.hyperparameters.items()}
    else:
        what = f"{optimizer!r} is unknown.{nearest(optimizer, list_optimizers())}"
        if not isinstance(optimizer, str):
            what = f"{kind_of(optimizer)} is neither a name nor a class."
            if any(base.__name__ == "Optimizer" for base in type(optimizer).__mro__):
                what += f" The recipe makes it: give the class {type(optimizer).__name__}, with lr= and weight_decay=."
        yield f"optimizer: {what} Known: {', '.join(list_optimizers())}, or a torch.optim.Optimizer class."
        return
    fits = name == "adamw" or name.startswith("adamw_") if row is not None else "adamw" in name.lower()
    if spec.trains == "adapters" and not fits:
        yield (
            f"optimizer: {name!r} is not for adapters: low-rank matrices always go to AdamW. Leave optimizer= out, "
            "or use Recipe('llm/finetune') for all weights."
        )
        return
    yield from _unpublished(spec, name, row, accepted, o)
    for key in ("betas", "momentum", "weight_decay"):
        if key in o and key not in accepted:
            other = {"betas": "momentum", "momentum": "betas"}.get(key)
            instead = f" It has {other}=." if other in accepted else ""
            yield f"{key}: {name} has no {key}.{instead} Its keywords: {', '.join(accepted)}."
    yield from _algorithm_problems(name, row, o.get("groups", ()))
    if row is not None and row.matrix:
        yield from _fallback_problems(o.get("fallback", {}))
        if "scale" in row.hyperparameters:
            yield from unit_problems(spec, row, o)
    elif "fallback" in o:
        yield (
            f"fallback: {name} is no matrix optimizer and leaves nothing to AdamW. "
            f"Remove fallback=, or choose a matrix optimizer: {', '.join(MATRIX)}."
        )
    yield from _keyword_problems(spec, name, row, accepted, o)
    if row is not None and row.averages_itself:
        yield from _averages_problems(name, o)


def _averages_problems(name: str, o: Mapping[str, Any]) -> Iterator[str]:
    decay = o.get("decay")
    kind = decay if isinstance(decay, str) else _field(decay, "kind")
    if decay is not None and kind != "constant":
        yield (
            f"decay: {name} averages its weights in place of a decaying rate, and needs a constant one after the warmup. "
            "Leave decay= out."
        )
    if o.get("ema"):
        yield f"ema: {name} validates on averages of its own. Leave ema= out."


def used_row(spec: RecipeSpec, o: Mapping[str, Any]) -> OptimizerRow | None:
    """The registry row of the optimizer that a run uses; None for a user's class.

    Args:
        spec: The recipe.
        o: Overrides in plain types.

    Raises:
        RecipeError: An unknown name of the optimizer or its base.

    Example:
        >>> from lit_opt.recipes import get_recipe
        >>> used_row(get_recipe("vit"), {"optimizer": "sam"}).hyperparameters["base"]
        'adamw'
    """
    optimizer = o.get("optimizer", spec.optimizer.number)
    if not isinstance(optimizer, str):
        return None
    published = spec.hyperparameters if optimizer == spec.optimizer.number else None
    return run_row(optimizer, o.get("optimizer_kwargs"), published, spec.registry_key)


def _fallback_problems(given: object) -> Iterator[str]:
    if not isinstance(given, Mapping):
        yield f"fallback: {given!r} is {kind_of(given)}; give a dictionary such as {{'lr': 3e-4, 'betas': (0.9, 0.95)}}."
        return
    for key in given:
        if key not in FALLBACK_KEYS:
            yield f"fallback.{key}: unknown.{nearest(OTHER_WORDS.get(key, key), FALLBACK_KEYS)} AdamW takes here: {', '.join(FALLBACK_KEYS)}."
    known = {key: value for key, value in given.items() if key in FALLBACK_KEYS}
    yield from check_hyperparameters(get_row("adamw"), known, where="fallback.")[1]


def _algorithm_problems(name: str, row: OptimizerRow | None, groups: object) -> Iterator[str]:
    """Which optimizer a rule may name: under a matrix method itself or AdamW, elsewhere none."""
    if not isinstance(groups, list | tuple):
        return
    rules = [(i, _field(rule, "match"), _field(rule, "algorithm")) for i, rule in enumerate(groups)]
    named = [(i, match, algorithm) for i, match, algorithm in rules if algorithm is not None]
    if row is not None and row.matrix:
        for i, match, algorithm in named:
            if algorithm not in (row.name, "adamw"):
                yield (
                    f"groups[{i}].algorithm: {algorithm!r} for {match!r} under {name}.{nearest(algorithm, (row.name, 'adamw'))} "
                    f"Allowed: {row.name!r} and 'adamw', the two in one optimizer."
                )
        return
    split = [_field(rule, "match") for rule in groups if _field(rule, "split_sizes") or _field(rule, "num_heads")]
    if split:
        yield (
            f"groups: split_sizes and num_heads (for {', '.join(map(repr, split))}) split what a matrix optimizer "
            f"orthogonalises, and {name} is none. Remove them, or choose one: {', '.join(MATRIX)}."
        )
    if named:
        which = ", ".join(f"{algorithm!r} for {match!r}" for _, match, algorithm in named)
        yield (
            f"groups: {which}, but {name} is one algorithm for all parameters. Remove algorithm=, or choose a matrix "
            f"optimizer, which leaves a part to AdamW: {', '.join(MATRIX)}."
        )


def _field(rule: object, name: str) -> Any:
    return rule.get(name) if isinstance(rule, Mapping) else getattr(rule, name, None)


def _unpublished(
    spec: RecipeSpec, name: str, row: OptimizerRow | None, accepted: Mapping[str, bool], o: Mapping[str, Any]
) -> Iterator[str]:
    """Values that have to be given, because another optimizer's are never inherited."""
    if "base_lr" in o and "lr" not in o and batch_rule(spec, row) is None:
        yield (
            f"base_lr: no rule is published that scales the rate of {name} with the batch in the setting "
            f"{spec.registry_key!r}; give lr= instead."
        )
    if row is not None and (row.name == spec.optimizer.number or spec.registry_key in row.settings):
        return
    asked = [key for key in ("lr", "weight_decay") if key in accepted and key not in o]
    if "base_lr" in o and "lr" in asked:
        asked.remove("lr")
    if asked:
        yield (
            f"optimizer: no starting values are published for {name!r} in the setting {spec.registry_key!r}, and another "
            f"optimizer's are not inherited; give {' and '.join(f'{key}=' for key in asked)}.{units_note(row, o)}"
        )


def _keyword_problems(
    spec: RecipeSpec, name: str, row: OptimizerRow | None, accepted: Mapping[str, bool], o: Mapping[str, Any]
) -> Iterator[str]:
    given = o.get("optimizer_kwargs", {})
    if not isinstance(given, Mapping):
        yield f"optimizer_kwargs: {given!r} is {kind_of(given)}; give a dictionary of keywords."
        return
    rest = [key for key in accepted if key not in OWN_ARGUMENTS]
    published = spec.hyperparameters.get("base") if name == spec.optimizer.number else None
    if published is not None and given.get("base", published.number) != published.number:
        yield (
            f"optimizer_kwargs.base: {given['base']!r}, but the rate and decay of {spec.name} belong to "
            f"{published.number!r}. Use the recipe of that optimizer with optimizer={name!r} and this base."
        )
    for key, value in given.items():
        if key in OWN_ARGUMENTS:
            yield f"optimizer_kwargs: {key!r} has its own argument; write Recipe(..., {key}={value!r})."
        elif row is not None and key in row.fixed:
            yield f"optimizer_kwargs: {name} always has {key}={row.fixed[key]!r}; it cannot be set."
        elif key not in accepted:
            yield f"optimizer_kwargs: {name} has no {key!r}.{nearest(key, rest)} It takes: {', '.join(rest) or 'none'}."
    missing = [key for key in rest if accepted[key] and key not in given]
    if missing:
        example = ", ".join(f"{key!r}: ..." for key in missing)
        yield f"optimizer_kwargs: {name} has no default for {', '.join(missing)}; give optimizer_kwargs={{{example}}}."
    if row is None:
        return
    clean, problems = check_hyperparameters(
        row, {key: value for key, value in given.items() if key in rest}, where="optimizer_kwargs."
    )
    yield from problems
    momentum = {"momentum": o["momentum"]} if "momentum" in o else {}
    yield from check_momentum(row, {**row.hyperparameters, **clean, **momentum})


def class_keywords(optimizer: type) -> dict[str, bool] | None:
    """Keyword -> required, of an optimizer class and of the bases it hands `**kwargs` to.

    Returns:
        None where the class is no torch optimizer (told by name, so that torch is not imported for it).

    Example:
        >>> import torch
        >>> class Mine(torch.optim.SGD):
        ...     def __init__(self, params, rho, **kwargs): super().__init__(params, **kwargs)
        >>> keywords = class_keywords(Mine)
        >>> keywords["rho"], keywords["momentum"]
        (True, False)
    """
    if not any(
        base.__module__.startswith("torch.optim") and base.__name__ == "Optimizer" for base in optimizer.__mro__
    ):
        return None
    found: dict[str, bool] = {}
    for base in optimizer.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = list(inspect.signature(base.__init__).parameters.values())[2:]  # type: ignore[misc]
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        found = {p.name: p.default is p.empty for p in named} | found
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found
