"""What a matrix method costs beside the model, in operations and in memory, before a step is taken."""

from __future__ import annotations

import torch
from torch.optim import Optimizer

from lit_opt.optim.matrix.orthogonalize import compute_dtype
from lit_opt.optim.matrix.plan import Chunk, make_plan
from lit_opt.optim.matrix.preconditioned import PreconditionedOptimizer, capacity
from lit_opt.optim.matrix.preconditioned_cost import chunk_flops, preconditioned_scratch


def orthogonalization_share(optimizer: Optimizer, tokens: int) -> float:
    """Estimated part of a training step's floating-point operations that goes into `work_of` the optimizer.

    A model takes about 6 operations for each parameter and token (or image patch) of a step. The estimate is of
    operations by the standard iteration, not of time: a small batch on a fast GPU feels it more.

    Args:
        optimizer: Of a registry row with `matrix`.
        tokens: Tokens of all processes in one optimizer step. Processes that share the work divide it.

    Returns:
        Between 0 and 1.

    Example:
        >>> import torch
        >>> from lit_opt.optim import Muon
        >>> weights = [torch.nn.Parameter(torch.zeros(768, 768)) for _ in range(4)]
        >>> f"{orthogonalization_share(Muon(weights, lr=0.02), tokens=4096):.0%}"
        '48%'
    """
    params = [param for group in optimizer.param_groups for param in group["params"]]
    own = step_flops(optimizer)
    model = 6 * tokens * sum(param.numel() for param in params)
    return own / (own + model) if own else 0.0


def step_flops(optimizer: Optimizer) -> int:
    """Floating-point operations of the matrices in one step, over all processes, by the standard iteration.

    Of methods that decompose every few steps, the average.

    Example:
        >>> import torch
        >>> from lit_opt.optim import Muon
        >>> step_flops(Muon([torch.nn.Parameter(torch.zeros(768, 3072))], lr=0.02))
        40768634880
    """
    if isinstance(optimizer, PreconditionedOptimizer):
        return sum(chunk_flops(optimizer, chunk) for chunk in _chunks(optimizer))
    return sum(chunk.flops for chunk in _chunks(optimizer))


def work_of(optimizer: Optimizer) -> str:
    """What a matrix method does beside element-wise work, in words.

    Example:
        >>> import torch
        >>> from lit_opt.optim import Soap
        >>> work_of(Soap([torch.nn.Parameter(torch.zeros(4, 4))]))
        'statistics, products and decompositions'
    """
    own = isinstance(optimizer, PreconditionedOptimizer)
    return "statistics, products and decompositions" if own else "orthogonalisation"


def scratch_bytes(optimizer: Optimizer, *, cuda: bool, sharded: bool) -> int:
    """Largest memory that the matrices of a step take at once, beside gradients and state.

    A batch is held as it was gathered; the iteration keeps its start, the last and the next iterate, and two products
    on the small side (four on the Gram path); the update of the batch before is still there. Under FSDP2 a weight's
    momentum and its update are gathered whole.

    Args:
        optimizer: Of a registry row with `matrix`; its parameters may be on the meta device.
        cuda: The run is on CUDA devices that multiply bfloat16.
        sharded: The weights are sharded by FSDP2.

    Example:
        >>> import torch
        >>> from lit_opt.optim import Muon
        >>> scratch_bytes(Muon([torch.nn.Parameter(torch.zeros(768, 768))], lr=0.02), cuda=True, sharded=False)
        8257536
    """
    if isinstance(optimizer, PreconditionedOptimizer):
        return preconditioned_scratch(optimizer, _chunks(optimizer, cuda), sharded=sharded)
    most = before = 0
    for chunk in _chunks(optimizer):
        count, rows, cols = chunk.shape
        size, side = rows * cols, min(rows, cols)
        width = _compute_width(chunk, cuda)
        start = size * width if width != chunk.dtype.itemsize else 0
        products = 4 if max(rows, cols) >= 2 * side else 2
        iterates = (2 * size + products * side * side) * width
        # A CPU goes from matrix to matrix (lit_opt.optim.matrix.orthogonalize).
        at_once = count if cuda or side < 256 else 1
        gathered = count * (size * chunk.dtype.itemsize + start)
        # A CPU casts into another dtype by way of a copy.
        cast = count * size * chunk.dtype.itemsize if start and not cuda else 0
        moments = [gathered + max(at_once * iterates, cast) + before]
        if optimizer.stages.normalise is not None:  # type: ignore[attr-defined]
            # The update in the batch's dtype, and its square.
            moments.append(gathered + count * size * chunk.dtype.itemsize * (2 if start else 1))
        params = {id(slot.param): slot.param.numel() for slot in chunk.slots}
        whole = 2 * sum(params.values()) * chunk.dtype.itemsize if sharded else 0
        most = max(most, max(moments) + whole)
        before = count * size * width
    return most


def _compute_width(chunk: Chunk, cuda: bool) -> int:
    """Bytes of a number in the iteration."""
    if cuda and chunk.options["ns_dtype"] == "auto" and chunk.dtype == torch.float32:
        return 2 if chunk.options["orthogonalize"] != "svd" else 4
    options, side = chunk.options, min(chunk.shape[1:])
    device = torch.device("cpu")
    return compute_dtype(options["orthogonalize"], options["ns_dtype"], chunk.dtype, device, side).itemsize


def _chunks(optimizer: Optimizer, cuda: bool = True) -> list[Chunk]:
    """The plan of a step in which every parameter has a gradient."""
    # Shapes alone: looking at the parts of sharded tensors would make processes talk.
    groups = [
        group | {"params": [torch.empty(p.shape, dtype=p.dtype, device="meta") for p in group["params"]]}
        for group in optimizer.param_groups
    ]
    matrices = [
        [] if group["algorithm"] == "adamw" else [p for p in group["params"] if p.ndim > 1 and p.numel()]
        for group in groups
    ]
    agreed = (*optimizer.agreed, *optimizer.stages.options)  # type: ignore[attr-defined]
    if not isinstance(optimizer, PreconditionedOptimizer):
        return make_plan(groups, matrices, agreed)
    device = torch.device("cuda" if cuda else "cpu")
    return make_plan(
        groups, matrices, agreed, capacity=lambda rows, cols, dtype, _: capacity(rows, cols, dtype, device)
    )
