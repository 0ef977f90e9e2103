"""spec + overrides + facts of the run -> ResolvedRecipe (floats with their provenance), or all errors at once.

No torch: `lit-opt explain` resolves as well, with the facts that it does not know left open.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from lit_opt.errors import RecipeError
from lit_opt.optim.check import check_hyperparameters
from lit_opt.optim.registry import REQUIRED, OptimizerRow
from lit_opt.recipes.schema import ClipSpec, EMASpec, GroupRule, RecipeSpec, Value
from lit_opt.resolve.fallback import resolve_fallback
from lit_opt.resolve.lr import resolve_lr
from lit_opt.resolve.notes import batch_notes
from lit_opt.resolve.overrides import clean, find_problems
from lit_opt.resolve.overrides_optimizer import used_row
from lit_opt.resolve.plain import build_spec, is_number, is_real, is_whole, part_spec
from lit_opt.resolve.resolved import Provenance, ResolvedRecipe, RunFacts
from lit_opt.resolve.schedule import resolve_schedule
from lit_opt.resolve.transfer import follow_run
from lit_opt.transfer.spec import make_transfer
from lit_opt.transfer.width import no_rule

__all__ = ["Provenance", "ResolvedRecipe", "RunFacts", "preview", "resolve"]


def resolve(
    spec: RecipeSpec, overrides: Mapping[str, Any] | None = None, facts: RunFacts | None = None
) -> ResolvedRecipe:
    """Turn a recipe into the numbers of one run.

    Args:
        spec: From `lit_opt.recipes.get_recipe`.
        overrides: The arguments of `Recipe` that are not None.
        facts: What is known of the run.

    Returns:
        Floats, each with its provenance.

    Raises:
        RecipeError: All overrides and facts that are wrong, at once; where none is, all facts that are missing.

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

    Args:
        spec: From `lit_opt.recipes.get_recipe`.
        overrides: The arguments of `Recipe` that are not None.
        facts: What is known of the run.

    Example:
        >>> from lit_opt.recipes import get_recipe
        >>> preview(get_recipe("cnn")).lr, preview(get_recipe("cnn")).schedule
        (0.1, None)
    """
    return _resolve(spec, overrides or {}, facts or RunFacts(), complete=False)


def _resolve(spec: RecipeSpec, overrides: Mapping[str, Any], facts: RunFacts, *, complete: bool) -> ResolvedRecipe:
    o = clean(overrides)
    facts = RunFacts(**clean(asdict(facts)))
    problems = [*find_problems(spec, o), *_fact_problems(facts)]
    if problems:
        raise RecipeError(problems)
    facts = _with_overrides(facts, o)
    optimizer = o.get("optimizer", spec.optimizer.number)
    row = used_row(spec, o)
    origins = {"optimizer": _origin(o, "optimizer", optimizer, spec.optimizer)}

    lr, origins["lr"], lr_problems = resolve_lr(spec, row, o, facts, complete=complete)
    averages = row is not None and row.averages_itself
    if averages:  # in place of a decaying rate and of averages beside the optimizer
        o = {**o, "decay": "constant", "ema": 0.0}
    schedule, schedule_origins, schedule_problems = resolve_schedule(spec, o, facts, complete=complete)
    if lr_problems or schedule_problems:
        raise RecipeError([*lr_problems, *schedule_problems])
    origins |= schedule_origins
    weight_decay, hyperparameters, origin = _hyperparameters(spec, row, o)
    origins |= origin
    clip, origins["clip"] = _clip(spec, o)
    ema, origins["ema"] = _ema(spec, o)
    if averages:
        note = f"{optimizer} averages its weights itself"
        for key in ("decay", "ema"):
            origins[key] = replace(origins[key], origin="registry", note=note)
    layer_decay = o.get("layer_decay", spec.layer_decay.number if spec.layer_decay else None)
    if layer_decay is not None:
        origins["layer_decay"] = _origin(o, "layer_decay", layer_decay, spec.layer_decay)
    origins["no_decay"] = Provenance(number=spec.no_decay.number, origin="recipe", value=spec.no_decay)
    fallback, origin = resolve_fallback(spec, row, o, lr, weight_decay, hyperparameters)
    origins |= origin
    transfer = make_transfer(o["transfer"]) if "transfer" in o else None
    if transfer is not None and row is not None:
        refused = [text for text in (no_rule(row, hyperparameters),) if text]
        hyperparameters |= {"lr": lr, "weight_decay": weight_decay}
        hyperparameters, fallback, missing = follow_run(transfer, row, hyperparameters, fallback, facts, origins)
        lr, weight_decay = hyperparameters.pop("lr"), hyperparameters.pop("weight_decay")
        if refused or (missing and complete):
            raise RecipeError([*refused, *missing])
        origins["transfer"] = Provenance(number=str(transfer), origin="yours", note=" ".join(missing))
    parts, part_globs, origin = _parts(spec, o)
    origins |= origin
    hint = "a hint, no callback can set it"
    origins |= {
        f"hints.{k}": Provenance(number=v.number, origin="recipe", note=hint, value=v) for k, v in spec.hints.items()
    }
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
        fallback=fallback,
        parts=parts,
        part_globs=part_globs,
        trains=spec.trains,
        transfer=transfer,
        hints={name: value.number for name, value in spec.hints.items()},
        notes=batch_notes(spec, facts, origins["lr"].note, own_optimizer=optimizer == spec.optimizer.number),
        facts=facts,
        provenance=origins,
    )


def _fact_problems(facts: RunFacts) -> list[str]:
    problems = []
    for name, number in asdict(facts).items():
        least = 0 if name == "parameter_count" else 1
        fine = is_real(number) and number > 0 if name == "steps_per_epoch" else is_whole(number, least)
        if number is not None and not fine:
            problems.append(f"{name}: {number!r} is not allowed as a fact of a run; give a number from {least} up.")
    return problems


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
    elif row is not None and spec.registry_key in row.settings:
        own = row.settings[spec.registry_key]
        published, origin = {"weight_decay": own.weight_decay, **own.hyperparameters}, "registry"
    defaults = {k: v for k, v in row.hyperparameters.items() if k != "lr" and v is not REQUIRED} if row else {}
    given = {k: o[k] for k in ("weight_decay", "betas", "momentum") if k in o} | dict(o.get("optimizer_kwargs", {}))
    if row is not None:
        given, _ = check_hyperparameters(row, given)  # 0 becomes 0.0, a list of betas a tuple
    elif "betas" in given:
        given["betas"] = tuple(float(beta) for beta in given["betas"])

    numbers = defaults | {k: v.number for k, v in published.items()} | given
    origins = {
        key: Provenance(
            number=number,
            origin="yours" if key in given else origin if key in published else "default",
            value=published.get(key),
        )
        for key, number in numbers.items()
    }
    origins.setdefault("weight_decay", Provenance(number=0.0, origin="default", note="the optimizer has none"))
    return float(numbers.pop("weight_decay", 0.0)), numbers, origins


def _clip(spec: RecipeSpec, o: Mapping[str, Any]) -> tuple[ClipSpec | None, Provenance]:
    given = o.get("clip", spec.clip.number)
    clip = build_spec(ClipSpec, {"limit": float(given)} if is_number(given) else given)
    return (clip if clip.limit > 0 else None), _origin(o, "clip", clip.limit, spec.clip)


def _parts(
    spec: RecipeSpec, o: Mapping[str, Any]
) -> tuple[dict[str, float], dict[str, tuple[str, ...]], dict[str, Provenance]]:
    """Multiplier of each part, the user's globs, and provenance."""
    scales, globs, origins = {}, {}, {}
    for name, value in spec.parts.items():
        yours = part_spec(o.get("parts", {}).get(name, {}))
        scales[name] = float(value.number) if yours.lr_scale is None else float(yours.lr_scale)  # type: ignore[arg-type]
        if yours.match:
            globs[name] = (yours.match,) if isinstance(yours.match, str) else yours.match
        origins[f"parts.{name}"] = Provenance(
            number=scales[name],
            origin="recipe" if yours.lr_scale is None else "yours",
            note=f"matches {', '.join(globs[name])}" if name in globs else "",
            value=value,
        )
    return scales, globs, origins


def _ema(spec: RecipeSpec, o: Mapping[str, Any]) -> tuple[EMASpec | None, Provenance]:
    given = o.get("ema", spec.ema.number)
    if isinstance(given, bool):
        given = (spec.ema.number or EMASpec().decay) if given else 0.0
    ema = build_spec(EMASpec, {"decay": float(given)} if is_number(given) else given)
    shown = ema.kind if ema.kind == "swa" else ema.decay
    return (ema if ema.decay > 0 else None), _origin(o, "ema", shown, spec.ema)
