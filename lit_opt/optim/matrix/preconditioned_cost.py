"""What SOAP, SPlus and Shampoo cost beside the model, in operations and in memory, before a step is taken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from lit_opt.optim.matrix.plan import Chunk
from lit_opt.optim.matrix.preconditioned import PreconditionedOptimizer
from lit_opt.optim.matrix.refresh import factors_at_once

# For each side of k of a k x j matrix: products of k k j in a step, and k^3 operations in units of multiply-and-add of
# a decomposition (QR step: product, QR and its Q, turn; eigenvectors: about 9; a root: one product more).
_PRODUCTS = {"soap": 3, "splus": 3, "shampoo": 2}
_DECOMPOSITION = {"soap": 7, "splus": 9, "shampoo": 11}
# Copies of a matrix in a step, and of a statistic in a refresh (measured with torch 2.15 on the CPU).
_STEP = {"soap": 5.2, "splus": 2.25, "shampoo": 3.0}
_REFRESH = {"soap": 7.6, "splus": 3.7, "shampoo": 4.05}
# In SOAP a statistic that is decomposed alone is not copied first.
_ALONE = {"soap": 5.9, "splus": 3.7, "shampoo": 4.05}


def chunk_flops(optimizer: PreconditionedOptimizer, chunk: Chunk) -> int:
    """Floating-point operations of a chunk's statistics and products, and of its decompositions, spread over the steps.

    Example:
        >>> import torch
        >>> from lit_opt.optim import Soap
        >>> soap = Soap([torch.nn.Parameter(torch.zeros(4, 4))])
        >>> options = {"precondition_frequency": 10, "max_preconditioner_dim": 10}
        >>> chunk_flops(soap, Chunk((1, 4, 4), torch.float32, options, (), True))
        858
    """
    count, rows, cols = chunk.shape
    kept = optimizer.kept(chunk.options, rows, cols)
    products = _PRODUCTS[optimizer.name] + bool(chunk.options.get("kl"))
    each = _DECOMPOSITION[optimizer.name] / chunk.options["precondition_frequency"]
    total = 0.0
    for side, other in ((("left", rows), cols), (("right", cols), rows)):
        if f"{side[0]}_factor" in kept:
            total += 2 * products * side[1] ** 2 * other + each * side[1] ** 3
    return round(count * total)


def preconditioned_scratch(optimizer: PreconditionedOptimizer, chunks: Sequence[Chunk], *, sharded: bool) -> int:
    """Largest memory that the matrices of a step take at once, beside gradients and state; a step with a refresh.

    Args:
        optimizer: Soap, SPlus or Shampoo.
        chunks: Its plan on the device of the run.
        sharded: The weights are sharded by FSDP2.

    Example:
        >>> import torch
        >>> from lit_opt.optim import Soap
        >>> preconditioned_scratch(Soap([torch.nn.Parameter(torch.zeros(4, 4))]), [], sharded=False)
        0
    """
    most = 0
    factors: Counter[tuple[int, int]] = Counter()
    for chunk in chunks:
        count, rows, cols = chunk.shape
        size, width = rows * cols, chunk.dtype.itemsize
        shapes = optimizer.kept(chunk.options, rows, cols)
        numbers = size * (_STEP[optimizer.name] + bool(chunk.options.get("grafting")))
        if len(chunk.slots) > 1:
            numbers += sum(a * b for a, b in shapes.values())
        if len(chunk.slots) > 1 or chunk.slots[0].param.dtype != chunk.dtype:
            numbers += size
        params = {id(slot.param): slot.param.numel() for slot in chunk.slots}
        most = max(most, round(count * numbers * width) + (2 * sum(params.values()) * width if sharded else 0))
        for name, (side, _) in shapes.items():
            if name.endswith("_factor"):
                factors[side, width] += count
    for (side, width), count in factors.items():
        at_once = min(count, factors_at_once(side, width))
        copies = (_REFRESH if at_once > 1 else _ALONE)[optimizer.name]
        most = max(most, round(copies * at_once * side * side * width))
    return most
