"""The schedule of a run: fractions, epochs and caps become optimizer steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from lit_opt.recipes.common import DECAYS
from lit_opt.recipes.schema import Decay, DecaySpec, RecipeSpec, Value
from lit_opt.resolve.overrides import parse_duration
from lit_opt.resolve.plain import build_spec
from lit_opt.resolve.resolved import Provenance, RunFacts
from lit_opt.schedules import Schedule

Origins = dict[str, Provenance]

HORIZON_REMEDIES = (
    "give Trainer(max_steps=...), Trainer(limit_train_batches=...) with max_epochs, or Recipe(total_steps=...)"
)


def resolve_schedule(
    spec: RecipeSpec, o: Mapping[str, Any], facts: RunFacts, *, complete: bool
) -> tuple[Schedule | None, Origins, list[str]]:
    """The schedule in optimizer steps, its provenance, and problems.

    Args:
        spec: The recipe.
        o: Overrides that are not None, already checked.
        facts: What is known of the run, already checked.
        complete: An unknown horizon that is needed is a problem; otherwise the schedule is None.

    Example:
        >>> from lit_opt.recipes import get_recipe
        >>> _, why, _ = resolve_schedule(get_recipe("vit"), {}, RunFacts(total_steps=1000), complete=True)
        >>> why["warmup"].number, why["warmup"].note
        (50, '0.05 of 1,000 steps')
    """
    total = facts.total_steps
    kind, numbers, origins = _decay(spec, o)
    warmup, origins["warmup"] = _warmup(spec, o, facts)
    origins["warmup_start"] = Provenance(number=spec.warmup.start.number, origin="recipe", value=spec.warmup.start)
    problems = _missing_facts(o.get("warmup", spec.warmup.length.number), kind, warmup, facts)
    if total is None or warmup is None:
        open_horizon = Schedule(
            total_steps=None, warmup_steps=warmup or 0, warmup_start=_start(spec), kind=kind, gamma=1.0
        )
        return (open_horizon if not problems else None), origins, (problems if complete else [])
    milestones = tuple(max(1, round(m * total)) for m in numbers.get("milestones", ()))
    if milestones:
        note = "steps " + ", ".join(f"{m:,}" for m in milestones)
        origins["decay.milestones"] = replace(origins["decay.milestones"], note=note)
    length = numbers.get("cooldown", 0)
    cooldown = round(length * total) if isinstance(length, float) else length
    if cooldown:
        origins["decay.cooldown"] = replace(origins["decay.cooldown"], note=f"the last {cooldown:,} steps")
    problems += _too_long(warmup, cooldown, total)
    schedule = Schedule(
        total_steps=total,
        warmup_steps=warmup,
        warmup_start=_start(spec),
        kind=kind,
        final=float(numbers.get("final", 0.0)),
        power=float(numbers.get("power", 1.0)),
        milestones=milestones,
        gamma=float(numbers.get("gamma", 1.0)),
        cooldown_steps=cooldown,
    )
    return (None, origins, problems) if problems else (schedule, origins, [])


def _start(spec: RecipeSpec) -> float:
    return float(spec.warmup.start.number)  # type: ignore[arg-type]


def _missing_facts(warmup_given: object, kind: str, warmup: int | None, facts: RunFacts) -> list[str]:
    problems = []
    if warmup is None and isinstance(warmup_given, str):
        problems.append(f"warmup: {warmup_given!r} counts epochs, and the steps of an epoch are unknown; give steps.")
    if facts.total_steps is not None:
        return problems
    needs, remedy = [], []
    if kind != "constant":
        needs.append(f"the decay {kind!r}")
        remedy.append("decay='constant'")
    if warmup is None and isinstance(warmup_given, float):
        needs.append(f"the warmup ({warmup_given:g} of the run)")
        remedy.append("warmup= in steps")
    if needs:
        verb = "needs" if len(needs) == 1 else "need"
        problems.append(
            f"total_steps: the horizon of the run is unknown, and {' and '.join(needs)} {verb} it; {HORIZON_REMEDIES}, "
            f"or {' with '.join(remedy)}."
        )
    return problems


def _too_long(warmup: int, cooldown: int, total: int) -> list[str]:
    if warmup >= total and warmup > 0:
        return [
            f"warmup: {warmup:,} steps are as long as the run or longer ({total:,} steps); give a shorter warmup= or a "
            "longer run."
        ]
    if warmup + cooldown > total:
        return [
            f"decay.cooldown: {cooldown:,} steps after a warmup of {warmup:,} do not fit into the run ({total:,} steps); "
            "give a shorter cooldown or warmup=, or a longer run."
        ]
    return []


def _decay(spec: RecipeSpec, o: Mapping[str, Any]) -> tuple[str, dict[str, Any], Origins]:
    """Kind and numbers of the decay; a kind other than the recipe's brings its own defaults."""
    given = o.get("decay", DecaySpec())
    yours = build_spec(DecaySpec, {"kind": given} if isinstance(given, str) else given)
    kind = yours.kind or str(spec.decay.kind.number)
    same = kind == spec.decay.kind.number
    base: Decay = spec.decay if same else DECAYS[kind]
    numbers: dict[str, Any] = {}
    origins: Origins = {
        "decay": Provenance(number=kind, origin="yours" if yours.kind else "recipe", value=spec.decay.kind)
    }
    for f in fields(DecaySpec):
        own: Value | None = getattr(base, f.name)
        override = getattr(yours, f.name)
        if f.name == "kind" or (own is None and override is None):
            continue
        numbers[f.name] = own.number if override is None and own is not None else override
        origin = "yours" if override is not None else "recipe" if same else "default"
        origins[f"decay.{f.name}"] = Provenance(number=numbers[f.name], origin=origin, value=own)
    return kind, numbers, origins


def _warmup(spec: RecipeSpec, o: Mapping[str, Any], facts: RunFacts) -> tuple[int | None, Provenance]:
    """Steps, None where a fact is missing, and their provenance."""
    given = o.get("warmup", spec.warmup.length.number)
    total = facts.total_steps
    steps: int | None
    if isinstance(given, str):
        amount, unit = parse_duration(given) or (0.0, "steps")
        per_unit = 1.0 if unit == "steps" else facts.steps_per_epoch
        steps = None if per_unit is None else round(amount * per_unit)
        note = given if unit == "steps" or per_unit is None else f"{given} of {per_unit:g} steps"
    elif isinstance(given, int):
        steps, note = given, f"{given:,} steps"
    else:
        steps = None if total is None else round(given * total)
        note = f"{given:.3g} of the run" if total is None else f"{given:.3g} of {total:,} steps"
        cap = spec.warmup.max_steps
        if steps is not None and cap is not None and "warmup" not in o and steps > int(cap.number):  # type: ignore[arg-type]
            steps = int(cap.number)  # type: ignore[arg-type]
            note += f", at most {steps:,}"
    if "warmup" in o and steps is not None and total is not None:
        judged = spec.warmup.length.judge(steps / total)
        note += f", {judged} of the run" if judged.startswith("outside") else ""
    origin = "yours" if "warmup" in o else "recipe"
    number = given if steps is None else steps
    return steps, Provenance(number=number, origin=origin, note=note, value=spec.warmup.length)
