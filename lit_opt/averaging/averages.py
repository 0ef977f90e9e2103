"""Exponential moving averages of a module's weights, in plain PyTorch; `lit_opt.EMA` drives them under
Lightning.

    shadow <- d_n shadow + (1 - d_n) weights,    d_n = min(decay, (1 + n) / (10 + n)) at the n-th update

The rule and its warm-up are those of fadel/pytorch_ema, also in facebookresearch/flow_matching
`models/ema.py` and huggingface/diffusers `training_utils.py`. Different here: averages of half-precision
weights are float32 (in bfloat16 an average with decay 0.9999 stands still), sharded parameters (FSDP2, FSDP1) are
averaged shard by shard, and nothing is deep-copied. Buffers are not stored unless asked for: an averaged model uses
the live ones, which is an exact copy at no cost. Integer ones never are: averaging would truncate counters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lit_opt.averaging.flat import FlatPart, flat_parts
from lit_opt.averaging.shards import clean_name, gathered, is_sharded, like, local, own_part, reshard
from lit_opt.errors import RecipeError

_HALF = (torch.float16, torch.bfloat16)
# Elements that pass through the scratch memory at once, where weights cannot be averaged directly: 64 MB in
# float32.
_SCRATCH = 16 * 2**20


def decay_at(n: int, decay: float, warmup: bool = True) -> float:
    """The factor d of the n-th update; the first update has n = 1.

    Args:
        n: Updates so far, this one included.
        decay: The final factor.
        warmup: Take (1 + n) / (10 + n) while that is smaller.

    Example:
        >>> [round(decay_at(n, 0.999), 3) for n in (1, 10, 100, 100_000)]
        [0.182, 0.55, 0.918, 0.999]
    """
    return min(decay, (1 + n) / (10 + n)) if warmup else decay


def ema_window(decay: float, warmup: bool, steps: int) -> int:
    """The number of last steps that hold half of the average's weight after `steps` updates.

    It follows the actual sequence d_1 ... d_steps, because with the warm-up it is about 7.4 % of a run until
    the final decay is reached, whatever that is. Where the starting weights still hold more than half, it is
    `steps`.

    Args:
        decay: The final decay, per step.
        warmup: Whether the decay warms up.
        steps: Updates of the run.

    Returns:
        A number of steps, from 0 (no steps) to `steps`.

    Example:
        >>> ema_window(0.9999, True, 10_000), ema_window(0.9999, False, 1_000_000), ema_window(0.0, False, 5)
        (742, 6932, 1)
    """
    log_of_rest = 0.0
    for last in range(1, steps + 1):
        d = decay_at(steps - last + 1, decay, warmup)
        log_of_rest += math.log(d) if d else -math.inf
        if log_of_rest <= math.log(0.5):
            return last
    return steps


@dataclass
class _Entry:
    """One trainable parameter, its average and, while the averages are swapped in, its own weights."""

    parameter: Tensor
    shadow: Tensor
    raw: Tensor | None = None
    flat: FlatPart | None = None

    @property
    def shape(self) -> torch.Size:
        """Of the whole parameter."""
        return self.parameter.shape if self.flat is None else self.flat.shape


class Averages:
    """The averages of a module's trainable parameters.

    Sharded parameters are held as this process's shards. In `entries` a tied parameter appears once, under
    the first of its names.

    Args:
        module: The module. Its parameters must be materialized; lazy ones join at a later `refresh`.
        offload: Keep the averages in CPU memory (pinned, where the weights are on a CUDA device).
        buffers: Average floating-point buffers of the state_dict as well.
        root: What FSDP1 has wrapped the module in.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.zeros_(layer.weight)
        >>> averages = Averages(layer)
        >>> _ = nn.init.ones_(layer.weight)
        >>> averages.update(0.9)
        >>> round(averages.whole("weight").item(), 4)
        0.1
    """

    def __init__(
        self, module: nn.Module, offload: bool = False, buffers: bool = False, root: nn.Module | None = None
    ) -> None:
        self.module = module
        self.root = root or module
        self.offload = offload
        self.buffers = buffers
        self.swapped = False
        self.entries: dict[str, _Entry] = {}
        self._direct: list[tuple[list[Tensor], list[Tensor]]] = []
        self._staged: list[tuple[list[Tensor], list[Tensor], list[Tensor]]] = []
        self._sharded = False
        self._planned: list[tuple[int, int, torch.dtype, torch.device]] = []
        self.refresh()

    def refresh(self) -> tuple[list[str], list[str]]:
        """Follow a module whose parameters changed: unfrozen, added, replaced, removed or moved.

        A parameter that is new starts from its present weights. One that was frozen in the meantime stays.

        Returns:
            Names that joined, names that left.
        """
        with torch.inference_mode(False), torch.no_grad():
            reshard(self.root)
            flat = flat_parts(self.root)
            entries: dict[str, _Entry] = {}
            for full_name, parameter, trained in self._named():
                name = clean_name(full_name)
                entry = self.entries.get(name)
                if is_lazy(parameter) or not (entry or trained):
                    continue
                if entry is None or entry.shadow.shape != local(parameter).shape:
                    entry = _Entry(parameter, self._new_shadow(parameter))
                elif entry.shadow.device != self._device(parameter):
                    entry.shadow = entry.shadow.to(self._device(parameter))
                entry.parameter, entry.flat = parameter, flat.get(id(parameter))
                entries[name] = entry
            joined, left = entries.keys() - self.entries.keys(), self.entries.keys() - entries.keys()
            self.entries = entries
            # Dtype and device too: `module.to(...)` changes parameters and keeps the objects.
            planned = [
                (id(entry.shadow), id(entry.parameter), entry.parameter.dtype, entry.parameter.device)
                for entry in entries.values()
            ]
            if planned != self._planned:
                self._planned = planned
                self._plan()
        return [name for name in entries if name in joined], sorted(left)

    def _named(self) -> Iterator[tuple[str, Tensor, bool]]:
        """What may be averaged, by name, and whether it is if it was not before."""
        for name, parameter in self.module.named_parameters():
            yield name, parameter, parameter.requires_grad
        for prefix, part in self.module.named_modules() if self.buffers else ():
            for name, buffer in part.named_buffers(recurse=False):
                if buffer.is_floating_point() and name not in part._non_persistent_buffers_set:
                    yield f"{prefix}.{name}" if prefix else name, buffer, True

    def update(self, decay: float) -> None:
        """Shadow <- decay shadow + (1 - decay) weights. No tensor memory is allocated.

        Args:
            decay: Of this update, from 0 to 1; see `decay_at`.
        """
        weight = 1.0 - decay
        with torch.inference_mode(False), torch.no_grad():
            for shadows, parameters in self._direct:
                torch._foreach_lerp_(shadows, self._live(parameters), weight)
            for shadows, scratch, parameters in self._staged:
                torch._foreach_copy_(scratch, self._live(parameters))
                torch._foreach_lerp_(shadows, scratch, weight)

    def swap_in(self) -> None:
        """Write the averages into the module; the raw weights are kept until `swap_out`.

        By copying: FSDP2 ignores exchanged pointers, and a captured CUDA graph holds on to the addresses.
        """
        if self.swapped:
            return
        with torch.inference_mode(False), torch.no_grad():
            reshard(self.root)
            for entry in self.entries.values():
                live = local(entry.parameter)
                entry.raw = live.detach().to("cpu" if self.offload else live.device, copy=True)
            self.swapped = True
            for entry in self.entries.values():
                local(entry.parameter).copy_(entry.shadow)

    def swap_out(self) -> None:
        """Write the raw weights back."""
        if not self.swapped:
            return
        with torch.inference_mode(False), torch.no_grad():
            reshard(self.root)
            for entry in self.entries.values():
                if entry.raw is not None:
                    local(entry.parameter).copy_(entry.raw)
                    entry.raw = None
        self.swapped = False

    def part(self, name: str, raw: bool = False) -> Tensor:
        """The average of one parameter, sharded as the parameter is.

        Args:
            name: As in `entries`.
            raw: The raw weights instead, while the averages are swapped in.
        """
        return like(self._held(name, raw), self.entries[name].parameter)

    def whole(self, name: str, raw: bool = False) -> Tensor:
        """The same as `part`, whole. For a sharded parameter a collective that every process must call.

        Args:
            name: As in `entries`.
            raw: As for `part`.
        """
        with torch.inference_mode(False), torch.no_grad():
            flat = self.entries[name].flat
            return gathered(self.part(name, raw)) if flat is None else flat.whole(self._held(name, raw))

    def _held(self, name: str, raw: bool) -> Tensor:
        entry = self.entries[name]
        if not raw:
            return entry.shadow
        return local(entry.parameter).detach() if entry.raw is None else entry.raw

    def load(self, wholes: Mapping[str, Tensor]) -> list[str]:
        """Set the averages from whole tensors by name.

        Args:
            wholes: Name (as in `entries`) to whole tensor.

        Returns:
            Names of parameters that `wholes` lacks; their averages stay.

        Raises:
            RecipeError: If shapes differ.
        """
        problems = [
            f"EMA: the average of {name} has shape {tuple(wholes[name].shape)} in the checkpoint and "
            f"{tuple(entry.shape)} in the model. Load it into the model that it was trained with."
            for name, entry in self.entries.items()
            if name in wholes and wholes[name].shape != entry.shape
        ]
        if problems:
            raise RecipeError(problems)
        with torch.inference_mode(False), torch.no_grad():
            for name, entry in self.entries.items():
                if name in wholes:
                    whole = wholes[name]
                    entry.shadow.copy_(entry.flat.cut(whole) if entry.flat else own_part(whole, entry.parameter))
        return [name for name in self.entries if name not in wholes]

    def _device(self, parameter: Tensor) -> torch.device:
        return torch.device("cpu") if self.offload else parameter.device

    def _new_shadow(self, parameter: Tensor) -> Tensor:
        live = local(parameter).detach()
        shadow = _empty_like(live, self._device(parameter))
        return shadow.copy_(live)

    def _live(self, parameters: list[Tensor]) -> list[Tensor]:
        # Read anew at each step: FSDP2 may exchange the local tensor under a DTensor.
        return [local(parameter) for parameter in parameters] if self._sharded else parameters

    def _plan(self) -> None:
        """Lists for the fused calls: one pair a dtype and device; where weights need a cast or a move, by way
        of scratch memory that all buckets share.
        """
        self._sharded = any(is_sharded(entry.parameter) for entry in self.entries.values())
        direct: dict[object, tuple[list[Tensor], list[Tensor]]] = {}
        staged: dict[object, list[_Entry]] = {}
        for entry in self.entries.values():
            shadow, parameter = entry.shadow, entry.parameter
            if not self.offload and shadow.dtype == parameter.dtype:
                shadows, parameters = direct.setdefault((shadow.dtype, shadow.device), ([], []))
                shadows.append(shadow)
                parameters.append(parameter)
            else:
                staged.setdefault((shadow.dtype, shadow.device, parameter.dtype, parameter.device), []).append(entry)
        self._direct = list(direct.values())
        self._staged = [bucket for entries in staged.values() for bucket in _staged_buckets(entries)]


def _empty_like(live: Tensor, device: torch.device) -> Tensor:
    dtype = torch.float32 if live.dtype in _HALF else live.dtype
    empty = torch.empty_like(live, dtype=dtype, device=device)
    return empty.pin_memory() if device.type == "cpu" and live.device.type == "cuda" else empty


def _staged_buckets(entries: list[_Entry]) -> Iterable[tuple[list[Tensor], list[Tensor], list[Tensor]]]:
    """(shadows, views of one scratch buffer, parameters) with at most `_SCRATCH` elements, or one tensor,
    each.
    """
    buckets: list[list[_Entry]] = [[]]
    filled = 0
    for entry in entries:
        if buckets[-1] and filled + entry.shadow.numel() > _SCRATCH:
            buckets.append([])
            filled = 0
        buckets[-1].append(entry)
        filled += entry.shadow.numel()
    size = max(sum(entry.shadow.numel() for entry in bucket) for bucket in buckets)
    first = entries[0].shadow
    scratch = torch.empty(size, dtype=first.dtype, device=first.device)
    if first.is_pinned():
        scratch = scratch.pin_memory()
    for bucket in buckets:
        sizes = [entry.shadow.numel() for entry in bucket]
        views = [
            flat.as_strided(entry.shadow.shape, entry.shadow.stride())
            for flat, entry in zip(scratch[: sum(sizes)].split(sizes), bucket, strict=True)
        ]
        yield [entry.shadow for entry in bucket], views, [entry.parameter for entry in bucket]
