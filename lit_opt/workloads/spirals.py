"""Two interleaved spirals and a small network that any optimizer of the registry can be watched on.

The task is Lang and Witbrock's (1988), a toy on which the paths of optimizers differ visibly. It is an illustration: who is
first here says nothing about real models, which is what `lit-opt compare` is for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lit_opt.errors import RecipeError, nearest
from lit_opt.optim import build, get_row, list_optimizers

# Chosen after a look at the picture, on seed 0 alone, so that the order of optimizers is no evidence.
HERE = "table"  # the smallest of 1e-4, 3e-4, ..., 1 that ends under a loss of 0.01 in 300 steps, else the best
# Learning rates for these spirals alone.
START = {
    "sgd": 0.3,
    "nesterov": 0.3,
    "adamw": 0.01,
    "lion": 0.01,
    "muon": 0.03,
    "soap": 0.01,
    "rmsprop": 0.01,
    "shampoo": 0.1,
    "splus": 0.3,
}
FALLBACK_LR = START["adamw"]  # of what a matrix optimizer leaves to AdamW


@dataclass(frozen=True)
class Start:
    """What an optimizer starts from, and where that comes from.

    Example:
        >>> Start({"lr": 0.1}, "typed").values["lr"]
        0.1
    """

    values: Mapping[str, Any]
    source: str


@dataclass(frozen=True)
class Trained:
    """A training run with every step of its way.

    Attributes:
        name: Of the optimizer.
        start: Its values.
        history: (steps + 1, weights) float32: the flat weights before the first step and after each.
        losses: (steps + 1,) of those weights on all points; not finite where the run diverged.

    Example:
        >>> points, labels = two_spirals(8)
        >>> train("sgd", Start({"lr": 0.1}, "typed"), points, labels, steps=2).history.shape[0]
        3
    """

    name: str
    start: Start
    history: Tensor
    losses: Tensor


TURNS = 1.75  # of a spiral around the centre


def two_spirals(points: int = 200, noise: float = 0.02, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two interleaved spirals.

    Args:
        points: For each spiral.
        noise: Standard deviation added to the coordinates, whose largest is about 1.
        seed: Of the noise.

    Returns:
        Points (2 x points, 2) and labels (2 x points,) of 0 and 1.

    Example:
        >>> x, y = two_spirals(100)
        >>> x.shape, y.bincount().tolist()
        (torch.Size([200, 2]), [100, 100])
    """
    radius = torch.linspace(0.08, 1, points)
    angle = 2 * torch.pi * TURNS * radius
    arm = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
    x = torch.cat([arm, -arm])
    x = x + noise * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    return x, torch.arange(2).repeat_interleave(points)


def network(seed: int = 0) -> nn.Sequential:
    """A 2-64-64-2 network with ReLU; the same seed gives the same weights and leaves torch's generator alone.

    Example:
        >>> sum(p.numel() for p in network().parameters())
        4482
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))


def start_of(name: str, lr: float | None = None) -> Start:
    """Values of an optimizer on the spirals: what was typed, else the table's, else the registry's published ones.

    Args:
        name: Of the registry.
        lr: As typed.

    Raises:
        RecipeError: An unknown name, one that cannot run here, a rate out of bounds, or no starting value.

    Example:
        >>> start_of("adamw", lr=0.01)
        Start(values={'lr': 0.01}, source='typed')
    """
    if name not in list_optimizers():
        raise RecipeError(
            [f"optimizers: {name!r} is unknown.{nearest(name, list_optimizers())} `lit-opt list` has them all."]
        )
    row = get_row(name)
    if row.exchanges or row.compiles or row.extra:
        raise RecipeError([f"optimizers: {name} needs several processes, a compiler or an extra; not on the spirals."])
    if lr is not None:
        if not 0 < lr < float("inf"):
            raise RecipeError([f"lr: {name}={lr!r} is not a positive number. Type --lr {name}=0.01."])
        return Start({"lr": lr}, "typed")
    if name in START:
        return Start({"lr": START[name]}, HERE)
    for setting, published in row.settings.items():
        return Start({"lr": float(published.lr.number)}, f"{setting}: {published.lr.source}")  # type: ignore[arg-type]
    raise RecipeError([f"lr: {name} has no starting value for the spirals. Type --lr {name}=0.01, or another."])


def train(name: str, start: Start, points: Tensor, labels: Tensor, *, steps: int, seed: int = 0) -> Trained:
    """Train the network on all points at once, with a learning rate that falls linearly to zero.

    An optimizer with averages of its own keeps a constant rate, and its averages are what is kept. What a matrix
    optimizer does not take (biases, the last layer) goes to AdamW at 0.01.

    Args:
        name: Of the registry.
        start: Its values.
        points: (n, 2).
        labels: (n,) of 0 and 1.
        steps: Optimizer steps.
        seed: Of the weights.

    Returns:
        The run with its history, which ends early if the loss is not finite any more.

    Example:
        >>> points, labels = two_spirals(50)
        >>> done = train("adamw", Start({"lr": 0.01}, "typed"), points, labels, steps=60)
        >>> bool(done.losses[-1] < done.losses[0])
        True
    """
    model = network(seed)
    optimizer = _optimizer(name, start, model)
    averages = get_row(name).averages_itself
    peaks = [group["lr"] for group in optimizer.param_groups]

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(points), labels)
        loss.backward()
        return loss

    history, losses = [], []
    for step in range(steps + 1):
        if averages:
            optimizer.eval()  # type: ignore[attr-defined]
        with torch.no_grad():
            losses.append(functional.cross_entropy(model(points), labels))
            history.append(nn.utils.parameters_to_vector(model.parameters()))
        if step == steps or not losses[-1].isfinite():
            break
        if averages:
            optimizer.train()  # type: ignore[attr-defined]
        else:
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * (1 - step / steps)
        if get_row(name).needs_closure:
            optimizer.step(closure)  # type: ignore[arg-type]
        else:
            closure()
            optimizer.step()
    return Trained(name, start, torch.stack(history), torch.stack(losses))


def _optimizer(name: str, start: Start, model: nn.Sequential) -> torch.optim.Optimizer:
    row = get_row(name)
    options = dict(start.values)
    if row.needs_module:
        options["module"] = model
    if not row.matrix:
        return build(name, model.parameters(), **options)
    head = list(model[-1].parameters())
    own = [p for p in model.parameters() if p.ndim == 2 and all(p is not other for other in head)]
    rest = [p for p in model.parameters() if all(p is not other for other in own)]
    adamw: dict[str, Any] = {"params": rest, "name": "rest", "algorithm": "adamw", "lr": FALLBACK_LR}
    matrices: dict[str, Any] = {"params": own, "name": "matrices"}
    return build(name, [matrices, adamw], **options)
