"""The groups of one module under one recipe: as rows that explain them, and with live tensors for an optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lit_opt.errors import RecipeError, nearest
from lit_opt.param_groups.placement import GroupSummary, ParamRow, Placed
from lit_opt.param_groups.snapshot import ParamSnapshot, clean_name
from lit_opt.param_groups.transfer import TransferRow

if TYPE_CHECKING:
    import torch
    from rich.table import Table


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
        >>> from lit_opt.param_groups import group_parameters
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
            >>> from lit_opt.param_groups import group_parameters
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
            >>> from lit_opt.param_groups import group_parameters
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
