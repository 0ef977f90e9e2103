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


def preconditioned_scratch(optimizer: PreconditionedOptimizer, chunks: Sequence[Chunk]) -> int:
    """Largest memory that the matrices of a step take at once, beside gradients and state; a step with a refresh.

    Args:
        optimizer: Soap, SPlus or Shampoo.
        chunks: Its plan on the device of the run.

    Example:
        >>> import torch
        >>> from lit_opt.optim import Soap
        >>> preconditioned_scratch(Soap([torch.nn.Parameter(torch.zeros(4, 4))]), [])
        0
    """
    most = 0
    for chunk in chunks:
        count, rows, cols = chunk.shape
        gathered = len(chunk.slots) > 1 or chunk.slots[0].param.dtype != chunk.dtype
        batch = count * rows * cols * chunk.dtype.itemsize if gathered else 0
        most = max(most, batch + batch_scratch(optimizer, chunk, count, stacked=len(chunk.slots) > 1))
    return max(most, refresh_scratch(optimizer, chunks, [chunk.shape[0] for chunk in chunks]))


def batch_scratch(optimizer: PreconditionedOptimizer, chunk: Chunk, count: int, *, stacked: bool) -> int:
    """Memory that the step of so many of a chunk's matrices takes beside a batch of their gradients.

    Args:
        optimizer: Soap, SPlus or Shampoo.
        chunk: One of its plan.
        count: Matrices of it.
        stacked: Their state is copied to one batch, and back.

    Example:
        >>> import torch
        >>> from lit_opt.optim import SPlus
        >>> splus = SPlus([torch.nn.Parameter(torch.zeros(4, 4))])
        >>> batch_scratch(splus, Chunk((1, 4, 4), torch.float32, splus.defaults, (), True), 1, stacked=False)
        144
    """
    _, rows, cols = chunk.shape
    numbers = rows * cols * (_STEP[optimizer.name] + bool(chunk.options.get("grafting")))
    if stacked:
        numbers += sum(a * b for a, b in optimizer.kept(chunk.options, rows, cols).values())
    return round(count * numbers * chunk.dtype.itemsize)


def refresh_scratch(optimizer: PreconditionedOptimizer, chunks: Sequence[Chunk], counts: Sequence[int]) -> int:
    """Memory that new decompositions of all sides take.

    Args:
        optimizer: Soap, SPlus or Shampoo.
        chunks: Its plan.
        counts: Matrices of each chunk.

    Example:
        >>> import torch
        >>> from lit_opt.optim import SPlus
        >>> splus = SPlus([torch.nn.Parameter(torch.zeros(4, 4))])
        >>> refresh_scratch(splus, [Chunk((1, 4, 4), torch.float32, splus.defaults, (), True)], [1])
        474
    """
    factors: Counter[tuple[int, int]] = Counter()
    for chunk, count in zip(chunks, counts, strict=True):
        for name, (side, _) in optimizer.kept(chunk.options, *chunk.shape[1:]).items():
            if name.endswith("_factor"):
                factors[side, chunk.dtype.itemsize] += count
    most = 0
    for (side, width), count in factors.items():
        at_once = min(count, factors_at_once(side, width))
        copies = (_REFRESH if at_once > 1 else _ALONE)[optimizer.name]
        most = max(most, round(copies * at_once * side * side * width))
    return most
