"""From a recipe and the facts of a run to optimizer and scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lit_opt.callbacks.facts import is_flattened
from lit_opt.callbacks.lr_scheduler import RecipeLR
from lit_opt.errors import RecipeError
from lit_opt.optim import build
from lit_opt.optim.registry import row_of
from lit_opt.param_groups import ParamGroups, ParamSnapshot, clean_name, group_parameters
from lit_opt.param_groups.snapshot import refuse_unreadable
from lit_opt.param_groups.transfer import settle_base
from lit_opt.recipes.schema import RecipeSpec
from lit_opt.resolve import resolve
from lit_opt.resolve.overrides_optimizer import class_keywords
from lit_opt.resolve.resolved import ResolvedRecipe, RunFacts
from lit_opt.resolve.strategies import shard_problems


@dataclass(kw_only=True)
class Configured:
    """What a run was configured with.

    Args:
        resolved: The recipe's numbers.
        groups: Who gets what, with reasons.
        optimizer: One optimizer for all groups.
        scheduler: Its learning rates.
        group_names: Name, algorithm and parameter names of each of the optimizer's groups, for checkpoints.
        group_options: Each group's options at the start, without its parameters.
    """

    resolved: ResolvedRecipe
    groups: ParamGroups
    optimizer: Optimizer
    scheduler: RecipeLR
    group_names: list[dict[str, Any]]
    group_options: list[dict[str, Any]]


def configure_run(
    spec: RecipeSpec, overrides: Mapping[str, Any], facts: RunFacts, snapshot: ParamSnapshot, module: nn.Module
) -> Configured:
    """Resolve the recipe, group the parameters, build optimizer and scheduler.

    Args:
        spec: The recipe.
        overrides: Arguments of `Recipe` that were given.
        facts: What is known of the run.
        snapshot: The unsharded parameters.
        module: Holds the live parameters, sharded or not.

    Raises:
        RecipeError: All problems at once.
    """
    resolved = resolve(spec, overrides, facts)
    if resolved.transfer is not None:
        resolved = replace(resolved, transfer=settle_base(resolved.transfer, module))
    refuse_unreadable(module)
    if is_flattened(module):
        refuse_shards(resolved, "flat shards (FSDP1 or ZeRO)")
    groups = group_parameters(snapshot, resolved)
    named = [(clean_name(name), p) for name, p in module.named_parameters()]
    param_groups = groups.for_optimizer(named)
    name_of = {id(p): name for name, p in named}
    names = [
        {"name": g["name"], "algorithm": g["algorithm"], "params": [name_of[id(p)] for p in g["params"]]}
        for g in param_groups
    ]
    optimizer = build_optimizer(resolved, param_groups, name_of, module)
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        # A fused step that unscales by itself is clipped too early, by us, by Trainer(gradient_clip_val=...) or by
        # the module's own method (Lightning#21435).
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    row = row_of(resolved.optimizer, resolved.hyperparameters) if isinstance(resolved.optimizer, str) else None
    state = {"params", *(row.group_state if row else ())}
    options = [{k: v for k, v in g.items() if k not in state} for g in optimizer.param_groups]
    assert resolved.schedule is not None
    return Configured(
        resolved=resolved,
        groups=groups,
        optimizer=optimizer,
        scheduler=RecipeLR(optimizer, resolved.schedule),
        group_names=names,
        group_options=options,
    )


def refuse_shards(resolved: ResolvedRecipe, where: str) -> None:
    """Refuse an optimizer that reads whole tensors where no process has one.

    Args:
        resolved: The recipe's numbers.
        where: What the parameters have become, for the message.

    Raises:
        RecipeError: The optimizer is a matrix method, layer-wise or factored.

    Example:
        >>> from lit_opt.recipes import get_recipe
        >>> from lit_opt.resolve import preview
        >>> refuse_shards(preview(get_recipe("llm")), "flat shards")
    """
    if isinstance(resolved.optimizer, str):
        problems = shard_problems(row_of(resolved.optimizer, resolved.hyperparameters), where)
        if problems:
            raise RecipeError(problems)


def build_optimizer(
    resolved: ResolvedRecipe, param_groups: list[dict[str, Any]], name_of: Mapping[int, str], module: nn.Module
) -> Optimizer:
    """The optimizer of a resolved recipe.

    Args:
        resolved: The recipe's numbers.
        param_groups: From `ParamGroups.for_optimizer`.
        name_of: id of each tensor -> its name.
        module: For optimizers that watch its layers.
    """
    if isinstance(resolved.optimizer, str):
        row = row_of(resolved.optimizer, resolved.hyperparameters)
        if "stack" in row.group_options:
            # Stacks are found by name.
            param_groups = [
                group | {"params": [(name_of[id(p)], p) for p in group["params"]]} for group in param_groups
            ]
        return build(
            resolved.optimizer,
            param_groups,
            lr=resolved.lr,
            weight_decay=resolved.weight_decay,
            **resolved.hyperparameters,
            **({"module": module} if row.needs_module else {}),
        )
    accepted = class_keywords(resolved.optimizer) or {}
    common = {"lr": resolved.lr, "weight_decay": resolved.weight_decay}
    return resolved.optimizer(
        param_groups, **{k: v for k, v in common.items() if k in accepted}, **resolved.hyperparameters
    )
