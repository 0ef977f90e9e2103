"""From training runs on the spirals to the scene that is drawn."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from lit_opt.callbacks.plane import kept, pca_plane, put_weights, surface
from lit_opt.callbacks.trajectory_picture import Scene, Way, frame_steps, window
from lit_opt.errors import RecipeError
from lit_opt.workloads.spirals import Trained, network

MOST_OF_CLOUD = 400  # weights that the plane is fitted to, over all runs
EDGE = 1.15  # of the picture of the inputs


def spirals_scene(
    runs: Sequence[Trained], points: Tensor, labels: Tensor, *, size: int = 61, frames: int = 48, detail: int = 56
) -> Scene:
    """The common plane of all runs, the loss on it, their ways, and their decision boundaries.

    Args:
        runs: All with the same network.
        points: (n, 2) inputs.
        labels: (n,) of 0 and 1.
        size: Grid of the surface along each axis: size^2 evaluations.
        frames: Steps that get decision boundaries, as in the animation.
        detail: Grid of the decision boundaries along each axis.

    Raises:
        RecipeError: A run has no finite weights after its first step.

    Example:
        >>> from lit_opt.workloads.spirals import start_of, train, two_spirals
        >>> points, labels = two_spirals(20)
        >>> runs = [train(name, start_of(name, 0.01), points, labels, steps=5) for name in ("sgd", "adamw")]
        >>> spirals_scene(runs, points, labels, size=3, frames=2, detail=4).heights.shape
        torch.Size([3, 3])
    """
    model = network()
    parameters = list(model.parameters())

    def loss() -> float:
        with torch.no_grad():
            return float(functional.cross_entropy(model(points), labels))

    alive = [int((run.losses.isfinite() & run.history.isfinite().all(1)).sum()) for run in runs]
    dead = [run.name for run, count in zip(runs, alive, strict=True) if count < 3]
    if dead:
        raise RecipeError([f"lr: {name} diverged at once. Type a smaller one: --lr {name}=..." for name in dead])
    histories = [run.history[:count] for run, count in zip(runs, alive, strict=True)]
    share = max(2, MOST_OF_CLOUD // len(runs))
    plane = pca_plane(torch.cat([one[_spread(len(one), share)] for one in histories]))
    places = [plane.coordinates(one) for one in histories]
    xs, ys = window(torch.cat(places), size)
    heights = surface(loss, parameters, plane, xs, ys)
    steps = frame_steps(max(len(one) for one in histories) - 1, frames)
    ways = []
    for run, history, place in zip(runs, histories, places, strict=True):
        shown = sorted({min(step, len(history) - 1) for step in steps})
        with kept(parameters):
            classes = {step: _second_class(model, parameters, history[step], detail) for step in shown}
        ways.append(Way(_label(run), torch.arange(len(history)), place, run.losses[: len(history)], classes))
    title = "paths over the loss surface: two spirals"
    return Scene(plane, xs, ys, heights, ways, title, points, labels)


def _spread(count: int, most: int) -> Tensor:
    return torch.linspace(0, count - 1, min(count, most)).round().long()


def _label(run: Trained) -> str:
    return f"{run.name}, lr {run.start.values['lr']:g}"


def _second_class(model: nn.Module, parameters: Sequence[Tensor], weights: Tensor, detail: int) -> Tensor:
    """Chance of the second class on a grid of inputs, (detail, detail), rows from below."""
    put_weights(parameters, weights)
    line = torch.linspace(-EDGE, EDGE, detail)
    y, x = torch.meshgrid(line, line, indexing="ij")
    with torch.no_grad():
        return model(torch.stack([x.flatten(), y.flatten()], dim=1)).softmax(1)[:, 1].view(detail, detail)
