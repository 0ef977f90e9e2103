"""Completion and checks of the parameter groups of a matrix optimizer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lit_opt.averaging.shards import is_flat_shard, is_sharded
from lit_opt.errors import RecipeError, nearest
from lit_opt.optim.matrix.boxes import is_partial
from lit_opt.optim.matrix.coefficients import check_preset
from lit_opt.optim.matrix.layout import check_layout
from lit_opt.optim.matrix.scale import UNITS
from lit_opt.optim.registry import get_row
from lit_opt.optim.schema import OptimizerRow

# What KellerJordan/Muon's README and the recipe llm/muon give to the tensors beside the matrices.
FALLBACK = {"lr": 3e-4, "betas": (0.9, 0.95), "eps": 1e-8}
_ADAMW = ("lr", "betas", "eps", "weight_decay")
_TORCHS = ("params", "param_names", "name", "algorithm", "initial_lr")


def group_label(group: Mapping[str, Any]) -> str:
    """The start of a message about a group.

    Example:
        >>> group_label({"name": "decay"})
        "group 'decay': "
    """
    return f"group {group['name']!r}: " if group.get("name") is not None else ""


def complete_group(group: dict[str, Any], given: set[str], defaults: Mapping[str, Any], method: str) -> list[str]:
    """Fill in what an AdamW part needs, in place, and return what is wrong in words.

    A group of the algorithm "adamw" keeps lr, betas, eps and weight_decay alone. A group of the method gets
    `fallback_*` options for its tensors with fewer than two dimensions: their learning rate is `fallback_lr_ratio`
    times the group's, so that it follows the group's schedule.

    Args:
        group: With all of torch's defaults filled in.
        given: The keys that the caller wrote.
        defaults: The optimizer's defaults.
        method: Its name.

    Example:
        >>> group = {"params": [], "algorithm": "sgd"}
        >>> complete_group(group, set(group), {}, "muon")
        ["algorithm: 'sgd' in an optimizer 'muon'. Allowed: 'muon', 'adamw'."]
    """
    where = group_label(group)
    algorithm = group["algorithm"]
    if algorithm not in (method, "adamw"):
        return [
            f"{where}algorithm: {algorithm!r} in an optimizer {method!r}.{nearest(algorithm, (method, 'adamw'))} "
            f"Allowed: {method!r}, 'adamw'."
        ]
    units = get_row(method).units
    if algorithm == "adamw":
        shared = defaults["lr"] if UNITS.get(defaults.get("scale", ""), units) == "AdamW" else FALLBACK["lr"]
        values = {
            "lr": defaults.get("fallback_lr", shared),
            "betas": defaults.get("fallback_betas", FALLBACK["betas"]),
            "eps": defaults.get("fallback_eps", FALLBACK["eps"]),
            "weight_decay": defaults.get("fallback_weight_decay", defaults["weight_decay"]),
        }
        for key in [key for key in group if key not in given and key not in (*_ADAMW, *_TORCHS)]:
            del group[key]
        group.update({key: value for key, value in values.items() if key not in given})
        return []
    group.setdefault("fallback_betas", FALLBACK["betas"])
    group.setdefault("fallback_eps", FALLBACK["eps"])
    group.setdefault("fallback_weight_decay", None)
    own_units = UNITS.get(group.get("scale", ""), units) == "AdamW"
    lr = group.pop("fallback_lr", group["lr"] if own_units else FALLBACK["lr"])
    vectors_alone = all(param.ndim < 2 for param in group["params"])
    # A group of vectors with its own learning rate means AdamW's. A rate of 0 has no ratio.
    alone = (vectors_alone and "lr" in given) or group["lr"] == 0
    group["fallback_lr_ratio"] = 1.0 if alone else lr / group["lr"]
    return _check(group, get_row(method), where)


def _check(group: Mapping[str, Any], row: OptimizerRow, where: str) -> list[str]:
    problems = [
        f"{where}{key}: {group[key]!r} is unknown.{nearest(group[key], words)} Known: {', '.join(words)}."
        for key, words in row.choices.items()
        if group.get(key, row.hyperparameters[key]) not in (*words, row.hyperparameters[key])
    ]
    if not problems and "orthogonalize" in group:
        problems += check_preset(group["orthogonalize"], group["ns_steps"], group["ns_dtype"], where=where)
    if any(is_flat_shard(param) for param in group["params"]):
        problems.append(
            f"{where}params: flat shards of FSDP1 or ZeRO, in which rows and columns are lost. Use FSDP2 "
            f"(torch.distributed.fsdp.fully_shard; Lightning's ModelParallelStrategy) or DDP, or AdamW."
        )
    problems += [
        f"{where}the parameter of shape {tuple(param.shape)} has placements {param.placements}: sums that nobody has "
        f"added up. Redistribute it to Shard or Replicate before."
        for param in group["params"]
        if is_sharded(param) and is_partial(param)
    ]
    problems += [
        f"{where}the parameter of shape {tuple(param.shape)} is {str(param.dtype).removeprefix('torch.')}. Matrix "
        f"methods take real floating-point ones; give it to AdamW with algorithm='adamw'."
        for param in group["params"]
        if param.ndim > 1 and not param.is_floating_point()
    ]
    return problems + check_layout(group, [param for param in group["params"] if param.numel()], where=where)


def matrices_and_rest(
    takes: Sequence[bool], active: Sequence[Sequence[Tensor]]
) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
    """Each group's matrices, and each group's other parameters; empty ones are in neither.

    Args:
        takes: Whether the method takes the matrices of a group.
        active: Each group's parameters.

    Example:
        >>> import torch
        >>> matrix, vector = torch.ones(2, 2), torch.ones(2)
        >>> matrices, rest = matrices_and_rest([True], [[matrix, vector]])
        >>> matrices[0][0] is matrix, rest[0][0] is vector
        (True, True)
    """
    matrices, rest = [], []
    for took, params in zip(takes, active, strict=True):
        least = 2 if took else math.inf
        matrices.append([param for param in params if param.numel() and param.ndim >= least])
        rest.append([param for param in params if param.numel() and param.ndim < least])
    return matrices, rest


def refuse_sparse(groups: Sequence[Mapping[str, Any]], active: Sequence[Sequence[Tensor]]) -> None:
    """Refuse sparse gradients.

    Args:
        groups: The optimizer's.
        active: Each group's matrices with a gradient.

    Raises:
        RecipeError: There is a sparse one.

    Example:
        >>> refuse_sparse([], [])
    """
    sparse = [
        (group, tuple(p.shape))
        for group, params in zip(groups, active, strict=True)
        for p in params
        if p.grad is not None and p.grad.is_sparse
    ]
    if sparse:
        raise RecipeError(
            [
                f"{group_label(sparse[0][0])}the parameter of shape {sparse[0][1]} has a sparse gradient, and a matrix "
                f"method needs whole ones. Build its embedding with sparse=False, and give it to AdamW."
            ]
        )
