"""Shampoo: gradients between inverse roots of the statistics of their two sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from lit_opt.optim.matrix.eigenbasis import inverse_root
from lit_opt.optim.matrix.groups import group_label
from lit_opt.optim.matrix.preconditioned import Kept, PreconditionedOptimizer
from lit_opt.optim.matrix.refresh import Exchange, Side, together
from lit_opt.optim.matrix.soap import add_statistics
from lit_opt.optim.matrix.stages import Group, Stages

GRAFTINGS = ("adam",)
# Of the grafted Adam, as in the official examples.
GRAFTING_EPS = 1e-8


class Shampoo(PreconditionedOptimizer):
    """W <- (1 - lr wd) W - lr L^-1/4 M R^-1/4, with L and R the running G G^T and G^T G; at Adam's length if grafted.

    M and the statistics are moving averages with bias correction; with betas[1] = 1 the statistics are sums (AdaGrad).
    Grafting brings each block's update to the length that Adam's would have, so that AdamW's rate, betas and decay can
    be taken as they are, and takes Adam's steps before the start. Weights stay matrices: the official default would
    flatten those of up to max_preconditioner_dim entries into vectors.

    Inverse roots are of eigenvalues plus eps. Eigenvalues that are rounding of the largest one count as zero, and no
    less than that rounding is divided by, so that in float32 the null space of early statistics is not amplified by
    eps^-1/4. In float64 this is equal to the official code within 2e-8 (its rate is a float32) for eps down to 1e-12. In
    float32 it differs from it on rectangular weights by up to 3e-3 in the first ten steps at eps 1e-12 and lr 1e-2,
    about as much as that code's float32 differs from its float64; from eps 1e-2 on it does not. Convolutions are
    matrices of (outputs, inputs x kernel).

    Kept of an m x n block are m n + 2 m^2 + 2 n^2 numbers, with grafting m n more; of a DTensor in one process as in `Soap`,
    the blocks of a weight in several.

    Args:
        params: Tensors, (name, tensor) pairs or group dicts. Tensors with fewer than two dimensions go to AdamW.
        lr: AdamW's with grafting; without it about 1e-2, and the update's length depends on the statistics.
        betas: Decay of the moving average and of the statistics; the grafted Adam has them as well.
        eps: Added to the eigenvalues of the statistics.
        weight_decay: Multiplied by lr, decoupled.
        precondition_frequency: Steps from one computation of inverse roots to the next.
        start_preconditioning_step: The first step with inverse roots; before it Adam's steps, or without grafting those
            of the moving average. None for precondition_frequency.
        max_preconditioner_dim: Larger matrices are cut into blocks of that side with statistics of their own; along the
            inputs of a convolution, of whole kernels.
        grafting: "adam" or None.
        exponent: Of the inverse roots; 0.5 makes L^-1/2 M R^-1/2.
        kl: KL-Shampoo: L sums (G R^-e)(G R^-e)^T and R likewise, e the exponent. The paper's has exponent 0.5; give it an
            eps of 1e-6 or more, since at 1e-12 a change of 1e-12 in the gradients moves the weights by 1e-4.
        refresh: As in `Soap`.
        layout: As in `Muon`.
        split_sizes: As in `Muon`.
        num_heads: As in `Muon`.
        fallback: lr, betas, eps and weight_decay of the AdamW part; its lr and decay are the matrices' if unset.

    Raises:
        RecipeError: An option that does not fit the parameters or another option.

    Source: arXiv:1802.09568, arXiv:2309.06497, facebookresearch/optimizers distributed_shampoo; KL: arXiv:2509.03378.

    Example:
        >>> import torch
        >>> from lit_opt.optim import Shampoo
        >>> weight = torch.nn.Parameter(torch.zeros(2, 2))
        >>> optimizer = Shampoo([weight], lr=1.0, betas=(0.0, 0.0), weight_decay=0.0)
        >>> weight.grad = torch.tensor([[3.0, 0.0], [0.0, -0.1]])
        >>> optimizer.step()
        >>> weight.detach()
        tensor([[-1.0000,  0.0000],
                [ 0.0000,  1.0000]])
    """

    name: ClassVar[str] = "shampoo"
    stages: ClassVar[Stages] = Stages(
        orthogonalises=False,
        options=(
            "betas",
            "eps",
            "precondition_frequency",
            "start_preconditioning_step",
            "grafting",
            "exponent",
            "kl",
            "refresh",
        ),
    )
    moving: ClassVar[tuple[str, ...]] = ("left_factor", "right_factor", "exp_avg", "exp_avg_sq")
    refreshes_first: ClassVar[bool] = True

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        *,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-12,
        weight_decay: float = 0.01,
        precondition_frequency: int = 1,
        start_preconditioning_step: int | None = None,
        max_preconditioner_dim: int = 1024,
        grafting: str | None = None,
        exponent: float = 0.25,
        kl: bool = False,
        refresh: str = "spread",
        layout: str | None = None,
        split_sizes: list[int] | None = None,
        num_heads: int | None = None,
        fallback: Mapping[str, Any] | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "precondition_frequency": precondition_frequency,
            "start_preconditioning_step": start_preconditioning_step,
            "max_preconditioner_dim": max_preconditioner_dim,
            "grafting": grafting,
            "exponent": exponent,
            "kl": kl,
            "refresh": refresh,
            "layout": layout,
            "split_sizes": split_sizes,
            "num_heads": num_heads,
        }
        super().__init__(params, defaults, fallback)

    def problems_of(self, group: dict[str, Any], given: set[str]) -> list[str]:
        """Problems of grafting and start, and those that all have; sets how the tensors are cut into blocks."""
        problems = super().problems_of(group, given)
        where = group_label(group)
        if group["grafting"] not in (None, *GRAFTINGS):
            problems.append(f"{where}grafting: {group['grafting']!r} is unknown. Known: {', '.join(GRAFTINGS)}, None.")
        elif group["grafting"] and group["betas"][1] == 1:
            problems.append(
                f"{where}betas: sums (betas[1] = 1) with grafting 'adam', whose moments average. Type 0.99."
            )
        start = group["start_preconditioning_step"]
        if start is not None and (isinstance(start, bool) or start != int(start) or start < 1):
            problems.append(f"{where}start_preconditioning_step: {start!r} is not a whole number above 0, or None.")
        group["block_size"] = group["max_preconditioner_dim"]
        return problems

    def kept(self, options: Group, rows: int, cols: int) -> dict[str, tuple[int, int]]:
        """Moments, statistics and their inverse roots."""
        squares = {"exp_avg_sq": (rows, cols)} if options["grafting"] else {}
        sides = {"left_factor": (rows, rows), "right_factor": (cols, cols)}
        roots = {"left_root": (rows, rows), "right_root": (cols, cols)}
        return {"exp_avg": (rows, cols), **squares, **sides, **roots}

    def due(self, options: Group, step: int, offset: int) -> bool:
        """At the start, and then every precondition_frequency steps."""
        start = _start(options)
        return step == start or (step > start and super().due(options, step, offset))

    def accumulate(self, gradient: Tensor, kept: Kept, step: int, options: Group) -> None:
        """Add this gradient to the statistics."""
        beta = options["betas"][1]
        weight = 1 - beta if beta < 1 else 1.0
        if not options["kl"]:
            add_statistics(gradient, kept, beta, weight)
            return
        for_left, for_right = gradient @ kept["right_root"], kept["left_root"] @ gradient
        add_statistics(for_left, {"left_factor": kept["left_factor"]}, beta, weight)
        add_statistics(for_right, {"right_factor": kept["right_factor"]}, beta, weight)

    def decomposed(self, sides: Sequence[Side], exchange: Exchange) -> None:
        """New inverse roots."""
        options, beta = sides[0].options, sides[0].options["betas"][1]
        factors = together([side.views[f"{side.name}_factor"] for side in sides])
        if beta < 1:
            factors = factors / (1 - beta ** sides[0].step)
        roots = exchange(lambda part: inverse_root(part, options["exponent"], options["eps"]), factors)
        counts = [side.views[f"{side.name}_factor"].size(0) for side in sides]
        for side, root in zip(sides, roots.split(counts), strict=True):
            side.views[f"{side.name}_root"].copy_(root)

    def update(self, gradient: Tensor, kept: Kept, step: int, options: Group) -> Tensor:
        """Moving average between the inverse roots, at the length of Adam's step."""
        beta1, beta2 = options["betas"]
        mean = kept["exp_avg"].lerp_(gradient, 1 - beta1) / (1 - beta1**step)
        if not options["grafting"]:
            return kept["left_root"] @ mean @ kept["right_root"]
        square = kept["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        adam = mean / (square / (1 - beta2**step)).sqrt_().add_(GRAFTING_EPS)
        if step < _start(options):
            return adam
        update = kept["left_root"] @ mean @ kept["right_root"]
        return update.mul_(_length(adam) / (_length(update) + 1e-16))


def _start(options: Group) -> int:
    start = options["start_preconditioning_step"]
    return options["precondition_frequency"] if start is None else start


def _length(batch: Tensor) -> Tensor:
    return torch.linalg.vector_norm(batch, dim=(-2, -1), keepdim=True)
