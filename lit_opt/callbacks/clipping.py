"""Gradient clipping that is right for plain tensors, DTensors, both together, and FSDP1's flat shards."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grad_value_, clip_grads_with_norm_, get_total_norm

from lit_opt.recipes.schema import ClipSpec

_HALF = (torch.float16, torch.bfloat16)


def clip_gradients(parameters: Iterable[Tensor], clip: ClipSpec, root: Any = None) -> Tensor | None:
    """Clip the gradients in place.

    Args:
        parameters: Parameters of any shape; those without a gradient are left out.
        clip: Limit and kind.
        root: The FSDP1 root module, where there is one: only it knows the norm over all shards.

    Returns:
        The total norm before clipping, a 0-D tensor; None for "value" and where there is no gradient.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2)); weight.grad = torch.tensor([3.0, 4.0])
        >>> clip_gradients([weight], ClipSpec(limit=1.0))
        tensor(5.)
        >>> weight.grad.norm()
        tensor(1.0000)
    """
    with_gradient = [p for p in parameters if p.grad is not None]
    if clip.kind == "value":
        for bucket in _buckets(with_gradient).values():
            clip_grad_value_(bucket, clip.limit)
        return None
    if root is not None:
        return root.clip_grad_norm_(clip.limit)
    norm = gradient_norm(with_gradient)
    if norm is not None:
        for bucket in _buckets(with_gradient).values():
            clip_grads_with_norm_(bucket, clip.limit, norm)
    return norm


def gradient_norm(parameters: Iterable[Tensor]) -> Tensor | None:
    """The norm of all gradients together, over all shards of DTensors; None where there is none.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2)); weight.grad = torch.tensor([3.0, 4.0])
        >>> gradient_norm([weight])
        tensor(5.)
    """
    buckets = _buckets([p for p in parameters if p.grad is not None])
    return _combine([_full(_norm(bucket)) for bucket in buckets.values()]) if buckets else None


def _buckets(parameters: list[Tensor]) -> dict[object, list[Tensor]]:
    """Torch refuses lists that mix plain tensors, DTensors or meshes."""
    buckets: dict[object, list[Tensor]] = {}
    for p in parameters:
        grad = p.grad
        key = (grad.device_mesh, grad.placements) if isinstance(grad, DTensor) else None
        buckets.setdefault(key, []).append(p)
    return buckets


def _norm(parameters: list[Tensor]) -> Tensor:
    """In float32 also of half-precision gradients: of float16 the sum of squares overflows at 256, and three digits are
    all that bfloat16 has.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if all(gradient.dtype in _HALF for gradient in gradients):
        if isinstance(gradients[0], DTensor):  # they have no foreach form of it
            norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients]
        else:
            norms = list(torch._foreach_norm(gradients, 2.0, dtype=torch.float32))
        return torch.linalg.vector_norm(torch.stack(norms))
    return get_total_norm(gradients)


def _full(norm: Tensor) -> Tensor:
    """The norm of DTensors is a partial sum until it is gathered (pytorch#170862)."""
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _combine(norms: list[Tensor]) -> Tensor:
    return (
        norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack([n.to(norms[0].device) for n in norms]))
    )
