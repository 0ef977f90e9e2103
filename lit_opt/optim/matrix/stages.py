"""The stages of a matrix method, and Muon's own: what goes into P, and what happens after."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_opt.averaging.shards import gradients_of, locals_of

Group = Mapping[str, Any]
States = Sequence[dict[str, Any]]


def own_gradient(group: Group, params: Sequence[Tensor], states: States) -> list[Tensor]:
    """Stage 1 of Muon: the gradient as it is.

    Example:
        >>> import torch
        >>> weight = torch.ones(2, 2, requires_grad=True)
        >>> weight.sum().backward()
        >>> own_gradient({}, [weight], [{}])[0] is weight.grad
        True
    """
    return gradients_of(params)


def averaged(group: Group, estimates: list[Tensor], states: States) -> float:
    """Stage 2 of Muon: M <- momentum M + (1 - momentum) C. What is preconditioned is M, or with Nesterov one step ahead.

    Returns:
        The share w of the buffer in (1 - w) C + w M, which goes into P.

    Example:
        >>> import torch
        >>> state = {"momentum_buffer": torch.zeros(2)}
        >>> averaged({"momentum": 0.5, "nesterov": False}, [torch.ones(2)], [state]), state["momentum_buffer"]
        (1.0, tensor([0.5000, 0.5000]))
    """
    momentum = group["momentum"]
    torch._foreach_lerp_(locals_of([state["momentum_buffer"] for state in states]), estimates, 1 - momentum)
    return momentum if group["nesterov"] else 1.0


@dataclass(frozen=True)
class Stages:
    """What one method does where methods differ.

    Args:
        estimate: (group, params, states) -> the estimated gradients C. It may return the gradients themselves.
        momentum: (group, estimates, states) -> w; updates the buffers. (1 - w) C + w M goes into P.
        normalise: (P(G), rows, group) -> None, in place, with P(G) of shape (count, rows, cols) and the second moments
            `rows` of shape (count, rows, 1), in place as well. None for none.
        options: The method's group options that all matrices of one call must share.
        orthogonalises: P is the polar factor, which has options of its own.

    Example:
        >>> Stages().momentum is averaged
        True
    """

    estimate: Callable[[Group, Sequence[Tensor], States], list[Tensor]] = own_gradient
    momentum: Callable[[Group, list[Tensor], States], float] = averaged
    normalise: Callable[[Tensor, Tensor, Group], None] | None = None
    options: tuple[str, ...] = ()
    orthogonalises: bool = True

    @property
    def shared(self) -> tuple[str, ...]:
        """All group options that matrices of one call must share."""
        return ("orthogonalize", "ns_steps", "ns_dtype", *self.options) if self.orthogonalises else self.options
