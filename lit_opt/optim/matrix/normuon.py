"""NorMuon: Muon with every row (output neuron) of the update brought to the same length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from lit_opt.optim.matrix.engine import MatrixOptimizer
from lit_opt.optim.matrix.stages import Group, Stages


def normalised_rows(update: Tensor, rows: Tensor, group: Group) -> None:
    """V <- beta2 V + (1 - beta2) mean over the row of O^2; O <- O / (sqrt(V) + eps), then back to the length it had.

    Args:
        update: (count, rows, cols), in place.
        rows: V, (count, rows, 1), in place. It needs no bias correction: the last step cancels it.
        group: beta2 and eps.

    Example:
        >>> import torch
        >>> update, moments = torch.tensor([[[3.0, 0.0], [0.0, 1.0]]]), torch.zeros(1, 2, 1)
        >>> normalised_rows(update, moments, {"beta2": 0.95, "eps": 1e-10})
        >>> update.norm(dim=-1)
        tensor([[2.2361, 2.2361]])
    """
    eps = group["eps"]
    before = torch.linalg.vector_norm(update, dim=(-2, -1), keepdim=True)
    rows.lerp_(update.square().mean(dim=-1, keepdim=True), 1 - group["beta2"])
    update.div_(rows.sqrt().add_(eps))
    update.mul_(before / torch.linalg.vector_norm(update, dim=(-2, -1), keepdim=True).add_(eps))


class NorMuon(MatrixOptimizer):
    """Muon whose update is divided by the running root mean square of each row and brought back to its length.

    Statistics are those of whole matrices, and a convolution's row is its output channel (the official code takes the
    kernel's width).

    Args:
        params: As in `Muon`.
        lr: As in `Muon`.
        momentum: As in `Muon`.
        nesterov: As in `Muon`.
        beta2: Decay of the rows' second moment per step.
        eps: Added to the root of the second moment; the update is free of scale, so it only guards zero rows.
        weight_decay: Multiplied by lr, without scale.
        scale: As in `Muon`.
        orthogonalize: As in `Muon`.
        ns_steps: As in `Muon`.
        ns_dtype: As in `Muon`.
        layout: As in `Muon`.
        split_sizes: As in `Muon`.
        num_heads: As in `Muon`.
        fallback: As in `Muon`.

    Raises:
        RecipeError: As in `Muon`.

    Source: arXiv:2510.05491, zichongli5/NorMuon normuon.py.

    Example:
        >>> import torch
        >>> from lit_opt.optim import NorMuon
        >>> layer = torch.nn.Linear(4, 4, bias=False)
        >>> optimizer = NorMuon(layer.parameters(), lr=0.02, weight_decay=0.0)
        >>> layer(torch.randn(8, 4)).square().sum().backward()
        >>> before = layer.weight.detach().clone()
        >>> optimizer.step()
        >>> rows = (before - layer.weight.detach()).norm(dim=1)
        >>> bool(torch.allclose(rows, rows[:1].expand(4), rtol=1e-3))
        True
    """

    name: ClassVar[str] = "normuon"
    stages: ClassVar[Stages] = Stages(normalise=normalised_rows, options=("beta2", "eps"))

    def __init__(
        self,
        params: Any,
        lr: float = 0.02,
        *,
        momentum: float = 0.95,
        nesterov: bool = True,
        beta2: float = 0.95,
        eps: float = 1e-10,
        weight_decay: float = 0.01,
        scale: str = "original",
        orthogonalize: str = "polar_express",
        ns_steps: int = 5,
        ns_dtype: str = "auto",
        layout: str | None = None,
        split_sizes: list[int] | None = None,
        num_heads: int | None = None,
        fallback: Mapping[str, Any] | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "beta2": beta2,
            "eps": eps,
            "weight_decay": weight_decay,
            "scale": scale,
            "orthogonalize": orthogonalize,
            "ns_steps": ns_steps,
            "ns_dtype": ns_dtype,
            "layout": layout,
            "split_sizes": split_sizes,
            "num_heads": num_heads,
        }
        super().__init__(params, defaults, fallback)
