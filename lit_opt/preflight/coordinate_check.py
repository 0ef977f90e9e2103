"""Do activations change by as much at any width or depth? The same few steps at several sizes, with and without a transfer.

If rates follow the size as they should, the change of every layer's output after a few steps neither grows nor shrinks
with it: the slope of log(RMS of the change) against log(size) is near 0. What a slope is far from 0 for does not transfer.
Logits and attention scores before the first step are reported apart: they depend on the initial weights alone.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lit_opt.callbacks.recipe import Recipe
from lit_opt.errors import RecipeError
from lit_opt.param_groups import snapshot_parameters
from lit_opt.param_groups.initial import scale_initial
from lit_opt.transfer.spec import Transfer

# Numbers of blocks; the layers of a Sequential keep theirs.
_BLOCK = re.compile(r"(?<![^.])\d+(?=\.)")
ATTENTION = "attention scores"
# Within this of 0 a slope counts as flat.
FLAT = 0.1

Sizes = dict[str, float]
# (layer, width) -> one number a seed
Found = dict[tuple[str, int], list[float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerSlope:
    """How one layer's output goes with the width or depth.

    Args:
        layer: Name, with `*` for the number of a block.
        slope: Of the change after the steps, with the transfer.
        spread: Half the range of that slope over the seeds.
        without: The slope without a transfer.
        at_start: Slope of the output itself before the first step, with the transfer's initial weights.
        at_start_without: The same with the module's own.
        change: Root mean square of the change at each size, mean over the seeds, with the transfer.
        change_without: The same without.

    Example:
        >>> line = LayerSlope(
        ...     layer="up", slope=0.02, spread=0.0, without=0.9, at_start=0.0, at_start_without=0.5, change=(), change_without=())
        >>> line.flat
        True
    """

    layer: str
    slope: float
    spread: float
    without: float
    at_start: float
    at_start_without: float
    change: tuple[float, ...]
    change_without: tuple[float, ...]

    @property
    def flat(self) -> bool:
        """Whether the slope is within 0.1 of 0."""
        return abs(self.slope) <= FLAT


@dataclass(frozen=True, kw_only=True)
class CoordinateCheck:
    """What `coordinate_check` found. Plain data.

    Args:
        title: Recipe and optimizer.
        widths: Of the models; the base is the first. Numbers of blocks, where `along` is "depth".
        steps: Optimizer steps.
        seeds: How many.
        layers: One line for each layer, in the order of the forward pass.
        attention: Slope of the attention scores before the first step, with and without; None where none were seen.
        along: "width" or "depth".

    Example:
        >>> CoordinateCheck(title="t", widths=(8, 16), steps=1, seeds=1, layers=(), attention=None).worst
        0.0
    """

    title: str
    widths: tuple[int, ...]
    steps: int
    seeds: int
    layers: tuple[LayerSlope, ...]
    attention: tuple[float, float] | None
    along: str = "width"

    @property
    def worst(self) -> float:
        """The slope that is farthest from 0 with the transfer."""
        return max((line.slope for line in self.layers), key=abs, default=0.0)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dictionaries, for JSON."""
        return asdict(self)


def coordinate_check(
    make_module: Callable[[int], nn.Module],
    widths: Sequence[int],
    *,
    batch: Any,
    recipe: str = "llm",
    lr: float = 3e-3,
    steps: int = 3,
    seeds: Sequence[int] = (0, 1, 2),
    loss: Callable[[nn.Module, Any], Tensor] | None = None,
    transfer: Mapping[str, Any] | None = None,
    without: Callable[[int], nn.Module] | None = None,
    **overrides: Any,
) -> CoordinateCheck:
    """Train models of several widths for a few steps, and see how the changes of their activations go with the width.

    With `transfer={"depth": True}` the sizes are numbers of blocks, and the slopes are against log(depth).

    The rate is constant from the first step on, unless `overrides` say otherwise. With the transfer the weights begin with
    `scale_initial`, without it as the module makes them. Runs on the CPU; the models are made one after the other.

    Args:
        make_module: Width -> model. Its other sizes follow the width (attention: more heads of one size). Over depth: number
            of blocks -> model, with its `residual_scale`.
        widths: At least two, rising; the first is the base.
        batch: What `loss` takes; also what the activations are measured on.
        recipe: Its name.
        lr: Peak rate of the base.
        steps: Optimizer steps.
        seeds: Of initial weights.
        loss: (module, batch) -> loss; `module.training_step(batch, 0)` if unset.
        transfer: Other arguments of `Transfer` than the base.
        without: Makes the models that are trained without the transfer, if not `make_module`: over depth those without
            `residual_scale`.
        **overrides: Other arguments of `Recipe`, as for the base.

    Raises:
        RecipeError: What the recipe refuses; fewer than two widths.

    Source: arXiv:2203.03466, appendix D.1; the slopes are what its plots show.

    Example:
        >>> def make(width):
        ...     hidden = [layer for _ in range(2) for layer in (nn.Linear(width, width, bias=False), nn.Tanh())]
        ...     return nn.Sequential(nn.Linear(4, width), *hidden, nn.Linear(width, 3, bias=False))
        >>> found = coordinate_check(
        ...     make, (32, 64, 128), batch=torch.eye(4), loss=lambda m, x: m(x).square().mean(), seeds=(0, 1))
        >>> [line.layer for line in found.layers]
        ['0', '1', '3', '5']
    """
    widths = tuple(widths)
    if len(widths) < 2 or list(widths) != sorted(set(widths)):
        raise RecipeError([f"widths: {widths!r} has to be at least two rising widths, such as (64, 128, 256)."])
    overrides = {"warmup": 0, "decay": "constant", "ema": 0.0, "lr": lr, **overrides}
    transfer = transfer or {}
    change: dict[bool, Found] = {True: defaultdict(list), False: defaultdict(list)}
    start: dict[bool, Found] = {True: defaultdict(list), False: defaultdict(list)}
    layers: list[str] = []
    for width in widths:
        for seed in seeds:
            for carried in (True, False):
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(seed)
                    module = (make_module if carried or without is None else without)(width)
                    if carried:
                        scale_initial(module, partial(_seeded, make_module, widths[0], seed))
                        asked = Transfer(base=partial(make_module, widths[0]), **transfer)
                        one = Recipe(recipe, transfer=asked, **overrides)
                    else:
                        one = Recipe(recipe, **overrides)
                    before, after = _run(module, one, batch, steps, loss or _training_step)
                for layer, size in before.items():
                    start[carried][layer, width].append(size)
                for layer, size in after.items():
                    change[carried][layer, width].append(size)
                layers = layers or list(after)
    found = [
        LayerSlope(
            layer=layer,
            slope=_slope(change[True], layer, widths),
            spread=_spread(change[True], layer, widths, len(seeds)),
            without=_slope(change[False], layer, widths),
            at_start=_slope(start[True], layer, widths),
            at_start_without=_slope(start[False], layer, widths),
            change=_means(change[True], layer, widths),
            change_without=_means(change[False], layer, widths),
        )
        for layer in layers
    ]
    seen = (ATTENTION, widths[0]) in start[True]
    method = overrides.get("optimizer") or one.spec.optimizer.number
    return CoordinateCheck(
        title=f"{recipe}, {method}, lr {lr:g}",
        widths=widths,
        steps=steps,
        seeds=len(seeds),
        layers=tuple(found),
        attention=(_slope(start[True], ATTENTION, widths), _slope(start[False], ATTENTION, widths)) if seen else None,
        along="depth" if transfer.get("depth") else "width",
    )


def _seeded(make_module: Callable[[int], nn.Module], width: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return make_module(width)


def _training_step(module: Any, batch: Any) -> Tensor:
    if "log" not in vars(module) and hasattr(module, "log"):
        module.__dict__["log"] = lambda *args, **kwargs: None  # there is no Trainer to log to
    found = module.training_step(batch, 0)
    loss: Tensor = found["loss"] if isinstance(found, Mapping) else found
    return loss


def _run(
    module: nn.Module, recipe: Recipe, batch: Any, steps: int, loss: Callable[[nn.Module, Any], Tensor]
) -> tuple[Sizes, Sizes]:
    """Root mean squares before the first step, and of the changes after the last, by layer."""
    optimizer, scheduler = recipe.configure(module, total_steps=steps + 1, global_batch=1)
    first = _outputs(module, batch, loss)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(module, batch).backward()
        recipe.clip_gradients(module)
        optimizer.step()
        scheduler.step()
    last = _outputs(module, batch, loss)
    before: dict[str, list[float]] = defaultdict(list)
    after: dict[str, list[float]] = defaultdict(list)
    for name, outputs in first.items():
        pattern = _BLOCK.sub("*", name)
        before[pattern] += [float(x.square().mean()) for x in outputs]
        if name != ATTENTION:
            pairs = zip(outputs, last[name], strict=True)
            after[pattern] += [float((y - x).square().mean()) for x, y in pairs]
    return _roots(before), _roots(after)


def _roots(squares: Mapping[str, list[float]]) -> Sizes:
    return {name: math.sqrt(sum(found) / len(found)) for name, found in squares.items()}


def _outputs(module: nn.Module, batch: Any, loss: Callable[[nn.Module, Any], Tensor]) -> dict[str, list[Tensor]]:
    """What every layer with a weight gives, by name, and the attention scores."""
    found: dict[str, list[Tensor]] = defaultdict(list)
    parameters = snapshot_parameters(module).parameters
    kinds = {name: info.role for info in parameters for name in (info.name, *info.aliases)}
    hooks = []
    for name, child in module.named_modules():
        if any(
            kinds.get(f"{name}.{leaf}".lstrip(".")) in ("matrix", "embedding")
            for leaf, _ in child.named_parameters(recurse=False)
        ):

            def keep(_: Any, __: Any, output: Any, name: str = name) -> None:
                if isinstance(output, Tensor):
                    found[name].append(output.detach().float())

            hooks.append(child.register_forward_hook(keep))
    try:
        with torch.no_grad(), _watching(found):
            loss(module, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return found


@contextmanager
def _watching(found: dict[str, list[Tensor]]) -> Iterator[None]:
    """Note q k^T / sqrt(head size) of every call of torch's attention."""

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is F.scaled_dot_product_attention:
                given = dict(zip(("query", "key"), args, strict=False)) | (kwargs or {})
                q, k = given["query"].float(), given["key"].float()
                scale = given.get("scale") or q.shape[-1] ** -0.5
                if q.shape[-3] == k.shape[-3]:
                    found[ATTENTION].append(q @ k.mT * scale)
            return function(*args, **(kwargs or {}))

    with Watch():
        yield


def _means(found: Found, layer: str, widths: Sequence[int]) -> tuple[float, ...]:
    return tuple(sum(found[layer, w]) / len(found[layer, w]) for w in widths)


def _slope(found: Found, layer: str, widths: Sequence[int]) -> float:
    return fitted_slope(widths, _means(found, layer, widths))


def _spread(found: Found, layer: str, widths: Sequence[int], seeds: int) -> float:
    each = [fitted_slope(widths, [found[layer, w][seed] for w in widths]) for seed in range(seeds)]
    return (max(each) - min(each)) / 2


def fitted_slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Slope of log y against log x by least squares; 0 where some y is 0.

    Example:
        >>> fitted_slope([1, 2, 4], [3, 6, 12])
        1.0
    """
    if min(ys) <= 0:
        return 0.0
    logs = [(math.log(x), math.log(y)) for x, y in zip(xs, ys, strict=True)]
    mean_x, mean_y = (sum(part) / len(logs) for part in zip(*logs, strict=True))
    slope = sum((x - mean_x) * (y - mean_y) for x, y in logs) / sum((x - mean_x) ** 2 for x, _ in logs)
    return round(slope, 12)
