"""SAM and ASAM: the gradient at the worst point nearby, both passes inside the step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from lit_opt.errors import RecipeError
from lit_opt.optim.random_numbers import same_random_numbers
from lit_opt.optim.wrapper import Wrapper

Closure = Callable[[], Any]
Pass = Callable[[Closure], AbstractContextManager[Any]]


def _nothing(closure: Closure) -> AbstractContextManager[Any]:
    return nullcontext()


class SAM(Wrapper):
    """g = grad(w); e = rho g / |g|; then the base steps from w with the gradient at w + e.

    `step` needs a closure that zeroes the gradients, evaluates the loss and calls backward, as Lightning's automatic
    optimization passes it, and calls it twice. The loss of the first call is returned. Both calls draw the same
    random numbers (one dropout mask). The weights are put back from a copy, bit for bit, also after an exception; a
    step needs that one copy and costs two gradients.

    Batch-norm statistics should come from the first pass alone: `optimizer.second_pass = lambda closure:
    frozen_statistics(module)`. A recipe does that, and sees to logging, metrics and DDP as well.

    Args:
        base: The optimizer that takes the steps.
        rho: Radius of the neighbourhood, |e|.

    Raises:
        RecipeError: In `step`, without a closure.

    Source: arXiv:2010.01412.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> optimizer = SAM(torch.optim.SGD([weight], lr=0.5), rho=0.5)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = weight.square().sum()
        ...     loss.backward()
        ...     return loss.item()
        >>> optimizer.step(closure), weight.data  # the gradient is that at (3.3, 4.4)
        (25.0, tensor([-0.3000, -0.4000]))
    """

    first_pass: Pass = staticmethod(_nothing)
    second_pass: Pass = staticmethod(_nothing)

    def __init__(self, base: Optimizer, *, rho: float = 0.05) -> None:
        super().__init__(base)
        self.rho = rho

    def scale(self, param: Tensor) -> Tensor | float:
        """T of the norm that the neighbourhood is measured in; 1 for SAM."""
        return 1.0

    def step(self, closure: Closure | None = None) -> Any:
        """Two evaluations and one step of the base; returns the first loss."""
        if closure is None:
            self._check_that_nothing_moves()
            return self.base.step()
        # The stream goes on after the second pass, which draws the same numbers.
        with same_random_numbers(self.param_groups), torch.enable_grad(), self.first_pass(closure):
            loss = closure()
        held = [(p, p.detach().clone()) for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not held:  # a loss of None: nothing was evaluated
            return loss
        try:
            self._climb()
            with torch.enable_grad(), self.second_pass(closure):
                closure()
        finally:
            with torch.no_grad():
                for param, weight in held:
                    param.copy_(weight)
        self.base.step()
        return loss

    @torch.no_grad()
    def _climb(self) -> None:
        moved = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        # Scaled twice, one after the other: all scaled gradients at once would be two more copies of the weights.
        factor = self.rho / (_norm(self._scaled(p)[1] for p in moved) + 1e-12)
        for param in moved:
            scale, grad = self._scaled(param)
            param.add_(scale * grad * factor.to(device=grad.device, dtype=grad.dtype))

    def _scaled(self, param: Tensor) -> tuple[Tensor | float, Tensor]:
        """T and T g."""
        scale, grad = self.scale(param), param.grad
        assert grad is not None
        return scale, grad if isinstance(scale, float) else scale * grad

    def _check_that_nothing_moves(self) -> None:
        # torch's set_optimizer_state_dict makes the state by a step without closure at lr 0.
        for group in self.param_groups:
            if group["lr"] and any(param.grad is not None for param in group["params"]):
                raise RecipeError(
                    [
                        f"{type(self).__name__}.step: needs a closure that zeroes the gradients, evaluates the loss and "
                        "calls backward, since it evaluates twice. Lightning's automatic optimization passes one; under "
                        "manual optimization type optimizer.step(closure=...)."
                    ]
                )

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "rho": self.rho}


class ASAM(SAM):
    """SAM in a neighbourhood that follows the scale of the weights: e = rho T^2 g / |T g| with T = |w| + eta.

    Args:
        base: The optimizer that takes the steps.
        rho: Radius, about ten times SAM's.
        eta: Added to |w|.
        adaptive: "weights" takes T = 1 for tensors with fewer than two dimensions; "all" scales these as well. The
            authors' code goes by the word "weight" in the name, which scales the gains of norms too.

    Source: arXiv:2102.11600; SamsungLabs/ASAM.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
        >>> ASAM(torch.optim.SGD([weight], lr=0.5), eta=0.0).scale(weight).tolist()
        [[3.0, 4.0]]
    """

    def __init__(self, base: Optimizer, *, rho: float = 0.5, eta: float = 0.01, adaptive: str = "weights") -> None:
        super().__init__(base, rho=rho)
        self.eta, self.adaptive = eta, adaptive

    def scale(self, param: Tensor) -> Tensor | float:
        """|w| + eta, or 1 for what is not adaptive."""
        return param.detach().abs() + self.eta if self.adaptive == "all" or param.ndim > 1 else 1.0

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "eta": self.eta, "adaptive": self.adaptive}


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Inside, batch norms normalise by their batch and leave their running statistics alone.

    Args:
        module: All norms in it that track statistics.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> with frozen_statistics(norm):
        ...     _ = norm(torch.ones(4, 2))
        >>> norm.num_batches_tracked
        tensor(0)
    """
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._NormBase) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def _norm(tensors: Iterable[Tensor]) -> Tensor:
    """Norm over all tensors and all shards of them, 0-D."""
    squares = []
    for tensor in tensors:
        norm = torch.linalg.vector_norm(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))
        squares.append((norm.full_tensor() if isinstance(norm, DTensor) else norm).square())
    if not squares:
        return torch.zeros(())
    return torch.stack([square.to(squares[0].device) for square in squares]).sum().sqrt()
