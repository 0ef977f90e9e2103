"""Second-order methods that watch the layers of the module, see lit_opt.optim.curvature.

No starting values are given. Those of gpauloski/kfac-pytorch (ImageNet, 0.0125 at 32 images, damping and kl_clip 1e-3)
belong to its own G, which is smaller by the square of the batch unless grad_scaler is set, so its damping is another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lit_opt.optim.schema import REQUIRED, OptimizerRow
from lit_opt.optim.state import Buffer, Scratch, Shape, momentum_state, nothing


def _kfac_state(shape: Shape, options: Mapping[str, Any]) -> tuple[Buffer, ...]:
    """Two factors, each with its decomposition."""
    momentum, sides = momentum_state(shape, options), _factor_sides(shape, options)
    if not sides:
        return momentum
    eigenvalues = sum(sides) if options.get("damping_mode") != "factored" else 0
    numbers = 2 * sum(side**2 for side in sides) + eigenvalues
    return (*momentum, Buffer(name="factors", numbers=numbers, dtype="float32", sharded=False))


def _kfac_records(shape: Shape, options: Mapping[str, Any]) -> tuple[Buffer, ...]:
    """What the backward pass has summed up, and the direction of the step."""
    sides = _factor_sides(shape, options)
    if not sides:
        return ()
    records = Buffer(name="records", numbers=sum(side**2 for side in sides), dtype="float32", sharded=False)
    return records, Buffer(name="direction", numbers=math.prod(sides), dtype="float32", sharded=False)


def _factor_sides(shape: Shape, options: Mapping[str, Any]) -> Shape:
    """Rows of the two factors, () where there are none; without a module, as if every matrix were a layer with a bias."""
    outputs, columns = shape[0] if shape else 1, options.get("columns", math.prod(shape[1:]) + 1)
    # Wider layers are left to SGD: lit_opt.optim.curvature.kfac.LARGEST.
    taken = columns and len(shape) in (2, 4) and max(outputs, columns) <= 16_384
    return (outputs, columns) if taken else ()


ROWS = (
    OptimizerRow(
        name="kfac",
        state=_kfac_state,
        scratch=Scratch(largest=2.0, own=_kfac_records),
        factory="lit_opt.optim.curvature.kfac:KFAC",
        provider="lit_opt",
        summary="SGD with momentum on gradients that Linear and Conv2d layers precondition by Kronecker factors",
        rule="A, G <- averages of abar abar^T and g g^T; u = (A (x) G + damping I)^-1 dW; v <- mu v + u + wd w; w <- w - lr v",
        source="arXiv:1503.05671, arXiv:1602.01407; equal to the formula in float64 (eigen and factored damping, kl_clip)",
        evidence="published for CNNs at ImageNet scale (arXiv:1811.12019, arXiv:2007.00784); the idea behind Shampoo",
        hyperparameters={
            "lr": REQUIRED,
            "momentum": 0.9,
            "weight_decay": 0.0,
            "damping": 1e-3,
            "factor_decay": 0.95,
            "kl_clip": 1e-3,
            "inverse_every": 1,
            "damping_mode": "eigen",
        },
        global_only=("kl_clip",),
        choices={"damping_mode": ("eigen", "factored")},
        needs_module=True,
    ),
    OptimizerRow(
        name="natural_gradient",
        state=nothing,
        scratch=None,
        factory="lit_opt.optim.curvature.natural_gradient:NaturalGradient",
        provider="lit_opt",
        summary="The whole damped Fisher matrix, for up to 10,000 parameters: what K-FAC is judged by",
        rule="F = mean g g^T over the samples; u = (F + damping I)^-1 dL/dw; w <- w - lr (u + wd w)",
        source="Amari 1998; equal to per-sample gradients of torch.func in float64",
        evidence="theory; impractical in full",
        hyperparameters={"lr": REQUIRED, "weight_decay": 0.0, "damping": 1e-3},
        global_only=("damping",),
        needs_module=True,
    ),
)
