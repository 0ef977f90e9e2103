"""The registry's data, one module a family of optimizers. No torch is imported."""

from __future__ import annotations

from lit_opt.optim.rows import (
    adaptive,
    conditioning,
    curvature,
    first_order,
    large_batch,
    low_bit,
    matrix,
    onebit,
    preconditioned,
    wrappers,
)
from lit_opt.optim.schema import OptimizerRow

ROWS: tuple[OptimizerRow, ...] = (
    *first_order.ROWS,
    *adaptive.ROWS,
    *large_batch.ROWS,
    *matrix.ROWS,
    *conditioning.ROWS,
    *preconditioned.ROWS,
    *low_bit.ROWS,
    *curvature.ROWS,
    *onebit.ROWS,
    *wrappers.ROWS,
)
