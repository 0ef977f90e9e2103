"""What a matrix method costs beside the model, in operations and in memory, before a step is taken."""

from __future__ import annotations

import math

import torch
from torch.optim import Optimizer

from lit_opt.optim.matrix.exchange import rounds
from lit_opt.optim.matrix.orthogonalize import compute_dtype
from lit_opt.optim.matrix.plan import Chunk, make_plan
from lit_opt.optim.matrix.preconditioned import PreconditionedOptimizer, capacity
from lit_opt.optim.matrix.preconditioned_cost import chunk_flops, preconditioned_scratch
from lit_opt.optim.matrix.sharing import shares


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
        return sum(chunk_flops(optimizer, chunk) for chunk in planned(optimizer))
    return sum(chunk.flops for chunk in planned(optimizer))


def work_of(optimizer: Optimizer) -> str:
    """What a matrix method does beside element-wise work, in words.

    Example:
        >>> import torch
        >>> from lit_opt.optim import Soap
        >>> work_of(Soap([torch.nn.Parameter(torch.zeros(4, 4))]))
        'statistics, products and decompositions'
    """
    if isinstance(optimizer, PreconditionedOptimizer):
        return "statistics, products and decompositions"
    orthogonalises = optimizer.stages.orthogonalises  # type: ignore[attr-defined]
    return "orthogonalisation" if orthogonalises else "rotations"


def scratch_bytes(optimizer: Optimizer, *, cuda: bool, processes: int = 1) -> int:
    """Largest memory that the matrices of a step take at once in one process, beside gradients and state.

    A batch is held as it was gathered; the iteration keeps its start, the last and the next iterate, and two products
    on the small side (four on the Gram path); the update of the batch before is still there. Under FSDP2 a process has
    the batch of the matrices that it owns, beside it what it sends and receives of the next batch, and the results of
    the last one (lit_opt.optim.matrix.exchange).

    Args:
        optimizer: Of a registry row with `matrix`; its parameters may be on the meta device.
        cuda: The run is on CUDA devices that multiply bfloat16.
        processes: Among which FSDP2 shards the weights.

    Example:
        >>> import torch
        >>> from lit_opt.optim import Muon
        >>> muon = Muon([torch.nn.Parameter(torch.zeros(768, 768)) for _ in range(8)], lr=0.02)
        >>> scratch_bytes(muon, cuda=True), scratch_bytes(muon, cuda=True, processes=8)
        (66060288, 8257536)
    """
    if isinstance(optimizer, PreconditionedOptimizer):
        return preconditioned_scratch(optimizer, planned(optimizer, cuda=cuda), sharded=processes > 1)
    chunks = planned(optimizer, processes)
    normalises = optimizer.stages.normalise is not None  # type: ignore[attr-defined]
    if processes > 1:
        return _sharded_scratch(chunks, processes, normalises, cuda)
    most = before = 0
    for chunk in chunks:
        most = max(most, _at_work(chunk, chunk.shape[0], normalises, cuda) + before)
        before = math.prod(chunk.shape) * _compute_width(chunk, cuda)
    return most


def _at_work(chunk: Chunk, count: int, normalises: bool, cuda: bool) -> int:
    """Bytes of a batch of so many of a chunk's matrices while they are orthogonalised and normalised."""
    _, rows, cols = chunk.shape
    size, side = rows * cols, min(rows, cols)
    width = _compute_width(chunk, cuda)
    if "orthogonalize" not in chunk.options:
        return count * (6 * size + 3 * side * side) * width  # ARO, measured
    start = size * width if width != chunk.dtype.itemsize else 0
    products = 4 if max(rows, cols) >= 2 * side else 2
    iterates = (2 * size + products * side * side) * width
    # A CPU goes from matrix to matrix (lit_opt.optim.matrix.orthogonalize).
    at_once = min(count, count if cuda or side < 256 else 1)
    gathered = count * (size * chunk.dtype.itemsize + start)
    # A CPU casts into another dtype by way of a copy.
    cast = count * size * chunk.dtype.itemsize if start and not cuda else 0
    # The update in the batch's dtype, and its square.
    normalising = count * size * chunk.dtype.itemsize * (2 if start else 1) if normalises else 0
    return gathered + max(at_once * iterates, cast, normalising)


def _sharded_scratch(chunks: list[Chunk], processes: int, normalises: bool, cuda: bool) -> int:
    """The most of any process under FSDP2, going through the rounds as `lit_opt.optim.matrix.exchange` does."""
    widths = [chunk.dtype.itemsize if normalises else _compute_width(chunk, cuda) for chunk in chunks]
    kinds = [((chunk.dtype, width), chunk.bytes // processes) for chunk, width in zip(chunks, widths, strict=True)]
    together, owned = rounds(kinds), shares(chunks, processes)
    most = 0
    for rank in range(processes):
        steps = [
            [(chunks[i], widths[i], owned[i][rank].stop - owned[i][rank].start) for i in some] for some in together
        ]
        held = [sum(_held(chunk, rank, processes) * chunk.dtype.itemsize for chunk, _, _ in some) for some in steps]
        own = [sum(count * chunk.bytes // chunk.shape[0] for chunk, _, count in some) for some in steps]
        results = [sum(_results(*job, rank, processes, normalises) for job in some) for some in steps]
        for i, some in enumerate(steps):
            ahead = held[i + 1] + own[i + 1] if i + 1 < len(steps) else 0
            behind = results[i - 1] if i else 0
            computing = [
                _at_work(chunk, count, normalises, cuda) - count * chunk.bytes // chunk.shape[0]
                for chunk, _, count in some
            ]
            updates = sum(count * math.prod(chunk.shape[1:]) * width for chunk, width, count in some)
            # Beside the momentum that is mixed: what is sent, and what arrives.
            sending = 2 * held[i] + own[i] + (held[i - 1] + own[i - 1] if i else 0) + (results[i - 2] if i > 1 else 0)
            most = max(most, sending, ahead + behind + max(own[i] + max(own[i], *computing), updates + results[i]))
    return most


def _held(chunk: Chunk, rank: int, processes: int) -> int:
    """Numbers of a chunk that a process holds."""
    numbers = 0
    for slot in chunk.slots:
        rows = slot.param.shape[0]
        each = -(-rows // processes)
        own = max(0, min(each, rows - rank * each))
        numbers += (slot.place.stop - slot.place.start) * math.prod(slot.shape) * own // rows
    return numbers


def _results(chunk: Chunk, width: int, count: int, rank: int, processes: int, normalises: bool) -> int:
    """Bytes of results that a process sends and receives."""
    moments = (count * processes + chunk.shape[0]) * chunk.shape[1] if normalises else 0
    return (count * math.prod(chunk.shape[1:]) + _held(chunk, rank, processes) + moments) * width


def result_width(optimizer: Optimizer, chunk: Chunk, cuda: bool, *, normalised: bool) -> int:
    """Bytes of a number of an update.

    Args:
        optimizer: The chunk's.
        chunk: Matrices of it.
        cuda: As in `scratch_bytes`.
        normalised: After the method has normalised it, which it does in the chunk's dtype.

    Example:
        >>> import torch
        >>> from lit_opt.optim import Muon
        >>> muon = Muon([torch.nn.Parameter(torch.zeros(4, 3))])
        >>> result_width(muon, planned(muon)[0], True, normalised=True)
        2
    """
    if normalised and optimizer.stages.normalise is not None:  # type: ignore[attr-defined]
        return chunk.dtype.itemsize
    return _compute_width(chunk, cuda)


def _compute_width(chunk: Chunk, cuda: bool) -> int:
    """Bytes of a number in the iteration."""
    if "ns_dtype" not in chunk.options:
        return chunk.dtype.itemsize
    if cuda and chunk.options["ns_dtype"] == "auto" and chunk.dtype == torch.float32:
        return 2 if chunk.options["orthogonalize"] != "svd" else 4
    options, side = chunk.options, min(chunk.shape[1:])
    device = torch.device("cpu")
    return compute_dtype(options["orthogonalize"], options["ns_dtype"], chunk.dtype, device, side).itemsize


def planned(optimizer: Optimizer, processes: int = 1, *, cuda: bool = True) -> list[Chunk]:
    """The plan of a step in which every parameter has a gradient.

    Args:
        optimizer: One of Muon, NorMuon, MarsM, Teon; its parameters may be on the meta device.
        processes: Among which FSDP2 shards the weights.
        cuda: As in `scratch_bytes`; what fits into a chunk of SOAP and its kind depends on it.

    Example:
        >>> import torch
        >>> from lit_opt.optim import Muon
        >>> [chunk.shape for chunk in planned(Muon([torch.nn.Parameter(torch.zeros(4, 3))]))]
        [(1, 4, 3)]
    """
    # Shapes alone: looking at the parts of sharded tensors would make processes talk.
    groups = [
        group | {"params": [torch.empty(p.shape, dtype=p.dtype, device="meta") for p in group["params"]]}
        for group in optimizer.param_groups
    ]
    matrices = [
        [] if group["algorithm"] == "adamw" else [p for p in group["params"] if p.ndim > 1 and p.numel()]
        for group in groups
    ]
    shared = optimizer.stages.shared  # type: ignore[attr-defined]
    if not isinstance(optimizer, PreconditionedOptimizer):
        return make_plan(groups, matrices, shared, processes)
    device = torch.device("cuda" if cuda else "cpu")
    return make_plan(
        groups, matrices, shared, capacity=lambda rows, cols, dtype, _: capacity(rows, cols, dtype, device)
    )
