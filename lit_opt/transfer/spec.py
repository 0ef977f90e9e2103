"""What a user asks for: the small model, and what of the difference is to be carried over."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from lit_opt.errors import nearest
from lit_opt.transfer.shapes import BaseShapes

WEIGHT_DECAYS = ("independent", "inverse_width", "kept")
BATCHES = ("sqrt", "linear")
HORIZONS = ("lr", "weight_decay")


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Carry the values that were tuned on a small model over to the model of the run.

    `Recipe(lr=..., weight_decay=..., ...)` then holds the small model's values. Nothing is rescaled that is not asked for.

    Args:
        base: The small model: a function without arguments that makes it (or its class), the model itself, or as in YAML
            {"class_path": ..., "init_args": {...}}. It has the parameter names of the large one. It is built on the meta
            device where that is possible, and let go.
        width: Rates, decay and epsilon follow the sizes of each parameter.
        depth: They follow the number of blocks (CompleteP, alpha = 1). The module then multiplies each residual branch by
            its attribute `residual_scale`, which has to be the base's times blocks of the base / blocks.
        weight_decay: "independent": lr x weight_decay, the share of a weight lost in a step, stays the base's.
            "inverse_width": that share falls as 1 / width, for runs whose tokens grow with the model. "kept": the number
            stays, so that the share follows the rate.
        batch: "sqrt" or "linear": rate, betas, epsilon and decay follow the global batch; needs base_batch_size.
        base_batch_size: Global batch of the small model's run, in samples.
        horizon: "lr": the rate falls with the length of the run to the power of 0.32. "weight_decay": the decay falls with
            it, so that averages over updates span the same part of the run. Needs base_total_steps.
        base_total_steps: Optimizer steps of the small model's run.

    Example:
        >>> Transfer(base={"class_path": "my.Model", "init_args": {"width": 64}}).weight_decay
        'independent'
    """

    base: Any
    width: bool = True
    depth: bool = False
    weight_decay: str = "independent"
    batch: str | None = None
    base_batch_size: int | None = None
    horizon: str | None = None
    base_total_steps: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for checkpoints and loggers: what decides each parameter's multipliers.

        Batch and horizon are not in it: their effect is in the recipe's numbers already.

        Returns:
            The shapes of the base, or its name before they are known, and the fields that choose rules.
        """
        base = self.base.as_dict() if isinstance(self.base, BaseShapes) else name_of(self.base)
        return {"base": base, "width": self.width, "depth": self.depth, "weight_decay": self.weight_decay}

    def __str__(self) -> str:
        asked = [word for word in ("width", "depth") if getattr(self, word)]
        asked += [f"{word} ({how})" for word in ("batch", "horizon") if (how := getattr(self, word))]
        return f"{', '.join(asked) or 'nothing'} from {name_of(self.base)}"


def name_of(base: object) -> str:
    """A base in a word or two.

    Example:
        >>> name_of({"class_path": "my.Model", "init_args": {"width": 64}}), name_of(dict)
        ('my.Model(width=64)', 'dict')
    """
    if isinstance(base, Mapping):
        given = ", ".join(f"{key}={value!r}" for key, value in (base.get("init_args") or {}).items())
        return f"{base.get('class_path', 'shapes')}({given})"
    if isinstance(base, BaseShapes):
        return base.name
    return getattr(getattr(base, "func", base), "__qualname__", type(base).__qualname__)


def make_transfer(given: object) -> Transfer:
    """A Transfer from itself or from a dictionary of its fields, as YAML and checkpoints give it.

    Raises:
        ValueError: Not a mapping, or unknown or missing keys.

    Example:
        >>> make_transfer({"base": dict, "depth": True}).depth
        True
    """
    names = [f.name for f in fields(Transfer)]
    if isinstance(given, Transfer):
        return given
    if not isinstance(given, Mapping):
        raise ValueError(f"{given!r} is a {type(given).__name__}; give a Transfer(base=make_small_module).")
    unknown = [key for key in given if key not in names]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no field of Transfer.{nearest(unknown[0], names)}")
    if given.get("base") is None:
        raise ValueError("base is missing: the small model, such as base=make_small_module.")
    values = {key: value for key, value in given.items() if value is not None}
    if isinstance(values["base"], Mapping) and "shapes" in values["base"]:
        values["base"] = BaseShapes.from_dict(values["base"])
    return Transfer(**values)


def transfer_problems(overrides: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the override `transfer`, and with others beside it, in sentences.

    Args:
        overrides: Arguments of `Recipe` that were given.

    Example:
        >>> list(transfer_problems({"transfer": Transfer(base=dict, batch="cube"), "lr": 0.1}))[0]
        "transfer.batch: 'cube' is unknown. Known: sqrt, linear; leave it out to keep the values at any batch."
    """
    if "transfer" not in overrides:
        return
    try:
        asked = make_transfer(overrides["transfer"])
    except ValueError as error:
        yield f"transfer: {error}"
        return
    if not (callable(asked.base) or isinstance(asked.base, BaseShapes) or _is_class_path(asked.base)):
        yield (
            f"transfer.base: {asked.base!r} is not a model. Give a function that makes the small model, its class, the "
            "model, or {'class_path': ..., 'init_args': {...}}."
        )
    for name in ("width", "depth"):
        if not isinstance(getattr(asked, name), bool):
            yield f"transfer.{name}: {getattr(asked, name)!r} is not allowed; give True or False."
    for name, known, without in (
        ("weight_decay", WEIGHT_DECAYS, "'independent'"),
        ("batch", BATCHES, "to keep the values at any batch"),
        ("horizon", HORIZONS, "to keep the values at any length"),
    ):
        word = getattr(asked, name)
        if word is not None and word not in known:
            yield (
                f"transfer.{name}: {word!r} is unknown.{nearest(word, known)} Known: {', '.join(known)}; leave it out "
                f"{without if name != 'weight_decay' else 'for ' + without}."
            )
    for name, needed_by, always in (
        ("base_batch_size", "batch", False),
        ("base_total_steps", "horizon", True),
    ):
        count = getattr(asked, name)
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
            yield f"transfer.{name}: {count!r} is not allowed; give a whole number above 0."
        if count is None and getattr(asked, needed_by) is not None:
            yield f"transfer.{needed_by}: {getattr(asked, needed_by)!r} needs {name}=, that of the small model's run."
        if count is not None and always and getattr(asked, needed_by) is None:
            yield f"transfer.{name}: {count!r} belongs to {needed_by}=, which is not given."
    if not any((asked.width, asked.depth, asked.batch, asked.horizon)):
        yield "transfer: nothing is asked for. Give width=True, depth=True, batch= or horizon=, or leave transfer out."
    if "lr" not in overrides:
        instead = " in place of base_lr=" if "base_lr" in overrides else ""
        yield (
            f"transfer: it carries over what was tuned on the small model. Give lr={instead}, the peak that is best there "
            "(and weight_decay=, betas=, fallback= where they were tuned)."
        )
    if isinstance(overrides.get("optimizer"), type):
        yield "transfer: a class of your own has no rule here. Give optimizer= by registry name."


def _is_class_path(base: object) -> bool:
    return isinstance(base, Mapping) and isinstance(base.get("class_path"), str)


def ratio(new: float, old: float) -> str:
    """How a size changed, in words.

    Example:
        >>> ratio(256, 64), ratio(64, 256)
        ('x 4', 'x 0.25')
    """
    return f"x {new / old:.4g}" if math.isfinite(new / old) else "x ?"
