"""The peak learning rate of a run: by override, by model size, by batch, or by the optimizer's own value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lit_opt.optim.registry import OptimizerRow
from lit_opt.recipes.schema import RecipeSpec, Value
from lit_opt.resolved import Provenance, RunFacts
from lit_opt.scaling import pick_row, scale_lr

Outcome = tuple[float, Provenance, list[str]]


def resolve_lr(
    spec: RecipeSpec, row: OptimizerRow | None, o: Mapping[str, Any], facts: RunFacts, *, complete: bool
) -> Outcome:
    """The peak, its provenance, and problems (unknown facts that are needed).

    Args:
        spec: The recipe.
        row: Registry row of the optimizer, None for a user's class.
        o: Overrides that are not None, already checked.
        facts: What is known of the run.
        complete: Unknown facts that are needed are problems; otherwise the published value is taken as it is.
    """
    if "lr" in o:
        return _done(float(o["lr"]), "yours", "as given, never rescaled", spec.lr.base)
    if "base_lr" in o:
        return _from_base(spec, o, facts, complete)
    if row is not None and row.name != spec.optimizer.number:
        return _from_registry(spec, row, facts, complete)
    if spec.lr.by_batch:
        return _from_batch_table(spec, facts, complete)
    value, note = spec.lr.base, ""
    if spec.lr.by_parameters:
        if facts.parameter_count is not None:
            value = pick_row(facts.parameter_count, spec.lr.by_parameters)
            note = f"{facts.parameter_count:,} trainable non-embedding parameters"
        elif complete:
            return _missing(value, "parameter_count: the learning rate depends on the model's size; give RunFacts("
                            "parameter_count=...) (trainable parameters without the embeddings), or lr=.")  # fmt: skip
    s = spec.lr.scaling
    return _scaled(
        value,
        "recipe",
        note,
        facts,
        complete,
        reference=s.reference_batch.number,
        rule=s.rule.number,
        unit=s.batch_unit,
        limit=s.limit.number if s.limit else None,
        down=s.down,
    )


def _from_base(spec: RecipeSpec, o: Mapping[str, Any], facts: RunFacts, complete: bool) -> Outcome:
    s = spec.lr.scaling
    base = Value(
        float(o["base_lr"]),
        unit=f"peak, per step at its batch of {s.batch_unit}",
        range=spec.lr.base.range,
        common_practice=spec.lr.base.common_practice,
        source="yours",
    )
    if s.rule.number == "none":
        return _missing(base, f"base_lr: {spec.name} has no rule that scales a rate with the batch; give lr=.")
    return _scaled(
        base,
        "yours",
        "",
        facts,
        complete,
        reference=o.get("base_batch_size", s.reference_batch.number),
        rule=s.rule.number,
        unit=s.batch_unit,
        limit=s.limit.number if s.limit else None,
        down=s.down,
    )


def _from_registry(spec: RecipeSpec, row: OptimizerRow, facts: RunFacts, complete: bool) -> Outcome:
    own = row.settings[spec.setting]
    if own.reference_batch is None or own.rule == "none":
        return _done(float(own.lr.number), "registry", "published for this optimizer", own.lr)  # type: ignore[arg-type]
    return _scaled(
        own.lr,
        "registry",
        "",
        facts,
        complete,
        reference=own.reference_batch,
        rule=own.rule,
        unit=own.batch_unit,
        limit=None,
        down="momentum" in row.hyperparameters,
    )


def _from_batch_table(spec: RecipeSpec, facts: RunFacts, complete: bool) -> Outcome:
    batch = facts.global_batch
    if batch is None:
        if complete:
            return _missing(spec.lr.base, _ask_for_batch("samples"))
        return _done(float(spec.lr.base.number), "recipe", "", spec.lr.base)  # type: ignore[arg-type]
    value = pick_row(batch, spec.lr.by_batch)
    reference = int(spec.lr.scaling.reference_batch.number)  # type: ignore[arg-type]
    note = f"published for a batch up to {batch:,}" if batch >= reference else (
        f"a batch of {batch:,} is below {reference:,}, the least it was published for; "
        "consider large_batch/control or cnn"
    )  # fmt: skip
    return _done(float(value.number), "recipe", note, value)  # type: ignore[arg-type]


def _scaled(
    value: Value, origin: str, note: str, facts: RunFacts, complete: bool, *, unit: str, **rule: Any
) -> Outcome:
    base = float(value.number)  # type: ignore[arg-type]
    batch = facts.tokens_per_batch if unit == "tokens" else facts.global_batch
    if batch is None or rule["rule"] == "none":
        # Tokens cannot be read off a loader, and below the reference nothing is scaled: not worth a refusal.
        if complete and unit != "tokens" and rule["rule"] != "none":
            return _missing(value, _ask_for_batch(unit))
        unknown = "" if rule["rule"] == "none" else f"batch in {unit} unknown, not scaled"
        return _done(base, origin, _join(note, unknown), value)
    floor = value.range[0] if value.range else 0.0
    lr, words = scale_lr(base, batch=batch, unit=unit, floor=floor, **rule)
    return _done(lr, origin, _join(note, words), value)


def _ask_for_batch(unit: str) -> str:
    name = "batch_tokens" if unit == "tokens" else "batch_size"
    return (
        f"{name}: the learning rate belongs to a batch, and the run's global batch (loader x accumulation x "
        f"data-parallel size, in {unit}) is unknown; give Recipe(..., {name}=...), or lr=."
    )


def _done(lr: float, origin: str, note: str, value: Value) -> Outcome:
    return lr, Provenance(number=lr, origin=origin, note=note, value=value), []


def _missing(value: Value, problem: str) -> Outcome:
    lr, provenance, _ = _done(float(value.number), "recipe", "", value)  # type: ignore[arg-type]
    return lr, provenance, [problem]


def _join(*parts: str) -> str:
    return "; ".join(part for part in parts if part)
