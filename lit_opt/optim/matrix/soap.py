"""SOAP: Adam in the eigenbasis of Shampoo's statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from lit_opt.optim.matrix.eigenbasis import eigenbasis, power_step, rounding_floor, without_rounding
from lit_opt.optim.matrix.preconditioned import Kept, PreconditionedOptimizer
from lit_opt.optim.matrix.refresh import Exchange, Side, together
from lit_opt.optim.matrix.stages import Group, Stages

# Side from which only the lower triangle of statistics is computed.
_STRIPS_FROM = 256


def rotated(matrix: Tensor, kept: Kept) -> Tensor:
    """Q_L^T M Q_R, with the identity for a side that has no basis.

    Example:
        >>> import torch
        >>> turn = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
        >>> rotated(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), {"left_basis": turn})
        tensor([[[3., 4.],
                 [1., 2.]]])
    """
    left, right = kept.get("left_basis"), kept.get("right_basis")
    if left is not None:
        matrix = left.mT @ matrix
    return matrix @ right if right is not None else matrix


def rotated_back(matrix: Tensor, kept: Kept) -> Tensor:
    """Q_L M Q_R^T, the inverse of `rotated`.

    Example:
        >>> import torch
        >>> turn = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
        >>> rotated_back(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), {"right_basis": turn})
        tensor([[[2., 1.],
                 [4., 3.]]])
    """
    left, right = kept.get("left_basis"), kept.get("right_basis")
    if left is not None:
        matrix = left @ matrix
    return matrix @ right.mT if right is not None else matrix


def add_statistics(gradient: Tensor, kept: Kept, beta: float, weight: float) -> None:
    """L <- beta L + weight G G^T and R <- beta R + weight G^T G, for the sides that have one, in place.

    Of large ones only the lower triangle is meant; `symmetric` makes the whole.

    Example:
        >>> import torch
        >>> kept = {"left_factor": torch.zeros(1, 1, 1)}
        >>> add_statistics(torch.tensor([[[3.0, 4.0]]]), kept, 0.9, 0.5)
        >>> kept["left_factor"]
        tensor([[[12.5000]]])
    """
    if "left_factor" in kept:
        _add_gram(kept["left_factor"], gradient, beta, weight)
    if "right_factor" in kept:
        _add_gram(kept["right_factor"], gradient.mT, beta, weight)


def _add_gram(factor: Tensor, rows: Tensor, beta: float, weight: float) -> None:
    """F <- beta F + weight X X^T, of large ones in four strips that end at the diagonal: five eighths of the operations."""
    side = factor.size(-1)
    strip = side if side < _STRIPS_FROM else -(-side // 4)
    for first in range(0, side, strip):
        end = min(first + strip, side)
        part = factor[:, first:end, :end]
        part.baddbmm_(rows[:, first:end], rows[:, :end].mT, beta=beta, alpha=weight)


def symmetric(factor: Tensor) -> Tensor:
    """The whole of statistics of which the lower triangle is meant.

    Example:
        >>> import torch
        >>> symmetric(torch.ones(1, 256, 256).tril()).sum().item()
        65536.0
    """
    return factor if factor.size(-1) < _STRIPS_FROM else factor.tril() + factor.tril(-1).mT


def sides_kept(options: Group, rows: int, cols: int, *names: str) -> dict[str, tuple[int, int]]:
    """Square matrices for each side up to max_preconditioner_dim.

    Example:
        >>> sides_kept({"max_preconditioner_dim": 6}, 8, 5, "factor", "basis")
        {'right_factor': (5, 5), 'right_basis': (5, 5)}
    """
    return {
        f"{side}_{name}": (length, length)
        for side, length in (("left", rows), ("right", cols))
        if length <= options["max_preconditioner_dim"]
        for name in names
    }


class Soap(PreconditionedOptimizer):
    """Adam on gradients rotated to the eigenvectors of L = EMA of G G^T and R = EMA of G^T G.

    The first step only makes the statistics and their eigenvectors (no update and no decay), as in the official code, so
    that no gradient is rotated by a basis of its own. Every `precondition_frequency` steps the bases take one step of
    the power iteration with QR. Weight decay comes after the update.

    Differences from the official code. After the first step of an m x n weight its larger side has a null space; there
    the official basis is LAPACK's choice, and a relative change of 1e-12 in the gradients moves weights by 1e-2 in ten
    steps. Here that part of the basis follows from the space alone, and rotated components that are rounding are zero:
    the same change moves them by less than 1e-9, and the weights lie up to 2e-2 from the official ones after ten steps
    at lr 3e-3 (bases of another choice). Where the statistics have full rank, the two are equal to 1e-10 in float64. A
    convolution is one matrix of (outputs, inputs x kernel), not one factor a dimension (`layout`). Moments and statistics
    are float32 for bfloat16 weights. `correct_bias=False`, `normalize_grads`, merged dimensions and preconditioned
    vectors are not offered.

    Kept of an m x n matrix are 2 m n + 2 m^2 + 2 n^2 numbers (nothing of m^2 where it is not rotated): of a DTensor (FSDP2,
    HSDP, tensor parallelism) in one process alone, its owner; otherwise in every process.

    Args:
        params: Tensors, (name, tensor) pairs or group dicts. Tensors with fewer than two dimensions go to AdamW.
        lr: AdamW's kind of rate.
        betas: Decay of the two moments.
        shampoo_beta: Decay of the statistics; None for betas[1].
        eps: Added to the root of the second moment before bias correction, as in the official code.
        weight_decay: Multiplied by lr, after the update.
        precondition_frequency: Steps from one change of the bases to the next.
        max_preconditioner_dim: A longer side is not rotated (identity basis).
        refresh: "spread" over the steps by work, so that no step has all decompositions (small models, less than a
            tenth of a second in all, stay together); "together" for all in one step, as in the official code.
        layout: As in `Muon`.
        split_sizes: As in `Muon`.
        num_heads: As in `Muon`.
        fallback: lr, betas, eps and weight_decay of the AdamW part; its lr and decay are the matrices' if unset.

    Raises:
        RecipeError: An option that does not fit the parameters.

    Source: arXiv:2409.11321, nikhilvyas/SOAP soap.py.

    Example:
        >>> import torch
        >>> from lit_opt.optim import Soap
        >>> layer = torch.nn.Linear(4, 3, bias=False)
        >>> optimizer = Soap(layer.parameters(), lr=3e-3)
        >>> for _ in range(2):
        ...     optimizer.zero_grad()
        ...     layer(torch.eye(4)).square().sum().backward()
        ...     optimizer.step()
        >>> sorted(optimizer.state[layer.weight])
        ['exp_avg', 'exp_avg_sq', 'left_basis', 'left_factor', 'right_basis', 'right_factor', 'step']
    """

    name: ClassVar[str] = "soap"
    stages: ClassVar[Stages] = Stages(
        orthogonalises=False,
        options=(
            "betas",
            "shampoo_beta",
            "eps",
            "precondition_frequency",
            "max_preconditioner_dim",
            "refresh",
        ),
    )
    moving: ClassVar[tuple[str, ...]] = ("left_factor", "right_factor", "exp_avg", "exp_avg_sq")
    first_step: ClassVar[int] = 0

    def __init__(
        self,
        params: Any,
        lr: float = 3e-3,
        *,
        betas: tuple[float, float] = (0.95, 0.95),
        shampoo_beta: float | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        precondition_frequency: int = 10,
        max_preconditioner_dim: int = 10000,
        refresh: str = "spread",
        layout: str | None = None,
        split_sizes: list[int] | None = None,
        num_heads: int | None = None,
        fallback: Mapping[str, Any] | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "shampoo_beta": shampoo_beta,
            "eps": eps,
            "weight_decay": weight_decay,
            "precondition_frequency": precondition_frequency,
            "max_preconditioner_dim": max_preconditioner_dim,
            "refresh": refresh,
            "layout": layout,
            "split_sizes": split_sizes,
            "num_heads": num_heads,
        }
        super().__init__(params, defaults, fallback)

    def kept(self, options: Group, rows: int, cols: int) -> dict[str, tuple[int, int]]:
        """Moments in the eigenbasis; statistics and bases."""
        moments = {"exp_avg": (rows, cols), "exp_avg_sq": (rows, cols)}
        return {**moments, **sides_kept(options, rows, cols, "factor", "basis")}

    def due(self, options: Group, step: int, offset: int) -> bool:
        """At first, and then every precondition_frequency steps."""
        return step == 0 or super().due(options, step, offset)

    def update(self, gradient: Tensor, kept: Kept, step: int, options: Group) -> Tensor | None:
        """Rotate, Adam, rotate back; then the statistics, for the next refresh."""
        update = None
        if step > 0:
            turned = rotated(gradient, kept)
            if turned is not gradient:
                turned = without_rounding(turned)
            update = rotated_back(_adam(turned, kept, step, options), kept)
        beta = options["betas"][1] if options["shampoo_beta"] is None else options["shampoo_beta"]
        add_statistics(gradient, kept, beta, 1 - beta)
        return update

    def decomposed(self, sides: Sequence[Side], exchange: Exchange) -> None:
        """Eigenvectors at first; later one step of the power iteration, by which the moments turn as well."""
        factors = together([side.views[f"{side.name}_factor"] for side in sides])
        counts = [side.views[f"{side.name}_factor"].size(0) for side in sides]
        if sides[0].step == 0:
            for side, basis in zip(sides, exchange(eigenbasis, factors).split(counts), strict=True):
                side.views[f"{side.name}_basis"].copy_(basis)
            return
        factors = symmetric(factors)
        old = together([side.views[f"{side.name}_basis"] for side in sides])
        product = factors @ old
        sizes = (old * product).sum(-2)
        # What is rounding stays in its order: its own order is none.
        order = sizes.where(sizes > rounding_floor(sizes), 0.0).argsort(dim=-1, descending=True, stable=True)
        if len(order) == 1:  # faster on a CPU
            product = product.index_select(-1, order[0])
        else:
            product = product.take_along_dim(order.unsqueeze(-2), dim=-1)
        new = exchange(power_step, product, factors)
        for side, basis, last, places in zip(sides, *(x.split(counts) for x in (new, old, order)), strict=True):
            mean, square = side.views["exp_avg"], side.views["exp_avg_sq"]
            if side.name == "left":
                mean.copy_(without_rounding(_turned(basis, last, mean)))
                square.copy_(square.take_along_dim(places.unsqueeze(-1), dim=-2))
            else:
                mean.copy_(without_rounding(_turned(basis, last, mean.mT).mT))
                square.copy_(square.take_along_dim(places.unsqueeze(-2), dim=-1))
            side.views[f"{side.name}_basis"].copy_(basis)

    def _factor(self, index: int, shape: Sequence[int], kernel: int) -> Any:
        """The decay, which comes after the update, shrinks it as well."""
        group = self.param_groups[index]
        return -group["lr"] * (1 - group["lr"] * group["weight_decay"])


def _turned(new: Tensor, old: Tensor, mean: Tensor) -> Tensor:
    """new^T old mean, in the order of fewer operations."""
    return new.mT @ (old @ mean) if mean.size(-1) < mean.size(-2) else (new.mT @ old) @ mean


def _adam(turned: Tensor, kept: Kept, step: int, options: Group) -> Tensor:
    beta1, beta2 = options["betas"]
    mean = kept["exp_avg"].lerp_(turned, 1 - beta1)
    square = kept["exp_avg_sq"].mul_(beta2).addcmul_(turned, turned, value=1 - beta2)
    scale = (1 - beta2**step) ** 0.5 / (1 - beta1**step)
    return mean.div(square.sqrt().add_(options["eps"])).mul_(scale)
