"""What a matrix method costs beside the model, in operations and in memory, before a step is taken."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.optim import Optimizer

from lit_opt.optim.matrix.exchange import rounds
from lit_opt.optim.matrix.orthogonalize import compute_dtype
from lit_opt.optim.matrix.owned import owners_of
from lit_opt.optim.matrix.plan import Chunk, bundles, make_plan
from lit_opt.optim.matrix.preconditioned import PreconditionedOptimizer, capacity
from lit_opt.optim.matrix.preconditioned_cost import (
    batch_scratch,
    chunk_flops,
    preconditioned_scratch,
    refresh_scratch,
)
from lit_opt.optim.matrix.sharded import AT_ONCE
from lit_opt.optim.matrix.sharing import ranges_of


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
    return sum(chunk.shape[0] * chunk_work(optimizer, chunk) for chunk in planned(optimizer))


def chunk_work(optimizer: Optimizer, chunk: Chunk) -> int:
    """`step_flops` of one matrix of a chunk.

    Example:
        >>> import torch
        >>> from lit_opt.optim import Muon
        >>> muon = Muon([torch.nn.Parameter(torch.zeros(768, 3072))], lr=0.02)
        >>> chunk_work(muon, planned(muon)[0])
        40768634880
    """
    if isinstance(optimizer, PreconditionedOptimizer):
        return chunk_flops(optimizer, chunk) // chunk.shape[0]
    return chunk.flops // chunk.shape[0]


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


def scratch_bytes(optimizer: Optimizer, *, cuda: bool, sharing: int = 1, sharded: int = 1) -> int:
    """Largest memory that the matrices of a step take at once in one process, beside gradients and state.

    A batch is held as it was gathered; the iteration keeps its start, the last and the next iterate, and two products
    on the small side (four on the Gram path). Of several processes that divide the work each has the batch of the matrices that it owns, beside it what it sends and receives of the next
    batch, and the results of the last one (lit_opt.optim.matrix.exchange).

    Args:
        optimizer: Of a registry row with `matrix`; its parameters may be on the meta device.
        cuda: The run is on CUDA devices that multiply bfloat16.
        sharing: Processes of a data-parallel run that share the work.
        sharded: Processes among which FSDP2 shards the weights.

    Example:
        >>> import torch
        >>> from lit_opt.optim import Muon
        >>> muon = Muon([torch.nn.Parameter(torch.zeros(768, 768)) for _ in range(8)], lr=0.02)
        >>> scratch_bytes(muon, cuda=True), scratch_bytes(muon, cuda=True, sharded=8)
        (66060288, 8257536)
    """
    chunks = planned(optimizer, sharing=sharing, sharded=sharded, cuda=cuda)
    if isinstance(optimizer, PreconditionedOptimizer) and sharded == 1:
        return preconditioned_scratch(optimizer, chunks)
    if max(sharing, sharded) > 1:
        counts = [[part.stop - part.start for part in parts] for parts in ranges_of(chunks, max(sharing, sharded))]
        owned = sorted(set(zip(*counts, strict=True)))
        found = [_divided_scratch(optimizer, chunks, own, owned, sharing, sharded, cuda) for own in owned]
        if isinstance(optimizer, PreconditionedOptimizer) and not optimizer.refreshes_first:
            found += [refresh_scratch(optimizer, chunks, own) for own in owned]
        return max(found, default=0)
    at_work = [sum(_at_work(optimizer, chunk, chunk.shape[0], cuda) for chunk in some) for some in bundles(chunks)]
    return max(at_work, default=0)


def _at_work(optimizer: Any, chunk: Chunk, count: int, cuda: bool) -> int:
    """Bytes of a batch of so many of a chunk's matrices while they are orthogonalised and normalised, or the like."""
    _, rows, cols = chunk.shape
    if isinstance(optimizer, PreconditionedOptimizer):
        step = batch_scratch(optimizer, chunk, count, stacked=count > 1)
        first = refresh_scratch(optimizer, [chunk], [count]) if optimizer.refreshes_first else 0
        return count * rows * cols * chunk.dtype.itemsize + max(step, first)
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
    normalises = optimizer.stages.normalise is not None
    normalising = count * size * chunk.dtype.itemsize * (2 if start else 1) if normalises else 0
    return gathered + max(at_once * iterates, cast, normalising)


def _divided_scratch(
    optimizer: Any,
    chunks: list[Chunk],
    own: tuple[int, ...],
    owned: list[tuple[int, ...]],
    sharing: int,
    sharded: int,
    cuda: bool,
) -> int:
    """Of a process that owns so many of each chunk's matrices, going through the rounds as the exchange does.

    `owned` are the numbers of all processes. What it holds of the parts is taken to be the largest share.
    """
    processes, everywhere = max(sharing, sharded), sharing > 1
    widths = [result_width(optimizer, chunk, cuda, normalised=True) for chunk in chunks]
    kinds = [((chunk.dtype, width), chunk.bytes // processes) for chunk, width in zip(chunks, widths, strict=True)]
    # Bytes for each round: what this process holds of the parts, owns, and sends and receives of results.
    held, batched, results, arrived, at_work, updates = [], [], [], [], [], []
    for some in rounds(kinds):
        batches = [own[i] * chunks[i].bytes // chunks[i].shape[0] for i in some]
        computing = [_at_work(optimizer, chunks[i], own[i], cuda) for i in some]
        sizes = {i: widths[i] * math.prod(chunks[i].shape[1:]) for i in some}
        beside = {i: widths[i] * optimizer._beside(chunks[i]) for i in some}
        numbers = {i: math.prod(chunks[i].shape) if everywhere else _held(chunks[i], processes) for i in some}
        batched.append(sum(batches))
        at_work.append(batched[-1] + max(c - b for c, b in zip(computing, batches, strict=True)))
        updates.append(sum(own[i] * sizes[i] for i in some))
        held.append(batched[-1] if everywhere else sum(numbers[i] * chunks[i].dtype.itemsize for i in some))
        moments = sum(chunks[i].shape[0] * beside[i] for i in some)
        # In the weights' precision, a few at a time.
        precise = max(
            numbers[i] * chunks[i].dtype.itemsize * min(AT_ONCE, chunks[i].shape[0]) // chunks[i].shape[0]
            if widths[i] != chunks[i].dtype.itemsize
            else 0
            for i in some
        )
        if everywhere:
            most = max(sum(their[i] * (sizes[i] + beside[i]) for i in some) for their in owned)
            # gloo receives into a tensor of its own.
            results.append((1 + processes * (1 if cuda else 2)) * most)
            arrived.append(processes * most + precise)
        else:
            received = sum(numbers[i] * widths[i] for i in some) + moments
            sent = updates[-1] + processes * sum(own[i] * beside[i] for i in some)
            results.append(sent + received)
            arrived.append(received + precise)
    # What was put together is what will be sent; DDP's parts are there already.
    parts = [h + (0 if everywhere else o) for h, o in zip(held, batched, strict=True)] + [0]
    most = 0
    for i in range(len(held)):
        behind = results[i - 1] if i else 0
        sending = held[i] + parts[i] + (parts[i - 1] if i else 0) + (results[i - 2] if i > 1 else 0)
        working = behind + max(2 * batched[i], at_work[i], updates[i] + results[i])
        taking = results[i] + (arrived[i - 1] if i else 0)
        most = max(most, sending, parts[i + 1] + max(working, taking), arrived[i])
    return most


def _held(chunk: Chunk, processes: int) -> int:
    """Numbers of a chunk that the first process holds under FSDP2, which holds most."""
    numbers = 0
    for slot in chunk.slots:
        rows = slot.param.shape[0]
        numbers += (slot.place.stop - slot.place.start) * math.prod(slot.shape) * -(-rows // processes) // rows
    return numbers


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


def planned(optimizer: Optimizer, *, sharing: int = 1, sharded: int = 1, cuda: bool = True) -> list[Chunk]:
    """The plan of a step in which every parameter has a gradient.

    Args:
        optimizer: A MatrixOptimizer; its parameters may be on the meta device.
        sharing: Processes of a data-parallel run that share the work.
        sharded: Processes among which FSDP2 shards the weights.
        cuda: As in `scratch_bytes`; what fits into a chunk depends on it.

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
        [p for p in group["params"] if p.ndim > 1 and p.numel()] if optimizer._takes(group) else []  # type: ignore[attr-defined]
        for group in groups
    ]
    shared = optimizer.stages.shared  # type: ignore[attr-defined]
    device = torch.device("cuda" if cuda else "cpu")
    if not isinstance(optimizer, PreconditionedOptimizer):
        return make_plan(groups, matrices, shared, sharing=sharing, sharded=sharded, device=device)
    owned = owners_of(optimizer, sharded) if sharded > 1 else {}
    params = [param for group in optimizer.param_groups for param in group["params"]]
    shapes = [shape for group in groups for shape in group["params"]]
    owners = {id(shape): owned[id(param)] for shape, param in zip(shapes, params, strict=True) if id(param) in owned}
    return make_plan(
        groups,
        matrices,
        shared,
        capacity=capacity,
        device=device,
        owners=lambda param, block: owners[id(param)][block] if owners else None,
    )
