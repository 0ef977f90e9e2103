"""Modules that are not what one expects of a module; the fuzz draws from them as well."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm

from tests.callbacks.modules import Manual, Net


class One(Net):
    """A single number."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential()
        self.w = nn.Parameter(torch.tensor(1.0))

    def loss(self, batch: list[Tensor]) -> Tensor:
        return (self.w * batch[0].mean() - 1).square()


class Biases(Net):
    """No matrix, so that the group with decay would be empty."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential()
        self.a = nn.Parameter(torch.zeros(4))

    def loss(self, batch: list[Tensor]) -> Tensor:
        return F.cross_entropy(batch[0][:, :4] + self.a, batch[1])


class Empty(Net):
    """A parameter without an element."""

    def __init__(self) -> None:
        super().__init__()
        self.none = nn.Parameter(torch.zeros(0, 4))


class Complex(Net):
    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.matrix = nn.Parameter(torch.randn(8, 16, dtype=torch.complex64, generator=g))
        self.vector = nn.Parameter(torch.randn(16, dtype=torch.complex64, generator=g))

    def loss(self, batch: list[Tensor]) -> Tensor:
        waves = (batch[0].to(torch.complex64) @ self.matrix) * self.vector
        return F.cross_entropy(self.net(batch[0]) + waves.abs()[:, :4], batch[1])


class Sparse(Net):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.table = nn.Embedding(10, 4, sparse=True)

    def loss(self, batch: list[Tensor]) -> Tensor:
        return F.cross_entropy(self.net(batch[0]) + self.table(batch[1]), batch[1])


class Shared(Net):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.embed = nn.Embedding(4, 8)
            self.head = nn.Linear(8, 4, bias=False)
        self.head.weight = self.embed.weight

    def loss(self, batch: list[Tensor]) -> Tensor:
        return F.cross_entropy(self.head(batch[0] + self.embed(batch[1])) + self.net(batch[0]), batch[1])


class Normed(Net):
    """Parametrizations by weight norm and spectral norm."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            parametrizations.weight_norm(self.net[0])
            parametrizations.spectral_norm(self.net[3])


class Orthogonal(Net):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            parametrizations.orthogonal(self.net[0])


class OldNorm(Net):
    """Weight norm by hooks, whose `weight` is no parameter and no leaf."""

    def __init__(self) -> None:
        super().__init__()
        weight_norm(self.net[0])


class Double(Net):
    def __init__(self) -> None:
        super().__init__()
        self.double()

    def loss(self, batch: list[Tensor]) -> Tensor:
        return F.cross_entropy(self.net(batch[0].double()), batch[1])


class Unused(Net):
    """A layer that gets no gradient."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.aside = nn.Linear(4, 4)


class SkipsBatches(Net):
    """training_step returns None now and then."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        return None if batch_idx == 1 else super().training_step(batch, batch_idx)


class Added(Net):
    """Makes a parameter when training starts."""

    def on_train_start(self) -> None:
        self.extra = nn.Parameter(torch.zeros(4))


class Unfrozen(Net):
    """Unfreezes a layer when training starts."""

    def __init__(self) -> None:
        super().__init__()
        self.net[0].requires_grad_(False)

    def on_train_start(self) -> None:
        self.net[0].requires_grad_(True)


class Frozen(Net):
    """Nothing is trainable."""

    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)


class TwoOptimizers(Manual):
    """Two optimizers of its own, by hand."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        for optimizer in self.optimizers():  # type: ignore[union-attr]
            optimizer.zero_grad()
            loss = self.loss(batch)
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.net[0].parameters(), 0.1), torch.optim.Adam(self.net[3].parameters(), 0.1)]


TRAINED: tuple[type[Net], ...] = (
    One,
    Biases,
    Empty,
    Complex,
    Sparse,
    Shared,
    Normed,
    Orthogonal,
    OldNorm,
    Double,
    Unused,
)
REFUSED: tuple[type[Net], ...] = (Added, Unfrozen, Frozen)
