"""WHO gets what: every trainable parameter goes into exactly one named group, with the reason.

The decision is taken once, from the unsharded module, and kept as plain data (`ParamSnapshot`). A strategy may then
flatten or shard the parameters: the groups are handed out by name. FSDP1 makes every parameter one-dimensional, and
a rule that counts dimensions at that point decays nothing (mlfoundations/open_clip#358, pytorch/pytorch#101343).

Order: the owner's type, the dimensions of free-standing parameters, what the model lists in `no_weight_decay()`, the
user's `GroupRule`s. A later one wins.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lit_opt.errors import RecipeError, nearest
from lit_opt.optim.registry import get_row
from lit_opt.parameter_roles import ROLES
from lit_opt.parameter_snapshot import ParamInfo, ParamSnapshot, clean_name, snapshot_parameters
from lit_opt.recipes import get_recipe
from lit_opt.recipes.schema import GroupRule, RecipeSpec

if TYPE_CHECKING:
    import torch
    from rich.table import Table
    from torch import nn

    from lit_opt.resolved import ResolvedRecipe

__all__ = ["ParamGroups", "ParamRow", "ParamSnapshot", "group_parameters", "snapshot_parameters"]


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


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupSummary:
    """One group: what its members get, and how many tensors and numbers it holds."""

    name: str
    algorithm: str
    lr: float
    weight_decay: float
    tensors: int
    parameters: int


def group_parameters(
    module_or_snapshot: nn.Module | ParamSnapshot, recipe: str | RecipeSpec | ResolvedRecipe
) -> ParamGroups:
    """Put every trainable parameter into one named group.

    Args:
        module_or_snapshot: An unsharded module, or what `snapshot_parameters` made of it.
        recipe: A name, a spec, or a resolved recipe.

    Returns:
        The groups. `rows()` explains them, `for_optimizer()` gives them to an optimizer.

    Raises:
        RecipeError: No trainable parameter; uninitialised lazy ones; a rule of the user's that matches nothing or
            never applies; layer decay without repeated blocks.

    Example:
        >>> from torch import nn
        >>> groups = group_parameters(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), "llm")
        >>> for row in groups.rows():
        ...     print(row.name, row.group, "|", row.reason)
        0.weight decay | weight of Linear: decayed
        0.bias no_decay | bias of Linear: not decayed
        1.weight no_decay | norm gain (LayerNorm): not decayed
        1.bias no_decay | bias of LayerNorm: not decayed
    """
    snapshot = (
        module_or_snapshot if isinstance(module_or_snapshot, ParamSnapshot) else snapshot_parameters(module_or_snapshot)
    )
    resolved = _resolved(recipe, snapshot)
    trainable = [info for info in snapshot.parameters if info.trainable]
    if not trainable:
        raise RecipeError(
            [
                f"parameters: none of the module's {len(snapshot.parameters)} parameters is trainable. "
                "Set requires_grad=True on those to train before the optimizer is made."
            ]
        )
    problems = _wrong_roles(resolved)
    rules, rule_problems = _match_rules(snapshot, resolved.groups)
    problems += rule_problems
    layer_decay = resolved.layer_decay if resolved.layer_decay is not None else 1.0
    if layer_decay != 1.0 and snapshot.last_layer is None:
        problems.append(
            f"layer_decay: {layer_decay:g} needs layers, and no ModuleList or Sequential of repeated blocks was found. "
            "Leave layer_decay out, or give groups=[GroupRule(match=..., lr_scale=...)]."
        )
    if problems:
        raise RecipeError(problems)
    algorithm = resolved.optimizer if isinstance(resolved.optimizer, str) else resolved.optimizer.__name__
    labels = _rule_labels(resolved.groups)
    placed = [
        _place(info, resolved, algorithm, layer_decay, snapshot.last_layer or 0, rules.get(info.name), labels)
        for info in trainable
    ]
    return ParamGroups(snapshot, _named(placed))


class ParamGroups:
    """The groups of one module under one recipe. Plain data: picklable, without tensors.

    Made by `group_parameters`.
    """

    def __init__(self, snapshot: ParamSnapshot, placed: list[_Placed]) -> None:
        self._snapshot = snapshot
        self._placed = placed
        names = [item.row.name for item in placed]
        wanted = [info.name for info in snapshot.parameters if info.trainable]
        assert names == wanted, "every trainable parameter is in exactly one group"

    def rows(self) -> list[ParamRow]:
        """One row a trainable parameter, in the module's own order."""
        return [item.row for item in self._placed]

    def summary(self) -> list[GroupSummary]:
        """One row a group, in the order of the optimizer's groups.

        Example:
            >>> from torch import nn
            >>> [(s.name, s.tensors, s.parameters) for s in group_parameters(nn.Linear(2, 3), "llm").summary()]
            [('decay', 1, 6), ('no_decay', 1, 3)]
        """
        result = []
        for members in self._by_group().values():
            row = members[0].row
            result.append(
                GroupSummary(
                    name=row.group,
                    algorithm=row.algorithm,
                    lr=row.lr,
                    weight_decay=row.weight_decay,
                    tensors=len(members),
                    parameters=sum(_numel(m.row.shape) for m in members),
                )
            )
        return result

    def table(self, *, rows: bool = False) -> Table:
        """A rich table of the groups, or of all parameters with their reasons (`rows=True`)."""
        from rich.table import Table

        if rows:
            table = Table("parameter", "shape", "group", "algorithm", "lr", "weight decay", "reason")
            for r in self.rows():
                shape = " x ".join(map(str, r.shape)) or "scalar"
                table.add_row(r.name, shape, r.group, r.algorithm, f"{r.lr:.3g}", f"{r.weight_decay:g}", r.reason)
            return table
        table = Table("group", "algorithm", "lr", "weight decay", "tensors", "parameters")
        for s in self.summary():
            table.add_row(
                s.name,
                s.algorithm,
                f"{s.lr:.3g}",
                f"{s.weight_decay:g}",
                f"{s.tensors:,}",
                f"{s.parameters:,}",
            )
        return table

    def for_optimizer(self, named_parameters: Iterable[tuple[str, torch.Tensor]]) -> list[dict[str, Any]]:
        """The groups with live tensors, as a torch optimizer takes them.

        Args:
            named_parameters: What `module.named_parameters()` gives now, also after sharding: names may carry
                wrapper parts, tensors may be FSDP1's flat ones or DTensors. Frozen ones are left out.

        Returns:
            Dicts with "params", "name", "algorithm", "lr", "weight_decay" and the options that the registry row
            has for decayed or excluded groups. DTensors of one mesh, DTensors of another mesh and plain tensors
            never share a group, since fused and foreach steps cannot mix them; the name says which is which.

        Raises:
            RecipeError: A trainable parameter that the snapshot does not have or had frozen, or the other way round.

        Example:
            >>> from torch import nn
            >>> module = nn.Linear(2, 3)
            >>> groups = group_parameters(module, "llm").for_optimizer(module.named_parameters())
            >>> [(g["name"], len(g["params"]), g["weight_decay"]) for g in groups]
            [('decay', 1, 0.1), ('no_decay', 1, 0.0)]
        """
        live = self._match(named_parameters)
        result: list[dict[str, Any]] = []
        for name, members in self._by_group().items():
            by_mesh: dict[object, list[torch.Tensor]] = {}
            for member in members:
                if (tensor := live.get(member.row.name)) is not None:
                    by_mesh.setdefault(getattr(tensor, "device_mesh", None), []).append(tensor)
            row = members[0].row
            meshes = [mesh for mesh in by_mesh if mesh is not None]
            for mesh, tensors in by_mesh.items():
                suffix = "/plain" if mesh is None else f"/mesh_{meshes.index(mesh) + 1}"
                result.append(
                    {
                        "params": tensors,
                        "name": name + suffix if len(by_mesh) > 1 else name,
                        "algorithm": row.algorithm,
                        "lr": row.lr,
                        "weight_decay": row.weight_decay,
                        **_row_options(row.algorithm, members[0].decayed),
                    }
                )
        if not result:
            raise RecipeError(
                ["parameters: all are frozen now, so there is nothing to optimize. Set requires_grad=True on some."]
            )
        return result

    def _by_group(self) -> dict[str, list[_Placed]]:
        groups: dict[str, list[_Placed]] = {}
        for item in sorted(self._placed, key=lambda item: item.order):
            groups.setdefault(item.row.group, []).append(item)
        return groups

    def _match(self, named_parameters: Iterable[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Snapshot name -> live trainable tensor, or all that does not fit at once."""
        known = {name: info for info in self._snapshot.parameters for name in (info.name, *info.aliases)}
        live: dict[str, torch.Tensor] = {}
        seen: set[str] = set()
        problems: list[str] = []
        for raw, tensor in named_parameters:
            name = clean_name(raw)
            info = known.get(name)
            if info is not None:
                seen.add(info.name)
            if not tensor.requires_grad:
                continue
            if info is None:
                problems.append(
                    f"parameters: {name!r} is trainable and was not in the module when its groups were decided."
                    f"{nearest(name, known)} Take the snapshot after all layers are made."
                )
            elif not info.trainable:
                problems.append(
                    f"parameters: {name!r} was frozen when its groups were decided and is trainable now. "
                    "Unfreeze it before the snapshot is taken."
                )
            elif live.setdefault(info.name, tensor) is not tensor:
                problems.append(
                    f"parameters: {name!r} was tied with {info.name!r} and is a tensor of its own now. "
                    "Tie the weights again, or take a new snapshot."
                )
        problems += [
            f"parameters: {info.name!r} has a group and is no longer in the module. "
            "Pass all of module.named_parameters(), or take a new snapshot."
            for info in self._snapshot.parameters
            if info.trainable and info.name not in seen
        ]
        if problems:
            raise RecipeError(problems)
        return live


@dataclass(frozen=True, slots=True)
class _Placed:
    row: ParamRow
    decayed: bool
    order: tuple[int, int, bool]  # rule, layer, not decayed


def _resolved(recipe: str | RecipeSpec | ResolvedRecipe, snapshot: ParamSnapshot) -> ResolvedRecipe:
    spec = get_recipe(recipe) if isinstance(recipe, str) else recipe
    if not isinstance(spec, RecipeSpec):
        return spec
    from lit_opt.resolve import RunFacts, preview

    return preview(spec, facts=RunFacts(parameter_count=snapshot.parameter_count))


def _wrong_roles(resolved: ResolvedRecipe) -> list[str]:
    return [
        f"no_decay: {role!r} is not a role.{nearest(role, ROLES)} Known: {', '.join(ROLES)}."
        for role in resolved.no_decay
        if role not in ROLES
    ]


def _match_rules(
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


def _rule_labels(rules: Iterable[GroupRule]) -> list[str]:
    """A short, unique text for each rule; some loggers refuse "*" in a metric's name."""
    labels: list[str] = []
    for index, rule in enumerate(rules):
        label = re.sub(r"[^\w./-]+", "", rule.match).strip("./-") or f"rule_{index}"
        labels.append(label if label not in labels else f"{label}_{index}")
    return labels


def _place(
    info: ParamInfo,
    resolved: ResolvedRecipe,
    algorithm: str,
    layer_decay: float,
    last_layer: int,
    matched: tuple[int, GroupRule] | None,
    labels: list[str],
) -> _Placed:
    decayed = info.role not in resolved.no_decay
    reason = info.why
    if decayed and info.listed:
        decayed, reason = False, f"listed in {info.listed}"
    weight_decay = resolved.weight_decay if decayed else 0.0
    lr = resolved.lr
    parts = []
    notes = []
    if layer_decay != 1.0:
        layer = info.layer or 0
        scale = layer_decay ** (last_layer - layer)
        lr *= scale
        parts.append(f"layer_{layer:02d}")
        notes.append(f"layer {layer} of {last_layer}: lr x {scale:.3g}")
    if matched is not None:
        index, rule = matched
        parts.append(labels[index])
        changes = []
        if rule.lr_scale is not None:
            lr *= rule.lr_scale
            changes.append(f"lr x {rule.lr_scale:g}")
        if rule.weight_decay is not None:
            weight_decay = rule.weight_decay
            decayed = weight_decay > 0
            changes.append(f"weight decay {weight_decay:g}")
        if rule.algorithm is not None:
            algorithm = rule.algorithm
            changes.append(f"algorithm {algorithm}")
        notes.append(f"your rule {rule.match!r}: {', '.join(changes) or 'a group of its own'}")
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
        (info.layer or 0) if layer_decay != 1.0 else 0,
        not decayed,
    )
    return _Placed(row, decayed, order)


def _named(placed: list[_Placed]) -> list[_Placed]:
    """Two kinds of members under one name (never seen with one recipe, but cheap to exclude) get a number."""
    kinds: dict[str, list[tuple[str, float, float]]] = {}
    result = []
    for item in placed:
        row = item.row
        kind = (row.algorithm, row.lr, row.weight_decay)
        known = kinds.setdefault(row.group, [])
        if kind not in known:
            known.append(kind)
        if (index := known.index(kind)) > 0:
            item = replace(item, row=replace(row, group=f"{row.group}_{index + 1}"))
        result.append(item)
    return result


def _row_options(algorithm: str, decayed: bool) -> Mapping[str, Any]:
    try:
        row = get_row(algorithm)
    except RecipeError:
        return {}  # A torch.optim.Optimizer class of the user's own has no row.
    return row.decayed_group if decayed else row.excluded_group


def _numel(shape: Iterable[int]) -> int:
    count = 1
    for n in shape:
        count *= n
    return count
