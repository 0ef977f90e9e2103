"""SPlus: the sign of the momentum in the eigenbasis of Shampoo's statistics, and averaged weights to validate on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from lit_opt.averaging.shards import like, local
from lit_opt.errors import RecipeError
from lit_opt.optim.matrix.eigenbasis import eigenbasis, without_rounding
from lit_opt.optim.matrix.preconditioned import Kept, PreconditionedOptimizer
from lit_opt.optim.matrix.refresh import Exchange, Side, together
from lit_opt.optim.matrix.soap import add_statistics, rotated, rotated_back, sides_kept
from lit_opt.optim.matrix.stages import Group, Stages

# The rate of a matrix with a side beyond max_preconditioner_dim, as in the official code.
LONG_SIDE = 1e-3


class SPlus(PreconditionedOptimizer):
    """W <- W - lr 2 / (rows + cols) Q_L sign(Q_L^T M Q_R) Q_R^T, with eigenvectors that are renewed now and then.

    M is the moving average of the gradients, Q_L and Q_R the eigenvectors of those of G G^T and G^T G, made anew after
    the first step and every `precondition_frequency` steps. Gradients are taken at the weights themselves; `eval()` puts
    their moving average (of the weights before each decay, corrected for its start) into the parameters, `train()` puts
    the weights back. A Recipe calls both. Weight decay is multiplied by lr 2 / (rows + cols), after the update.

    The first step is the sign of the gradient. From the second step on, components that are rounding beside the largest
    one have no sign, and the null space of the statistics has a basis that follows from it. In the official code LAPACK
    chooses that basis: a relative change of 1e-12 in the gradients moves rectangular weights by 2e-2 to 1e-1 in ten
    steps at lr 0.1, here by less than 1e-9. So the weights lie up to 8.3e-2 from the official ones after ten such steps
    (shapes 8 x 5); where the statistics have full rank, they are equal to 1e-10 in float64. Convolutions are matrices of
    (outputs, inputs x kernel) and vectors go to AdamW; the official code takes their sign. A side of exactly
    max_preconditioner_dim is rotated.

    Kept of an m x n matrix are m n + 2 m^2 + 2 n^2 numbers, of a DTensor in one process as in `Soap`; and the averaged
    weights, in shards as the weights.

    Args:
        params: Tensors, (name, tensor) pairs or group dicts. Tensors with fewer than two dimensions go to AdamW.
        lr: About 0.1 to 0.2 for any width: the update's RMS is lr 2 / (rows + cols).
        betas: Decay of the momentum and of the statistics.
        ema_rate: Decay of the averaged weights per step.
        weight_decay: Multiplied by lr 2 / (rows + cols).
        precondition_frequency: Steps from one eigendecomposition to the next.
        max_preconditioner_dim: A longer side is not rotated, and its matrix has lr 1e-3 in place of lr 2 / (rows + cols).
        refresh: As in `Soap`.
        layout: As in `Muon`.
        split_sizes: As in `Muon`; each part has its own rate.
        num_heads: As in `Muon`; each head has its own rate.
        fallback: lr, betas, eps and weight_decay of the AdamW part.

    Raises:
        RecipeError: An option that does not fit the parameters; a step after `eval()`.

    Source: arXiv:2506.07254, kvfrans/splus torch/splus.py.

    Example:
        >>> import torch
        >>> from lit_opt.optim import SPlus
        >>> weight = torch.nn.Parameter(torch.zeros(2, 3))
        >>> optimizer = SPlus([weight], lr=0.5, weight_decay=0.0)
        >>> weight.grad = torch.tensor([[3.0, -1.0, 0.0], [1.0, 2.0, -4.0]])
        >>> optimizer.step()
        >>> weight.detach()
        tensor([[-0.2000,  0.2000,  0.0000],
                [-0.2000, -0.2000,  0.2000]])
    """

    name: ClassVar[str] = "splus"
    stages: ClassVar[Stages] = Stages(
        orthogonalises=False, options=("betas", "precondition_frequency", "max_preconditioner_dim", "refresh")
    )
    moving: ClassVar[tuple[str, ...]] = ("left_factor", "right_factor", "exp_avg")

    def __init__(
        self,
        params: Any,
        lr: float = 0.1,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        ema_rate: float = 0.999,
        weight_decay: float = 0.01,
        precondition_frequency: int = 100,
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
            "ema_rate": ema_rate,
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
        """The momentum as it is; statistics and bases."""
        return {"exp_avg": (rows, cols), **sides_kept(options, rows, cols, "factor", "basis")}

    def due(self, options: Group, step: int, offset: int) -> bool:
        """After the first step, and then every precondition_frequency steps."""
        return step == 1 or super().due(options, step, offset)

    def update(self, gradient: Tensor, kept: Kept, step: int, options: Group) -> Tensor:
        """Momentum, its sign in the last basis; then the statistics, for the next refresh."""
        beta1, beta2 = options["betas"]
        momentum = kept["exp_avg"].lerp_(gradient, 1 - beta1)
        bases = any(name.endswith("_basis") for name in kept)
        if step > 1 and bases:
            update = rotated_back(without_rounding(rotated(momentum, kept)).sign_(), kept)
        else:
            update = momentum.sign()
        add_statistics(gradient, kept, beta2, 1 - beta2)
        return update

    def decomposed(self, sides: Sequence[Side], exchange: Exchange) -> None:
        """New eigenvectors; the momentum is not in their basis."""
        factors = together([side.views[f"{side.name}_factor"] for side in sides])
        counts = [side.views[f"{side.name}_factor"].size(0) for side in sides]
        for side, basis in zip(sides, exchange(eigenbasis, factors).split(counts), strict=True):
            side.views[f"{side.name}_basis"].copy_(basis)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient, and of its average.

        Args:
            closure: Evaluates the model and returns the loss, as in torch.

        Returns:
            What the closure returned, or None.
        """
        if any("raw_weight" in state for state in self.state.values()):
            raise RecipeError(["step: the parameters hold averages after eval(). Call optimizer.train() before."])
        loss = super().step(closure)
        shapes = {id(p): chunk.shape[1:] for chunk in self._chunks for _, params in chunk.opens for p in params}
        for index, group in enumerate(self.param_groups):
            rate = group.get("ema_rate", self.defaults["ema_rate"])
            alike: dict[Any, list[Tensor]] = defaultdict(list)
            for param in group["params"]:
                if param.grad is not None and param.numel():
                    # The decay, which the average comes before, has multiplied the weight with this.
                    shape = shapes.get(id(param))
                    alike[1.0 - float(self._decay_rate(index, shape)) if shape else 1.0].append(param)
            for shrink, params in alike.items():
                averages = [local(self._average(param)) for param in params]
                weights = [local(param).to(average.dtype) for param, average in zip(params, averages, strict=True)]
                torch._foreach_mul_(averages, rate)
                torch._foreach_add_(averages, weights, alpha=(1 - rate) / shrink)
        return loss

    def _average(self, param: Tensor) -> Tensor:
        state = self.state[param]
        if "average" not in state:
            state["average"] = torch.zeros_like(param, dtype=torch.promote_types(param.dtype, torch.float32))
        return state["average"]

    @torch.no_grad()
    def eval(self) -> None:
        """Put the averages into the parameters: what to validate, test and publish."""
        for group in self.param_groups:
            rate = group.get("ema_rate", self.defaults["ema_rate"])
            for param in group["params"]:
                state = self.state.get(param, {})
                if "average" in state and "raw_weight" not in state:
                    state["raw_weight"] = like(local(param).detach().clone(), param)
                    local(param).copy_(local(state["average"]) / (1 - rate ** float(state["step"])))

    @torch.no_grad()
    def train(self) -> None:
        """Put the weights that gradients are taken at back into the parameters."""
        for group in self.param_groups:
            for param in group["params"]:
                raw = self.state.get(param, {}).pop("raw_weight", None)
                if raw is not None:
                    local(param).copy_(local(raw))

    def _rate(self, index: int, shape: Sequence[int]) -> Any:
        group = self.param_groups[index]
        return group["lr"] * (LONG_SIDE if max(shape) > group["max_preconditioner_dim"] else 2 / sum(shape))

    def _decay_rate(self, index: int, shape: Sequence[int]) -> Any:
        return self._rate(index, shape) * self.param_groups[index]["weight_decay"]

    def _factor(self, index: int, shape: Sequence[int], kernel: int) -> Any:
        """The decay, which comes after the update, shrinks it as well."""
        return -self._rate(index, shape) * (1 - self._decay_rate(index, shape))
