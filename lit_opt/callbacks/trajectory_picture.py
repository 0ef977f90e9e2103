"""The picture of ways over a loss surface: PNG, and a GIF that plays anywhere. Colours are Okabe and Ito's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_opt.callbacks.plane import Plane
from lit_opt.errors import RecipeError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#D55E00", "#0072B2", "#F0E442", "#CC79A7", "#009E73", "#56B4E9", "#E69F00")
DPI = 100


@dataclass(frozen=True)
class Way:
    """One way of training over the plane.

    Attributes:
        name: What the legend calls it.
        steps: (n,) optimizer steps.
        places: (n, 2) on the plane.
        losses: (n,) at the weights themselves, which lie off the plane.
        classes: Where the module classifies points of the plane of inputs: for some steps, the chance of the second
            class on a grid, {step: (k, k)}.

    Example:
        >>> Way("adamw", torch.arange(2), torch.zeros(2, 2), torch.ones(2)).name
        'adamw'
    """

    name: str
    steps: Tensor
    places: Tensor
    losses: Tensor
    classes: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Scene:
    """All that the picture shows.

    Attributes:
        plane: Of the weights.
        xs: (nx,) places of the surface along the plane's first axis.
        ys: (ny,) along the second.
        heights: (ny, nx) losses on the plane.
        ways: At least one.
        title: Above the surface.
        points: (n, 2) inputs to draw over the decision boundaries, within -1.15 and 1.15.
        labels: (n,) of 0 and 1.

    Example:
        >>> way = Way("adamw", torch.arange(2), torch.zeros(2, 2), torch.ones(2))
        >>> Scene(Plane(torch.zeros(2), torch.eye(2), 1.0), torch.zeros(1), torch.zeros(1), torch.zeros(1, 1), [way], "x").title
        'x'
    """

    plane: Plane
    xs: Tensor
    ys: Tensor
    heights: Tensor
    ways: Sequence[Way]
    title: str
    points: Tensor | None = None
    labels: Tensor | None = None


def window(places: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """A grid around places (n, 2) of the plane, with a margin and the same scale on both axes.

    Args:
        places: Finite.
        size: Of the grid along each axis.

    Example:
        >>> xs, ys = window(torch.tensor([[0.0, 0.0], [2.0, 1.0]]), 5)
        >>> abs(float(xs[-1] - xs[0]) - float(ys[-1] - ys[0])) < 1e-5
        True
    """
    low, high = places.min(0).values, places.max(0).values
    middle = (low + high) / 2
    half = float((high - low).max()) / 2 * 1.35 or 1.0
    xs, ys = (torch.linspace(float(m) - half, float(m) + half, size) for m in middle)
    return xs, ys


def write_png(scene: Scene, path: Path) -> None:
    """The picture at the end of all ways.

    Raises:
        RecipeError: Matplotlib is not installed.
    """
    figure, update, _ = _figure(scene)
    update(last_step(scene))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI * 1.5)


def write_gif(scene: Scene, path: Path, frames: int = 48) -> None:
    """The picture as it comes about: a GIF that plays in any browser and slide program, without a network.

    Frames lie closer at the beginning, where most happens; the last one stays for two seconds.

    Args:
        scene: What it shows.
        path: Of the file.
        frames: How many.

    Raises:
        RecipeError: Matplotlib is not installed.
    """
    figure, update, moving = _figure(scene)
    from PIL import Image

    canvas: Any = figure.canvas
    # What stays is drawn once; then only what moves, over it.
    for artist in moving:
        artist.set_animated(True)
    canvas.draw()
    ground = canvas.copy_from_bbox(figure.bbox)
    pictures = []
    for step in frame_steps(last_step(scene), frames):
        update(step)
        canvas.restore_region(ground)
        for artist in moving:
            artist.axes.draw_artist(artist)
        pictures.append(Image.frombytes("RGBA", canvas.get_width_height(), bytes(canvas.buffer_rgba())).convert("RGB"))
    # One palette for all, from the last: colours that jump from frame to frame flicker, and files grow.
    palette = pictures[-1].quantize(128, dither=Image.Dither.NONE)
    small = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    path.parent.mkdir(parents=True, exist_ok=True)
    times = [90] * (len(small) - 1) + [2000]
    small[0].save(path, save_all=True, append_images=small[1:], duration=times, loop=0, optimize=True)


def frame_steps(last: int, frames: int) -> list[int]:
    """The optimizer steps that the frames of an animation show: from 0 to the last, closer at the beginning.

    Example:
        >>> frame_steps(100, 5)
        [0, 11, 33, 63, 100]
    """
    return sorted({round(last * (i / max(1, frames - 1)) ** 1.6) for i in range(frames)} | {last})


def last_step(scene: Scene) -> int:
    """The last step that any way has.

    Example:
        >>> way = Way("adamw", torch.arange(3), torch.zeros(3, 2), torch.ones(3))
        >>> plane = Plane(torch.zeros(2), torch.eye(2), 1.0)
        >>> last_step(Scene(plane, torch.zeros(1), torch.zeros(1), torch.zeros(1, 1), [way], ""))
        2
    """
    return max(int(way.steps[-1]) for way in scene.ways)


def _figure(scene: Scene) -> tuple[Figure, Callable[[int], None], list[Any]]:
    """The figure, the function that moves it to a step, and the artists that move."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise RecipeError(["trajectory: pictures need matplotlib. Type: pip install 'lit-opt[workloads]'."]) from None
    from matplotlib.patheffects import Normal, Stroke

    bounded = [way for way in scene.ways if way.classes]
    figure = Figure(figsize=(10.2, 5.4) if bounded else (10.2, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    columns = max(1, len(bounded))
    grid = figure.add_gridspec(2 if bounded else 1, 2 * columns, width_ratios=[1.4] * columns + [1] * columns)
    ground = figure.add_subplot(grid[:, :columns])
    curves = figure.add_subplot(grid[0, columns:])
    _draw_ground(figure, ground, scene)
    moving = [_way_artists(ground, curves, scene, index) for index in range(len(scene.ways))]
    if len(scene.ways) > 1:
        figure.legend(
            *curves.get_legend_handles_labels(), fontsize=10, frameon=False, loc="outside lower right", ncols=4
        )
    boundaries, drawn = [], []
    for number, way in enumerate(bounded):
        drawn.append(figure.add_subplot(grid[1, columns + number]))
        boundaries.append((way, _boundary(drawn[-1], scene, way)))
    clock = ground.text(0.02, 0.02, "", transform=ground.transAxes, fontsize=11, color="white", va="bottom")
    clock.set_path_effects([Stroke(linewidth=2.5, foreground="black"), Normal()])

    def update(step: int) -> None:
        for way, (line, head, curve, dot) in zip(scene.ways, moving, strict=True):
            shown = int((way.steps <= step).sum())
            line.set_data(*way.places[:shown].T.tolist())
            head.set_data(*way.places[shown - 1 : shown].T.tolist())
            curve.set_data(way.steps[:shown].tolist(), way.losses[:shown].tolist())
            dot.set_data(way.steps[shown - 1 : shown].tolist(), way.losses[shown - 1 : shown].tolist())
        for way, image in boundaries:
            image.set_data(way.classes[max(s for s in way.classes if s <= step)])
        clock.set_text(f"step {step}")

    artists = [one for four in moving for one in four] + [image for _, image in boundaries] + [clock]
    artists += [dots for axes in drawn for dots in axes.lines]
    return figure, update, artists


def _draw_ground(figure: Figure, axes: Axes, scene: Scene) -> None:
    """The surface as a filled contour of the loss on a logarithmic scale."""
    finite = scene.heights[scene.heights.isfinite() & (scene.heights > 0)]
    low = max(float(finite.min()), 1e-12)
    high = float(finite.quantile(0.98))
    levels = torch.logspace(math.log10(low), math.log10(max(high, low * 1.5)), 21).tolist()
    heights = scene.heights.clamp(min=levels[0], max=levels[-1]).nan_to_num(nan=levels[-1])
    filled = axes.contourf(scene.xs, scene.ys, heights, levels=levels, norm="log", cmap="cividis", extend="max")
    axes.contour(scene.xs, scene.ys, heights, levels=levels[::2], colors="white", linewidths=0.35, alpha=0.5)
    bar = figure.colorbar(
        filled, ax=axes, location="bottom", fraction=0.05, pad=0.02, aspect=40, ticks=levels[::5], format="%.2g"
    )
    bar.minorticks_off()
    bar.set_label(
        f"loss on the plane, which holds {100 * scene.plane.explained:.0f} % of the variance of the paths", fontsize=9
    )
    bar.ax.tick_params(labelsize=8)
    axes.set(aspect="equal", xticks=[], yticks=[], xlim=(scene.xs[0], scene.xs[-1]), ylim=(scene.ys[0], scene.ys[-1]))
    axes.set_title(scene.title, fontsize=12)


def _way_artists(ground: Axes, curves: Axes, scene: Scene, index: int) -> tuple[Any, Any, Any, Any]:
    """Line and head on the surface, curve and dot on the axes of losses."""
    way, colour = scene.ways[index], COLOURS[index % len(COLOURS)]
    from matplotlib.patheffects import Normal, Stroke

    outlined = [Stroke(linewidth=3.6, foreground="black"), Normal()]
    (line,) = ground.plot([], [], color=colour, linewidth=2, path_effects=outlined, solid_capstyle="round")
    (head,) = ground.plot([], [], "o", color=colour, markersize=9, markeredgecolor="black", zorder=5)
    ground.plot(*scene.ways[index].places[:1].T.tolist(), "s", color="white", markersize=7, markeredgecolor="black")
    (curve,) = curves.plot(
        [],
        [],
        color=colour,
        linewidth=2,
        label=way.name,
        path_effects=[Stroke(linewidth=2.8, foreground="0.25"), Normal()],
    )
    (dot,) = curves.plot([], [], "o", color=colour, markersize=6, markeredgecolor="black", zorder=5)
    losses = torch.cat([one.losses[one.losses.isfinite()] for one in scene.ways]).clamp(min=1e-12)
    low, high = float(losses.min()), float(losses.max())
    margin = max(1.05, (high / low) ** 0.06)
    curves.set(yscale="log", xlim=(0, last_step(scene)), ylim=(low / margin, high * margin))
    curves.set_xlabel("optimizer step", fontsize=9)
    curves.set_title("loss", fontsize=11)
    curves.tick_params(which="both", labelsize=8)
    curves.spines[["top", "right"]].set_visible(False)
    return line, head, curve, dot


def _boundary(axes: Axes, scene: Scene, way: Way) -> Any:
    """Chance of the second class over the plane of inputs, with the points."""
    colour = COLOURS[list(scene.ways).index(way) % len(COLOURS)]
    image = axes.imshow(
        way.classes[min(way.classes)], extent=(-1.15, 1.15, -1.15, 1.15), origin="lower", cmap="RdBu_r", vmin=0, vmax=1,
        interpolation="bilinear", alpha=0.75,
    )  # fmt: skip
    if scene.points is not None and scene.labels is not None:
        for label, shade in ((0, "#08306b"), (1, "#67000d")):
            axes.plot(*scene.points[scene.labels == label].T.tolist(), ".", color=shade, markersize=2.5)
    axes.set(xticks=[], yticks=[], xlim=(-1.15, 1.15), ylim=(-1.15, 1.15))
    axes.set_title(way.name.partition(",")[0], fontsize=11)
    for side in axes.spines.values():
        side.set(color=colour, linewidth=3)
    return image
