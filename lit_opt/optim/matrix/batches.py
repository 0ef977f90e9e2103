"""Many matrices into one batch and back, with few calls whatever their number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lit_opt.averaging.shards import is_sharded, local
from lit_opt.optim.matrix.layout import blocks
from lit_opt.optim.matrix.plan import Slot

# Entries of a matrix up to which a CPU is faster with two stacks than with one call for each (measured).
_STACKED_UP_TO = 2**14


def fill_(batch: Tensor, estimates: Sequence[Tensor] | None, buffers: Sequence[Tensor], share: float) -> None:
    """Write (1 - share) C + share M of matrices of one shape to a batch.

    Args:
        batch: (count, rows, cols), written to.
        estimates: C, (rows, cols) or a kernel of as many entries each; None where only the buffers count.
        buffers: M.
        share: The buffers' share.

    Example:
        >>> import torch
        >>> batch = torch.empty(1, 1, 2)
        >>> fill_(batch, [torch.zeros(1, 2)], [torch.ones(1, 2)], 0.25)
        >>> batch
        tensor([[[0.2500, 0.2500]]])
    """
    buffers, estimates = _flat(buffers), None if estimates is None else _flat(estimates)
    if buffers[0].dtype != batch.dtype:
        for index, (target, buffer) in enumerate(zip(batch.unbind(), buffers, strict=True)):
            mix_(target, None if estimates is None else estimates[index], buffer, share)
    elif estimates is None:
        torch.stack(tuple(buffers), out=batch)
    elif batch.device.type == "cpu" and batch[0].numel() > _STACKED_UP_TO:
        for target, estimate, buffer in zip(batch.unbind(), estimates, buffers, strict=True):
            torch.lerp(estimate, buffer, share, out=target)
    else:
        torch.stack(tuple(buffers), out=batch)
        torch.lerp(torch.stack(tuple(estimates)), batch, share, out=batch)


def _flat(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor if tensor.ndim == 2 else tensor.flatten(1) for tensor in tensors]


def mix_(target: Tensor, estimate: Tensor | None, buffer: Tensor, share: float) -> None:
    """`fill_` for one place, of any strides and dtype.

    Example:
        >>> import torch
        >>> target = torch.empty(2)
        >>> mix_(target, None, torch.ones(2, dtype=torch.bfloat16), 1.0)
        >>> target
        tensor([1., 1.])
    """
    if estimate is None:
        target.copy_(buffer)
    elif estimate.dtype == target.dtype:
        torch.lerp(estimate, buffer, share, out=target)
    else:
        target.copy_(estimate).lerp_(buffer.to(target.dtype), share)


def place(batch: Tensor, slot: Slot) -> Tensor:
    """A slot's part of a batch: (rows, cols) where the slot is plain, else (count, rows, cols).

    Example:
        >>> import torch
        >>> from lit_opt.optim import Muon
        >>> weight = torch.ones(6, 4, requires_grad=True)
        >>> optimizer = Muon([weight], num_heads=2)
        >>> [chunk], _ = optimizer._planned([[weight]])
        >>> place(torch.ones(chunk.shape), chunk.slots[0]).shape
        torch.Size([2, 3, 4])
    """
    part = batch[slot.place.start] if slot.plain else batch[slot.place]
    return part if slot.columns is None else part[..., slot.columns]


def matrices_of(tensor: Tensor, slot: Slot, group: Mapping[str, Any]) -> Tensor:
    """A slot's matrices as a view of a tensor with the parameter's shape.

    Example:
        >>> import torch
        >>> from lit_opt.optim import Muon
        >>> weight = torch.ones(6, 4, requires_grad=True)
        >>> optimizer = Muon([weight], num_heads=2)
        >>> [chunk], _ = optimizer._planned([[weight]])
        >>> matrices_of(weight, chunk.slots[0], optimizer.param_groups[0]).shape
        torch.Size([2, 3, 4])
    """
    if slot.plain:
        return tensor
    view = blocks(tensor, group)[slot.block]
    return view if slot.part is None else view[slot.part]


def add_(params: Sequence[Tensor], updates: Sequence[Tensor], factor: Any) -> None:
    """W <- W + factor U.

    Args:
        params: W, plain tensors.
        updates: U, contiguous, of as many entries; they are lost where factor is a tensor.
        factor: A number, or a 0-D tensor (a learning rate that a captured graph reads).

    Example:
        >>> import torch
        >>> weight = torch.ones(2)
        >>> add_([weight], [torch.ones(2)], torch.tensor(-0.5))
        >>> weight
        tensor([0.5000, 0.5000])
    """
    shaped = [u if u.ndim == p.ndim else u.view(p.shape) for p, u in zip(params, updates, strict=True)]
    if isinstance(factor, Tensor):
        torch._foreach_mul_(shaped, factor.to(params[0].device))
        factor = 1.0
    torch._foreach_add_(list(params), shaped, alpha=factor)


def decay_(params: Sequence[Tensor], rate: Any) -> None:
    """W <- (1 - rate) W, on this process's shards.

    As W - rate W: a product with a number costs a CPU four times as much (torch 2.15).

    Args:
        params: W, or DTensors.
        rate: lr times weight_decay, a number or a 0-D tensor.

    Example:
        >>> import torch
        >>> weight = torch.ones(2)
        >>> decay_([weight], 0.25)
        >>> weight
        tensor([0.7500, 0.7500])
    """
    own = [local(param) for param in params] if is_sharded(params[0]) else list(params)
    if isinstance(rate, Tensor):
        torch._foreach_mul_(own, (1 - rate).to(own[0].device))
    elif rate:
        torch._foreach_add_(own, own, alpha=-rate)
