"""TEON: Muon on stacks of weights of the same kind in consecutive blocks, orthogonalised side by side."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from lit_opt.errors import RecipeError
from lit_opt.optim.matrix.engine import MatrixOptimizer
from lit_opt.optim.matrix.groups import group_label
from lit_opt.optim.matrix.stages import Stages

# The last parts of the names of query, key and value weights, alone or fused, in timm, transformers and torch.
_ROLES = (
    "q_proj|k_proj|v_proj|qkv_proj|qkv|Wqkv|wq|wk|wv|wqkv|to_q|to_k|to_v|to_qkv|query|key|value|query_key_value|"
    "c_attn|attn_qkv|in_proj|q|k|v|in_proj_weight"
)
_NAME = re.compile(rf"^(?P<before>.*?\.|)(?P<block>\d+)\.(?P<after>(?:[^.]+\.)*?(?:{_ROLES})(?:\.weight)?)$")


def find_stacks(names: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """Query, key and value weights of the same kind and shape in consecutive blocks, two at a time.

    Each kind is stacked with itself: Q of block 0 with Q of block 1. What is left over stays alone. Larger stacks
    are worse (arXiv:2601.23261).

    Args:
        names: Dotted parameter names; the first number in a name is the block.
        shapes: Their shapes.

    Returns:
        Indices into `names`, one list for each stack.

    Example:
        >>> names = [f"blocks.{i}.attn.{role}.weight" for i in range(3) for role in ("q_proj", "k_proj", "o_proj")]
        >>> find_stacks(names, [(8, 8)] * 9)
        [[0, 3], [1, 4]]
    """
    kinds: dict[tuple[object, ...], list[tuple[int, int]]] = defaultdict(list)
    for index, (name, shape) in enumerate(zip(names, shapes, strict=True)):
        match = _NAME.match(name)
        if match and len(shape) == 2:
            kinds[match["before"], match["after"], tuple(shape)].append((int(match["block"]), index))
    stacks = []
    for members in kinds.values():
        members.sort()
        while len(members) > 1:
            (block, index), (next_block, next_index) = members[:2]
            together = next_block == block + 1
            if together:
                stacks.append([index, next_index])
            members = members[2 if together else 1 :]
    return sorted(stacks)


class Teon(MatrixOptimizer):
    """Muon where P acts on [M_1 | ... | M_K], weights of the same kind from K consecutive blocks.

    Everything that is in no stack is updated by Muon. Momentum, decay and scale are those of each weight.

    Args:
        params: As in `Muon`. With (name, tensor) pairs and no `stack`, query, key and value weights are stacked in
            pairs by `find_stacks`; tensors without names are not stacked.
        lr: As in `Muon`.
        stack: One stack as a list of names or tensors of the group, or a list of such lists; [] for none. The weights
            have the same shape.
        momentum: As in `Muon`.
        nesterov: As in `Muon`.
        weight_decay: As in `Muon`.
        scale: As in `Muon`, for the shape of one weight; the paper's is spectral_unclamped. The default is Muon's, so
            that without stacks both are equal.
        orthogonalize: As in `Muon`.
        ns_steps: As in `Muon`.
        ns_dtype: As in `Muon`.
        layout: As in `Muon`.
        split_sizes: As in `Muon`; each part is stacked with itself.
        num_heads: As in `Muon`.
        fallback: As in `Muon`.

    Raises:
        RecipeError: As in `Muon`; a stack with an unknown name, a tensor of another group or different shapes.

    Source: arXiv:2601.23261 (no official code was found); mode 1, which the paper finds best.

    Example:
        >>> import torch
        >>> from lit_opt.optim import Teon
        >>> a, b = torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 4, bias=False)
        >>> group = {"params": [a.weight, b.weight], "stack": [a.weight, b.weight]}
        >>> Teon([group], lr=0.02).param_groups[0]["stack"]
        [[0, 1]]
    """

    name: ClassVar[str] = "teon"
    stages: ClassVar[Stages] = Stages()

    def __init__(
        self,
        params: Any,
        lr: float = 0.02,
        *,
        stack: Sequence[Any] | None = None,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.01,
        scale: str = "original",
        orthogonalize: str = "polar_express",
        ns_steps: int = 5,
        ns_dtype: str = "auto",
        layout: str | None = None,
        split_sizes: list[int] | None = None,
        num_heads: int | None = None,
        fallback: Mapping[str, Any] | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "stack": stack,
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "scale": scale,
            "orthogonalize": orthogonalize,
            "ns_steps": ns_steps,
            "ns_dtype": ns_dtype,
            "layout": layout,
            "split_sizes": split_sizes,
            "num_heads": num_heads,
        }
        super().__init__(params, defaults, fallback)
        if stack:
            used = sum(len(group.get("stack") or ()) for group in self.param_groups)
            if used < len(_nested(stack)):
                raise RecipeError([f"stack: {len(_nested(stack)) - used} of its lists are not within one group."])
        # Stacks are kept as places in each group: tensors would not survive a checkpoint.
        self.defaults["stack"] = None if stack is None else []

    def problems_of(self, group: dict[str, Any], given: set[str]) -> list[str]:
        """Turn the group's stacks into places in it, and say what is wrong with them."""
        params, names, where = group["params"], group.get("param_names"), group_label(group)
        if group["stack"] is None:
            found = find_stacks(names, [tuple(p.shape) for p in params]) if names else []
            group["stack"] = [stack for stack in found if len({_kind(params[i]) for i in stack}) == 1]
            return []
        stacks, problems = [], []
        for stack in _nested(group["stack"]):
            if "stack" not in given and all(_place_of(member, params, names) is None for member in stack):
                continue
            places = [_place_of(member, params, names) for member in stack]
            unknown = [member for member, place in zip(stack, places, strict=True) if place is None]
            if unknown:
                known = f" Its names: {', '.join(names[:8])}." if names else " Its parameters have no names."
                shown = unknown[0] if isinstance(unknown[0], str) else f"a tensor of shape {tuple(unknown[0].shape)}"
                problems.append(f"{where}stack: {shown!r} is not a parameter of the group.{known}")
                continue
            shapes = {tuple(params[place].shape) for place in places}
            if len(shapes) > 1:
                problems.append(f"{where}stack: shapes {sorted(shapes)} differ. A stack has weights of one shape.")
            elif len({_kind(params[place]) for place in places}) > 1:
                problems.append(f"{where}stack: its weights differ in dtype, or in the DeviceMesh that they are on.")
            stacks.append(places)
        flat = [place for stack in stacks for place in stack]
        if len(set(flat)) < len(flat):
            problems.append(f"{where}stack: a parameter is in it twice.")
        group["stack"] = stacks
        return problems


def _kind(param: Tensor) -> tuple[Any, ...]:
    """What the weights of a stack share beside their shape."""
    return param.dtype, getattr(param, "device_mesh", None)


def _nested(stack: Sequence[Any]) -> list[Sequence[Any]]:
    return [stack] if stack and not isinstance(stack[0], list | tuple) else list(stack)


def _place_of(member: object, params: Sequence[Tensor], names: Iterable[str] | None) -> int | None:
    if isinstance(member, str):
        return list(names or ()).index(member) if member in (names or ()) else None
    if isinstance(member, int) and 0 <= member < len(params):
        return member
    return next((index for index, param in enumerate(params) if param is member), None)
