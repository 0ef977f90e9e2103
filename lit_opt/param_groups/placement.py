"""Where one parameter goes: its role and the recipe, what the model lists, the user's rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lit_opt.param_groups.matrices import matrix_shape
from lit_opt.param_groups.rules import blocks_in_words, row_blocks
from lit_opt.param_groups.snapshot import ParamInfo
from lit_opt.recipes.schema import GroupRule

if TYPE_CHECKING:
    from lit_opt.resolve.resolved import ResolvedRecipe


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupSummary:
    """One group: what its members get, and how many tensors and numbers it holds.

    Args:
        name: Such as "decay" or "no_decay".
        algorithm: Registry name of the optimizer that steps on it.
        lr: Peak learning rate.
        weight_decay: In the unit of the algorithm.
        tensors: Number of parameters.
        parameters: Number of numbers in them.
    """

    name: str
    algorithm: str
    lr: float
    weight_decay: float
    tensors: int
    parameters: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ParamRow:
    """One parameter: its group, what it gets there, and why.

    Args:
        name: Clean dotted name, without the parts that wrappers add.
        shape: The unsharded shape.
        group: Name of its group.
        algorithm: Registry name of the optimizer, or the class's name.
        lr: Peak learning rate.
        weight_decay: torch's unit: multiplied by the learning rate.
        reason: A sentence.
    """

    name: str
    shape: tuple[int, ...]
    group: str
    algorithm: str
    lr: float
    weight_decay: float
    reason: str


@dataclass(frozen=True, slots=True)
class Placed:
    """A row, whether it is decayed, where its group stands, and how a matrix method reads it.

    Groups are sorted by rule, part and layer, the method before AdamW, the decayed first.
    """

    row: ParamRow
    decayed: bool
    order: tuple[int, ...]
    options: tuple[tuple[str, Any], ...] = ()


def place(
    info: ParamInfo,
    resolved: ResolvedRecipe,
    *,
    algorithm: str,
    layer_decay: float,
    last_layer: int,
    matched: tuple[int, GroupRule] | None,
    labels: list[str],
    part: str | None,
    routed: bool,
    of_role: Mapping[str, Any] | None,
) -> Placed:
    """Decide one parameter: its role, what the model lists, its part, the user's rule; the last word wins.

    Args:
        info: The parameter.
        resolved: The recipe's numbers.
        algorithm: The recipe's optimizer.
        layer_decay: Factor per layer.
        last_layer: Layer id of the head.
        matched: Index and rule of the user's that matches it.
        labels: A text for each rule.
        part: Its part of the model.
        routed: `algorithm` is a matrix method, which leaves what is no hidden matrix to AdamW, but for roles with options.
        of_role: Options that the optimizer has for parameters of this role.
    """
    decayed = info.role not in resolved.no_decay
    reason = info.why
    rule = matched[1] if matched is not None else GroupRule(match="*")
    left = routed and info.matrix.left and of_role is None
    if routed and (rule.algorithm or ("adamw" if left else algorithm)) == "adamw":
        method, algorithm, base = algorithm, "adamw", resolved.fallback
    else:
        method, base = algorithm, {"lr": resolved.lr, "weight_decay": resolved.weight_decay}
        algorithm = rule.algorithm or algorithm
    if decayed and info.listed:
        decayed, reason = False, f"listed in {info.listed}"
    weight_decay = base["weight_decay"] if decayed else 0.0
    lr = base["lr"]
    parts = []
    notes = [_routing_note(info, algorithm, method, rule)] if routed else []
    if part is not None:
        lr *= resolved.parts[part]
        parts.append(part)
        notes.append(f"part {part}: lr x {resolved.parts[part]:g}")
    elif resolved.parts:
        notes.append("in no part: lr x 1")
    if layer_decay != 1.0:
        layer = info.layer or 0
        scale = layer_decay ** (last_layer - layer)
        lr *= scale
        parts.append(f"layer_{layer:02d}")
        notes.append(f"layer {layer} of {last_layer}: lr x {scale:.3g}")
    if matched is not None:
        parts.append(labels[matched[0]])
        changes = []
        if rule.lr_scale is not None:
            lr *= rule.lr_scale
            changes.append(f"lr x {rule.lr_scale:g}")
        if rule.weight_decay is not None:
            weight_decay = rule.weight_decay
            decayed = weight_decay > 0
            changes.append(f"weight decay {weight_decay:g}")
        if rule.algorithm is not None:
            changes.append(f"algorithm {algorithm}")
        split = algorithm == method and (rule.split_sizes or rule.num_heads)
        if routed and split:
            changes.append(f"orthogonalised in {blocks_in_words(info, rule)}")
        notes.append(f"your rule {rule.match!r}: {', '.join(changes) or 'a group of its own'}")
    options = _matrix_options(info, rule) if routed and algorithm == method else ()
    if routed:
        parts += ["adamw"] if algorithm != method else _layout_parts(dict(options))
    for option, value in (of_role or {}).items() if algorithm == method or not routed else ():
        options += ((option, value),)
        parts.append(option if value is True else f"{option}_{value}")
        notes.append(f"{option}={value}")
    reason += ": decayed" if decayed else ": not decayed"
    row = ParamRow(
        name=info.name,
        shape=info.shape,
        group="/".join(["decay" if decayed else "no_decay", *parts]),
        algorithm=algorithm,
        lr=lr,
        weight_decay=weight_decay,
        reason="; ".join([reason, *notes]),
    )
    order = (
        -1 if matched is None else matched[0],
        -1 if part is None else list(resolved.parts).index(part),
        (info.layer or 0) if layer_decay != 1.0 else 0,
        algorithm != method,
        not decayed,
    )
    return Placed(row, decayed, order, options)


def _routing_note(info: ParamInfo, algorithm: str, method: str, rule: GroupRule) -> str:
    if rule.algorithm is not None:
        return f"{algorithm}, as you say"
    if algorithm != method:
        return f"adamw: {info.matrix.left}"
    if info.matrix.left:
        return f"{method}: {info.matrix.left}"
    count, rows, cols = matrix_shape(info.shape, info.matrix.layout, info.matrix.count)
    words = f"{count} hidden matrices" if count > 1 else "hidden matrix"
    return f"{method}: {words} {rows} x {cols}"


def _matrix_options(info: ParamInfo, rule: GroupRule) -> tuple[tuple[str, Any], ...]:
    """What the optimizer's group needs beyond the number of dimensions, which says "matrix" or "conv" by itself."""
    options: list[tuple[str, Any]] = []
    if info.matrix.layout not in ("matrix", "conv"):
        options.append(("layout", info.matrix.layout))
    if info.matrix.count > 1:
        options.append(("num_heads", info.matrix.count))
    elif rule.num_heads:
        options.append(("num_heads", rule.num_heads))
    elif rule.split_sizes:
        options.append(("split_sizes", list(row_blocks(info, rule))))
    return tuple(options)


def _layout_parts(options: Mapping[str, Any]) -> list[str]:
    layout = [options["layout"]] if "layout" in options else []
    if "split_sizes" in options:
        layout.append("split_" + "_".join(map(str, options["split_sizes"])))
    return layout + ([f"blocks_{options['num_heads']}"] if "num_heads" in options else [])
