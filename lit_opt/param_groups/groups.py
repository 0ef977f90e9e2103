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

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lit_opt.errors import RecipeError, nearest
from lit_opt.optim.registry import row_of
from lit_opt.param_groups.adapters import check_adapters
from lit_opt.param_groups.grouped import ParamGroups
from lit_opt.param_groups.parts import match_parts
from lit_opt.param_groups.placement import place
from lit_opt.param_groups.roles import ROLES
from lit_opt.param_groups.rules import match_rules, misplaced, rule_labels, unsplittable
from lit_opt.param_groups.snapshot import ParamSnapshot, snapshot_parameters
from lit_opt.param_groups.transfer import TransferRow, transferred
from lit_opt.recipes import get_recipe
from lit_opt.recipes.schema import RecipeSpec

if TYPE_CHECKING:
    from torch import nn

    from lit_opt.resolve.resolved import ResolvedRecipe


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
            algorithm=algorithm,
            layer_decay=layer_decay,
            last_layer=last_layer or 0,
            matched=rules.get(info.name),
            labels=labels,
            part=parts.of.get(info.name),
            routed=routed,
            of_role=row.role_options.get("head" if info.matrix.role == "head" else info.role)
            if row is not None
            else None,
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
