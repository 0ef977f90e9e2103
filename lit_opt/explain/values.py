"""Why each value is what it is: a recipe, a user's overrides and the known facts become a list of entries.

`lit_opt.explain.formats` draws them. No torch, no lightning: `lit-opt explain` answers at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lit_opt.optim.matrix.scale import FORMULAS, UNITS, update_rms
from lit_opt.optim.registry import row_of
from lit_opt.recipes.schema import RecipeSpec, Value
from lit_opt.resolve import preview
from lit_opt.resolve.resolved import Provenance, ResolvedRecipe, RunFacts

TRANSFERRED = (
    "lr, weight_decay and eps above are the base's; `lit-opt plan` shows what each group gets, and by which rule"
)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One value of a recipe with everything needed to judge it.

    Args:
        section: Heading that it stands under.
        name: What a user types (`optimizer_kwargs.eps`), or words for what cannot be typed.
        number: What the run would use.
        default: The recipe's own value, where `number` is the user's; else None.
        origin: "recipe", "yours", "registry", "default" or "hint".
        unit: What it counts.
        range: Where to start, or None.
        practice: What well-known codebases do.
        source: Where it was read.
        notes: Arithmetic and remarks.
    """

    section: str
    name: str
    number: Any
    default: Any = None
    origin: str = "recipe"
    unit: str = ""
    range: tuple[float, float] | None = None
    practice: str = ""
    source: str = ""
    notes: tuple[str, ...] = ()

    @property
    def judgement(self) -> str:
        """Either "inside", "outside" or "" (no range, or no number)."""
        x = self.number
        if self.range is None or isinstance(x, bool) or not isinstance(x, int | float):
            return ""
        return "inside" if self.range[0] <= x <= self.range[1] else "outside"


def explain(spec: RecipeSpec, overrides: Mapping[str, Any] | None = None, facts: RunFacts | None = None) -> list[Entry]:
    """Every value of a recipe as an entry, in the order in which a user should read them.

    Args:
        spec: From `lit_opt.recipes.get_recipe`.
        overrides: The arguments of `Recipe`; None keeps the recipe's value.
        facts: What is known of the run; unknown facts are left open.

    Raises:
        RecipeError: All problems of the overrides at once.

    Example:
        >>> from lit_opt.recipes import get_recipe
        >>> lr = next(e for e in explain(get_recipe("llm"), {"lr": 1e-3}) if e.name == "lr")
        >>> lr.number, lr.default, lr.judgement
        (0.001, 0.0003, 'outside')
    """
    o = {key: value for key, value in (overrides or {}).items() if value is not None}
    resolved = preview(spec, o, facts)
    return [
        *_optimizer(spec, resolved),
        *_learning_rate(spec, resolved, o),
        *_weight_decay(spec, resolved),
        *_fallback(spec, resolved),
        *_schedule(spec, resolved, o),
        *_rest(spec, resolved),
        *(_from_value("Hints: a callback cannot set these", name, v, origin="hint") for name, v in spec.hints.items()),
    ]


def _optimizer(spec: RecipeSpec, resolved: ResolvedRecipe) -> Iterator[Entry]:
    section, p = "Optimizer", resolved.provenance
    rule = (
        (f"update: {row_of(resolved.optimizer, resolved.hyperparameters).rule}",)
        if isinstance(resolved.optimizer, str)
        else ()
    )
    yield _entry(section, "optimizer", p["optimizer"], spec.optimizer, number=resolved.optimizer_name, notes=rule)
    for key in resolved.hyperparameters:
        name = key if key in ("betas", "momentum") else f"optimizer_kwargs.{key}"
        own = spec.hyperparameters.get(key) if resolved.optimizer == spec.optimizer.number else p[key].value
        units = (unit_note(resolved),) if key == "scale" and resolved.hyperparameters[key] in UNITS else ()
        yield _entry(section, name, p[key], own, source=_default_source(resolved, p[key]), notes=units)


def _learning_rate(spec: RecipeSpec, resolved: ResolvedRecipe, o: Mapping[str, Any]) -> Iterator[Entry]:
    section, p = "Learning rate", resolved.provenance["lr"]
    own = spec.lr.base if p.origin == "yours" else p.value
    same = resolved.optimizer == spec.optimizer.number
    unknown_size = same and p.origin == "recipe" and spec.lr.by_parameters and resolved.facts.parameter_count is None
    size = ("the model's size decides, see the rows below",) if unknown_size else ()
    yield _entry(section, "lr", p, own if same or p.origin != "yours" else None, notes=size)
    if spec.moderate_batch is not None:
        yield _from_value(section, "largest moderate batch", spec.moderate_batch, notes=resolved.notes)
    if not same or "lr" in o:
        return
    s = spec.lr.scaling
    for limit, value in spec.lr.by_parameters:
        yield _from_value(section, f"lr, {_up_to(limit, 'parameters')}", value)
    for limit, value in spec.lr.by_batch:
        yield _from_value(section, f"lr, {_up_to(limit, s.reference_batch.unit)}", value)
    yield _from_value(section, "lr, scaling with the batch", s.rule, notes=(_direction(spec),))
    yield _from_value(section, "lr, reference batch", s.reference_batch)
    if s.limit is not None:
        yield _from_value(section, "lr, end of scaling", s.limit)


def _direction(spec: RecipeSpec) -> str:
    s = spec.lr.scaling
    if s.rule.number == "none":
        return "the rate is not scaled"
    if not s.down:
        return "below the reference batch the rate stays"
    low = spec.lr.base.range
    return "below the reference batch the rate falls as well" + (f", never below {low[0]:g}" if low else "")


def _weight_decay(spec: RecipeSpec, resolved: ResolvedRecipe) -> Iterator[Entry]:
    section, p = "Weight decay", resolved.provenance
    same = resolved.optimizer == spec.optimizer.number
    if "weight_decay" in p:
        own = spec.weight_decay if same else p["weight_decay"].value
        yield _entry(section, "weight_decay", p["weight_decay"], own, notes=(shrink_note(resolved),))
    yield _entry(section, "not decayed", p["no_decay"], spec.no_decay)


def _fallback(spec: RecipeSpec, resolved: ResolvedRecipe) -> Iterator[Entry]:
    """AdamW's numbers for what a matrix optimizer leaves."""
    section = "AdamW for the rest: embeddings, heads, stems, norms, biases, vectors"
    same = resolved.optimizer == spec.optimizer.number
    for key in resolved.fallback:
        p = resolved.provenance[f"fallback.{key}"]
        own = spec.fallback.get(key) if same else None
        yield _entry(section, f"fallback.{key}", p, own if own is not None else p.value)


def unit_note(resolved: ResolvedRecipe) -> str:
    """Whose learning rates a matrix optimizer takes, and how long its update is.

    Example:
        >>> from lit_opt.recipes import get_recipe
        >>> unit_note(preview(get_recipe("llm/muon")))
        "Muon's units: update lr x sqrt(max(1, rows / cols)) x P(G), RMS 6.3e-4 a step at 1024 x 1024"
    """
    scale = resolved.hyperparameters["scale"]
    length = short(float(f"{update_rms(resolved.lr, scale, 1024, 1024):.1e}"))
    return f"{UNITS[scale]}'s units: update lr x {FORMULAS[scale]} x P(G), RMS {length} a step at 1024 x 1024"


def _schedule(spec: RecipeSpec, resolved: ResolvedRecipe, o: Mapping[str, Any]) -> Iterator[Entry]:
    section, p, s = "Schedule", resolved.provenance, resolved.schedule
    given = o.get("warmup", spec.warmup.length.number)
    steps = f"{s.warmup_steps:,} steps: {p['warmup'].note}" if s is not None else ""
    notes = (steps if isinstance(given, float) or (isinstance(given, str) and "epoch" in given) else "",)
    yield _entry(section, "warmup", p["warmup"], spec.warmup.length, number=given, notes=notes)
    if spec.warmup.max_steps is not None and "warmup" not in o:
        yield _from_value(section, "warmup, at most", spec.warmup.max_steps)
    yield _entry(section, "warmup, start", p["warmup_start"], spec.warmup.start)
    for key in p:
        if key == "decay" or key.startswith("decay."):
            field = key.partition(".")[2] or "kind"
            own = getattr(spec.decay, field) if p["decay"].number == spec.decay.kind.number else p[key].value
            yield _entry(section, key, p[key], spec.decay.kind if field == "kind" else own)
    total = resolved.facts.total_steps
    if total is not None:
        yield Entry(
            section=section, name="total_steps", number=total, origin="yours", unit="optimizer steps of the run"
        )


def _rest(spec: RecipeSpec, resolved: ResolvedRecipe) -> Iterator[Entry]:
    section, p = "Gradients, averages, layers", resolved.provenance
    yield _entry(section, "clip", p["clip"], spec.clip)
    yield _entry(section, "ema", p["ema"], spec.ema)
    if "layer_decay" in p:
        yield _entry(section, "layer_decay", p["layer_decay"], spec.layer_decay)
    if "transfer" in p:
        yield _entry(section, "transfer", p["transfer"], None, notes=(TRANSFERRED,))
    for name, value in spec.parts.items():
        yield _entry(section, f"parts.{name}", p[f"parts.{name}"], value)


def shrink_note(resolved: ResolvedRecipe) -> str:
    """What weight decay does in a step at the peak rate, and after how many steps half of a weight would be left.

    Decoupled decay takes lr x wd of a weight; L2 under momentum m takes lr x wd / (1 - m) in the long run. Under
    other optimizers (Adam's L2, trust ratios) the share depends on the gradients, so none is given.

    Example:
        >>> from lit_opt.recipes import get_recipe
        >>> shrink_note(preview(get_recipe("llm")))
        'at the peak lr x wd = 3e-5 of a weight a step; half of it in 23,105 steps'
    """
    row = row_of(resolved.optimizer, resolved.hyperparameters) if isinstance(resolved.optimizer, str) else None
    unit = next((setting.weight_decay.unit for setting in row.settings.values()), "") if row else ""
    momentum = resolved.hyperparameters.get("momentum")
    if resolved.weight_decay <= 0:
        return ""
    if unit.startswith(("decoupled", "times lr")) and "rows" not in unit:
        share, words = resolved.lr * resolved.weight_decay, "lr x wd"
    elif unit.startswith("L2, added") and momentum is not None:
        share, words = resolved.lr * resolved.weight_decay / (1 - momentum), "lr x wd / (1 - momentum)"
    else:
        return ""
    half = math.log(2) / share
    note = f"at the peak {words} = {short(share)} of a weight a step; half of it in {half:,.0f} steps"
    total = resolved.facts.total_steps
    if total is not None:
        note += f"; in {total:,} steps at most {1 - math.exp(-share * total):.1%}"
    return note


def short(x: Any) -> str:
    """A number as a person writes it.

    Example:
        >>> short(0.0003), short(0.02), short((0.9, 0.95)), short(524288), short(False)
        ('3e-4', '0.02', '(0.9, 0.95)', '524,288', 'off')
    """
    if isinstance(x, bool):
        return "on" if x else "off"
    if isinstance(x, int):
        return f"{x:,}"
    if isinstance(x, float) and math.isfinite(x):
        if x != 0 and (abs(x) < 0.01 or abs(x) >= 1e6):
            mantissa, exponent = f"{x:.3e}".split("e")
            return f"{float(mantissa):g}e{int(exponent)}"
        return f"{x:.4g}"
    if isinstance(x, tuple | list) and all(isinstance(item, str) for item in x):
        return ", ".join(x)
    if isinstance(x, tuple | list):
        return "(" + ", ".join(short(item) for item in x) + ")"
    return "none" if x is None else str(x)


def _up_to(limit: float, unit: str) -> str:
    if math.isinf(limit):
        return "above"
    for size, letter in ((1e9, "B"), (1e6, "M")):
        if unit == "parameters" and limit >= size:
            return f"up to {limit / size:g} {letter} {unit}"
    return f"up to {limit:,.0f} {unit}"


def _default_source(resolved: ResolvedRecipe, p: Provenance) -> str:
    if p.value is not None or not isinstance(resolved.optimizer, str):
        return ""
    row = row_of(resolved.optimizer, resolved.hyperparameters)
    return f"default of {row.name} ({row.provider})"


def _entry(
    section: str,
    name: str,
    p: Provenance,
    own: Value | None,
    *,
    number: Any = None,
    notes: tuple[str, ...] = (),
    source: str = "",
) -> Entry:
    """An entry from a resolved value; `own` is what the recipe says where the user says nothing."""
    used = p.number if number is None else number
    return Entry(
        section=section,
        name=name,
        number=used,
        default=own.number if p.origin == "yours" and own is not None else None,
        origin=p.origin,
        unit=own.unit if own else "",
        range=own.range if own else None,
        practice=own.common_practice if own else "",
        source=own.source if own else source,
        notes=tuple(note for note in (p.note if name != "warmup" else "", *notes) if note),
    )


def _from_value(section: str, name: str, value: Value, *, origin: str = "recipe", notes: tuple[str, ...] = ()) -> Entry:
    return Entry(
        section=section,
        name=name,
        number=value.number,
        origin=origin,
        unit=value.unit,
        range=value.range,
        practice=value.common_practice,
        source=value.source,
        notes=notes,
    )
