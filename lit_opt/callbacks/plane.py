"""The plane through a cloud of weights, and the loss on it.

The plane is spanned by the first two principal components of the weights along a way of training (Li et al. 2018,
https://arxiv.org/abs/1712.09913, section 7: random directions would show next to nothing of it).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Plane:
    """A plane in the space of all weights.

    Attributes:
        centre: (weights,) the mean of the cloud.
        axes: (2, weights) orthonormal, the longer one first.
        explained: Share of the cloud's variance that lies in the plane.

    Example:
        >>> plane = pca_plane(torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 1.0], [0.0, 2.0, 1.0]]))
        >>> round(plane.explained, 6)
        1.0
    """

    centre: Tensor
    axes: Tensor
    explained: float

    def coordinates(self, weights: Tensor) -> Tensor:
        """Where weights (n, weights) fall on the plane: (n, 2)."""
        return (weights - self.centre) @ self.axes.T

    def weights(self, x: float, y: float) -> Tensor:
        """The weights (weights,) at a place of the plane."""
        return self.centre + x * self.axes[0] + y * self.axes[1]


def pca_plane(cloud: Tensor) -> Plane:
    """The plane of the first two principal components.

    The eigenvectors are those of the n x n matrix of inner products, in float64: n is a few hundred where the weights
    may be millions. An axis points to where the last of the cloud lies, so that the picture does not flip by chance.

    Args:
        cloud: (n, weights), n at least 2, finite.

    Example:
        >>> plane = pca_plane(torch.randn(10, 50, generator=torch.Generator().manual_seed(0)))
        >>> torch.allclose(plane.axes @ plane.axes.T, torch.eye(2), atol=1e-5)
        True
    """
    centre = cloud.mean(0)
    moved = cloud - centre
    gram = torch.stack([moved @ row for row in moved]).double()
    values, vectors = torch.linalg.eigh((gram + gram.T) / 2)
    axes = (vectors[:, -2:].flip(1).T @ moved.double()).to(cloud.dtype)
    first = nn.functional.normalize(axes[0], dim=0)
    # A way that is straight has no second component: any direction beside it will do.
    second = axes[1] if values[-2] > 1e-12 * values[-1] else torch.eye(1, len(centre), dtype=cloud.dtype)[0]
    second = nn.functional.normalize(second - (second @ first) * first, dim=0)
    axes = torch.stack([first, second])
    signs = torch.where(moved[-1] @ axes.T < 0, -1.0, 1.0).to(cloud.dtype)
    total = values.clamp(min=0).sum()
    explained = float(values[-2:].clamp(min=0).sum() / total) if total > 0 else 1.0
    return Plane(centre, axes * signs[:, None], explained)


def surface(loss: Callable[[], float], parameters: Sequence[Tensor], plane: Plane, xs: Tensor, ys: Tensor) -> Tensor:
    """The loss on a grid of the plane. The parameters are left as they were found, also after an exception.

    Args:
        loss: Evaluates the module as it is.
        parameters: What the weights of the plane are, in their order.
        plane: The plane.
        xs: (nx,) places along the first axis.
        ys: (ny,) places along the second.

    Returns:
        (ny, nx) in float64.

    Example:
        >>> weight = nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> plane = Plane(torch.zeros(2), torch.eye(2), 1.0)
        >>> heights = surface(lambda: float(weight.detach().square().sum()), [weight], plane, torch.arange(2), torch.arange(3))
        >>> heights.tolist(), weight.tolist()
        ([[0.0, 1.0], [1.0, 2.0], [4.0, 5.0]], [3.0, 4.0])
    """
    heights = torch.empty(len(ys), len(xs), dtype=torch.float64)
    with kept(parameters):
        for i, y in enumerate(ys.tolist()):
            for j, x in enumerate(xs.tolist()):
                put_weights(parameters, plane.weights(x, y))
                heights[i, j] = loss()
    return heights


@contextmanager
def kept(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Tensors are given back their very numbers at the end.

    Example:
        >>> weight = nn.Parameter(torch.ones(2))
        >>> with kept([weight]):
        ...     put_weights([weight], torch.zeros(2))
        >>> weight.tolist()
        [1.0, 1.0]
    """
    before = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)


def take_weights(parameters: Sequence[Tensor]) -> Tensor:
    """All weights as one float32 vector on the CPU, a copy.

    Example:
        >>> take_weights([nn.Parameter(torch.ones(2, 1))]).tolist()
        [1.0, 1.0]
    """
    return torch.cat([p.detach().to("cpu", torch.float32, copy=True).reshape(-1) for p in parameters])


def put_weights(parameters: Sequence[Tensor], flat: Tensor) -> None:
    """The inverse of `take_weights`, in place.

    Example:
        >>> weight = nn.Parameter(torch.ones(2))
        >>> put_weights([weight], torch.zeros(2))
        >>> weight.tolist()
        [0.0, 0.0]
    """
    with torch.no_grad():
        for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.copy_(part.view(parameter.shape))


class Sketch:
    """A fixed random projection to a few hundred numbers, without a matrix: each weight, with a random sign, is added to a
    random one of them (count sketch; Charikar et al. 2002). Inner products keep their mean; their error falls as one
    over the root of the dimensions.

    Args:
        dimensions: Of the projection.
        seed: Of the random choices; the same seed and sizes project in the same way.

    Example:
        >>> sketch = Sketch(256)
        >>> weights = torch.randn(100_000, generator=torch.Generator().manual_seed(1))
        >>> bool(abs(sketch(weights).norm() / weights.norm() - 1) < 0.2)
        True
    """

    CHUNK = 2**20

    def __init__(self, dimensions: int, seed: int = 0) -> None:
        self.dimensions, self.seed = dimensions, seed

    def __call__(self, flat: Tensor) -> Tensor:
        """Project (weights,) on the CPU to (dimensions,) in float64. The choices are drawn anew, a chunk at a time."""
        out = torch.zeros(self.dimensions, dtype=torch.float64)
        for number, part in enumerate(flat.split(self.CHUNK)):
            chosen = f"{self.seed}/{number}".encode()
            generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(chosen).digest()[:7], "big"))
            drawn = torch.randint(0, 2 * self.dimensions, (len(part),), generator=generator)
            signed = part.double() * (1 - 2 * (drawn % 2))
            out.index_add_(0, drawn // 2, signed)
        return out
