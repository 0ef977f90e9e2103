"""What an optimizer's step needs beside what it keeps."""

from __future__ import annotations

from torch.optim import Optimizer

from lit_opt.optim.matrix.cost import scratch_bytes
from lit_opt.optim.state import Scratch
from lit_opt.preflight.shares import SHARDS_STATE, Share, method_row, states_of


def step_scratch(optimizer: Optimizer, share: Share, *, cuda: bool) -> int:
    """Bytes on a device that a step needs at its worst moment, beside weights, gradients and state.

    Args:
        optimizer: Of a registry row; its parameters may be on the meta device.
        share: How parameters are spread over the devices.
        cuda: The run is on CUDA devices.

    Example:
        >>> import torch
        >>> from lit_opt.optim import build
        >>> from lit_opt.preflight.placement import Placement
        >>> weight = torch.nn.Parameter(torch.zeros(4, 4))
        >>> step_scratch(build("sgd", [weight], lr=0.1), Share(Placement(kind="single")), cuda=False)
        64
    """
    row = method_row(optimizer)
    params = [(p, share.dtype(p)) for group in optimizer.param_groups for p in group["params"]]
    stepped = params
    batches = 0
    if row.matrix:
        stepped = [
            (p, share.dtype(p))
            for group in optimizer.param_groups
            if group["algorithm"] == row.name
            for p in group["params"]
            if p.ndim > 1
        ]
        batches = scratch_bytes(
            getattr(optimizer, "base", optimizer),
            cuda=cuda,
            sharing=share.processes if share.kind == "ddp" else 1,
            sharded=share.processes if share.kind == "fsdp2" else 1,
        )
    sizes = [share.numbers(p.shape, SHARDS_STATE) * dtype.itemsize for p, dtype in stepped]
    use = row.scratch or Scratch()
    copies = use.everything + (use.lists if cuda and _steps_over_lists(optimizer) else 0.0)
    one = use.largest if not copies else 0.0
    moment = max(batches, round(copies * sum(sizes)), round(one * max(sizes, default=0)))
    everything = sum(share.numbers(p.shape, SHARDS_STATE) * dtype.itemsize for p, dtype in params)
    own = sum(size for _, _, size in states_of(optimizer, share, use.own)) if use.own else 0
    return round(use.throughout * everything) + own + moment


def _steps_over_lists(optimizer: Optimizer) -> bool:
    return optimizer.defaults.get("foreach") is not False and not optimizer.defaults.get("fused")
