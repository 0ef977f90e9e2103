"""`TrajectoryCallback`: the path of a training run over the loss surface, as a picture and an animation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from torch.nn.parameter import is_lazy

from lit_opt.callbacks.plane import Plane, Sketch, kept, pca_plane, put_weights, surface, take_weights
from lit_opt.callbacks.trajectory_picture import Scene, Way, window, write_gif, write_png
from lit_opt.errors import RecipeError, nearest

_FITTING = ("SingleDeviceStrategy", "DDPStrategy")
_SKETCHES = 512  # recorded steps; thinned beyond
_LOGGING = ("log", "log_dict")


class TrajectoryCallback(Callback):
    """Draw the path of the weights over the loss surface of its own plane: trajectory.png and trajectory.gif in `out`.

    The plane is that of the first two principal components of `snapshots` copies of the trainable parameters, spread
    evenly over the run. It passes through full space exactly: the surface at a place is the loss of these very weights,
    in evaluation mode, on the first training batch. Between the copies the path is drawn from a fixed random projection
    of every recorded step to `dimensions` numbers; there the place on the plane is approximate, with an error of about
    (distance from the plane) / sqrt(dimensions).

    Memory on the CPU, whatever the length of the run: `snapshots` x 4 bytes a trainable parameter, and one batch. Both
    are said at the start. The surface costs `size`^2 forward passes after the last step. Weights, buffers, modes and
    torch's random numbers are left as they are.

    Args:
        out: Folder; existing pictures in it are replaced.
        loss: Called with the module and the batch, returns the loss. Unset: `training_step(batch, 0)`, nothing logged.
        snapshots: Copies of the trainable parameters, 4 or more.
        dimensions: Of the random projection, 16 or more.
        every: Optimizer steps from one recorded step to the next.
        size: Grid of the surface along each axis, 3 or more.
        animation: Write the GIF as well.

    Raises:
        RecipeError: An argument out of bounds; at the start of `fit`, sharded or uninitialised parameters (FSDP, ZeRO,
            tensor parallelism), or a run that resumes: the path before is in no checkpoint, and half of one would mislead.

    Source: https://arxiv.org/abs/1712.09913, section 7 (the plane).

    Example:
        >>> from lightning.pytorch import Trainer
        >>> picture = TrajectoryCallback("pictures", size=21)
        >>> trainer = Trainer(max_steps=500, callbacks=[picture], accelerator="cpu", logger=False)
    """

    def __init__(
        self,
        out: str | Path = "trajectory",
        *,
        loss: Callable[[Any, Any], Tensor] | None = None,
        snapshots: int = 16,
        dimensions: int = 256,
        every: int = 1,
        size: int = 31,
        animation: bool = True,
    ) -> None:
        least = {"snapshots": (snapshots, 4), "dimensions": (dimensions, 16), "every": (every, 1), "size": (size, 3)}
        problems = [
            f"TrajectoryCallback: {name}: {value!r} is not a whole number of at least {low}."
            for name, (value, low) in least.items()
            if isinstance(value, bool) or not isinstance(value, int) or value < low
        ]
        if loss is not None and not callable(loss):
            problems.append(f"TrajectoryCallback: loss: {loss!r} is not a function of the module and a batch.")
        if problems:
            raise RecipeError(problems)
        self.out, self.loss, self.size, self.every, self.animation = Path(out), loss, size, every, animation
        self.snapshots = snapshots
        self._sketch = Sketch(dimensions)
        self._forget()

    def _forget(self) -> None:
        self._batch: Any = None
        self._names: list[str] = []
        self._copies: dict[int, Tensor] = {}
        self._copy_every = self._sketch_every = self.every
        self._sketches: dict[int, Tensor] = {}
        self._losses: dict[int, float] = {}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuse what cannot be drawn; the first copy of the weights."""
        problems = []
        strategy = type(trainer.strategy).__name__
        if strategy not in _FITTING:
            problems.append(f"under {strategy} no process has all parameters. It works with {' and '.join(_FITTING)}.")
        if trainer.global_step:
            problems.append(
                f"the run resumes at step {trainer.global_step}, and the path before is in no checkpoint. Take the callback "
                "off, or start the run anew."
            )
        trainable = {name: p for name, p in pl_module.named_parameters() if p.requires_grad}
        if not trainable:
            problems.append("the module has no trainable parameters.")
        if any(is_lazy(p) for p in trainable.values()):
            problems.append("some parameters have no shape yet. Run a batch through the module before `fit`.")
        if problems:
            raise RecipeError([f"TrajectoryCallback: {problem}" for problem in problems])
        self._forget()
        if not trainer.is_global_zero:
            return
        self._names = list(trainable)
        numbers = sum(p.numel() for p in trainable.values())
        rank_zero_info(
            f"TrajectoryCallback: keeps up to {self.snapshots} copies of {numbers:,} parameters on the CPU, "
            f"{self.snapshots * numbers * 4 / 2**20:,.1f} MiB, and draws to {self.out} when the run ends, with "
            f"{self.size**2:,} forward passes."
        )
        self._record(0, pl_module)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Keep the first batch: the surface is the loss on it."""
        if self._names and self._batch is None:
            self._batch = _copy(batch)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Record the weights after an optimizer step."""
        step = trainer.global_step
        if self._names and step not in self._sketches and step % self.every == 0:
            self._record(step, pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Draw."""
        if not self._names or self._batch is None:
            return
        if trainer.global_step not in self._copies:
            self._copies[trainer.global_step] = take_weights(self._parameters(pl_module))
        if len(self._copies) < 3:
            rank_zero_info("TrajectoryCallback: fewer than three recorded steps; no picture.")
            return
        scene = self.scene(pl_module)
        write_png(scene, self.out / "trajectory.png")
        if self.animation:
            write_gif(scene, self.out / "trajectory.gif")
        rank_zero_info(
            f"TrajectoryCallback: wrote {self.out / 'trajectory.png'}; the plane holds "
            f"{100 * scene.plane.explained:.0f} % of the variance of {len(self._copies)} copies of the weights."
        )
        self._forget()

    def scene(self, pl_module: Any) -> Scene:
        """What the picture shows, of what was recorded so far.

        Args:
            pl_module: The module that was trained.

        Returns:
            Plane, surface and path. The losses of the path are those at the copies of the weights.
        """
        parameters = self._parameters(pl_module)
        copies = {step: weights for step, weights in sorted(self._copies.items()) if weights.isfinite().all()}
        cloud = torch.stack(list(copies.values()))
        plane = pca_plane(cloud)
        places = {step: plane.coordinates(weights) for step, weights in copies.items()}
        places |= {step: place for step, place in self._approximate(plane).items() if step not in places}
        steps = sorted(step for step in places if step <= max(copies))
        path = torch.stack([places[step] for step in steps])
        xs, ys = window(path, self.size)
        with _as_found(pl_module):
            losses = self._losses_at(copies, pl_module, parameters)
            heights = surface(lambda: self._evaluate(pl_module), parameters, plane, xs, ys)
        way = Way("training", torch.tensor(steps), path, _between(steps, losses))
        return Scene(plane, xs, ys, heights, [way], "path over the loss surface of its own plane")

    def _losses_at(self, copies: Mapping[int, Tensor], module: Any, parameters: list[Tensor]) -> dict[int, float]:
        found = {}
        with kept(parameters):
            for step, weights in copies.items():
                put_weights(parameters, weights)
                found[step] = self._evaluate(module)
        return found

    def _approximate(self, plane: Plane) -> dict[int, Tensor]:
        """Places of the recorded steps by least squares in the projected space."""
        centre = self._sketch(plane.centre)
        axes = torch.stack([self._sketch(axis) for axis in plane.axes])
        solve = torch.linalg.pinv(axes)
        return {step: ((one - centre) @ solve).to(plane.centre.dtype) for step, one in self._sketches.items()}

    def _parameters(self, module: Any) -> list[Tensor]:
        """Those that were trainable at the start; others may be frozen or freed later."""
        there = dict(module.named_parameters())
        missing = [name for name in self._names if name not in there]
        if missing:
            near = nearest(missing[0], there)
            raise RecipeError([f"TrajectoryCallback: parameter {missing[0]} is gone since the start.{near}"])
        return [there[name] for name in self._names]

    def _record(self, step: int, module: Any) -> None:
        """Both records stay bounded: when one is full, every other is dropped and the distance doubled."""
        copies, sketches = step % self._copy_every == 0, step % self._sketch_every == 0
        if not (copies or sketches):
            return
        flat = take_weights(self._parameters(module))
        if sketches:
            self._sketches[step] = self._sketch(flat)
            self._sketch_every = _thin(self._sketches, _SKETCHES, self._sketch_every)
        if copies:
            self._copies[step] = flat
            # One place is left for the last step.
            self._copy_every = _thin(self._copies, self.snapshots - 1, self._copy_every)

    def _evaluate(self, module: Any) -> float:
        with torch.no_grad():
            result = self.loss(module, self._batch) if self.loss is not None else module.training_step(self._batch, 0)
        if isinstance(result, Mapping):
            result = result.get("loss")
        if not isinstance(result, Tensor) or result.numel() != 1:
            raise RecipeError(
                ["TrajectoryCallback: training_step returns no loss. Give loss=, a function of the module and a batch."]
            )
        return float(result)


def _thin(records: dict[int, Tensor], most: int, every: int) -> int:
    if len(records) <= most:
        return every
    for step in [step for step in records if step % (2 * every)]:
        del records[step]
    return 2 * every


def _between(steps: list[int], losses: Mapping[int, float]) -> Tensor:
    """Losses at all steps, linear between those known."""
    known = sorted(losses)
    out, place = [], 0
    for step in steps:
        while place < len(known) - 2 and step > known[place + 1]:
            place += 1
        low, high = known[place], known[place + 1]
        part = (step - low) / (high - low)
        out.append(losses[low] * (1 - part) + losses[high] * part)
    return torch.tensor(out, dtype=torch.float64)


def _copy(batch: Any) -> Any:
    """A batch that no later step can change."""
    if isinstance(batch, Tensor):
        return batch.detach().clone()
    if isinstance(batch, Mapping):
        return {key: _copy(value) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*map(_copy, batch))
    if isinstance(batch, list | tuple):
        return type(batch)(map(_copy, batch))
    return batch


@contextmanager
def _as_found(module: Any) -> Iterator[None]:
    """Evaluation mode without logging, and everything back at the end: modes, buffers, torch's random numbers, `log`."""
    modes = [(part, part.training) for part in module.modules()]
    logging = {name: module.__dict__[name] for name in _LOGGING if name in module.__dict__}
    with kept(list(module.buffers())), torch.random.fork_rng():
        try:
            module.eval()
            module.__dict__.update(dict.fromkeys(_LOGGING, lambda *args, **kwargs: None))
            yield
        finally:
            for name in _LOGGING:
                module.__dict__.pop(name, None)
            module.__dict__.update(logging)
            for part, mode in modes:
                part.training = mode
