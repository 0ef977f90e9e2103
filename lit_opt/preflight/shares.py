"""What one process holds of weights, gradients and states under a strategy and a precision."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lit_opt.optim import get_row
from lit_opt.optim.matrix.owned import largest_share
from lit_opt.optim.matrix.preconditioned import PreconditionedOptimizer
from lit_opt.optim.schema import OptimizerRow
from lit_opt.optim.state import StateOf
from lit_opt.preflight.placement import Placement

_TRUE = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}

# Kinds of placement whose part is 1 / processes.
SHARDS_WEIGHTS = ("fsdp", "fsdp2", "zero3")
SHARDS_GRADIENTS = ("fsdp", "fsdp_grad_op", "fsdp2", "zero2", "zero3")
SHARDS_STATE = ("fsdp", "fsdp_grad_op", "fsdp2", "zero1", "zero2", "zero3")


class Share:
    """What one process holds of a tensor, on the process that holds most.

    FSDP2 cuts the first dimension with torch.chunk, so the first process holds ceil(rows / processes)
    (torch.distributed.fsdp.fully_shard). FSDP1 and ZeRO cut flat tensors. ZeRO's shares are those of arXiv:1910.02054,
    sections 3 and 5.

    How tensor parallelism cuts a layer is the user's `parallelize_module`. Assumed is the usual plan: every weight with
    two or more dimensions is cut evenly, by rows or by columns, and vectors are whole.

    Args:
        placement: Devices, strategy, precision.

    Example:
        >>> Share(Placement(kind="fsdp2", devices=8)).numbers((9, 10), SHARDS_STATE)
        20
    """

    def __init__(self, placement: Placement) -> None:
        self.kind = placement.kind
        self.processes = placement.devices // placement.tensor_parallel
        self.tensor_parallel = placement.tensor_parallel
        self.precision = placement.precision
        self.state_on_host = placement.offload != ""
        self.weights_on_host = placement.offload == "all"
        self.deepspeed_half = placement.kind.startswith("zero") and placement.precision.endswith("-mixed")

    def dtype(self, tensor: Tensor) -> torch.dtype:
        """Of the tensor in the run: the *-true precisions cast the module, DeepSpeed casts it for the mixed ones."""
        if not tensor.is_floating_point():
            return tensor.dtype
        if self.deepspeed_half:
            return torch.bfloat16 if self.precision == "bf16-mixed" else torch.float16
        return _TRUE.get(self.precision, tensor.dtype)

    def numbers(self, shape: Iterable[int], kinds: tuple[str, ...]) -> int:
        """Of one tensor on the process that holds most, where these kinds cut it."""
        shape = tuple(shape)
        parts = self.tensor_parallel if len(shape) > 1 else 1
        whole = math.ceil(math.prod(shape) / parts)
        if self.kind not in kinds or self.processes == 1:
            return whole
        if self.kind == "fsdp2":
            return math.ceil(math.ceil(shape[0] / self.processes) * math.prod(shape[1:]) / parts) if shape else whole
        return math.ceil(whole / self.processes)  # flat shards: a number more or less for each tensor

    def of(self, tensors: Iterable[tuple[Tensor, torch.dtype]], kinds: tuple[str, ...]) -> int:
        """Bytes of tensors of their shape, in the given dtypes."""
        return sum(self.numbers(tensor.shape, kinds) * dtype.itemsize for tensor, dtype in tensors)

    def gradients(self, module: nn.Module, trained: Iterable[tuple[Tensor, torch.dtype]]) -> int:
        """Bytes of the gradients; under tensor parallelism those of embedding tables are whole (torch 2.15)."""
        if self.tensor_parallel == 1:
            return self.of(trained, SHARDS_GRADIENTS)
        uncut = Share(Placement(kind=self.kind, devices=self.processes, precision=self.precision))
        tables = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
        return sum((uncut if id(p) in tables else self).of([(p, dtype)], SHARDS_GRADIENTS) for p, dtype in trained)

    def words(self, kinds: tuple[str, ...]) -> str:
        """How it is cut, for the table."""
        parts = f", 1/{self.tensor_parallel} of each matrix" if self.tensor_parallel > 1 else ""
        if self.kind not in kinds or self.processes == 1:
            return parts
        cut = "rows" if self.kind == "fsdp2" else "numbers"
        return f"{parts}, 1/{self.processes} of the {cut}"


def method_row(optimizer: Optimizer) -> OptimizerRow:
    """The row that speaks for all groups: the matrix method's where there is one.

    Example:
        >>> from lit_opt.optim import build
        >>> method_row(build("muon", [torch.zeros(2, 2)], lr=0.02)).name
        'muon'
    """
    names = {group["algorithm"] for group in optimizer.param_groups}
    name = optimizer.defaults.get("algorithm")
    # An optimizer around another one has its own name in the groups, and its base's in the defaults.
    outer = names - {name, "adamw"}
    return get_row(outer.pop(), name) if name is not None and outer else get_row(name or min(names))


def has_owners(optimizer: Optimizer, share: Share) -> bool:
    """Whether one process has the state of each matrix for all.

    Example:
        >>> from lit_opt.optim import build
        >>> has_owners(build("soap", [torch.zeros(2, 2)], lr=1e-3), Share(Placement(kind="fsdp2", devices=2)))
        True
    """
    base = getattr(optimizer, "base", optimizer)
    return isinstance(base, PreconditionedOptimizer) and share.kind == "fsdp2" and share.processes > 1


def _owned(optimizer: Optimizer, share: Share) -> dict[int, dict[str, float]]:
    return largest_share(getattr(optimizer, "base", optimizer), share.processes) if has_owners(optimizer, share) else {}


def states_of(optimizer: Optimizer, share: Share, law: StateOf | None = None) -> list[tuple[str, str, int]]:
    """(buffer, dtype, bytes) of every state tensor on the process that holds most; or of what another law says.

    Example:
        >>> from lit_opt.optim import build
        >>> states_of(build("sgd", [torch.zeros(2, 2)], lr=0.1), Share(Placement()))
        [('momentum_buffer', 'float32', 16)]
    """
    found = []
    owned = _owned(optimizer, share)
    for group in optimizer.param_groups:
        options = optimizer.defaults | group
        law = law or method_row(optimizer).state
        columns_of = getattr(optimizer, "columns_of", None)
        for param in group["params"]:
            # DeepSpeed steps on float32 copies.
            own = torch.float32 if share.deepspeed_half else share.dtype(param)
            if columns_of is not None:
                options = options | {"columns": columns_of(param)}
            for buffer in law(tuple(param.shape), options):
                dtype = getattr(torch, buffer.dtype) if buffer.dtype else own
                if buffer.precise:
                    dtype = torch.promote_types(dtype, torch.float32)
                whole = buffer.numbers
                if buffer.sharded and share.kind == "fsdp2":
                    rows = share.numbers(param.shape, SHARDS_STATE)
                    numbers = math.ceil(whole * rows / max(1, param.numel()))
                elif buffer.sharded:
                    numbers = share.numbers((whole,), SHARDS_STATE)
                else:
                    numbers = round(whole * owned.get(id(param), {}).get(buffer.name, 1.0))
                found.append((buffer.name, str(dtype).removeprefix("torch."), numbers * dtype.itemsize))
    return found
