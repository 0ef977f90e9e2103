"""WHO gets what: every trainable parameter goes into exactly one named group, with the reason.

The decision is taken once, from the unsharded module, and kept as plain data (`ParamSnapshot`). A strategy may then
flatten or shard the parameters: the groups are handed out by name. FSDP1 makes every parameter one-dimensional, and
a rule that counts dimensions at that point decays nothing (mlfoundations/open_clip#358, pytorch/pytorch#101343).

Order: the owner's type, the dimensions of free-standing parameters, what the model lists in `no_weight_decay()`, the
part of the model (vlm), the user's `GroupRule`s. A later one wins; factors of the learning rate multiply.

Under a matrix method each parameter also gets an algorithm: the method for hidden matrices, AdamW with the values of
`fallback` for the rest, see `lit_opt.param_groups.matrices`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lit_opt.errors import RecipeError, nearest
from lit_opt.optim.registry import row_of
from lit_opt.param_groups.adapters import check_adapters
from lit_opt.param_groups.parts import match_parts
from lit_opt.param_groups.placement import (
    GroupSummary,
    ParamRow,
    Placed,
    match_rules,
    misplaced,
    place,
    rule_labels,
    unsplittable,
)
from lit_opt.param_groups.roles import ROLES
from lit_opt.param_groups.snapshot import ParamSnapshot, clean_name, snapshot_parameters
from lit_opt.param_groups.transfer import TransferRow, transferred
from lit_opt.recipes import get_recipe
from lit_opt.recipes.schema import RecipeSpec

if TYPE_CHECKING:
    import torch
    from rich.table import Table
    from torch import nn

    from lit_opt.resolve.resolved import ResolvedRecipe

__all__ = ["ParamGroups", "ParamRow", "ParamSnapshot", "clean_name", "group_parameters", "snapshot_parameters"]


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
        RecipeError: No trainable parameter; uninitialised lazy ones; a rule of the user's that matches nothing or never
            applies; layer decay without repeated blocks; parts that are not found; no adapters under their recipe.

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
    rules, rule_problems = match_rules(snapshot, resolved.groups)
    problems += rule_problems
    layer_decay = resolved.layer_decay if resolved.layer_decay is not None else 1.0
    last_layer = snapshot.last_layer
    if layer_decay != 1.0 and last_layer is None:
        problems.append(
            f"layer_decay: {layer_decay:g} needs layers, and no ModuleList or Sequential of repeated blocks was found. "
            "Leave layer_decay out, or give groups=[GroupRule(match=..., lr_scale=...)]."
        )
    parts = match_parts(snapshot, resolved.parts, resolved.part_globs)
    problems += parts.problems
    notes = list(parts.notes)
    algorithm = resolved.optimizer if isinstance(resolved.optimizer, str) else resolved.optimizer.__name__
    row = row_of(resolved.optimizer, resolved.hyperparameters) if isinstance(resolved.optimizer, str) else None
    routed = row is not None and row.matrix
    if routed:
        problems += misplaced(trainable, rules, algorithm) or unsplittable(trainable, rules, algorithm)
    if resolved.trains == "adapters":
        adapter_notes, adapter_problems = check_adapters(snapshot, resolved.name)
        notes += adapter_notes
        problems += adapter_problems
    if problems:
        raise RecipeError(problems)
    labels = rule_labels(resolved.groups)
    placed = [
        place(
            info,
            resolved,
            algorithm,
            layer_decay,
            last_layer or 0,
            rules.get(info.name),
            labels,
            parts.of.get(info.name),
            routed,
            row.role_options.get("head" if info.matrix.role == "head" else info.role) if row is not None else None,
        )
        for info in trainable
    ]
    if routed and not any(item.row.algorithm == algorithm for item in placed):
        notes.append(
            f"{algorithm}: the module has no hidden matrix, so AdamW takes everything; a recipe without {algorithm} says "
            "the same in fewer words."
        )
    transfer: list[TransferRow] = []
    if resolved.transfer is not None:
        placed, transfer, said = transferred(placed, snapshot.parameters, resolved, algorithm)
        notes += said
    options: dict[tuple[str, bool], Mapping[str, Any]] = {}
    if row is not None:  # a torch.optim.Optimizer class of the user's own has no row
        options = {(row.name, True): row.decayed_group, (row.name, False): row.excluded_group}
    if routed:
        shared = {"betas": resolved.fallback["betas"], "eps": resolved.fallback["eps"]}
        options |= {("adamw", decayed): shared for decayed in (True, False)}
    return ParamGroups(snapshot, placed, notes, options, transfer)


class ParamGroups:
    """The groups of one module under one recipe, made by `group_parameters`. Plain data: picklable, without tensors.

    Args:
        snapshot: The parameters.
        placed: The group of each, with its reason.
        notes: Sentences for the log: parts that were not found, what is frozen.
        options: (algorithm, decayed) -> options of such groups that the optimizer's row asks for.
        transfer: What a transfer changes, by group.

    Example:
        >>> from torch import nn
        >>> [row.group for row in group_parameters(nn.Linear(2, 3), "llm").rows()]
        ['decay', 'no_decay']
    """

    def __init__(
        self,
        snapshot: ParamSnapshot,
        placed: list[Placed],
        notes: Sequence[str] = (),
        options: Mapping[tuple[str, bool], Mapping[str, Any]] | None = None,
        transfer: Sequence[TransferRow] = (),
    ) -> None:
        self.notes, self.transfer = tuple(notes), tuple(transfer)
        self._options = dict(options or {})
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
                    parameters=sum(math.prod(m.row.shape) for m in members),
                )
            )
        return result

    def table(self, *, rows: bool = False) -> Table:
        """A rich table of the groups.

        Args:
            rows: Of all parameters instead, with their reasons.
        """
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
                        **self._options.get((row.algorithm, members[0].decayed), {}),
                        **dict(members[0].options),
                    }
                )
        if not result:
            raise RecipeError(
                ["parameters: all are frozen now, so there is nothing to optimize. Set requires_grad=True on some."]
            )
        return result

    def _by_group(self) -> dict[str, list[Placed]]:
        groups: dict[str, list[Placed]] = {}
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


def _wrong_roles(resolved: ResolvedRecipe) -> list[str]:
    return [
        f"no_decay: {role!r} is not a role.{nearest(role, ROLES)} Known: {', '.join(ROLES)}."
        for role in resolved.no_decay
        if role not in ROLES
    ]


def _resolved(recipe: str | RecipeSpec | ResolvedRecipe, snapshot: ParamSnapshot) -> ResolvedRecipe:
    spec = get_recipe(recipe) if isinstance(recipe, str) else recipe
    if not isinstance(spec, RecipeSpec):
        return spec
    from lit_opt.resolve import RunFacts, preview

    return preview(spec, facts=RunFacts(parameter_count=snapshot.parameter_count))
