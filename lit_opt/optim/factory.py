"""`build`: a registry name and parameters become a torch optimizer, or one message with all that is wrong."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lit_opt.errors import RecipeError, nearest
from lit_opt.optim.check import check_hyperparameters, check_momentum, missing_lr
from lit_opt.optim.implementation import choose_implementation, keep_implementation
from lit_opt.optim.matrix.scale import check_units
from lit_opt.optim.registry import get_row, row_of
from lit_opt.optim.schema import REQUIRED, OptimizerRow

Params = Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[Mapping[str, Any]]

_PARAMS_ALLOWED = "Allowed: an iterable of tensors, of (name, tensor) pairs, or of group dicts with 'params'"


def build(name: str, params: Params, **hyperparameters: Any) -> Optimizer:
    """Build an optimizer by its registry name.

    Args:
        name: Registry name, see `list_optimizers`.
        params: Tensors of any shape, (name, tensor) pairs, or group dicts. A group dict has "params" and may have
            "name", "algorithm" and any hyperparameter, which then replaces the one below for that group.
        **hyperparameters: Keywords of the registry row (lr, weight_decay, betas, momentum, ...). `lr` has no
            default: it is given here or in every group. weight_decay has the unit of the optimizer, for adamw
            torch's: it is multiplied by lr. Methods that watch the layers (kfac, natural_gradient) need module=.

    Returns:
        A torch.optim.Optimizer. Its groups have "algorithm" and, where given, "name", also after add_param_group,
        state_dict, deepcopy and pickle. Where several implementations exist, it has the fastest correct one.

    Raises:
        RecipeError: Unknown name or keyword, a value of the wrong type or out of bounds, a missing lr, an empty or
            duplicated parameter, a tensor that is not a leaf, a group of another algorithm. All problems at once.

    Matrix methods (muon, ...) take groups of their own and, with "algorithm" "adamw", AdamW's; tensors with fewer than
    two dimensions go to AdamW in any group. `fallback` (lr, betas, eps, weight_decay) is for AdamW where a group says
    nothing. An embedding or a head cannot be recognised here: mark its group.

    Layer-wise methods (lars, lamb) adapt every group, also with weight_decay=0. A group dict that sets
    weight_decay to 0 itself is taken as excluded from decay and does not adapt, unless it has "always_adapt". A group
    that comes later through add_param_group adapts unless it has always_adapt=False.

    Gradients that are assigned by hand need the strides of their parameter, as autograd's have: torch's fused CPU
    kernels misread others (torch 2.15).

    Example:
        >>> import torch
        >>> from lit_opt.optim import build
        >>> model = torch.nn.Linear(4, 2)
        >>> groups = [
        ...     {"params": [model.weight], "name": "decay"},
        ...     {"params": [model.bias], "name": "no_decay", "weight_decay": 0.0},
        ... ]
        >>> optimizer = build("adamw", groups, lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1)
        >>> model(torch.ones(1, 4)).sum().backward()
        >>> optimizer.step()
        >>> [(g["name"], g["weight_decay"], g["algorithm"]) for g in optimizer.param_groups]
        [('decay', 0.1, 'adamw'), ('no_decay', 0.0, 'adamw')]
    """
    row = row_of(name, hyperparameters)
    extras, problems = _extras(row, hyperparameters)
    values, value_problems = check_hyperparameters(row, {k: v for k, v in hyperparameters.items() if k not in extras})
    groups, group_problems = _groups(row, params)
    problems += value_problems + group_problems
    problems += _tensor_problems(groups)
    for where, group in groups:
        clean, found = _check_group(row, group, where)
        group.update(clean)
        problems += found
    own = [(where, group) for where, group in groups if group.get("algorithm", row.name) == row.name]
    if "lr" not in hyperparameters and not (groups and all("lr" in group for _, group in own)):
        problems.append(missing_lr(row))
    problems += [
        f"{key}: missing. {row.name} has no default for it; type {key}=..."
        for key, default in row.hyperparameters.items()
        if default is REQUIRED and key != "lr" and key not in hyperparameters
    ]

    defaults = {k: v for k, v in row.hyperparameters.items() if v is not REQUIRED} | values
    problems += check_momentum(row, defaults)
    for where, group in own:
        if {"momentum", "nesterov"} & group.keys():
            problems += check_momentum(row, defaults | group, where=where)
        if "scale" in group:
            problems += check_units(defaults, group, where=where)
    if problems:
        raise RecipeError(problems)

    for _, group in groups:
        if group.get("weight_decay") == 0:
            for key, value in row.excluded_group.items():
                group.setdefault(key, value)
        group.setdefault("algorithm", row.name)
    # Groups that are added later need some default; without a common one it is the first group's.
    defaults.setdefault("lr", (own or groups)[0][1].get("lr"))
    nesterov = bool(row.fixed.get("nesterov")) or any((defaults | group).get("nesterov") for _, group in groups)
    if row.wraps:
        return _wrapped(row, [group for _, group in groups], defaults, extras, nesterov)
    return _constructed(row, [group for _, group in groups], defaults | extras, nesterov)


def _constructed(
    row: OptimizerRow, groups: list[dict[str, Any]], options: Mapping[str, Any], nesterov: bool
) -> Optimizer:
    tensors = [tensor for group in groups for tensor in _tensors(group)]
    options = {
        **options,
        **row.fixed,
        **row.decayed_group,
        **choose_implementation(row, tensors, nesterov=nesterov),
    }
    optimizer = _load(row)(groups, **options)
    # add_param_group fills in what a group lacks from here.
    optimizer.defaults["algorithm"] = row.name
    keep_implementation(optimizer)
    return optimizer


def _wrapped(
    row: OptimizerRow,
    groups: list[dict[str, Any]],
    defaults: Mapping[str, Any],
    extras: Mapping[str, Any],
    nesterov: bool,
) -> Optimizer:
    """The base with its own name in the groups, then the optimizer around it with the other."""
    inside = get_row(defaults["base"])
    for group in groups:
        group["algorithm"] = inside.name if group["algorithm"] == row.name else group["algorithm"]
    own = {key: value for key, value in defaults.items() if key not in inside.hyperparameters and key != "base"}
    options = {key: value for key, value in defaults.items() if key in inside.hyperparameters}
    optimizer = _load(row)(_constructed(inside, groups, {**options, **extras}, nesterov), **own)
    for group in optimizer.param_groups:
        group["algorithm"] = row.name if group["algorithm"] == inside.name else group["algorithm"]
    return optimizer


def _extras(row: OptimizerRow, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Keywords that are not hyperparameters, and their problems: the module to watch, or a matrix method's fallback."""
    if row.needs_module:
        if not isinstance(given.get("module"), torch.nn.Module):
            return {}, [f"module: missing. {row.name} watches the layers of the model; type module=model."]
        return {"module": given["module"]}, []
    if not row.matrix:
        return {}, []
    extras = {key: given[key] for key in (*row.group_options, "fallback") if key in given}
    fallback = extras.get("fallback")
    if fallback is None:
        return extras, []
    if not isinstance(fallback, Mapping):
        return extras, [f"fallback: {fallback!r} is not a dict, such as {{'lr': 3e-4, 'weight_decay': 0.01}}."]
    extras["fallback"], problems = check_hyperparameters(get_row("adamw"), fallback, where="fallback: ")
    return extras, problems


def _groups(row: OptimizerRow, params: object) -> tuple[list[tuple[str, dict[str, Any]]], list[str]]:
    """All groups as fresh dicts, each with the words that name it in a message."""
    if isinstance(params, torch.nn.Module):
        return [], [f"params: a module ({type(params).__name__}). Type params=module.parameters(). {_PARAMS_ALLOWED}."]
    if isinstance(params, Tensor | Mapping | str | set | frozenset) or not isinstance(params, Iterable):
        return [], [f"params: {type(params).__name__} is not a list. {_PARAMS_ALLOWED}."]
    entries = list(params)
    if not entries:
        return [], ["params: empty. The optimizer has nothing to train; is the module frozen or not built yet?"]
    if not any(isinstance(entry, Mapping) for entry in entries):
        group = {"params": entries}
        return [("params: ", group)], _entry_problems(entries, "params: ")
    if not all(isinstance(entry, Mapping) for entry in entries):
        return [], [f"params: group dicts and tensors are mixed. {_PARAMS_ALLOWED}."]

    groups: list[tuple[str, dict[str, Any]]] = []
    problems: list[str] = []
    names: list[object] = []
    for index, entry in enumerate(entries):
        group = {key: value for key, value in entry.items() if key not in ("name", "algorithm") or value is not None}
        name = group.get("name")
        where = f"groups[{index}]{f' ({name!r})' if name is not None else ''}: "
        if name is not None and name in names:
            problems.append(f"{where}name: {name!r} is used twice. Group names have to differ.")
        names.append(name)
        tensors = group.get("params", ())
        if isinstance(tensors, Mapping | str | set | frozenset) or not isinstance(tensors, Iterable):
            problems.append(f"{where}params: {type(tensors).__name__} is not a list of tensors.")
            tensors = ()
        elif "params" not in group:
            problems.append(f"{where}has no 'params'.")
        group["params"] = [tensors] if isinstance(tensors, Tensor) else list(tensors)
        if not group["params"] and not (problems and problems[-1].startswith(where)):
            problems.append(f"{where}params: empty. Leave the group out.")
        problems += _entry_problems(group["params"], where)
        if group.get("algorithm", row.name) not in ((row.name, "adamw") if row.matrix else (row.name,)):
            problems.append(
                f"{where}algorithm: {group['algorithm']!r} in an optimizer {row.name!r}. Allowed: {row.name!r} and "
                f"'adamw'."
                if row.matrix
                else f"{where}algorithm: {group['algorithm']!r} in an optimizer {row.name!r}. Only matrix methods mix "
                f"algorithms. Leave it out, or build one optimizer for each."
            )
        groups.append((where, group))
    return groups, problems


def _entry_problems(entries: list[Any], where: str) -> list[str]:
    pairs = [isinstance(e, tuple) and len(e) == 2 and isinstance(e[0], str) for e in entries]
    tensors = [e[1] if pair else e for e, pair in zip(entries, pairs, strict=True)]
    wrong = [
        f"{where}{type(tensor).__name__} is not a tensor. {_PARAMS_ALLOWED}."
        for tensor in tensors
        if not isinstance(tensor, Tensor)
    ]
    if any(pairs) and not all(pairs):
        wrong.append(f"{where}named and unnamed tensors are mixed. Name all of them, or none.")
    return wrong[:1]


def _tensors(group: Mapping[str, Any]) -> list[Tensor]:
    entries = (e[1] if isinstance(e, tuple) and len(e) == 2 else e for e in group["params"])
    return [entry for entry in entries if isinstance(entry, Tensor)]


def _tensor_problems(groups: list[tuple[str, dict[str, Any]]]) -> list[str]:
    problems = []
    first: dict[int, str] = {}
    for where, group in groups:
        for index, tensor in enumerate(_tensors(group)):
            label = f"{where}parameter {index} of shape {tuple(tensor.shape)}"
            if id(tensor) in first:
                problems.append(f"{label} is there twice, first as {first[id(tensor)]}. List tied weights once.")
            first.setdefault(id(tensor), label)
            if not tensor.is_leaf:
                problems.append(
                    f"{label} is not a leaf: it was computed from other tensors and gets no gradient. Pass the "
                    f"nn.Parameter it comes from."
                )
    return problems


def _check_group(row: OptimizerRow, group: Mapping[str, Any], where: str) -> tuple[dict[str, Any], list[str]]:
    if group.get("algorithm", row.name) != row.name:
        row = get_row("adamw")
    extra = {*row.decayed_group, *row.excluded_group, *row.group_options}
    plain = {"params", "name", "algorithm", *extra}
    given = {key: value for key, value in group.items() if key not in plain}
    known = [*row.hyperparameters, *plain]
    problems = []
    for key in [k for k in given if k not in row.hyperparameters and k not in row.fixed]:
        problems.append(f"{where}{key}: not an option of a group.{nearest(key, known)} Allowed: {', '.join(known)}.")
        del given[key]
    for key in [k for k in given if k in row.global_only]:
        problems.append(f"{where}{key}: {row.name} has one for all groups. Pass it to build as {key}=...")
        del given[key]
    if where == "params: ":
        return {}, problems
    clean, found = check_hyperparameters(row, given, where=where)
    return clean, problems + found


def _load(row: OptimizerRow) -> Callable[..., Optimizer]:
    module, _, attribute = row.factory.partition(":")
    try:
        factory = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as missing:
        if not row.extra:
            raise
        raise RecipeError(
            [
                f"optimizer: {row.name} needs {missing.name}, which is not installed. Type: pip install 'lit-opt[{row.extra}]'."
            ]
        ) from missing
    assert callable(factory)
    return factory
