"""The schedule of a run: fractions, epochs and caps become optimizer steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from lit_opt.overrides import build_spec, parse_duration
from lit_opt.recipes.common import DECAYS
from lit_opt.recipes.schema import Decay, DecaySpec, RecipeSpec, Value
from lit_opt.resolved import Provenance, RunFacts
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
        facts: What is known of the run.
        complete: An unknown horizon that is needed is a problem; otherwise the schedule is None.
    """
    total = facts.total_steps
    kind, numbers, origins = _decay(spec, o)
    if total is not None and not (isinstance(total, int) and total > 0):
        return None, origins, [f"total_steps: {total!r} is not allowed; give a whole number above 0."]
    warmup, origins["warmup"], problems = _warmup_steps(spec, o, facts)
    origins["warmup_start"] = Provenance(number=spec.warmup.start.number, origin="recipe", value=spec.warmup.start)
    if total is None and kind != "constant":
        problems = [
            f"total_steps: the horizon of the run is unknown, and the decay {kind!r} needs it; {HORIZON_REMEDIES}, or "
            "decay='constant'."
        ]
    if warmup is not None and total is not None and warmup >= total and warmup > 0:
        problems.append(
            f"warmup: {warmup} steps are as long as the run or longer ({total} steps); give a shorter warmup= or a longer run."
        )
    if problems or warmup is None:
        return None, origins, problems if complete else []
    cooldown = numbers.get("cooldown", 0)
    return (
        Schedule(
            total_steps=total,
            warmup_steps=warmup,
            warmup_start=float(spec.warmup.start.number),  # type: ignore[arg-type]
            kind=kind,
            final=float(numbers.get("final", 0.0)),
            power=float(numbers.get("power", 1.0)),
            milestones=tuple(round(m * (total or 0)) for m in numbers.get("milestones", ())),
            gamma=float(numbers.get("gamma", 1.0)),
            cooldown_steps=round(cooldown * (total or 0)) if cooldown < 1 else int(cooldown),
        ),
        origins,
        [],
    )


def _decay(spec: RecipeSpec, o: Mapping[str, Any]) -> tuple[str, dict[str, Any], Origins]:
    """Kind and numbers of the decay; a kind other than the recipe's brings its own defaults."""
    given = o.get("decay", DecaySpec())
    yours = DecaySpec(kind=given) if isinstance(given, str) else build_spec(DecaySpec, given)
    kind = yours.kind or str(spec.decay.kind.number)
    base: Decay = spec.decay if kind == spec.decay.kind.number else DECAYS[kind]
    numbers: dict[str, Any] = {}
    origins: Origins = {"decay": Provenance(number=kind, origin="yours" if yours.kind else "recipe", value=base.kind)}
    for f in fields(DecaySpec):
        own: Value | None = getattr(base, f.name)
        override = getattr(yours, f.name)
        if f.name == "kind" or (own is None and override is None):
            continue
        numbers[f.name] = own.number if override is None and own is not None else override
        origins[f"decay.{f.name}"] = Provenance(
            number=numbers[f.name], origin="recipe" if override is None else "yours", value=own
        )
    return kind, numbers, origins


def _warmup_steps(spec: RecipeSpec, o: Mapping[str, Any], facts: RunFacts) -> tuple[int | None, Provenance, list[str]]:
    given = o.get("warmup", spec.warmup.length.number)
    origin = "yours" if "warmup" in o else "recipe"

    def done(steps: int | None, note: str, *problems: str) -> tuple[int | None, Provenance, list[str]]:
        number = given if steps is None else steps
        return (
            steps,
            Provenance(number=number, origin=origin, note=note, value=spec.warmup.length),
            list(problems),
        )

    if isinstance(given, str):
        amount, unit = parse_duration(given) or (0.0, "steps")
        if unit == "steps":
            return done(round(amount), f"{amount:g} steps")
        if facts.steps_per_epoch is None:
            return done(
                None,
                "",
                f"warmup: {given!r} counts epochs, and the steps of an epoch are unknown; give steps.",
            )
        return done(round(amount * facts.steps_per_epoch), f"{given} of {facts.steps_per_epoch:g} steps")
    if isinstance(given, int):
        return done(given, f"{given} steps")
    fraction = float(given)
    if facts.total_steps is None:
        return done(
            None,
            f"{fraction:.3g} of the run",
            f"warmup: {fraction:g} is a fraction of the run, and its length is unknown; {HORIZON_REMEDIES}, or "
            "warmup= in steps.",
        )
    steps, note = round(fraction * facts.total_steps), f"{fraction:.3g} of {facts.total_steps:,} steps"
    cap = spec.warmup.max_steps
    if cap is not None and "warmup" not in o and steps > int(cap.number):  # type: ignore[arg-type]
        return done(int(cap.number), f"{note}, at most {cap.number:,}")  # type: ignore[arg-type]
    return done(steps, note)
