"""Scion: each weight moves along the steepest direction of a norm that fits its layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from lit_opt.averaging.shards import gradients_of, local, locals_of
from lit_opt.errors import nearest
from lit_opt.optim.matrix.engine import MatrixOptimizer
from lit_opt.optim.matrix.groups import group_label
from lit_opt.optim.matrix.stages import Group, Stages, States

_ORTHOGONAL = ("Auto", "Spectral", "SpectralConv")
# Norm -> options that norm_kwargs may have, and their defaults.
_OPTIONS: Mapping[str, Mapping[str, bool]] = {
    "Auto": {},
    "Spectral": {"max": False, "normalized": True},
    "SpectralConv": {},
    "Sign": {"normalized": True},
    "ColNorm": {"normalized": False, "transpose": False},
    "RowNorm": {"normalized": True, "transpose": False},
    "BiasRMS": {},
}
_EPS = 1e-8


def weighted(group: Group, estimates: list[Tensor], states: States) -> float:
    """Stage 2 of Scion: d <- (1 - momentum) d + momentum G; d goes into P.

    Example:
        >>> import torch
        >>> state = {"momentum_buffer": torch.zeros(2)}
        >>> weighted({"momentum": 0.25}, [torch.ones(2)], [state]), state["momentum_buffer"]
        (1.0, tensor([0.2500, 0.2500]))
    """
    torch._foreach_lerp_(locals_of([state["momentum_buffer"] for state in states]), estimates, group["momentum"])
    return 1.0


def steepest(tensor: Tensor, norm: str, options: Mapping[str, bool]) -> Tensor:
    """The direction of unit length in a norm's dual that is closest to a tensor, for the norms without a polar factor.

    Args:
        tensor: (rows, cols) for "Sign", "ColNorm" and "RowNorm"; a vector for "BiasRMS".
        norm: "Sign": sign / cols. "ColNorm": every column to a root mean square of 1 (divided by cols if normalized).
            "RowNorm": every row to length 1 (divided by the root of cols if normalized). "BiasRMS": to an RMS of 1.
        options: normalized, transpose.

    Example:
        >>> import torch
        >>> steepest(torch.tensor([[2.0, -3.0]]), "Sign", {"normalized": True})
        tensor([[ 0.5000, -0.5000]])
        >>> print(f'{steepest(torch.tensor([3.0, 4.0]), "BiasRMS", {}).square().mean():.3f}')
        1.000
    """
    if norm == "Sign":
        return tensor.sign() / (tensor.shape[-1] if options["normalized"] else 1)
    if norm == "BiasRMS":
        return tensor / (tensor.square().mean().sqrt() + _EPS)
    g = tensor.mT if options["transpose"] else tensor
    if norm == "ColNorm":
        length = g.square().mean(dim=0, keepdim=True).sqrt() * (g.shape[1] if options["normalized"] else 1)
    else:
        length = g.square().sum(dim=-1, keepdim=True).sqrt() * (math.sqrt(g.shape[-1]) if options["normalized"] else 1)
    g = g / (length + _EPS)
    return g.mT if options["transpose"] else g


class Scion(MatrixOptimizer):
    """Steepest descent in a norm for each layer (conditional gradient): W <- (1 - lr) W - lr scale LMO(d).

    The keywords are those of the official code, **where `momentum` is the weight of the new gradient**: 0.1 is what
    other optimizers call 0.9. A convolution's factor is sqrt(outputs / inputs) over the number of entries of its kernel,
    as there, and also for kernels that are not square. The official code adds 1e-7 to the norm before its
    orthogonalisation; here tiny gradients move the weights as others do. "Gluon" (step sizes for each layer from its
    smoothness, arXiv:2505.13416) is not here: no published code was found to check a rule against.

    Args:
        params: As in `Muon`. A group's "last": True makes it a head's or embedding's: norm "Sign" with `last_scale`.
        lr: Learning rate, per step. It multiplies the decay as well.
        momentum: Weight of the new gradient, above 0; 1 takes the gradient as it is. Refused between 0.5 and 1, where it
            would be another optimizer's number.
        norm: "Auto" (matrices and kernels "Spectral", vectors "BiasRMS"), "Spectral", "SpectralConv", "Sign", "ColNorm",
            "RowNorm" or "BiasRMS". Vectors of other groups than "Auto" and "BiasRMS" go to AdamW.
        norm_kwargs: Options of the norm: "normalized", "transpose", "max".
        scale: Radius of the constraint: no singular value of a weight under "Spectral" stays above scale times
            sqrt(outputs / inputs).
        last_scale: Radius of groups with "last".
        unconstrained: No decay: the weights may grow beyond the radius.
        weight_decay: Multiplied by lr. 1.0 is the constrained method; 0.0 the unconstrained one.
        orthogonalize: As in `Muon`; the official code has "jordan".
        ns_steps: As in `Muon`.
        ns_dtype: As in `Muon`.
        layout: As in `Muon`.
        split_sizes: As in `Muon`.
        num_heads: As in `Muon`.
        fallback: As in `Muon`, with a weight_decay of 0.

    Raises:
        RecipeError: As in `Muon`; a momentum between 0.5 and 1; an option that the norm does not have.

    Source: arXiv:2502.07529, LIONS-EPFL/scion scion.py.

    Example:
        >>> import torch
        >>> from lit_opt.optim import Scion
        >>> layer = torch.nn.Linear(4, 4, bias=False)
        >>> optimizer = Scion(layer.parameters(), lr=0.5, scale=2.0, orthogonalize="svd")
        >>> for _ in range(20):
        ...     optimizer.zero_grad()
        ...     layer(torch.eye(4)).sum().backward()
        ...     optimizer.step()
        >>> torch.linalg.matrix_norm(layer.weight.detach(), ord=2)
        tensor(2.0000)
    """

    name: ClassVar[str] = "scion"
    stages: ClassVar[Stages] = Stages(momentum=weighted)

    def __init__(
        self,
        params: Any,
        lr: float,
        *,
        momentum: float = 0.1,
        norm: str = "Auto",
        norm_kwargs: Mapping[str, bool] | None = None,
        scale: float = 1.0,
        last_scale: float = 1.0,
        unconstrained: bool = False,
        weight_decay: float = 1.0,
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
            "norm": norm,
            "norm_kwargs": dict(norm_kwargs or {}),
            "scale": scale,
            "last_scale": last_scale,
            "last": False,
            "unconstrained": unconstrained,
            "weight_decay": weight_decay,
            "orthogonalize": orthogonalize,
            "ns_steps": ns_steps,
            "ns_dtype": ns_dtype,
            "layout": layout,
            "split_sizes": split_sizes,
            "num_heads": num_heads,
        }
        # The decay of 1 belongs to a radius, which AdamW does not have.
        super().__init__(params, defaults, {"weight_decay": 0.0, **(fallback or {})})

    def problems_of(self, group: dict[str, Any], given: set[str]) -> list[str]:
        """A momentum in other optimizers' meaning, options that a norm does not have."""
        where = group_label(group)
        if group["last"]:
            group.update({key: value for key, value in _LAST.items() if key not in given})
            group["scale"] = group["scale"] if "scale" in given else group["last_scale"]
        if group["unconstrained"]:
            group["weight_decay"] = 0.0
        problems = []
        if 0.5 < group["momentum"] < 1 or group["momentum"] <= 0:
            other = f"; what others call {group['momentum']:g} is {1 - group['momentum']:g} here"
            problems.append(
                f"{where}momentum: {group['momentum']:g} is not allowed. For scion it is the weight of the new gradient, "
                f"above 0 and up to 0.5, or 1 for no average{other * (group['momentum'] > 0)}."
            )
        known = _OPTIONS[group["norm"]]
        wrong = [key for key in group["norm_kwargs"] if key not in known]
        problems += [
            f"{where}norm_kwargs: {group['norm']} has no {key!r}.{nearest(key, known)} "
            + (f"Allowed: {', '.join(known)}." if known else "It has none.")
            for key in wrong
        ]
        return problems

    def _takes(self, group: Group) -> bool:
        return group["algorithm"] == self.name and group["norm"] in _ORTHOGONAL

    def _step_rest(self, group: Group, params: list[Tensor]) -> None:
        if group["algorithm"] == "adamw":
            super()._step_rest(group, params)
            return
        norm = group["norm"]
        own = [p for p in params if p.ndim > 1 or norm in ("Auto", "BiasRMS")]
        if len(own) < len(params):
            super()._step_rest(group, [p for p in params if p.ndim < 2])
        if own:
            self._step_plain(group, own, "BiasRMS" if norm == "Auto" else norm)

    def _step_plain(self, group: Group, params: Sequence[Tensor], norm: str) -> None:
        """A step in a norm that needs no polar factor. DTensors stay sharded: only lengths are exchanged."""
        states = [self.state[param] for param in params]
        for param, state in zip(params, states, strict=True):
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(param)
        weighted(group, gradients_of(params), states)
        for param, state in zip(params, states, strict=True):
            buffer = state["momentum_buffer"]
            flat = buffer.flatten(1) if buffer.ndim > 2 else buffer
            update = steepest(flat, norm, {**_OPTIONS[norm], **group["norm_kwargs"]}).view(buffer.shape)
            own = local(param)
            own.mul_(1 - group["lr"] * group["weight_decay"])
            own.add_(local(update) * (-group["lr"] * group["scale"]))

    def _factor(self, index: int, shape: Sequence[int], kernel: int) -> Any:
        group = self.param_groups[index]
        rows, cols = shape
        options = {**_OPTIONS["Spectral"], **group["norm_kwargs"]}
        length = math.sqrt(rows * kernel / cols) / kernel if options["normalized"] else math.sqrt(rows)
        return -group["lr"] * group["scale"] * (max(1.0, length) if options["max"] else length)


_LAST = {"norm": "Sign", "norm_kwargs": {}}
