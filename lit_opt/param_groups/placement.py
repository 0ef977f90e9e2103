"""Where one parameter goes: its role and the recipe, what the model lists, the user's rules."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lit_opt.errors import nearest
from lit_opt.param_groups.matrices import matrix_shape
from lit_opt.param_groups.snapshot import ParamInfo, ParamSnapshot
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


def match_rules(
    snapshot: ParamSnapshot, rules: Iterable[GroupRule]
) -> tuple[dict[str, tuple[int, GroupRule]], list[str]]:
    """Name -> the first rule that matches it, and one sentence for each rule without effect."""
    taken: dict[str, tuple[int, GroupRule]] = {}
    problems = []
    for index, rule in enumerate(rules):
        matches = re.compile(fnmatch.translate(rule.match)).match
        found = [info for info in snapshot.parameters if any(map(matches, (info.name, *info.aliases)))]
        trainable = [info.name for info in found if info.trainable]
        fresh = [name for name in trainable if name not in taken]
        taken.update(dict.fromkeys(fresh, (index, rule)))
        if fresh:
            continue
        start = f"groups: rule {rule.match!r}"
        if trainable:
            earlier = sorted({taken[name][1].match for name in trainable})
            problems.append(f"{start} never applies: {', '.join(map(repr, earlier))} comes first. Put it before.")
        elif found:
            problems.append(f"{start} matches only frozen parameters, such as {found[0].name!r}. Unfreeze them first.")
        else:
            names = [name for info in snapshot.parameters for name in (info.name, *info.aliases)]
            problems.append(f"{start} matches no parameter.{nearest(rule.match, names) or _examples(names)}")
    return taken, problems


def _examples(names: list[str]) -> str:
    return f" Names are such as {', '.join(map(repr, names[:3]))}."


def rule_labels(rules: Iterable[GroupRule]) -> list[str]:
    """A short, unique text for each rule; some loggers refuse "*" in a metric's name.

    Example:
        >>> rule_labels([GroupRule(match="backbone.*"), GroupRule(match="*"), GroupRule(match="backbone")])
        ['backbone', 'rule_1', 'backbone_2']
    """
    labels: list[str] = []
    for index, rule in enumerate(rules):
        label = re.sub(r"[^\w./-]+", "", rule.match).strip("./-") or f"rule_{index}"
        while label in labels or label == "adamw":  # the name of the groups that a matrix method leaves
            label += f"_{index}"
        labels.append(label)
    return labels


def place(
    info: ParamInfo,
    resolved: ResolvedRecipe,
    algorithm: str,
    layer_decay: float,
    last_layer: int,
    matched: tuple[int, GroupRule] | None,
    labels: list[str],
    part: str | None,
    routed: bool = False,
    of_role: Mapping[str, Any] | None = None,
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
            changes.append(f"orthogonalised in {_blocks_in_words(info, rule)}")
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


def misplaced(trainable: Iterable[ParamInfo], rules: Mapping[str, tuple[int, GroupRule]], method: str) -> list[str]:
    """One sentence for each rule that gives a matrix method what it cannot take."""
    wrong: dict[int, tuple[GroupRule, list[ParamInfo]]] = {}
    for info in trainable:
        index, rule = rules.get(info.name, (-1, None))
        if rule is not None and rule.algorithm == method and (not info.matrix.layout or info.role == "adapter"):
            wrong.setdefault(index, (rule, []))[1].append(info)
    return [
        f"groups: rule {rule.match!r} gives {method} {len(infos)} that it does not take, such as {infos[0].name!r} "
        f"({infos[0].matrix.left}, {' x '.join(map(str, infos[0].shape)) or 'scalar'}). Make the glob narrower, such as "
        f"'*.weight', or put a rule with algorithm='adamw' before it."
        for rule, infos in wrong.values()
    ]


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


def unsplittable(trainable: Iterable[ParamInfo], rules: Mapping[str, tuple[int, GroupRule]], method: str) -> list[str]:
    """One sentence for each matrix that a rule cannot split, and for each splitting rule that meets no matrix."""
    problems: list[str] = []
    meets: dict[int, tuple[GroupRule, bool]] = {}
    for info in trainable:
        index, rule = rules.get(info.name, (-1, None))
        if rule is None or not (rule.split_sizes or rule.num_heads):
            continue
        takes = rule.algorithm == method or not info.matrix.left
        meets[index] = (rule, takes or meets.get(index, (rule, False))[1])
        if takes and (wrong := _split_problem(info, rule)):
            shape = " x ".join(map(str, info.shape))
            problems.append(f"groups: rule {rule.match!r} and {info.name!r} ({shape}): {wrong}")
    return problems + [
        f"groups: rule {rule.match!r} splits matrices, and those it matches all go to AdamW. Remove split_sizes= and "
        f"num_heads=, or correct the glob."
        for rule, met in meets.values()
        if not met
    ]


def _split_problem(info: ParamInfo, rule: GroupRule) -> str:
    if info.matrix.layout.startswith("experts") or info.matrix.count > 1:
        return "its experts or groups are matrices of their own already. Make the glob narrower."
    outputs, sizes = matrix_shape(info.shape, info.matrix.layout, 1)[1], _row_blocks(info, rule)
    if sum(sizes) == outputs:
        return ""
    if rule.num_heads:
        return f"num_heads: {rule.num_heads} does not divide its {outputs} outputs."
    if rule.split_sizes == "qkv":
        return f"split_sizes: its {outputs} outputs are not three equal parts; give the three numbers."
    return f"split_sizes: {list(sizes)} has a sum of {sum(sizes)}, and it has {outputs} outputs."


def _row_blocks(info: ParamInfo, rule: GroupRule) -> tuple[int, ...]:
    """Outputs of each part that a rule makes."""
    outputs = matrix_shape(info.shape, info.matrix.layout, 1)[1]
    if isinstance(rule.split_sizes, tuple):
        return rule.split_sizes
    count = rule.num_heads or 3
    return (outputs // count,) * count


def _blocks_in_words(info: ParamInfo, rule: GroupRule) -> str:
    sizes = _row_blocks(info, rule)
    equal = len(set(sizes)) == 1
    return f"{len(sizes)} parts of {sizes[0]} rows" if equal else f"parts of {', '.join(map(str, sizes))} rows"


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
        options.append(("split_sizes", list(_row_blocks(info, rule))))
    return tuple(options)


def _layout_parts(options: Mapping[str, Any]) -> list[str]:
    layout = [options["layout"]] if "layout" in options else []
    if "split_sizes" in options:
        layout.append("split_" + "_".join(map(str, options["split_sizes"])))
    return layout + ([f"blocks_{options['num_heads']}"] if "num_heads" in options else [])
