"""A recipe as the `recipe:` section of a YAML file: every field, its value as a comment that can be uncommented.

`## ` lines are explanations, `# ` lines are settings: removing one `# ` from a setting overrides it, and the
value that stands there is the one that the run would use anyway.
"""

from __future__ import annotations

import json
import math
import re
import textwrap
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from lit_opt.explain.values import Entry, explain, short
from lit_opt.recipes.schema import RecipeSpec
from lit_opt.resolve import RunFacts, preview
from lit_opt.resolve.overrides import FIELDS

WIDTH = 110

# Fields that a recipe holds no value for; null is "not set".
_UNSET = {
    "base_lr": "instead of lr: belongs to base_batch_size and is scaled to the batch of the run",
    "base_batch_size": "batch of base_lr; unset, the recipe's own reference batch",
    "betas": "not of this optimizer",
    "momentum": "not of this optimizer",
    "weight_decay": "not of this optimizer",
    "batch_size": "global batch in samples, where it cannot be read off the loader",
    "batch_tokens": "global batch in tokens; the learning rate is scaled with it",
    "total_steps": "horizon in optimizer steps, where the Trainer does not know it",
    "optimizer_kwargs": "the optimizer's other keywords",
    "fallback": "lr, betas, weight_decay of what a matrix optimizer leaves to AdamW",
    "groups": 'rules by parameter name, such as [{match: "*.head.*", lr_scale: 0.1}]; the first that matches wins. '
    "Matrix optimizers: split_sizes (qkv, or the outputs of each part) and num_heads split a fused weight",
    "layer_decay": "learning-rate factor per layer below the head, such as 0.75; null is off",
    "parts": 'where a model\'s parts lie, such as {projector: "*.bridge.*"}, for recipes with a rate for each (vlm)',
    "transfer": "carry values tuned on a small model over to this one, such as "
    "{base: {class_path: my.Model, init_args: {width: 64}}}; lr is then the small model's",
}
_WORDS = {
    "existing": (None, 'the module\'s own configure_optimizers: "replace", "keep" or "error"; null is "replace"'),
    "on_resume": (
        "error",
        'where a checkpoint\'s recipe differs: "error", "checkpoint" (its values win) or "config" (these)',
    ),
    "on_nonfinite": (
        "raise",
        'a loss or gradient that is nan or inf: "raise", "skip" (that step; 20 in a row are an error) or "ignore"',
    ),
}


def recipe_section(
    spec: RecipeSpec, overrides: Mapping[str, Any] | None = None, facts: RunFacts | None = None
) -> list[str]:
    """Lines of the section, from `recipe:` on.

    Args:
        spec: The recipe.
        overrides: Fields that are set, not commented.
        facts: What is known of the run; the learning rate is the one at these facts.

    Raises:
        RecipeError: All problems of the overrides.

    Example:
        >>> from lit_opt.recipes import get_recipe
        >>> lines = recipe_section(get_recipe("llm"), {"clip": 0.5})
        >>> lines[1], "  # weight_decay: 0.1" in lines, "  clip: 0.5" in lines
        ('  name: llm', True, True)
    """
    o = {key: value for key, value in (overrides or {}).items() if value is not None}
    values = _values(spec, o, facts)
    entries = explain(spec, o, facts)
    lines = ["recipe:", f"  name: {spec.name}"]
    for field in FIELDS:
        lines += [
            "",
            *_comment(_about(field, entries)),
            _setting(field, o.get(field, values.get(field)), active=field in o),
        ]
    for field, (value, about) in _WORDS.items():
        lines += ["", *_comment([about]), _setting(field, value, active=False)]
    return lines


def _values(spec: RecipeSpec, o: Mapping[str, Any], facts: RunFacts | None) -> dict[str, Any]:
    """What each field would be if it were written out."""
    r = preview(spec, o, facts)
    p = r.provenance
    decay = {"kind": p["decay"].number} | {
        key.partition(".")[2]: entry.number for key, entry in p.items() if key.startswith("decay.")
    }
    own = ("betas", "momentum")
    values: dict[str, Any] = {
        "optimizer": r.optimizer_name,
        "weight_decay": r.weight_decay if "weight_decay" in p else None,
        "warmup": spec.warmup.length.number,
        "decay": decay,
        "clip": p["clip"].number,
        "ema": p["ema"].number,
        "layer_decay": r.layer_decay,
        "fallback": r.fallback or None,
        "parts": {name: {"lr_scale": scale} for name, scale in r.parts.items()} or None,
        "optimizer_kwargs": {k: v for k, v in r.hyperparameters.items() if k not in own} or None,
        **{key: r.hyperparameters.get(key) for key in own},
    }
    if "base_lr" not in o:
        values["lr"] = r.lr
    return values


def _about(field: str, entries: list[Entry]) -> list[str]:
    """Unit, range, practice and source of everything that the field holds."""
    if field == "lr":
        found = [e for e in entries if e.section == "Learning rate"]
    else:
        found = [e for e in entries if e.name == field or e.name.startswith(f"{field}.")]
        found += [e for e in entries if field == "warmup" and e.name.startswith("warmup,")]
    lines = []
    for e in found:
        table_row = e.name.startswith("lr, up to") or e.name == "lr, above"
        label = f"{e.name} = {short(e.number)}: " if e.name != field or len(found) > 1 else ""
        scope = f"range {short(e.range[0])} .. {short(e.range[1])}" if e.range else ""
        facts = [] if table_row else [part for part in (e.unit, scope, *e.notes) if part]
        lines.append(label + "; ".join(facts or [e.source]))
        lines += [f"  practice: {e.practice}"] if e.practice and not table_row else []
        lines += [f"  source: {e.source}"] if e.source and facts else []
    return lines or [_UNSET[field]]


def _comment(texts: list[str]) -> list[str]:
    lines = []
    for text in texts:
        indent = "  ## " + " " * (len(text) - len(text.lstrip()))
        lines += textwrap.wrap(
            text.lstrip(), WIDTH, initial_indent=indent, subsequent_indent=indent + "  ", break_on_hyphens=False
        )
    return lines


def _setting(field: str, value: Any, *, active: bool) -> str:
    return f"  {'' if active else '# '}{field}: {flow(value)}"


def flow(value: Any) -> str:
    """A value in YAML's flow style, floats so that every YAML parser reads a float.

    Example:
        >>> flow(3e-4), flow({"kind": "cosine", "final": 0.1}), flow((0.9, 0.95)), flow(None), flow("*.head.*")
        ('3.0e-4', '{kind: cosine, final: 0.1}', '[0.9, 0.95]', 'null', '"*.head.*"')
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and math.isfinite(value) and value != 0 and (abs(value) < 0.01 or abs(value) >= 1e6):
        sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
        mantissa = f"{digits[0]}.{''.join(map(str, digits[1:])) or '0'}"
        return f"{'-' if sign else ''}{mantissa}e{int(exponent) + len(digits) - 1:+d}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(flow(item) for item in value) + "]"
    return (
        str(value) if re.fullmatch(r"\w[\w./ -]*", str(value)) else json.dumps(str(value))
    )  # a glob would be an alias
