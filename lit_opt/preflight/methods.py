"""What an optimizer object is: its method, what its weight decay means, whether it limits gradients by itself.

Classes are known by name, so that torch's, timm's, apex's, bitsandbytes' and one's own copies of a published file are
read alike and none of these libraries is imported.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """One update rule.

    Args:
        name: Registry name where the package has one, else the class's name in lower case.
        kind: "adam", "sgd", "matrix", "layerwise" (a trust ratio a layer), "factored" or "other".
        decay: "decoupled" (times lr), "l2" (in the gradient), "ratio" (inside a trust ratio) or "unknown".
        clips: What it limits by itself with these arguments, in words; "" for nothing.

    Example:
        >>> import torch
        >>> method_of(torch.optim.AdamW([torch.zeros(1)]), {}).decay
        'decoupled'
    """

    name: str
    kind: str = "other"
    decay: str = "unknown"
    clips: str = ""


ADAMW = Method(name="adamw", kind="adam", decay="decoupled")

_ADAM_L2 = ("adam", "nadam", "radam", "adamax", "amsgrad", "nadamlegacy", "radamlegacy", "adam8bit", "pagedadam8bit")
_ADAM_DECOUPLED = (
    "adamw",
    "nadamw",
    "adamp",
    "adan",
    "adopt",
    "adamwlegacy",
    "adamw8bit",
    "pagedadamw",
    "pagedadamw8bit",
    "pagedadamw32bit",
    "adamw4bit",
    "adamwfp8",
    "fusedadam",
    "deepspeedcpuadam",
    "skipstepadamw",
)
_KNOWN: dict[str, Method] = {
    **{name: Method(name=name.removesuffix("legacy"), kind="adam", decay="l2") for name in _ADAM_L2},
    **{name: Method(name="adamw", kind="adam", decay="decoupled") for name in _ADAM_DECOUPLED},
    "sgd": Method(name="sgd", kind="sgd", decay="l2"),
    "sgdw": Method(name="sgdw", kind="sgd", decay="decoupled"),
    "sgdp": Method(name="sgdp", kind="sgd", decay="decoupled"),
    "fusedsgd": Method(name="sgd", kind="sgd", decay="l2"),
    "rmsprop": Method(name="rmsprop", decay="l2"),
    "rmsproptf": Method(name="rmsprop", decay="l2"),
    "adagrad": Method(name="adagrad", decay="l2"),
    "adadelta": Method(name="adadelta", decay="l2"),
    "adabelief": Method(name="adabelief", kind="adam", decay="decoupled"),
    "stableadamw": Method(name="stableadamw", kind="adam", decay="decoupled"),
    "adamwschedulefree": Method(name="schedule_free_adamw", kind="adam", decay="decoupled"),
    "sgdschedulefree": Method(name="schedule_free_sgd", kind="sgd", decay="decoupled"),
    "radamschedulefree": Method(name="schedule_free_radam", kind="adam", decay="decoupled"),
    "adabound": Method(name="adabound", kind="adam", decay="decoupled"),
    "lion": Method(name="lion", decay="decoupled"),
    "soap": Method(name="soap", decay="decoupled"),
    "splus": Method(name="splus", decay="decoupled"),
    "distributedshampoo": Method(name="shampoo", decay="decoupled"),
    "adafactor": Method(name="adafactor", kind="factored", decay="decoupled"),
    "adafactorbigvision": Method(name="adafactor_bv", kind="factored", decay="decoupled"),
    "lars": Method(name="lars", kind="layerwise", decay="ratio"),
    "larc": Method(name="lars", kind="layerwise", decay="ratio"),
    "larssgd": Method(name="lars", kind="layerwise", decay="ratio"),
    "lamb": Method(name="lamb", kind="layerwise", decay="ratio"),
    "nvlamb": Method(name="lamb", kind="layerwise", decay="ratio"),
    "fusedlamb": Method(name="lamb", kind="layerwise", decay="ratio"),
    "fusedmixedprecisionlamb": Method(name="lamb", kind="layerwise", decay="ratio"),
}
_MATRIX = ("muon", "normuon", "marsm", "teon", "dion")
# Matrix methods of the package that embeddings and heads may have as well.
PRECONDITIONED = ("soap", "splus", "shampoo", "scion", "aro")
_SAM = re.compile(r"(?:^|[a-z_])(?:g|a|f|w|esam|look)?sam$", re.IGNORECASE)

# How long a matrix update is, in the package's words, by what other libraries call it.
_SCALES = {"rms_norm": "match_rms_adamw", "spectral_norm": "spectral_unclamped", "rms_to_rms": "spectral_unclamped"}


def unwrap(optimizer: Any) -> Any:
    """The optimizer inside of SAM, Lookahead and LARC wrappers.

    Example:
        >>> import torch
        >>> type(unwrap(torch.optim.SGD([torch.zeros(1)]))).__name__
        'SGD'
    """
    for _ in range(3):
        inner = next(
            (
                found
                for name in ("base", "base_optimizer", "_base_optimizer", "optim", "optimizer")
                if isinstance(found := getattr(optimizer, name, None), torch.optim.Optimizer)
            ),
            None,
        )
        if inner is None or inner is optimizer:
            break
        optimizer = inner
    return optimizer


def is_sam(optimizer: Any) -> bool:
    """Whether it is sharpness-aware minimisation in any of its published classes.

    Example:
        >>> import torch
        >>> is_sam(torch.optim.SGD([torch.zeros(1)]))
        False
    """
    by_name = any(_SAM.search(cls.__name__) for cls in type(optimizer).__mro__[:-1])
    two_steps = callable(getattr(optimizer, "first_step", None)) and callable(getattr(optimizer, "second_step", None))
    return two_steps or by_name


def method_of(optimizer: Any, group: Mapping[str, Any]) -> Method:
    """The method that a group's tensors get; a matrix optimizer's own, not its AdamW part.

    Args:
        optimizer: As built; wrappers are looked through.
        group: One of its groups, for what changes the meaning of its numbers.

    Example:
        >>> import torch
        >>> method_of(torch.optim.Adam([torch.zeros(1)]), {"decoupled_weight_decay": True}).decay
        'decoupled'
    """
    inner = unwrap(optimizer)
    names = [cls.__name__.lower().replace("_", "") for cls in type(inner).__mro__[:-1]]
    if names[0] in PRECONDITIONED and type(inner).__module__.startswith("lit_opt."):
        return Method(name=names[0], kind="matrix", decay="decoupled")
    if any(word in names[0] for word in _MATRIX):
        registry_name = getattr(inner, "name", None)
        name = registry_name if isinstance(registry_name, str) else "muon"
        return Method(name=name, kind="matrix", decay="decoupled", clips=_matrix_clips(name))
    found = next((_KNOWN[name] for name in names if name in _KNOWN), None)
    if found is None:
        return Method(name=names[0])
    if found.name == "adam" and names[0] == "fusedadam" and not getattr(inner, "adam_w_mode", 1):
        return replace(found, decay="l2")
    if found.kind == "adam" and (
        group.get("decoupled_weight_decay") or getattr(inner, "decoupled_weight_decay", False)
    ):
        found = replace(found, name="adamw" if found.name == "adam" else found.name, decay="decoupled")
    return replace(found, clips=_clips(found, {**group}))


def _matrix_clips(name: str) -> str:
    return "MARS-M limits the corrected gradient to a norm of 1" if name == "mars_m" else ""


def _clips(method: Method, group: Mapping[str, Any]) -> str:
    limit = group.get("max_grad_norm")
    if method.name == "lamb" and limit:
        return f"max_grad_norm={limit:g} limits the global norm inside step()"
    if method.name == "lars":
        return "the trust ratio divides by the gradient's norm, so its length does not matter"
    if method.name == "stableadamw":
        return "its update is limited to an RMS of 1"
    if method.kind == "factored" and method.name == "adafactor":
        limit = group.get("clip_threshold", group.get("d", 1.0))
        return f"its update is limited to an RMS of {limit:g}" if limit and math.isfinite(limit) else ""
    return ""


def scale_of(optimizer: Any, group: Mapping[str, Any]) -> str:
    """The scale of a matrix optimizer's update, a key of `lit_opt.optim.matrix.scale.UNITS`; "" if it is unknown.

    Example:
        >>> import torch
        >>> scale_of(torch.optim.Muon([torch.zeros(4, 4)]), {"adjust_lr_fn": None})
        'original'
    """
    inner = unwrap(optimizer)
    for key in ("scale", "adjust_lr_fn", "adjust_lr"):
        if key in group:
            word = group[key]
            return "original" if word is None else _SCALES.get(str(word), str(word))
    if callable(getattr(inner, "adjust_lr_for_muon", None)):
        return "match_rms_adamw"  # Moonlight's toy_train.py
    # KellerJordan/Muon has one formula and no name for it.
    return "original" if "muon" in type(inner).__name__.lower() else ""
