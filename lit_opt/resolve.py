"""spec + overrides + facts of the run -> ResolvedRecipe (floats with their provenance), or all errors at once.

No torch: `lit-opt explain` resolves as well, with the facts that it does not know left open.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lit_opt.errors import RecipeError
from lit_opt.optim.registry import REQUIRED, OptimizerRow, get_row
from lit_opt.overrides import build_spec, find_problems
from lit_opt.recipes.schema import ClipSpec, EMASpec, GroupRule, RecipeSpec, Value
from lit_opt.resolve_lr import resolve_lr
from lit_opt.resolve_schedule import resolve_schedule
from lit_opt.resolved import Provenance, ResolvedRecipe, RunFacts

__all__ = ["Provenance", "ResolvedRecipe", "RunFacts", "preview", "resolve"]


def resolve(
    spec: RecipeSpec, overrides: Mapping[str, Any] | None = None, facts: RunFacts | None = None
) -> ResolvedRecipe:
    """Turn a recipe into the numbers of one run.

    Args:
        spec: From `lit_opt.recipes.get_recipe`.
        overrides: The arguments of `Recipe` that are not None.
        facts: What is known of the run.

    Raises:
        RecipeError: All problems at once, missing facts included.

    Example:
        >>> from lit_opt.recipes import get_recipe
        >>> facts = RunFacts(total_steps=1000, parameter_count=10_000_000)
        >>> resolve(get_recipe("llm"), {"weight_decay": 0.05}, facts).lr
        0.0006
    """
    return _resolve(spec, overrides or {}, facts or RunFacts(), complete=True)


def preview(
    spec: RecipeSpec, overrides: Mapping[str, Any] | None = None, facts: RunFacts | None = None
) -> ResolvedRecipe:
    """The same with unknown facts left open: rates at their reference batch, no schedule without a horizon.

    Example:
        >>> from lit_opt.recipes import get_recipe
        >>> preview(get_recipe("cnn")).lr, preview(get_recipe("cnn")).schedule
        (0.1, None)
    """
    return _resolve(spec, overrides or {}, facts or RunFacts(), complete=False)


def _resolve(spec: RecipeSpec, overrides: Mapping[str, Any], facts: RunFacts, *, complete: bool) -> ResolvedRecipe:
    o = {key: value for key, value in overrides.items() if value is not None}
    problems = find_problems(spec, o)
    if problems:
        raise RecipeError(problems)
    facts = _with_overrides(facts, o)
    optimizer = o.get("optimizer", spec.optimizer.number)
    row = get_row(optimizer) if isinstance(optimizer, str) else None
    origins = {"optimizer": _origin(o, "optimizer", optimizer, spec.optimizer)}

    lr, origins["lr"], lr_problems = resolve_lr(spec, row, o, facts, complete=complete)
    schedule, schedule_origins, schedule_problems = resolve_schedule(spec, o, facts, complete=complete)
    if lr_problems or schedule_problems:
        raise RecipeError([*lr_problems, *schedule_problems])
    origins |= schedule_origins
    weight_decay, hyperparameters, origin = _hyperparameters(spec, row, o)
    origins |= origin
    clip, origins["clip"] = _clip(spec, o)
    ema, origins["ema"] = _ema(spec, o)
    layer_decay = o.get("layer_decay", spec.layer_decay.number if spec.layer_decay else None)
    if layer_decay is not None:
        origins["layer_decay"] = _origin(o, "layer_decay", layer_decay, spec.layer_decay)
    origins["no_decay"] = Provenance(number=spec.no_decay.number, origin="recipe", value=spec.no_decay)
    return ResolvedRecipe(
        name=spec.name,
        setting=spec.setting,
        optimizer=optimizer,
        lr=lr,
        weight_decay=weight_decay,
        hyperparameters=hyperparameters,
        no_decay=tuple(spec.no_decay.number),  # type: ignore[arg-type]
        schedule=schedule,
        clip=clip,
        ema=ema,
        groups=tuple(build_spec(GroupRule, rule) for rule in o.get("groups", ())),
        layer_decay=layer_decay,
        fallback=dict(o.get("fallback", {})),
        parts={name: float(value.number) for name, value in spec.parts.items()},  # type: ignore[arg-type]
        hints={name: value.number for name, value in spec.hints.items()},
        facts=facts,
        provenance=origins,
    )


def _with_overrides(facts: RunFacts, o: Mapping[str, Any]) -> RunFacts:
    known = asdict(facts)
    for key, name in (
        ("batch_size", "global_batch"),
        ("batch_tokens", "tokens_per_batch"),
        ("total_steps", "total_steps"),
    ):
        if key in o:
            known[name] = o[key]
    return RunFacts(**known)


def _origin(o: Mapping[str, Any], key: str, number: Any, value: Value | None) -> Provenance:
    return Provenance(number=number, origin="yours" if key in o else "recipe", value=value)


def _hyperparameters(
    spec: RecipeSpec, row: OptimizerRow | None, o: Mapping[str, Any]
) -> tuple[float, dict[str, Any], dict[str, Provenance]]:
    """Weight decay and the optimizer's other keywords; another optimizer's values are never inherited."""
    published: dict[str, Value] = {}
    origin = "recipe"
    if row is not None and row.name == spec.optimizer.number:
        published = {"weight_decay": spec.weight_decay, **spec.hyperparameters}
    elif row is not None and spec.setting in row.settings:
        own = row.settings[spec.setting]
        published, origin = {"weight_decay": own.weight_decay, **own.hyperparameters}, "registry"
    defaults = {k: v for k, v in row.hyperparameters.items() if k != "lr" and v is not REQUIRED} if row else {}
    given = {k: o[k] for k in ("weight_decay", "betas", "momentum") if k in o} | dict(o.get("optimizer_kwargs", {}))

    numbers = defaults | {k: v.number for k, v in published.items()} | given
    if "betas" in numbers:
        numbers["betas"] = tuple(numbers["betas"])
    origins = {
        key: Provenance(
            number=number,
            origin="yours" if key in given else origin if key in published else "default",
            value=published.get(key),
        )
        for key, number in numbers.items()
    }
    return float(numbers.pop("weight_decay", 0.0)), numbers, origins


def _clip(spec: RecipeSpec, o: Mapping[str, Any]) -> tuple[ClipSpec | None, Provenance]:
    given = o.get("clip", spec.clip.number)
    clip = ClipSpec(limit=float(given)) if isinstance(given, int | float) else build_spec(ClipSpec, given)
    origin = _origin(o, "clip", clip.limit, spec.clip)
    return (clip if clip.limit > 0 else None), origin


def _ema(spec: RecipeSpec, o: Mapping[str, Any]) -> tuple[EMASpec | None, Provenance]:
    given = o.get("ema", spec.ema.number)
    if given is True:
        given = spec.ema.number or EMASpec().decay
    if isinstance(given, bool | int | float):
        ema = EMASpec(decay=float(given)) if given else None
    else:
        ema = build_spec(EMASpec, given)
    return ema, _origin(o, "ema", ema.decay if ema else 0.0, spec.ema)
