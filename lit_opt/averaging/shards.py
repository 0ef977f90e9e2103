"""What FSDP and tensor parallelism (DTensor) ask of code that reads and writes weights in place."""

from __future__ import annotations

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
