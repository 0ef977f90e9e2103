"""FSDP1's flat shards: each process holds a run of numbers of each flattened parameter, and nothing of some."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class FlatPart:
    """Which numbers of a parameter this process holds.

    Args:
        shape: Of the whole parameter.
        start: First of them in the flattened parameter.
        stop: One after the last; `start` where this process holds none.
        group: The processes that hold the whole together.
    """

    shape: torch.Size
    start: int
    stop: int
    group: Any

    def whole(self, part: Tensor) -> Tensor:
        """All numbers, on the CPU (a collective: every process must call it)."""
        # Every number comes from one process, so that adding zeros leaves it as it is.
        flat = part.new_zeros(math.prod(self.shape), device=self._device(part))
        flat[self.start : self.stop] = part
        torch.distributed.all_reduce(flat, group=self.group)
        return flat.view(self.shape).cpu()

    def cut(self, whole: Tensor) -> Tensor:
        """This process's numbers of `whole`."""
        return whole.flatten()[self.start : self.stop]

    def _device(self, part: Tensor) -> torch.device:
        """Averages may lie in CPU memory, where nccl does not reach them."""
        on_gpu = torch.distributed.get_backend(self.group) == "nccl"
        return torch.device("cuda", torch.cuda.current_device()) if on_gpu else part.device


def flat_parts(root: nn.Module) -> dict[int, FlatPart]:
    """Which part this process holds, by id of the parameter, of all that FSDP1 has made flat; empty elsewhere.

    Args:
        root: The outermost wrapper: it holds what no inner one does.
    """
    parts: dict[int, FlatPart] = {}
    for handle in _handles(root):
        flat = handle.flat_param
        for parameter, shape, held in zip(flat._params, flat._shapes, flat._shard_param_infos, strict=True):
            start = held.intra_param_start_idx if held.in_shard else 0
            stop = held.intra_param_end_idx + 1 if held.in_shard else 0
            parts[id(parameter)] = FlatPart(torch.Size(shape), start, stop, handle.process_group)
    return parts


def reshard_flat(root: nn.Module) -> None:
    """Put gathered modules back to shards: after a forward the outermost one stays gathered."""
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.fsdp._runtime_utils import _reshard  # no public way short of gathering everything

    for module in root.modules():
        if isinstance(module, FullyShardedDataParallel):
            for handle in _handles(module, inner=False):
                if not handle.is_sharded(handle.flat_param):
                    _reshard(module, handle, True)


def _handles(root: nn.Module, inner: bool = True) -> list[Any]:
    handles = [module.__dict__.get("_handle") for module in (root.modules() if inner else [root])]
    return [handle for handle in handles if getattr(handle, "uses_sharded_strategy", False) and _by_name(handle)]


def _by_name(handle: Any) -> bool:
    """Without use_orig_params there is one nameless parameter, which nobody can take apart."""
    return handle.flat_param._params is not None
