"""K-FAC's factors of one layer: what is summed up for them, and their damped inverses."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lit_opt.errors import RecipeError


@dataclass
class Record:
    """Sums over what one layer saw since the last step: of abar abar^T, of g g^T, of positions and of samples.

    Example:
        >>> Record(A=torch.zeros(3, 3), G=torch.zeros(2, 2)).samples
        0
    """

    A: Tensor
    G: Tensor
    positions: int = 0
    samples: int = 0
    passes: set[int] = field(default_factory=set)


def factor_dtype(weight: Tensor) -> torch.dtype:
    """Of the factors of a weight: float32, or float64 where the weight has it.

    Example:
        >>> factor_dtype(torch.ones(2, dtype=torch.bfloat16))
        torch.float32
    """
    return weight.dtype if weight.dtype == torch.float64 else torch.float32


def inverses(A: Tensor, G: Tensor, damping: float, mode: str, name: str) -> dict[str, Tensor]:
    """What a step multiplies with: eigenvectors and eigenvalues, or the two damped inverses.

    Args:
        A: Of a layer's inputs, (inputs, inputs).
        G: Of the gradients by its outputs, (outputs, outputs).
        damping: Above 0.
        mode: "eigen" or "factored".
        name: Of the layer, for messages.

    Returns:
        What becomes the state of the layer's weight.

    Raises:
        RecipeError: A factor is not finite, or not positive definite with this damping.

    Example:
        >>> {key: tuple(x.shape) for key, x in inverses(torch.eye(3), torch.eye(2), 0.01, "factored", "head").items()}
        {'A_inverse': (3, 3), 'G_inverse': (2, 2)}
    """
    if not (bool(A.isfinite().all()) and bool(G.isfinite().all())):
        raise RecipeError(
            [
                f"kfac: the factors of the layer {name!r} are not finite, so its inputs or gradients were not. Look for "
                "the first batch with a loss that is not finite; a smaller lr or gradient clipping may help."
            ]
        )
    if mode == "eigen":
        (d_A, Q_A), (d_G, Q_G) = torch.linalg.eigh(A), torch.linalg.eigh(G)
        return {"Q_A": Q_A, "Q_G": Q_G, "d_A": d_A.clamp_(min=0), "d_G": d_G.clamp_(min=0)}
    mean_A, mean_G = float(A.trace()) / len(A), float(G.trace()) / len(G)
    pi = math.sqrt(mean_A / mean_G) if mean_A > 0 and mean_G > 0 else 1.0
    found = {}
    for key, factor, shift in (("A_inverse", A, pi * math.sqrt(damping)), ("G_inverse", G, math.sqrt(damping) / pi)):
        damped = factor + shift * torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
        root, failed = torch.linalg.cholesky_ex(damped)
        if failed:
            raise RecipeError(
                [
                    f"kfac: a factor of the layer {name!r} is not positive definite with damping={damping:g}. Give a larger "
                    "damping, or damping_mode='eigen'."
                ]
            )
        found[key] = torch.cholesky_inverse(root)
    return found
