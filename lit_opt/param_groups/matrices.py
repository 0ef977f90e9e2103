"""Which weights a matrix method takes, how it reads them, and why the others are left to AdamW.

A matrix method (Muon and its family) is for hidden weights: matrices between the first and the last layer. Who leaves
out what was read in KellerJordan/Muon README.md (embeddings, the output layer and the first convolution to AdamW),
timm/optim/muon.py `_is_suitable_for_muon` (sizes), microsoft/dion README.md (neither dimensions nor types alone are
enough) and MoonshotAI/Moonlight examples/toy_train.py. Ends of a network are found in `lit_opt.param_groups.ends`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from lit_opt.param_groups.ends import Ends
from lit_opt.param_groups.roles import ROLES, real_owner, type_name

# timm's bounds of what is orthogonalised, for each matrix on its own.
SMALLEST_SIDE = 4
LONGEST_ASPECT = 128

_EXPERTS = re.compile(r"expert|moe", re.IGNORECASE)
_ROUTER = re.compile(r"router|topkgate|gatingnetwork", re.IGNORECASE)
_ROUTER_NAMES = {"gate", "wg", "gating", "gate_network"}
_NO_MATRIX = {"position": "position embedding", "adapter": "adapter (LoRA) matrix"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Matrix:
    """How a matrix method would read a parameter.

    Args:
        layout: A layout of the registry's matrix methods ("matrix", "conv", "transposed", "conv_transposed", "experts",
            "experts_transposed"); "" for what is no matrix.
        count: Equal row blocks, each a matrix of its own: the groups of a grouped convolution.
        left: Why it is left to AdamW; "" for a hidden matrix.
        role: "head" or "embedding" for what some methods take all the same; "" for everything else.

    Example:
        >>> Matrix(layout="matrix").left
        ''
    """

    layout: str = ""
    count: int = 1
    left: str = ""
    role: str = ""


def decide_matrix(
    path: str,
    owner: nn.Module,
    role: str,
    shape: Sequence[int],
    listed: str,
    modules: Mapping[str, nn.Module],
    ends: Ends,
) -> Matrix:
    """Decide one parameter.

    Args:
        path: Clean dotted name.
        owner: The module that holds it.
        role: Key of `ROLES`.
        shape: Full, unsharded shape.
        listed: The `no_weight_decay()` that names it, or "".
        modules: Clean path -> module.
        ends: First and last layers of the network.

    Example:
        >>> from torch import nn
        >>> from lit_opt.param_groups.ends import find_ends
        >>> net = nn.Sequential(nn.Conv2d(64, 64, 3, groups=64), nn.Conv2d(64, 128, 1), nn.Linear(128, 10))
        >>> ends = find_ends(dict(net.named_modules()))
        >>> decide_matrix("0.weight", net[0], "matrix", (64, 1, 3, 3), "", {}, ends).left
        'depthwise convolution'
        >>> decide_matrix("1.weight", net[1], "matrix", (128, 64, 1, 1), "", {}, ends)
        Matrix(layout='conv', count=1, left='', role='')
    """
    if role != "matrix":
        return Matrix(
            layout="matrix" if role in ("embedding", "position") else "",
            left=_NO_MATRIX.get(role, ROLES[role]),
            role="embedding" if role == "embedding" else "",
        )
    owner = real_owner(path.split("."), owner, modules)
    layout, count, unknown = _layout(path, owner, shape, modules)
    reasons = (
        ends.heads.get(path, ""),
        "router of experts" if _is_router(path, owner, modules) else "",
        ends.stems.get(path, ""),
        f"listed in {listed}" if listed else "",
        unknown,
        _too_small(shape, layout, count, owner),
    )
    return Matrix(
        layout=layout,
        count=count,
        left=next((reason for reason in reasons if reason), ""),
        role="head" if path in ends.heads and len(shape) == 2 else "",
    )


def matrix_shape(shape: Sequence[int], layout: str, count: int) -> tuple[int, int, int]:
    """(count, outputs, inputs) of the matrices of a tensor.

    Example:
        >>> matrix_shape((64, 8, 3, 3), "conv", 4), matrix_shape((8, 32, 64), "experts_transposed", 1)
        ((4, 16, 72), (8, 64, 32))
    """
    if layout.startswith("experts"):
        rows, cols = shape[1:] if layout == "experts" else (shape[2], shape[1])
        return shape[0], rows, cols
    first, second, *kernel = shape
    if layout in ("transposed", "conv_transposed"):
        first, second = second, first
    return count, first // count, second * math.prod(kernel)


def _layout(
    path: str, owner: nn.Module, shape: Sequence[int], modules: Mapping[str, nn.Module]
) -> tuple[str, int, str]:
    """Layout, row blocks, and why the layout is not known."""
    kind = type_name(owner)
    if isinstance(owner, nn.modules.conv._ConvTransposeNd):
        unknown = "grouped transposed convolution" if owner.groups > 1 else ""
        return "conv_transposed", 1, unknown
    if isinstance(owner, nn.modules.conv._ConvNd):
        return "conv", owner.groups, ""
    if kind == "Conv1D" and len(shape) == 2:
        return "transposed", 1, ""  # transformers' Linear with (inputs, outputs), of GPT-2
    among_experts = bool(_EXPERTS.search(kind) or _EXPERTS.search(path))
    free_standing = not isinstance(owner, nn.Linear | nn.Bilinear | nn.MultiheadAttention | nn.RNNBase | nn.RNNCellBase)
    if free_standing and len(shape) == 3 and among_experts:
        return ("experts_transposed" if _experts_transposed(path, owner) else "experts"), 1, ""
    if len(shape) == 2:
        flat = free_standing and re.search("expert", kind, re.IGNORECASE) and not _ROUTER.search(kind)
        return "matrix", 1, "experts in one flat matrix, of unknown order" if flat else ""
    known = isinstance(owner, nn.Bilinear) or re.search("conv", kind, re.IGNORECASE)
    return "conv", 1, "" if known else f"free-standing tensor with {len(shape)} dimensions"


def _experts_transposed(path: str, owner: nn.Module) -> bool:
    """Whether a stack of experts is (experts, inputs, outputs), as in gpt-oss and Llama 4.

    transformers says so itself where it can run the experts in one call. Else a bias has as many entries as outputs,
    and the matrices of one block fit together: what one gives is what the other takes.
    """
    declared = getattr(owner, "is_transposed", None)
    if isinstance(declared, bool):
        return declared
    leaf = path.rpartition(".")[2]
    stacks = {name: tuple(p.shape) for name, p in owner._parameters.items() if p is not None}
    bias = stacks.get(f"{leaf}_bias")
    shape = stacks.get(leaf)
    if bias is not None and shape is not None and shape[1] != shape[2]:
        return bias[-1] == shape[2]
    three = {name: size for name, size in stacks.items() if len(size) == 3}
    down = next((size for name, size in three.items() if re.search("down|w2|wo|out", name)), None)
    up = next((size for name, size in three.items() if re.search("up|w1|wi|in", name)), None)
    if down is None or up is None:
        return False
    return down[2] == up[1] and down[1] != up[2]


def _is_router(path: str, owner: nn.Module, modules: Mapping[str, nn.Module]) -> bool:
    parts = path.split(".")[:-1]
    if _ROUTER.search(type_name(owner)) or any(_ROUTER.search(part) for part in parts):
        return True
    if not parts or parts[-1] not in _ROUTER_NAMES:
        return False
    # A gate beside experts; the gate of a gated MLP is a hidden matrix.
    parent = modules.get(".".join(parts[:-1]))
    names = [name for name, _ in parent.named_children()] if parent is not None else []
    return any("expert" in name for name in names)


def _too_small(shape: Sequence[int], layout: str, count: int, owner: nn.Module) -> str:
    if sum(n > 1 for n in shape) < 2:
        return "vector" if max(shape, default=1) > 1 else "scalar"
    if isinstance(owner, nn.modules.conv._ConvNd) and owner.groups > 1 and owner.groups == owner.in_channels:
        return "depthwise convolution"
    _, rows, cols = matrix_shape(shape, layout, count)
    small, large = sorted((rows, cols))
    words = f"{rows} x {cols}"
    if small <= 1:
        return f"{words} is a vector"
    if small < SMALLEST_SIDE:
        return f"{words} is tiny (a side below {SMALLEST_SIDE})"
    if large > LONGEST_ASPECT * small:
        return f"{words} is too long (above {LONGEST_ASPECT} : 1)"
    return ""
