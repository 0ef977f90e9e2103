"""Memory of a run per device, before it: weights, gradients, optimizer state, averages, and what a step needs beside them.

States are counted buffer by buffer from what the registry rows say; benchmarks/results/memory_estimate.md holds them
against measured ones. What depends on the batch (activations) is left out, and said to be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lit_opt.errors import RecipeError
from lit_opt.optim import get_row
from lit_opt.optim.schema import OptimizerRow
from lit_opt.preflight.placement import Placement
from lit_opt.preflight.scratch import step_scratch
from lit_opt.preflight.shares import (
    SHARDS_GRADIENTS,
    SHARDS_STATE,
    SHARDS_WEIGHTS,
    Share,
    has_owners,
    method_row,
    states_of,
)
from lit_opt.recipes.schema import EMASpec

_HALF = (torch.float16, torch.bfloat16)
# Numbers that pass through the averages' scratch at once (lit_opt.averaging).
_EMA_SCRATCH = 16 * 2**20


@dataclass(frozen=True, kw_only=True)
class Line:
    """One part of the memory.

    Args:
        name: What it is.
        bytes: On the device that holds most.
        how: How it was counted.
        when: "held" between steps, or "step" for what a step needs on top.
        on_host: It lies in CPU memory.

    Example:
        >>> Line(name="weights", bytes=4, how="1 number in float32").when
        'held'
    """

    name: str
    bytes: int
    how: str
    when: str = "held"
    on_host: bool = False


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Memory per device.

    Args:
        lines: Its parts; empty where nothing is estimated.
        left_out: What is not in it, in sentences.
        unknown: Why there is no estimate, or "".

    Example:
        >>> layer = nn.Linear(1000, 1000, bias=False, device="meta")
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        >>> optimizer.param_groups[0]["algorithm"] = "sgd"
        >>> estimate_memory(layer, optimizer, Placement()).held
        8000000
    """

    lines: tuple[Line, ...] = ()
    left_out: tuple[str, ...] = ()
    unknown: str = ""

    @property
    def held(self) -> int:
        """Bytes of a device between steps."""
        return sum(line.bytes for line in self.lines if line.when == "held" and not line.on_host)

    @property
    def peak(self) -> int:
        """Bytes of a device in the optimizer's step."""
        return self.held + max(
            (line.bytes for line in self.lines if line.when == "step" and not line.on_host), default=0
        )


def estimate_memory(
    module: nn.Module, optimizer: Optimizer, placement: Placement, *, ema: EMASpec | None = None, cuda: bool = True
) -> Memory:
    """Memory of one device, the one that holds most.

    Args:
        module: Unsharded; on any device, also meta.
        optimizer: Over its parameters or over stand-ins of their shapes; its groups have "algorithm". It need not have
            stepped.
        placement: Devices, strategy, precision.
        ema: Averaging of weights, or None.
        cuda: The run is on CUDA devices.

    Example:
        >>> from lit_opt.optim import build
        >>> layer = nn.Linear(1000, 1000, bias=False, device="meta")
        >>> place = Placement(kind="fsdp2", devices=8, data_parallel=8)
        >>> memory = estimate_memory(layer, build("adamw", layer.parameters(), lr=1e-3), place)
        >>> [(line.name, line.bytes) for line in memory.lines[:3]]
        [('weights', 500000), ('gradients', 500000), ('optimizer state', 1000004)]
    """
    unknown = _not_estimated(placement, optimizer)
    if unknown:
        return Memory(unknown=unknown)
    share = Share(placement)
    weights = [(p, share.dtype(p)) for p in module.parameters()]
    trained = [(p, dtype) for p, dtype in weights if p.requires_grad]
    lines = [
        Line(
            name="weights",
            bytes=share.of(weights, SHARDS_WEIGHTS),
            how=_words(weights, frozen=len(weights) - len(trained)) + share.words(SHARDS_WEIGHTS),
            on_host=share.weights_on_host,
        )
    ]
    buffers = sum(share.dtype(b).itemsize * b.numel() for b in module.buffers())
    if buffers:
        lines.append(Line(name="buffers", bytes=buffers, how="running statistics, tables: whole on each device"))
    lines.append(
        Line(
            name="gradients",
            bytes=share.gradients(module, trained),
            how=_words(trained) + share.words(SHARDS_GRADIENTS),
            on_host=share.weights_on_host,
        )
    )
    lines += _state_lines(optimizer, share)
    if ema is not None:
        lines += _ema_lines(trained, ema, share)
    if placement.kind == "ddp" and placement.devices > 1 and not placement.bucket_view:
        size = share.of(trained, ())
        lines.append(Line(name="DDP's buckets", bytes=size, how="a second copy of the gradients, for the all-reduce"))
    lines.append(
        Line(
            name="scratch of a step",
            bytes=step_scratch(optimizer, share, cuda=cuda),
            how=f"beside gradients and state, {'on CUDA' if cuda else 'on the CPU'}; freed after it",
            when="step",
        )
    )
    left_out = _left_out(weights, placement, ema)
    row = method_row(optimizer)
    if row.scratch is None:
        left_out = (*left_out, f"what a step of {row.name} needs beside gradients and state: not measured")
    return Memory(lines=tuple(line for line in lines if line.bytes), left_out=left_out)


def state_bytes(optimizer: Optimizer) -> int:
    """Bytes of the optimizer's state on one device, by the registry rows.

    Args:
        optimizer: Its groups have "algorithm", a registry name. It need not have stepped.

    Raises:
        RecipeError: A group's algorithm has no registry row.

    Example:
        >>> from lit_opt.optim import build
        >>> state_bytes(build("adamw", [torch.zeros(250, 4)], lr=1e-3))
        8004
    """
    return sum(size for _, _, size in states_of(optimizer, Share(Placement())))


def _not_estimated(placement: Placement, optimizer: Optimizer) -> str:
    if placement.kind == "other":
        return f"the strategy {placement.strategy} is not known, so the memory is not estimated"
    if placement.precision.startswith("transformer-engine"):
        return f"precision {placement.precision} keeps weights in several formats, so the memory is not estimated"
    missing = sorted({group["algorithm"] for group in optimizer.param_groups if _row(group["algorithm"]) is None})
    if missing:
        return f"{', '.join(missing)} has no registry row, so its state is not estimated"
    if placement.tensor_parallel > 1 and method_row(optimizer).matrix:
        return (
            "tensor parallelism cuts matrices that a step gathers again, so the memory of a matrix method is not estimated; "
            "plan it with data_parallel_size alone, or with AdamW, for the rest"
        )
    return ""


def _row(name: str) -> OptimizerRow | None:
    try:
        return get_row(name)
    except RecipeError:
        return None


def _state_lines(optimizer: Optimizer, share: Share) -> list[Line]:
    by_name: dict[str, list[tuple[str, int]]] = {}
    for name, dtype, size in states_of(optimizer, share):
        by_name.setdefault(name, []).append((dtype, size))
    lines = []
    total = sum(size for sizes in by_name.values() for _, size in sizes)
    if total:
        shown = [name for name in by_name if name != "step"]
        dtypes = sorted({dtype for name in shown for dtype, _ in by_name[name]})
        cut = share.words(SHARDS_STATE)
        if has_owners(optimizer, share):
            cut = f", each matrix's in one of the {share.processes} processes, the rest{cut.removeprefix(',')}"
        how = f"{method_row(optimizer).name}: {', '.join(shown)} in {', '.join(dtypes)}{cut}"
        lines.append(Line(name="optimizer state", bytes=total, how=how, on_host=share.state_on_host))
    if share.deepspeed_half:
        params = [(p, torch.float32) for group in optimizer.param_groups for p in group["params"]]
        lines.append(
            Line(
                name="float32 weights",
                bytes=share.of(params, SHARDS_STATE),
                how=f"DeepSpeed's master copy{share.words(SHARDS_STATE)}",
                on_host=share.state_on_host,
            )
        )
    return lines


def _ema_lines(trained: Sequence[tuple[Tensor, torch.dtype]], ema: EMASpec, share: Share) -> list[Line]:
    shadows = [(p, torch.float32 if dtype in _HALF else dtype) for p, dtype in trained]
    size = share.of(shadows, SHARDS_WEIGHTS)
    cut = share.words(SHARDS_WEIGHTS)
    where = "in CPU memory" if ema.offload else "on the device"
    lines = [
        Line(name="averages", bytes=size, how=f"{_words(shadows)}{cut}, {where}", on_host=ema.offload),
    ]
    scratch: dict[tuple[torch.dtype, torch.dtype], list[int]] = {}
    for (param, shadow), (_, dtype) in zip(shadows, trained, strict=True):
        if ema.offload or shadow != dtype:
            scratch.setdefault((shadow, dtype), []).append(share.numbers(param.shape, SHARDS_WEIGHTS))
    for (shadow, _), numbers in scratch.items():
        most = max(max(numbers), min(sum(numbers), _EMA_SCRATCH))
        lines.append(
            Line(
                name="scratch of the averages",
                bytes=most * shadow.itemsize,
                how="weights on their way to the averages",
                on_host=ema.offload,
            )
        )
    return lines


def _words(tensors: Sequence[tuple[Tensor, torch.dtype]], frozen: int = 0) -> str:
    numbers = sum(tensor.numel() for tensor, _ in tensors)
    dtypes = sorted({str(dtype).removeprefix("torch.") for _, dtype in tensors})
    note = f", {frozen:,} tensors frozen" if frozen else ""
    return f"{numbers:,} numbers in {', '.join(dtypes) or 'nothing'}{note}"


def _left_out(
    weights: Sequence[tuple[Tensor, torch.dtype]], placement: Placement, ema: EMASpec | None
) -> tuple[str, ...]:
    left = ["activations: they grow with the batch and are usually the largest part of a forward and backward"]
    if placement.precision.endswith("-mixed") and not placement.kind.startswith("zero"):
        copies = 2 * sum(p.numel() for p, dtype in weights if p.ndim > 1 and dtype == torch.float32)
        left.append(f"half-precision copies of the weights that autocast keeps in a step: up to {gigabytes(copies)}")
    if placement.tensor_parallel > 1:
        left.append(
            f"what your parallelize_module does else: taken is that it cuts every weight of two or more dimensions into "
            f"{placement.tensor_parallel} equal parts, and leaves vectors whole; the gradient of an embedding is whole (torch's RowwiseParallel), and so "
            "is SGD's momentum of it, which is not counted"
        )
    if placement.kind in ("fsdp", "fsdp_grad_op", "fsdp2", "zero3") and placement.devices > placement.tensor_parallel:
        left.append("layers while they are gathered: one or two of your wrapped blocks in full")
    if ema is not None and not ema.offload:
        left.append("while validation uses the averages: the raw weights a second time")
    if placement.kind in ("fsdp", "fsdp_grad_op"):
        left.append("FSDP1's padding of its flat shards")
    left.append(
        "the CUDA context (0.5 to 1 GB a process), cuBLAS's workspaces, NCCL's buffers and the allocator's gaps"
    )
    return tuple(left)


def gigabytes(size: float) -> str:
    """Bytes as a person reads them: 1 GB is 10^9 bytes.

    Example:
        >>> gigabytes(56e9), gigabytes(3_400_000), gigabytes(12)
        ('56 GB', '3.4 MB', '12 B')
    """
    for unit, letters in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            scaled = size / unit
            return f"{scaled:,.0f} {letters}" if scaled >= 100 else f"{scaled:.3g} {letters}"
    return f"{size:.0f} B"


def as_plain(memory: Memory) -> Mapping[str, Any]:
    """Numbers, strings and lists, for JSON.

    Example:
        >>> as_plain(Memory(unknown="no row"))["held"]
        0
    """
    return {
        "lines": [
            {"name": line.name, "bytes": line.bytes, "how": line.how, "when": line.when, "on_host": line.on_host}
            for line in memory.lines
        ],
        "held": memory.held,
        "peak": memory.peak,
        "left_out": list(memory.left_out),
        "unknown": memory.unknown,
    }
