"""What a module's parameters are, as frozen plain data that survives sharding, pickling and copying."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from lit_opt.errors import RecipeError, kind_of
from lit_opt.param_groups.ends import find_ends
from lit_opt.param_groups.layer_depth import layer_ids
from lit_opt.param_groups.matrices import Matrix, decide_matrix
from lit_opt.param_groups.roles import ROLES, decide_role, type_name

_WRAPPERS = re.compile(r"(?<![^.])(?:_fsdp_wrapped_module|_orig_mod|_checkpoint_wrapped_module)(?:\.|$)")

# Which role decides for a tensor that has several names: a tied head follows its embedding.
_TIED_ORDER = ("embedding", "position")


@dataclass(frozen=True, kw_only=True, slots=True)
class ParamInfo:
    """One parameter as it was before sharding.

    Args:
        name: First dotted name in the module's own order, without wrapper parts.
        shape: Full shape.
        owner: Type name of the module that holds it under `name`.
        role: Key of `lit_opt.param_groups.roles.ROLES`.
        why: Clause that says how the role was found.
        trainable: `requires_grad`.
        aliases: Its other names (tied weights, shared modules).
        listed: The `no_weight_decay()` that names it, or "".
        layer: Layer id for layer-wise learning-rate decay, or None where the module has no repeated blocks.
        matrix: How a matrix method reads it, or why it does not.
    """

    name: str
    shape: tuple[int, ...]
    owner: str
    role: str
    why: str
    trainable: bool
    aliases: tuple[str, ...] = ()
    listed: str = ""
    layer: int | None = None
    matrix: Matrix = field(default_factory=Matrix)


@dataclass(frozen=True, slots=True)
class ParamSnapshot:
    """All parameters of a module, frozen ones included, in the module's own order.

    Args:
        parameters: One record each.
    """

    parameters: tuple[ParamInfo, ...]

    @property
    def parameter_count(self) -> int:
        """Trainable numbers outside of embeddings (of tokens and of positions); tied weights count as embeddings."""
        return sum(
            torch.Size(info.shape).numel()
            for info in self.parameters
            if info.trainable and info.role not in ("embedding", "position")
        )

    @property
    def last_layer(self) -> int | None:
        """Layer id of the head, or None where the module has no repeated blocks."""
        return max((info.layer for info in self.parameters if info.layer is not None), default=None)


def clean_name(name: str) -> str:
    """The name without the parts that FSDP1, torch.compile and activation checkpointing put in.

    Args:
        name: A parameter's dotted name.

    Example:
        >>> clean_name("model._fsdp_wrapped_module.layers.0._orig_mod.weight")
        'model.layers.0.weight'
    """
    return _WRAPPERS.sub("", name).rstrip(".")


def matching(glob: str, parameters: Iterable[ParamInfo]) -> list[ParamInfo]:
    """The parameters with a name, or the name of a tied one, that the glob matches.

    Example:
        >>> from torch import nn
        >>> [info.name for info in matching("*.bias", snapshot_parameters(nn.Sequential(nn.Linear(2, 2))).parameters)]
        ['0.bias']
    """
    matches = re.compile(fnmatch.translate(glob)).match
    return [info for info in parameters if any(map(matches, (info.name, *info.aliases)))]


def such_as(names: Sequence[str]) -> str:
    """What names look like, for the message of a glob that matches none.

    Example:
        >>> such_as(["layer.weight", "layer.bias"])
        " Names are such as 'layer.weight', 'layer.bias'."
    """
    return f" Names are such as {', '.join(map(repr, names[:3]))}."


def snapshot_parameters(module: nn.Module) -> ParamSnapshot:
    """Record names, shapes, owners and roles of a module's parameters.

    Args:
        module: The module before it is sharded. FSDP1's with use_orig_params=True are read through the shapes that
            FSDP recorded; meta-device and FSDP2 modules know their full shapes.

    Returns:
        Plain data without tensors.

    Raises:
        RecipeError: No module; lazy parameters that have no shape yet; FSDP1 with use_orig_params=False.

    Example:
        >>> from torch import nn
        >>> info = snapshot_parameters(nn.Sequential(nn.Linear(2, 3))).parameters[0]
        >>> info.name, info.shape, info.owner, info.role
        ('0.weight', (3, 2), 'Linear', 'matrix')
    """
    if not isinstance(module, nn.Module):
        raise RecipeError(
            [f"module: {module!r} is {kind_of(module)}; give a torch.nn.Module, such as a LightningModule."]
        )
    refuse_unreadable(module)
    # Of a wrapper and what it wraps, which have one clean path, the inner one is kept.
    modules = {clean_name(path): child for path, child in module.named_modules(remove_duplicate=False)}
    holders = list(_holders(modules))
    flat_shapes = _fsdp1_shapes(module)
    listed = _listed(modules, [name for name, _, _ in holders])
    ends = find_ends(modules)

    tensors: dict[int, list[tuple[str, nn.Module, nn.Parameter]]] = {}
    for name, owner, parameter in holders:
        tensors.setdefault(id(parameter), []).append((name, owner, parameter))

    found = []
    for places in tensors.values():
        name, owner, parameter = places[0]
        leaf = name.rpartition(".")[2]
        shape = flat_shapes.get((id(owner), leaf)) or tuple(getattr(parameter, "ds_shape", parameter.shape))
        roles = [decide_role(n, o, shape, modules) for n, o, _ in places]
        decisive = next((i for r in _TIED_ORDER for i, (role, _) in enumerate(roles) if role == r), 0)
        role, why = roles[decisive]
        if decisive:
            why = f"tied with {places[decisive][0]} ({ROLES[role]})"
        elif len(places) > 1 and role in _TIED_ORDER:
            why += f", tied with {places[1][0]}"
        by_model = next((listed[n] for n, _, _ in places if n in listed), "")
        # A layer that is a head or a router under one of its names is one.
        readings = [decide_matrix(n, o, role, shape, by_model, modules, ends) for n, o, _ in places]
        found.append(
            ParamInfo(
                name=name,
                shape=shape,
                owner=type_name(owner),
                role=role,
                why=why,
                trainable=parameter.requires_grad,
                aliases=tuple(n for n, _, _ in places[1:]),
                listed=by_model,
                matrix=next((reading for reading in readings if reading.left), readings[0]),
            )
        )
    layers = layer_ids(modules, {info.name: info.role for info in found})
    return ParamSnapshot(tuple(found) if layers is None else tuple(replace(i, layer=layers[i.name]) for i in found))


def _holders(modules: dict[str, nn.Module]) -> Iterator[tuple[str, nn.Module, nn.Parameter]]:
    for path, owner in modules.items():
        for leaf, parameter in owner._parameters.items():
            if parameter is not None:
                yield f"{path}.{leaf}" if path else leaf, owner, parameter


def refuse_unreadable(module: nn.Module) -> None:
    """Refuse parameters of which nothing can be told: lazy ones, and FSDP1's without names.

    Raises:
        RecipeError: There are some; the message says what to do.

    Example:
        >>> refuse_unreadable(nn.Linear(2, 2))
    """
    problems = []
    lazy: list[str] = []
    for name, parameter in module.named_parameters():
        if is_lazy(parameter):
            lazy.append(name)
        elif name.rpartition(".")[2] == "_flat_param":
            problems.append(
                f"parameters: {name!r} is FSDP's flat parameter, whose layers cannot be told apart. "
                "Wrap with use_orig_params=True, or pass the module before it is wrapped."
            )
    if lazy:
        problems.append(
            f"parameters: {', '.join(map(repr, lazy[:3]))}{' ...' if len(lazy) > 3 else ''} of lazy modules have no "
            "shape yet. Run one batch through the module first, such as `module(batch)` in configure_model."
        )
    if problems:
        raise RecipeError(problems)


def _fsdp1_shapes(module: nn.Module) -> dict[tuple[int, str], tuple[int, ...]]:
    """(id of owner, leaf) -> the shape before FSDP1 made it flat."""
    shapes: dict[tuple[int, str], tuple[int, ...]] = {}
    for wrapper in module.modules():
        flat: Any = getattr(wrapper.__dict__.get("_handle"), "flat_param", None)
        if flat is None:
            continue
        for info, shape in zip(flat._param_infos, flat._shapes, strict=True):
            shapes[id(info.module), info.param_name] = tuple(shape)
    return shapes


def _listed(modules: dict[str, nn.Module], names: list[str]) -> dict[str, str]:
    """Name -> the `no_weight_decay()` (or Swin's `no_weight_decay_keywords()`) that lists it."""
    listed: dict[str, str] = {}
    for path, module in modules.items():
        for method, is_part in (("no_weight_decay", False), ("no_weight_decay_keywords", True)):
            declare = getattr(module, method, None)
            if not callable(declare):
                continue
            start = f"{path}." if path else ""
            entries = {clean_name(str(entry)) for entry in declare()}
            # timm matches with wildcards; most entries have none, and a set is faster then.
            globs = [entry for entry in entries if is_part or any(c in entry for c in "*?[")]
            for name in names:
                short = name.removeprefix(start)
                if name.startswith(start) and (
                    short in entries
                    or any(glob in short if is_part else fnmatch.fnmatchcase(short, glob) for glob in globs)
                ):
                    listed.setdefault(name, f"{type_name(module)}.{method}()")
    return listed
