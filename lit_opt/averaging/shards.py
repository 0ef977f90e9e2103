"""What FSDP and tensor parallelism (DTensor) ask of code that reads and writes weights in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lit_opt.averaging.flat import reshard_flat

_ADDED = ("_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.")


def clean_name(name: str) -> str:
    """A dotted name without the parts that torch.compile, activation checkpointing and FSDP1 add.

    Example:
        >>> clean_name("net._orig_mod.0._checkpoint_wrapped_module.weight")
        'net.0.weight'
    """
    for part in _ADDED:
        name = name.replace(part, "")
    return name


def is_sharded(tensor: object) -> bool:
    """Whether it is a DTensor, as FSDP2 and tensor parallelism make them."""
    if not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def is_flat_shard(parameter: object) -> bool:
    """Whether FSDP1 or ZeRO 3 made it a part of a flat tensor, in which rows and columns are lost.

    Example:
        >>> is_flat_shard(torch.ones(2))
        False
    """
    return any(getattr(parameter, mark, None) is not None for mark in ("_fsdp_flattened", "_is_flat_param", "ds_shape"))


def reshard(module: nn.Module) -> None:
    """Put the modules of FSDP2 and FSDP1 back to shards.

    After a forward the root group stays gathered. Weights written to the shards at that moment would not be
    seen by the next forward, and the gathered ones would be trained on.
    """
    if not torch.distributed.is_available():
        return
    from torch.distributed.fsdp import FSDPModule

    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()
    reshard_flat(module)


def gathered(tensor: Tensor) -> Tensor:
    """The whole tensor, on the CPU if it was sharded (a collective: every process must call it)."""
    return tensor.full_tensor().cpu() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def local(parameter: Tensor) -> Tensor:
    """What this process holds of a parameter."""
    return parameter.to_local() if is_sharded(parameter) else parameter  # type: ignore[attr-defined]


def like(part: Tensor, parameter: Tensor) -> Tensor:
    """This process's `part` as a tensor of the parameter's kind: the same shards of a DTensor, or itself."""
    if not is_sharded(parameter):
        return part
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        part.to(local(parameter).device),
        parameter.device_mesh,  # type: ignore[attr-defined]
        parameter.placements,  # type: ignore[attr-defined]
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def own_part(whole: Tensor, parameter: Tensor) -> Tensor:
    """What this process holds of `whole`, sharded as the parameter is."""
    if not is_sharded(parameter):
        return whole
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = parameter.device_mesh, parameter.placements  # type: ignore[attr-defined]
    # Every process has the whole tensor, so each cuts its own shard and none talks to another.
    return distribute_tensor(whole.to(local(parameter).device), mesh, placements, src_data_rank=None).to_local()


def write_into(parameter: Tensor, whole: Tensor) -> None:
    """Copy a whole tensor into a parameter, or into this process's shard of it."""
    with torch.inference_mode(False), torch.no_grad():
        local(parameter).copy_(own_part(whole, parameter))


def locals_of(tensors: Sequence[Tensor]) -> list[Tensor]:
    """What this process holds of tensors that are all DTensors or all plain.

    Example:
        >>> locals_of([torch.ones(1)])
        [tensor([1.])]
    """
    return [local(tensor) for tensor in tensors] if tensors and is_sharded(tensors[0]) else list(tensors)


def gradients_of(params: Sequence[Tensor]) -> list[Tensor]:
    """What this process holds of the gradients of parameters that are all DTensors or all plain.

    A gradient that is not sharded as its parameter is (tensor parallelism leaves sums that nobody has added up) is
    brought to the parameter's placements, for which every process of the mesh has to call this.

    Example:
        >>> weight = torch.ones(1, requires_grad=True)
        >>> weight.sum().backward()
        >>> gradients_of([weight])
        [tensor([1.])]
    """
    grads: list[Any] = [param.grad for param in params]
    if not params or not is_sharded(params[0]):
        return grads
    return [_like_its_parameter(grad, param) for grad, param in zip(grads, params, strict=True)]


def _like_its_parameter(grad: Any, param: Any) -> Tensor:
    if grad.placements != param.placements:
        grad = grad.redistribute(placements=param.placements)
    part = grad.to_local()
    # A collective that is still under way in the background.
    return part.wait() if hasattr(part, "trigger_wait") else part


def norms_of(parts: Sequence[Tensor], params: Sequence[Any], dtype: torch.dtype) -> list[Tensor]:
    """Frobenius norms of whole tensors, of which this process holds parts; collectives for DTensors.

    Args:
        parts: What this process holds, one for each parameter.
        params: All DTensors or all plain.
        dtype: Of the sums.

    Returns:
        0-D tensors.

    Example:
        >>> norms_of([torch.tensor([3.0, 4.0])], [torch.ones(2)], torch.float32)
        [tensor(5.)]
    """
    norms = [torch.linalg.vector_norm(part, dtype=dtype) for part in parts]
    if not norms or not is_sharded(params[0]):
        return norms
    alike: dict[Any, list[int]] = {}
    for index, param in enumerate(params):
        cut = tuple(d for d, placement in enumerate(param.placements) if not placement.is_replicate())
        alike.setdefault((param.device_mesh, cut), []).append(index)
    for (mesh, cut), indices in alike.items():
        # Squares of float32 norms can overflow.
        squares = torch.stack([norms[i] for i in indices]).double().square()
        for dim in cut:
            torch.distributed.all_reduce(squares, group=mesh.get_group(dim))
        for index, norm in zip(indices, squares.sqrt().to(dtype), strict=True):
            norms[index] = norm
    return norms
