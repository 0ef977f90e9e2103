"""Values of a small model carried over: multipliers for each parameter, and groups split where they differ."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lit_opt.errors import RecipeError
from lit_opt.optim.registry import get_row
from lit_opt.param_groups.base import settle_base
from lit_opt.param_groups.matrices import matrix_shape
from lit_opt.param_groups.placement import Placed
from lit_opt.param_groups.snapshot import ParamInfo
from lit_opt.transfer.shapes import compare_shapes
from lit_opt.transfer.spec import Transfer
from lit_opt.transfer.width import Multipliers, Sides, width_multipliers

if TYPE_CHECKING:
    from lit_opt.resolve.resolved import ResolvedRecipe

ASSUMED = (
    "transfer: the rules assume weights that start with a standard deviation in proportion to 1 / sqrt(fan-in) in hidden "
    "matrices, to 1 / fan-in in the head, and the same in embeddings. lit_opt.scale_initial(module, base) brings fresh weights "
    "there; a module that starts every layer with one constant, such as 0.02, is not there. Attention scaled by 1 / sqrt(head "
    "size) fits where heads keep their size and their number grows."
)
TIED = (
    "transfer: {0} is tied with the embedding, and follows the embedding's rule. Its logits grow with the width unless the "
    "module multiplies them by width of the base / width."
)
CLIPPED = (
    "transfer: the gradient of the head grows as sqrt(width), and with it the norm that is clipped. {0}'s steps follow the size of "
    "the gradient, so clipping makes those of wide models smaller. Tune and train with clip=0."
)
DECAYED = (
    "transfer: {0} normalises its L2 weight decay together with the gradient, whose entries fall with the width, so decay crowds out "
    "the gradient of wide models (benchmarks/results/coordinate_check). Take adamw, or weight_decay=0."
)
HEAD = (
    "transfer: with {0} the change of the logits keeps a part of the initial head, which falls with the width. A head that starts at "
    "0 has none of it (benchmarks/results/coordinate_check)."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TransferRow:
    """What a transfer does to the parameters of one group.

    Args:
        group: Its name.
        kind: "hidden", "head", "embedding", "vector", or several.
        lr: Multiplier of the rate; 1 in the small model.
        weight_decay: Of the decay.
        eps: Of epsilon; 1 where the algorithm has none.
        sizes: Of one of its parameters, in the small model and here.
        rule: In words, with the formula (m outputs, n inputs).
        source: Where it was published, or that it was not.

    Example:
        >>> from torch import nn
        >>> from lit_opt.param_groups import group_parameters
        >>> from lit_opt.recipes import get_recipe
        >>> from lit_opt.resolve import preview
        >>> asked = Transfer(base=lambda: nn.Linear(4, 4, bias=False))
        >>> recipe = preview(get_recipe("llm"), {"lr": 1e-3, "transfer": asked})
        >>> [row] = group_parameters(nn.Linear(16, 16, bias=False), recipe).transfer
        >>> row.lr, row.weight_decay, row.sizes, row.rule
        (0.25, 4.0, '4 x 4 -> 16 x 16', '1 / fan-in: lr ~ 1 / n')
    """

    group: str
    kind: str
    lr: float
    weight_decay: float
    eps: float
    sizes: str
    rule: str
    source: str


def kind_of(info: ParamInfo) -> str:
    """A parameter's kind in the words of `lit_opt.transfer.width`.

    Example:
        >>> from torch import nn
        >>> from lit_opt.param_groups.snapshot import snapshot_parameters
        >>> [kind_of(info) for info in snapshot_parameters(nn.Sequential(nn.Embedding(9, 2), nn.Linear(2, 2))).parameters]
        ['embedding', 'hidden', 'vector']
    """
    if info.matrix.role == "head" and info.role == "matrix":
        return "head"
    if info.role in ("embedding", "position", "token"):
        return "embedding"
    return "hidden" if info.role in ("matrix", "adapter") else "vector"


def transferred(
    placed: Sequence[Placed],
    everything: Sequence[ParamInfo],
    resolved: ResolvedRecipe,
    method: str,
) -> tuple[list[Placed], list[TransferRow], list[str]]:
    """Multiply rates, decays and epsilons, and split groups where the multipliers differ.

    Args:
        placed: Where each parameter goes, with the small model's values.
        everything: All parameters of the module; the trainable ones are those of `placed`.
        resolved: The recipe, with a transfer.
        method: Its optimizer's name.

    Returns:
        The same parameters with their own values, one row for each rule in a group, and sentences to mind.

    Raises:
        RecipeError: The models differ in more than size; adapters; parts of a fused weight that grow apart.

    Example:
        >>> from lit_opt.recipes import get_recipe
        >>> from lit_opt.resolve import preview
        >>> from torch import nn
        >>> recipe = preview(get_recipe("llm"), {"lr": 1e-3, "transfer": Transfer(base=nn.Identity)})
        >>> transferred([], [], recipe, "adamw")[1]
        []
    """
    asked, hyperparameters, fallback = resolved.transfer, resolved.hyperparameters, resolved.fallback
    assert asked is not None
    settled = settle_base(asked)
    compared = compare_shapes(settled.base, {info.name: info.shape for info in everything}, depth=asked.depth)
    infos = [info for info in everything if info.trainable]
    problems = _refused(infos, asked, method)
    found: list[Multipliers] = []
    for item, info in zip(placed, infos, strict=True):
        try:
            multipliers = _multipliers(item, info, compared.base[info.name], compared.repeats[info.name], asked, method,
                                       hyperparameters)  # fmt: skip
        except ValueError as error:
            problems.append(str(error))
            continue
        found.append(multipliers)
    if problems:
        raise RecipeError(problems)
    names = _split([item.row.group for item in placed], [kind_of(info) for info in infos], found)
    moved: list[Placed] = []
    rows: dict[tuple[str, str, str], TransferRow] = {}
    for item, info, multipliers, name in zip(placed, infos, found, names, strict=True):
        row = item.row
        options = item.options
        eps = (hyperparameters if row.algorithm == method else fallback).get("eps")
        if multipliers.eps != 1.0 and eps is not None:
            options += (("eps", eps * multipliers.eps),)
        sizes = f"{_shape(compared.base[info.name])} -> {_shape(info.shape)}"
        note = f"transfer: lr x {multipliers.lr:.4g}, {multipliers.rule}"
        new = replace(
            row,
            group=name,
            lr=row.lr * multipliers.lr,
            weight_decay=row.weight_decay * multipliers.weight_decay,
            reason=f"{row.reason}; {note}",
        )
        moved.append(replace(item, row=new, options=options))
        lr, decay, small = multipliers.numbers
        one = TransferRow(
            group=name,
            kind=kind_of(info),
            lr=lr,
            weight_decay=decay if row.weight_decay else 1.0,
            eps=small,
            sizes=sizes,
            rule=f"{multipliers.rule}: lr ~ {multipliers.formula}",
            source=multipliers.source,
        )
        rows.setdefault((name, one.kind, multipliers.rule), one)
    tied = [info.aliases[0] for info in infos if info.role == "embedding" and info.aliases]
    notes = [ASSUMED] if asked.width else []
    notes += [TIED.format(repr(tied[0]))] if tied and asked.width else []
    if asked.width:
        clipped = resolved.clip is not None and method in ("sgd", "nesterov")
        decayed = method in ("adam", "amsgrad", "rmsprop") and any(item.row.weight_decay for item in moved)
        said = {CLIPPED: clipped, DECAYED: decayed, HEAD: method in ("nesterov", "lion", "signum")}
        notes += [note.format(method) for note, holds in said.items() if holds]
    first = {item.row.group: item.order for item in sorted(moved, key=lambda item: item.order, reverse=True)}
    return moved, sorted(rows.values(), key=lambda row: first[row.group]), notes


def _refused(infos: Sequence[ParamInfo], asked: Transfer, method: str) -> list[str]:
    problems = []
    adapters = [info.name for info in infos if info.role == "adapter"]
    if adapters:
        problems.append(
            f"transfer: no rule is known for adapters, such as {adapters[0]!r}. Tune them on the model itself."
        )
    if asked.depth and method in ("sgd", "nesterov"):
        problems.append(f"transfer.depth: no rule is known for {method}. Make the base as deep as this model.")
    return problems


def _multipliers(
    item: Placed,
    info: ParamInfo,
    base: tuple[int, ...],
    repeats: float,
    asked: Transfer,
    method: str,
    hyperparameters: Mapping[str, Any],
) -> Multipliers:
    kind, algorithm = kind_of(info), item.row.algorithm
    options = {**get_row(algorithm).hyperparameters, **(hyperparameters if algorithm == method else {})}
    given = dict(item.options)
    if algorithm == "scion" and given.get("last"):
        algorithm = "scion_sign"
    small, large = sides_of(kind, info, base, given), sides_of(kind, info, info.shape, given)
    if len(small) != len(large):
        raise ValueError(f"transfer: {info.name!r} has other parts than in the base.")
    found = [
        width_multipliers(
            kind, algorithm, options, b, t, weight_decay=asked.weight_decay, width=asked.width, repeats=repeats
        )
        for b, t in zip(small, large, strict=True)
    ]
    if len({one.numbers for one in found}) > 1:
        rates = " and ".join(f"{one.lr:.4g}" for one in found)
        raise ValueError(
            f"transfer: the parts of {info.name!r} would need rates of their own ({rates}), since they grow apart. Keep the "
            "base's proportions, or leave split_sizes out."
        )
    return found[0]


def sides_of(kind: str, info: ParamInfo, shape: tuple[int, ...], options: Mapping[str, Any]) -> list[Sides]:
    """Of each matrix that a method takes on its own; in the small model the parts have the same proportions.

    Args:
        kind: From `kind_of`.
        info: The parameter of the large model.
        shape: Its own, or its counterpart's in the small model.
        options: Its group's: split_sizes or num_heads.

    Example:
        >>> from torch import nn
        >>> from lit_opt.param_groups.snapshot import snapshot_parameters
        >>> info = snapshot_parameters(nn.Linear(8, 24, bias=False)).parameters[0]
        >>> [s.rows for s in sides_of("hidden", info, (12, 4), {"split_sizes": [8, 8, 8]})]
        [4, 4, 4]
    """
    if kind == "vector":
        return [Sides.of(kind, max(shape, default=1), 1)]
    if kind == "embedding":
        return [Sides.of(kind, math.prod(shape[:-1]), shape[-1])]
    if len(shape) < 2:
        return [Sides.of(kind, max(shape, default=1), 1)]
    layout, count = info.matrix.layout or "matrix", info.matrix.count
    if count > 1:  # a grouped convolution; the small one may have fewer groups
        groups = max(1, shape[0] // max(1, info.shape[0] // count)) if shape[0] % count else count
        return [Sides.of(kind, *matrix_shape(shape, layout, groups)[1:], groups)]
    _, rows, cols = matrix_shape(shape, layout, 1)
    if "split_sizes" in options:
        whole = sum(options["split_sizes"])
        parts = [max(1, round(part * rows / whole)) for part in options["split_sizes"]]
        return [Sides.of(kind, part, cols, rows / part) for part in parts]
    if "num_heads" in options:
        own = (
            matrix_shape(info.shape, layout, 1)[1] // options["num_heads"]
        )  # heads keep their size, and there are more
        own = own if rows % own == 0 else rows
        return [Sides.of(kind, own, cols, rows / own)]
    return [Sides.of(kind, rows, cols)]


def _split(groups: Sequence[str], kinds: Sequence[str], found: Sequence[Multipliers]) -> list[str]:
    """Names of groups: as before where all members have the same multipliers, else with the kinds of those that have."""
    members: dict[str, dict[tuple[float, ...], set[str]]] = defaultdict(lambda: defaultdict(set))
    for group, kind, one in zip(groups, kinds, found, strict=True):
        members[group][one.numbers].add(kind)
    names: dict[tuple[str, tuple[float, ...]], str] = {}
    for group, parts in members.items():
        labels = ["_".join(sorted(found_kinds)) for found_kinds in parts.values()]
        for numbers, label in zip(parts, labels, strict=True):
            alone = labels.count(label) == 1
            rate = "" if alone else "_x" + "_x".join(f"{x:.4g}" for x in numbers)
            names[group, numbers] = group if len(parts) == 1 else f"{group}/{label}{rate}"
    return [names[group, one.numbers] for group, one in zip(groups, found, strict=True)]


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "scalar"
