"""Numbers that lie on the device, read all at once; and what `OptimizerMonitor` computes on the way there.

Nothing here waits for the device except `Reading.read`, once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from lit_opt.averaging.shards import is_sharded, like, local


class Reading:
    """0-D tensors that are added one by one and become floats together.

    Sums over the shards of a DTensor are added up over its processes, one all-reduce for all that are sharded alike.

    Example:
        >>> reading = Reading()
        >>> a, b = reading.add(torch.tensor(1.5)), reading.add_square(torch.tensor([3.0, 4.0]), owner=torch.zeros(2))
        >>> values = reading.read()
        >>> values[a], values[b]
        (1.5, 25.0)
    """

    def __init__(self) -> None:
        self._values: list[Tensor] = []
        self._shards: dict[Any, list[int]] = {}

    def add(self, value: Tensor) -> int:
        """Add a 0-D tensor that is the same in all processes; returns its place."""
        self._values.append(value.detach().float())
        return len(self._values) - 1

    def add_square(self, part: Tensor, owner: Tensor) -> int:
        """Add the sum of squares of this process's part of `owner`; returns its place."""
        real = torch.view_as_real(part) if part.is_complex() else part
        wide = torch.promote_types(real.dtype, torch.float32)
        place = self.add(torch.linalg.vector_norm(real, dtype=wide).square())
        if is_sharded(owner):
            shards = tuple(i for i, p in enumerate(owner.placements) if p.is_shard())  # type: ignore[attr-defined]
            self._shards.setdefault((owner.device_mesh, shards), []).append(place)  # type: ignore[attr-defined]
        return place

    def read(self) -> list[float]:
        """All values. Every process has to call it where tensors are sharded."""
        if not self._values:
            return []
        device = self._values[0].device
        stacked = torch.stack([value.to(device) for value in self._values])
        for (mesh, dimensions), places in self._shards.items():
            part = stacked[places]
            for dimension in dimensions:
                torch.distributed.all_reduce(part, group=mesh.get_group(dimension))
            stacked[places] = part
        return list(stacked.tolist())


def sampled(parameters: Iterable[Tensor], count: int | None) -> list[Tensor]:
    """Some of the parameters that have a gradient, matrices first, evenly spread; all of them where `count` is None.

    Example:
        >>> parameters = [torch.zeros(2, 2) for _ in range(9)]
        >>> for p in parameters: p.grad = torch.zeros(2, 2)
        >>> len(sampled(parameters, 4)), len(sampled(parameters, None))
        (4, 9)
    """
    with_gradient = [p for p in parameters if p.grad is not None and p.numel()]
    if count is None or len(with_gradient) <= count:
        return with_gradient
    matrices = [p for p in with_gradient if p.ndim > 1]
    pool = matrices if len(matrices) >= count else with_gradient
    return [pool[round(i * (len(pool) - 1) / (count - 1))] for i in range(count)]


def effective_rank(update: Tensor) -> Tensor:
    """Over how many directions an update is spread, as a share of the most that its shape allows.

    (sum s^2)^2 / sum s^4 of the singular values s, the participation ratio, over min(rows, columns): 1 for an
    orthogonal update, 1 / min(rows, columns) for an update of rank one. It needs a product of the matrix with
    itself and no decomposition. A convolution is read as (out, in x height x width).

    Example:
        >>> effective_rank(torch.eye(4)), effective_rank(torch.ones(4, 8))
        (tensor(1.), tensor(0.2500))
    """
    matrix = update.detach().float().flatten(1)
    if matrix.shape[0] > matrix.shape[1]:
        matrix = matrix.T
    matrix = matrix / torch.linalg.vector_norm(matrix)
    return 1 / torch.linalg.vector_norm(matrix @ matrix.T).square() / matrix.shape[0]


def whole_update(change: Tensor, parameter: Tensor) -> Tensor:
    """This process's part of an update as the whole of it; a collective for DTensors.

    Example:
        >>> whole_update(torch.ones(2), torch.zeros(2))
        tensor([1., 1.])
    """
    return like(change, parameter).full_tensor() if is_sharded(parameter) else change  # type: ignore[attr-defined]


def lamb_direction(group: dict[str, Any], state: dict[str, Any], before: Tensor) -> Tensor | None:
    """What timm's LAMB multiplied by the trust ratio in its last step; None where it does not adapt, or differently.

    Args:
        group: Of the optimizer, after the step.
        state: Of the parameter, after the step.
        before: This process's weights before it.
    """
    plain = not (group.get("caution") or group.get("decoupled_decay") or group.get("trust_clip"))
    if "exp_avg" not in state or not plain or not (group["weight_decay"] or group["always_adapt"]):
        return None
    step = int(group["step"])  # timm keeps it on the CPU
    correct = [1 - beta**step if group["bias_correction"] else 1.0 for beta in group["betas"]]
    denominator = local(state["exp_avg_sq"]).sqrt() / correct[1] ** 0.5 + group["eps"]
    return local(state["exp_avg"]) / correct[0] / denominator + group["weight_decay"] * before


def later(x: Any, reading: Reading) -> Callable[[list[float]], float]:
    """A rate; one that lies on the device is read with the rest."""
    if not isinstance(x, Tensor):
        return lambda v: float(x)
    place = reading.add(x)
    return lambda v: v[place]


def ratio(above: list[int], below: list[int]) -> Callable[[list[float]], float]:
    """Root of a sum of squares over another, at these places; nan over nothing."""

    def of(values: list[float]) -> float:
        size = sum(values[i] for i in below)
        return math.sqrt(sum(values[i] for i in above) / size) if size else math.nan

    return of
