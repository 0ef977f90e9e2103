"""Muon: momentum, orthogonalised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from lit_opt.optim.matrix.engine import MatrixOptimizer
from lit_opt.optim.matrix.stages import Stages


class Muon(MatrixOptimizer):
    """M <- momentum M + (1 - momentum) G; W <- (1 - lr weight_decay) W - lr scale P(M), with Nesterov P one step ahead.

    Tensors with fewer than two dimensions, and groups with "algorithm" "adamw", go to AdamW.

    Args:
        params: Tensors, (name, tensor) pairs or group dicts. Convolution kernels are read as (out, in x kernel).
        lr: About 0.02 with the scales original, spectral_unclamped and unit; AdamW's with match_rms_adamw.
        momentum: Decay of the moving average per step.
        nesterov: Look one step ahead.
        weight_decay: Multiplied by lr, without scale.
        scale: Factor for a (rows, cols) matrix, see `lit_opt.optim.matrix.scale`.
        orthogonalize: "polar_express", "polar_express_paper", "jordan", "quintic" or "svd".
        ns_steps: Iterations of the orthogonalisation.
        ns_dtype: "auto", "bfloat16", "float32" or "float64".
        layout: How a tensor is read as matrices, see `lit_opt.optim.matrix.layout`.
        split_sizes: Rows of the parts of a fused weight, each orthogonalised and scaled on its own.
        num_heads: Number of equal row blocks, each orthogonalised and scaled on its own.
        fallback: lr, betas, eps and weight_decay of the AdamW part; default 3e-4 (with match_rms_adamw: lr),
            (0.9, 0.95), 1e-8 and the group's weight_decay.

    Raises:
        RecipeError: An unknown word, or an orthogonalisation that can leave singular values above 1.25.

    Source: KellerJordan/Muon muon.py and torch.optim.Muon, without their epsilon; arXiv:2502.16982 for
    match_rms_adamw.

    Example:
        >>> import torch
        >>> from lit_opt.optim import Muon
        >>> layer = torch.nn.Linear(4, 4, bias=False)
        >>> optimizer = Muon(layer.parameters(), lr=0.02)
        >>> layer(torch.eye(4)).square().sum().backward()
        >>> before = layer.weight.detach().clone()
        >>> optimizer.step()
        >>> print(f"{torch.linalg.matrix_norm(before - layer.weight.detach(), 2) / 0.02:.0f}")
        1
    """

    name: ClassVar[str] = "muon"
    stages: ClassVar[Stages] = Stages()

    def __init__(
        self,
        params: Any,
        lr: float = 0.02,
        *,
        momentum: float = 0.95,
        nesterov: bool = True,
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
