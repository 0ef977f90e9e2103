"""MARS-M: Muon on a gradient that is corrected by its change since the last step (variance reduction)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor

from lit_opt.averaging.shards import gradients_of, locals_of, norms_of
from lit_opt.errors import RecipeError
from lit_opt.optim.matrix.engine import MatrixOptimizer
from lit_opt.optim.matrix.groups import group_label
from lit_opt.optim.matrix.stages import Group, Stages, States, averaged
from lit_opt.optim.random_numbers import same_random_numbers

VARIANTS = ("approx", "exact", "efficient")


def corrected_gradient(group: Group, params: Sequence[Tensor], states: States) -> list[Tensor]:
    """C = G + gamma momentum / (1 - momentum) (G - G'), brought to a Frobenius norm of at most 1.

    G' is the last step's gradient (approx), or the gradient at the last step's weights on this step's data (exact);
    zero at the first step. The efficient variant leaves the gradient alone and corrects in its momentum.

    Example:
        >>> import torch
        >>> weight = torch.zeros(1, 2, requires_grad=True)
        >>> weight.grad = torch.tensor([[0.3, 0.0]])
        >>> state = {"previous_gradient": torch.tensor([[0.1, 0.0]])}
        >>> corrected_gradient({"variant": "exact", "gamma": 0.025, "momentum": 0.9}, [weight], [state])[0]
        tensor([[0.3450, 0.0000]])
    """
    grads = gradients_of(params)
    if group["variant"] == "efficient":
        return grads
    factor = group["gamma"] * group["momentum"] / (1 - group["momentum"])
    for param, state in zip(params, states, strict=True):
        if "previous_gradient" not in state:
            state["previous_gradient"] = torch.zeros_like(param)
    previous = locals_of([state["previous_gradient"] for state in states])
    estimates = list(torch._foreach_lerp(previous, grads, 1 + factor))
    precise = torch.promote_types(estimates[0].dtype, torch.float32)
    norms = norms_of(estimates, params, precise)
    # Division, so that a NaN stays one.
    torch._foreach_div_(estimates, [norm.clamp_min(1.0).to(grads[0].dtype) for norm in norms])
    if group["variant"] == "approx":
        torch._foreach_copy_(previous, grads)
    return estimates


def corrected_average(group: Group, estimates: list[Tensor], states: States) -> float:
    """Muon's momentum; the efficient variant's is M <- momentum M + (1 - gamma)(1 - momentum) / momentum G.

    Returns:
        The share w of the buffer, as in `averaged`. Efficient orthogonalises gamma G + momentum M, which is a multiple
        of (1 - w) G + w M.

    Example:
        >>> import torch
        >>> group = {"variant": "efficient", "gamma": 0.1, "momentum": 0.9}
        >>> state = {"momentum_buffer": torch.zeros(1)}
        >>> round(corrected_average(group, [torch.ones(1)], [state]), 3), state["momentum_buffer"]
        (0.9, tensor([0.1000]))
    """
    if group["variant"] != "efficient":
        return averaged(group, estimates, states)
    momentum, gamma = group["momentum"], group["gamma"]
    buffers = locals_of([state["momentum_buffer"] for state in states])
    torch._foreach_mul_(buffers, momentum)
    torch._foreach_add_(buffers, estimates, alpha=(1 - gamma) * (1 - momentum) / momentum)
    return momentum / (gamma + momentum)


class MarsM(MatrixOptimizer):
    """Muon with MARS's variance reduction, in one of three variants.

    approx: the correction uses the last step's gradient. exact: it uses the gradient at the last step's weights on
    this step's batch, for which the closure is called twice; the closure has to zero the gradients itself, so
    accumulated gradients do not work. Random numbers of both calls agree, so dropout drops the same. The first call runs
    inside `extra_pass(closure)`, a context manager that does nothing; a Recipe puts one there that keeps batch-norm
    statistics, metrics and logs out of it, and refuses accumulation, 16-mixed, manual optimization and FSDP2. The hooks
    around backward run twice.
    efficient: one buffer instead of two, without the clipping.

    The corrected gradient is clipped to a norm of 1 for each parameter, as in the official code, so the update is not
    free of the gradient's scale.

    Args:
        params: As in `Muon`.
        lr: AdamW's, as scale is match_rms_adamw.
        momentum: Decay of the moving average per step.
        nesterov: As in `Muon`; not for efficient.
        gamma: Strength of the correction.
        variant: "approx", "exact" or "efficient".
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
        RecipeError: As in `Muon`; an unknown variant; exact without a closure; efficient with nesterov or momentum 0.

    Source: arXiv:2510.21800, AGI-Arena/MARS MARS_M/optimizers/mars_m.py and mars_m_efficient.py.

    Example:
        >>> import torch
        >>> from lit_opt.optim import MarsM
        >>> layer = torch.nn.Linear(4, 4, bias=False)
        >>> optimizer = MarsM(layer.parameters(), lr=3e-4, variant="exact")
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = layer(torch.eye(4)).square().sum()
        ...     loss.backward()
        ...     return loss.item()
        >>> first = optimizer.step(closure)
        >>> bool(optimizer.step(closure) < first)
        True
    """

    name: ClassVar[str] = "mars_m"
    stages: ClassVar[Stages] = Stages(estimate=corrected_gradient, momentum=corrected_average)
    extra_pass: Callable[[Any], AbstractContextManager[Any]] = staticmethod(lambda closure: nullcontext())

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        *,
        momentum: float = 0.95,
        nesterov: bool = False,
        gamma: float = 0.025,
        variant: str = "approx",
        weight_decay: float = 0.1,
        scale: str = "match_rms_adamw",
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
            "gamma": gamma,
            "variant": variant,
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

    def problems_of(self, group: dict[str, Any], given: set[str]) -> list[str]:
        """Problems of variant, in words."""
        where = group_label(group)
        if group["variant"] not in VARIANTS:
            return [f"{where}variant: {group['variant']!r} is unknown. Known: {', '.join(VARIANTS)}."]
        if group["variant"] != "efficient":
            return []
        problems = []
        if group["nesterov"]:
            problems.append(f"{where}nesterov: True with variant 'efficient', which has a look-ahead of its own.")
        if not group["momentum"]:
            problems.append(f"{where}momentum: 0 with variant 'efficient', which divides by it. Type 0.95.")
        return problems

    def _evaluate(self, closure: Callable[[], Any] | None) -> Any:
        """For the exact variant the gradient at the last step's weights first, then the one at the current weights."""
        exact = [group for group in self.param_groups if group.get("variant") == "exact"]
        if not exact:
            return super()._evaluate(closure)
        if closure is None:
            raise RecipeError(
                [
                    "variant: 'exact' needs a closure that zeroes the gradients, evaluates the model and calls "
                    "backward: optimizer.step(closure). Without one, type variant='approx'."
                ]
            )
        params = [param for group in self.param_groups for param in group["params"] if param.requires_grad]
        known = [param for param in params if "previous_weight" in self.state.get(param, {})]
        if known:
            self._at_previous_weights(closure, known, {id(p) for group in exact for p in group["params"]})
        for param in params:
            state = self.state[param]
            if "previous_weight" in state:
                state["previous_weight"].copy_(param)
            else:
                state["previous_weight"] = param.detach().clone()
        return super()._evaluate(closure)

    def _at_previous_weights(self, closure: Callable[[], Any], params: list[Tensor], matrices: set[int]) -> None:
        current = [param.detach().clone() for param in params]
        try:
            for param in params:
                param.copy_(self.state[param]["previous_weight"])
            with same_random_numbers(self.param_groups), self.extra_pass(closure):
                super()._evaluate(closure)
        finally:
            for param, weight in zip(params, current, strict=True):
                param.copy_(weight)
        for param in params:
            if param.ndim < 2 or id(param) not in matrices:
                continue
            if param.grad is None:
                self.state[param].pop("previous_gradient", None)
            else:
                self.state[param]["previous_gradient"] = param.grad.clone()
