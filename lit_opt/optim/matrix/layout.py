"""How a parameter is read as matrices of (outputs, inputs)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lit_opt.errors import nearest

# Layout -> (dimensions or None for any from 3 on, what it is).
LAYOUTS = {
    "matrix": (2, "(outputs, inputs), torch.nn.Linear"),
    "transposed": (2, "(inputs, outputs), Conv1D of transformers"),
    "conv": (None, "(outputs, inputs, kernel ...), read as (outputs, inputs x kernel)"),
    "conv_transposed": (None, "(inputs, outputs, kernel ...), torch.nn.ConvTranspose2d"),
    "experts": (3, "(experts, outputs, inputs), one matrix an expert"),
    "experts_transposed": (3, "(experts, inputs, outputs)"),
}


def layout_of(group: Mapping[str, Any], tensor: Tensor) -> str:
    """The group's layout; without one, "matrix" for two dimensions and "conv" for more.

    Example:
        >>> import torch
        >>> layout_of({}, torch.ones(4, 3, 2, 2))
        'conv'
    """
    return group.get("layout") or ("matrix" if tensor.ndim == 2 else "conv")


def blocks(tensor: Tensor, group: Mapping[str, Any]) -> list[Tensor]:
    """The tensor as views of shape (count, outputs, inputs ...), one for each different shape.

    Each view holds `count` matrices that are orthogonalised on their own. Writing to a view writes to the tensor.

    Args:
        tensor: A parameter, or a tensor of its shape.
        group: May have "layout", "split_sizes" (rows of each part of a fused weight, such as Q, K and V) or
            "num_heads" (equal row blocks), and "block_size": no block has more outputs, or more inputs (whole kernels
            of input channels), than that.

    Example:
        >>> import torch
        >>> [tuple(view.shape) for view in blocks(torch.ones(8, 5), {"split_sizes": [3, 5]})]
        [(1, 3, 5), (1, 5, 5)]
        >>> [tuple(view.shape) for view in blocks(torch.ones(8, 5), {"num_heads": 2})]
        [(2, 4, 5)]
        >>> [tuple(view.shape) for view in blocks(torch.ones(5, 8), {"layout": "transposed"})]
        [(1, 8, 5)]
        >>> [tuple(view.shape) for view in blocks(torch.ones(8, 5), {"block_size": 5})]
        [(1, 5, 5), (1, 3, 5)]
    """
    views = _views(tensor, group)
    size = group.get("block_size")
    if not size or all(max(shape_of(view)[1:]) <= size for view in views):
        return views
    channels = [max(1, size // math.prod(view.shape[3:])) for view in views]
    pairs = zip(views, channels, strict=True)
    return [part for view, inner in pairs for rows in view.split(size, dim=1) for part in rows.split(inner, dim=2)]


def _views(tensor: Tensor, group: Mapping[str, Any]) -> list[Tensor]:
    layout = layout_of(group, tensor)
    if layout == "experts":
        return [tensor]
    if layout == "experts_transposed":
        return [tensor.mT]
    whole = tensor.transpose(0, 1) if layout in ("transposed", "conv_transposed") else tensor
    if group.get("num_heads"):
        return [whole.unflatten(0, (group["num_heads"], -1))]
    whole = whole.unsqueeze(0)
    return list(whole.split(group["split_sizes"], dim=1)) if group.get("split_sizes") else [whole]


def shape_of(block: Tensor) -> tuple[int, int, int]:
    """(count, outputs, inputs) of a view from `blocks`.

    Example:
        >>> import torch
        >>> shape_of(torch.ones(1, 4, 3, 2, 2))
        (1, 4, 12)
    """
    return block.size(0), block.size(1), math.prod(block.shape[2:])


def check_layout(group: Mapping[str, Any], tensors: Sequence[Tensor], *, where: str = "") -> list[str]:
    """Problems of layout, split_sizes and num_heads with these tensors, in words.

    Example:
        >>> import torch
        >>> print(check_layout({"split_sizes": [3, 3]}, [torch.ones(8, 5)])[0])
        split_sizes: [3, 3] has a sum of 6, but the parameter of shape (8, 5) has 8 outputs.
    """
    layout, sizes, heads = group.get("layout"), group.get("split_sizes"), group.get("num_heads")
    if layout is not None and layout not in LAYOUTS:
        known = "; ".join(f"{name}: {what}" for name, (_, what) in LAYOUTS.items())
        return [f"{where}layout: {layout!r} is unknown.{nearest(layout, LAYOUTS)} Known: {known}."]
    if sizes is not None and heads is not None:
        return [f"{where}split_sizes and num_heads: both are given. Type one of them."]
    if sizes is not None and not (isinstance(sizes, list | tuple) and sizes and all(_is_count(n) for n in sizes)):
        return [f"{where}split_sizes: {sizes!r} is not a list of whole numbers above 0, such as [768, 768, 768]."]
    if heads is not None and not _is_count(heads):
        return [f"{where}num_heads: {heads!r} is not a whole number above 0."]
    problems = []
    for tensor in tensors:
        if tensor.ndim < 2:
            continue
        shape, name = tuple(tensor.shape), layout_of(group, tensor)
        dimensions = LAYOUTS[name][0]
        if (dimensions or max(tensor.ndim, 3)) != tensor.ndim:
            problems.append(f"{where}layout: {name!r} is {LAYOUTS[name][1]}; the parameter has shape {shape}.")
            continue
        outputs = shape[1] if name in ("transposed", "conv_transposed") else shape[0]
        option = "split_sizes" if sizes is not None else "num_heads"
        if (sizes or heads) and name.startswith("experts"):
            problems.append(f"{where}{option}: not for layout {name!r}, whose experts are separate already.")
        elif sizes is not None and sum(sizes) != outputs:
            problems.append(
                f"{where}split_sizes: {list(sizes)} has a sum of {sum(sizes)}, but the parameter of shape {shape} has "
                f"{outputs} outputs."
            )
        elif heads is not None and outputs % heads:
            problems.append(f"{where}num_heads: {heads} does not divide the {outputs} outputs of shape {shape}.")
    return problems


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
