"""The peak learning rate of a run: by override, by model size, by batch, or by the optimizer's own value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lit_opt.optim.registry import OptimizerRow
from lit_opt.recipes.schema import RecipeSpec, Value
from lit_opt.resolve.resolved import Provenance, RunFacts
from lit_opt.scaling import pick_row, scale_lr

Outcome = tuple[float, Provenance, list[str]]


@dataclass(frozen=True, kw_only=True)
class BatchRule:
    """How a rate follows the batch, see `lit_opt.scaling.scale_lr`."""

    reference: int
    rule: str
    unit: str
    limit: int | None
    down: bool


def batch_rule(spec: RecipeSpec, row: OptimizerRow | None) -> BatchRule | None:
    """The rule of this optimizer in this setting, None where none is published.

    Args:
        spec: The recipe. Its rule belongs to its own optimizer.
        row: Registry row of the optimizer that is used, None for a user's class.

    Example:
        >>> from lit_opt.optim import get_row
        >>> from lit_opt.recipes import get_recipe
        >>> batch_rule(get_recipe("cnn"), get_row("adamw"))
        BatchRule(reference=1024, rule='linear', unit='samples', limit=8192, down=False)
    """
    s = spec.lr.scaling
    limit = int(s.limit.number) if s.limit else None  # type: ignore[arg-type]
    if row is None:
        return None
    if row.name == spec.optimizer.number:
        if s.rule.number == "none":
            return None
        reference = int(s.reference_batch.number)  # type: ignore[arg-type]
        return BatchRule(reference=reference, rule=str(s.rule.number), unit=s.batch_unit, limit=limit, down=s.down)
    own = row.settings.get(spec.registry_key)
    if own is None or own.reference_batch is None or own.rule == "none":
        return None
    return BatchRule(
        reference=own.reference_batch,
        rule=own.rule,
        unit=own.batch_unit,
        limit=limit if own.rule == s.rule.number else None,  # where a rule ends is a matter of the setting
        down=row.factory.endswith(":SGD"),
    )


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

    Example:
        >>> from lit_opt.optim import get_row
        >>> from lit_opt.recipes import get_recipe
        >>> lr, why, problems = resolve_lr(get_recipe("vit"), get_row("adamw"), {}, RunFacts(global_batch=1024), complete=True)
        >>> lr, why.note
        (0.001, '0.00025 at 256 samples x 4 (linear then sqrt) at 1,024')
    """
    origin, value, note, problem = _published(spec, row, facts)
    if "lr" in o:
        lr = float(o["lr"])
        return lr, Provenance(number=lr, origin="yours", note="as given, never rescaled", value=value), []
    rule = batch_rule(spec, row)
    if "base_lr" in o:
        return _from_base(spec, rule, value, o, facts, complete)
    assert value is not None  # find_problems asks for lr= where nothing is published
    if problem and complete:
        return _done(value, origin, note, [problem])
    if rule is None:
        return _done(value, origin, note)
    return _scaled(rule, value, origin, note, facts, ask=complete and rule.unit != "tokens")


def _published(spec: RecipeSpec, row: OptimizerRow | None, facts: RunFacts) -> tuple[str, Value | None, str, str]:
    """Origin, published value, note, and the fact that is missing to choose it."""
    if row is None:
        return "", None, "", ""
    if row.name != spec.optimizer.number:
        own = row.settings.get(spec.registry_key)
        return ("registry", own.lr, own.lr.unit, "") if own else ("", None, "", "")
    if spec.lr.by_batch:
        if facts.global_batch is None:
            return "recipe", spec.lr.base, "", _ask_for_batch("samples")
        return "recipe", pick_row(facts.global_batch, spec.lr.by_batch), _batch_note(spec, facts.global_batch), ""
    if spec.lr.by_parameters:
        if facts.parameter_count is None:
            return "recipe", spec.lr.base, "", (
                "parameter_count: the learning rate depends on the model's size; give RunFacts(parameter_count=...) "
                "(trainable parameters without the embeddings), or lr=."
            )  # fmt: skip
        value = pick_row(facts.parameter_count, spec.lr.by_parameters)
        return "recipe", value, f"{facts.parameter_count:,} trainable non-embedding parameters", ""
    return "recipe", spec.lr.base, "", ""


def _batch_note(spec: RecipeSpec, batch: int) -> str:
    reference = int(spec.lr.scaling.reference_batch.number)  # type: ignore[arg-type]
    if batch >= reference:
        return f"published by batch, here {batch:,} {spec.lr.scaling.batch_unit}"
    return (
        f"a batch of {batch:,} is below {reference:,}, the least it was published for; "
        "consider large_batch/control or cnn"
    )


def _from_base(
    spec: RecipeSpec,
    rule: BatchRule | None,
    value: Value | None,
    o: Mapping[str, Any],
    facts: RunFacts,
    complete: bool,
) -> Outcome:
    assert rule is not None and value is not None  # find_problems refuses base_lr= without a published rule
    rule = replace(rule, reference=o.get("base_batch_size", rule.reference))
    yours = replace(value, number=float(o["base_lr"]), unit=f"peak, per step at {rule.reference:,} {rule.unit}")
    return _scaled(rule, yours, "yours", "", facts, ask=complete)


def _scaled(rule: BatchRule, value: Value, origin: str, note: str, facts: RunFacts, *, ask: bool) -> Outcome:
    """Scale to the batch of the run. A published rate in tokens is kept where they are unknown (`ask=False`)."""
    batch = facts.tokens_per_batch if rule.unit == "tokens" else facts.global_batch
    if batch is None:
        problems = [_ask_for_batch(rule.unit)] if ask else []
        return _done(value, origin, _join(note, f"batch in {rule.unit} unknown, not scaled"), problems)
    lr, words = scale_lr(
        float(value.number),  # type: ignore[arg-type]
        batch=batch,
        reference=rule.reference,
        rule=rule.rule,
        unit=rule.unit,
        limit=rule.limit,
        down=rule.down,
        floor=value.range[0] if value.range else 0.0,
    )
    return lr, Provenance(number=lr, origin=origin, note=_join(note, words), value=value), []


def _done(value: Value, origin: str, note: str, problems: list[str] | None = None) -> Outcome:
    lr = float(value.number)  # type: ignore[arg-type]
    return lr, Provenance(number=lr, origin=origin, note=note, value=value), problems or []


def _ask_for_batch(unit: str) -> str:
    name = "batch_tokens" if unit == "tokens" else "batch_size"
    return (
        f"{name}: the learning rate belongs to a batch, and the run's global batch (loader x accumulation x "
        f"data-parallel size, in {unit}) is unknown; give Recipe(..., {name}=...), or lr=."
    )


def _join(*parts: str) -> str:
    return "; ".join(part for part in parts if part)
