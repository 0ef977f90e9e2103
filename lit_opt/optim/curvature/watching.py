"""The part that K-FAC and the natural gradient share: hooks on the layers of a module, and what they refuse."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lit_opt.averaging.shards import is_sharded
from lit_opt.errors import RecipeError
from lit_opt.optim.curvature.layers import Layer, is_supported


class WatchingOptimizer(Optimizer):
    """An optimizer that sees the inputs and output gradients of a module's Linear and Conv2d layers.

    It records during the backward pass, of layers in training mode. `zero_grad` and `step` forget what was recorded,
    so that accumulated micro-batches count together and a discarded backward pass does not count.

    Hooks hold the optimizer weakly. Copies and pickles of the module have inert ones; copies and pickles of the
    optimizer have none: call `attach` again.

    Args:
        params: Tensors, (name, tensor) pairs or group dicts.
        defaults: Options of groups that do not have them.
        module: Holds the layers; a DistributedDataParallel wrapper is fine. None: call `attach` before the first step.

    Raises:
        RecipeError: Sharded parameters or a compiled module.

    Example:
        >>> from lit_opt.optim import KFAC
        >>> layer = nn.Linear(2, 1)
        >>> optimizer = KFAC(layer.parameters(), module=layer, lr=0.1)
        >>> len(layer._forward_hooks)
        1
        >>> optimizer.remove_hooks(); len(layer._forward_hooks)
        0
    """

    name: ClassVar[str]
    recording: bool
    """Whether backward passes are recorded; see `KFAC` for the model's own Fisher."""

    def __init__(self, params: Any, defaults: dict[str, Any], module: nn.Module | None) -> None:
        self._start()
        super().__init__(params, {"algorithm": self.name, **defaults})
        if module is not None:
            self.attach(module)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_layers" not in self.__dict__:  # a copy; load_state_dict comes here as well
            self._start()

    def _start(self) -> None:
        self.recording = True
        self._handles: list[RemovableHandle] = []
        self._layers: dict[Tensor, tuple[str, Layer]] = {}
        self._own: set[Tensor] = set()
        self._group: Any = None
        self._forget()

    def attach(self, module: nn.Module, process_group: Any = None) -> None:
        """Put hooks on the layers of a module, in place of those that were there.

        Args:
            module: Holds the parameters of this optimizer.
            process_group: Processes whose gradients are averaged as DistributedDataParallel does it; None for all.

        Raises:
            RecipeError: No module, a compiled one, or one without a layer that this optimizer has the weight of.
        """
        self.remove_hooks()
        self._own = {param for group in self.param_groups for param in group["params"]}
        self._group = process_group
        self._layers = {w: (n, x) for w, (n, x) in _layers_of(module, self._own, self.name).items() if self._takes(x)}
        ours = weakref.ref(self)
        for _, layer in self._layers.values():
            self._handles.append(layer.register_forward_hook(_Hook(ours), with_kwargs=True))

    def remove_hooks(self) -> None:
        """Take all hooks off and forget what was recorded. Safe to call twice."""
        while self._handles:
            self._handles.pop().remove()
        self._layers = {}
        self._forget()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; the layers of its weights are watched from then on.

        Raises:
            RecipeError: Its parameters are sharded.
        """
        super().add_param_group(param_group)
        params = self.param_groups[-1]["params"]
        if any(is_sharded(p) or hasattr(p, "ds_shape") or getattr(p, "_fsdp_flattened", False) for p in params):
            self.param_groups.pop()
            raise RecipeError(
                [
                    f"params: they are sharded (FSDP or ZeRO), and {self.name} needs whole layers with the inputs of whole "
                    "batches. Train with DDP or on one device, or choose another optimizer."
                ]
            )
        self._own |= set(params)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch's, and what was recorded of those gradients is forgotten."""
        self._forget()
        super().zero_grad(set_to_none)

    def columns_of(self, param: Tensor) -> int:
        """Columns of [weight, bias] of the layer that is watched for this weight, 0 where none is."""
        layer = self._layers[param][1] if param in self._layers else None
        return 0 if layer is None else param[0].numel() + self._has_bias(layer)

    def _takes(self, layer: Layer) -> bool:
        """Whether it preconditions this layer at all."""
        return True

    def _forget(self) -> None:
        """Drop what was recorded since the last step."""

    def _record(self, layer: Layer, a: Tensor, g: Tensor) -> None:
        """Take note of one use of a layer: its input, and the gradient of its output."""

    def _has_bias(self, layer: Layer) -> bool:
        return layer.bias is not None and layer.bias.requires_grad and layer.bias in self._own

    def _see(self, layer: Layer, a: Tensor, output: Tensor) -> None:
        weight = layer.weight
        watched = layer.training and self.recording and weight in self._own and weight.requires_grad
        if not (watched and torch.is_grad_enabled() and output.requires_grad):
            return
        a = a.detach()

        def backward(g: Tensor) -> None:
            if self.recording:
                with torch.no_grad(), torch.autocast(g.device.type, enabled=False):
                    self._record(layer, a, g)

        output.register_hook(backward)

    def _active(self) -> list[tuple[str, Layer]]:
        """Layers whose weight this optimizer steps on, with or without a gradient now."""
        return [(n, layer) for w, (n, layer) in self._layers.items() if w in self._own and w.requires_grad]

    def _processes(self) -> int:
        dist = torch.distributed
        return dist.get_world_size(self._group) if dist.is_available() and dist.is_initialized() else 1

    def _summed(self, tensors: list[Tensor]) -> list[Tensor]:
        """The sums over all processes, in one collective for each dtype and device."""
        if self._processes() == 1:
            return tensors
        kinds = {(t.dtype, t.device) for t in tensors}
        sums: dict[int, Tensor] = {}
        for kind in sorted(kinds, key=str):
            places = [i for i, t in enumerate(tensors) if (t.dtype, t.device) == kind]
            flat = torch.cat([tensors[i].flatten() for i in places])
            torch.distributed.all_reduce(flat, group=self._group)
            parts = flat.split([tensors[i].numel() for i in places])
            sums |= {i: part.view_as(tensors[i]) for i, part in zip(places, parts, strict=True)}
        return [sums[i] for i in range(len(tensors))]

    def _refuse_unseen(self) -> None:
        """A gradient that no hook saw would silently be stepped on as by another optimizer."""
        params = [param for group in self.param_groups for param in group["params"]]
        if not any(param.grad is not None and bool(param.grad.any()) for param in params):
            return
        if not self._handles:
            raise RecipeError(
                [
                    f"{self.name}: it has no hooks on a module (copies and pickles have none, and remove_hooks takes them "
                    "off). Call optimizer.attach(module) before the forward pass."
                ]
            )
        raise RecipeError(
            [
                f"{self.name}: there are gradients, but none of the {len(self._layers)} layers it watches was seen in a "
                "backward pass since the last step or zero_grad. Call the module that was attached, in training mode and "
                "not compiled (torch.compile drops the hooks), and let gradients come from backward()."
            ]
        )

    def _evaluate(self, closure: Callable[[], Any] | None) -> Any:
        if closure is None:
            return None
        with torch.enable_grad():
            return closure()


class _Hook:
    """A forward hook; a copy or a pickle of it does nothing."""

    def __init__(self, optimizer: weakref.ref[WatchingOptimizer]) -> None:
        self.optimizer = optimizer

    def __call__(self, layer: Layer, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        optimizer = self.optimizer()
        if optimizer is not None:
            optimizer._see(layer, args[0] if args else kwargs["input"], output)

    def __reduce__(self) -> Any:
        return _copied, ()


def _copied() -> Callable[..., None]:
    return _inert


def _inert(layer: Any, args: Any, kwargs: Any, output: Any) -> None:
    return None


def _layers_of(module: object, own: Iterable[Tensor], name: str) -> dict[Tensor, tuple[str, Layer]]:
    """Weight -> name and layer. A weight that several modules share, as a tied head, is left out."""
    if not isinstance(module, nn.Module):
        raise RecipeError(
            [f"module: {type(module).__name__} is no module. {name} watches its layers; give module=model."]
        )
    compiled = [
        part
        for part in module.modules()
        if type(part).__name__ == "OptimizedModule" or part.__dict__.get("_compiled_call_impl") is not None
    ]
    if compiled or getattr(module, "_compiler_ctx", None) is not None:
        raise RecipeError(
            [
                f"module: it is compiled, and torch.compile drops the hooks by which {name} sees the layers. Train it "
                "without torch.compile, or choose another optimizer."
            ]
        )
    owners: dict[Tensor, int] = {}
    for part in module.modules():
        for param in part.parameters(recurse=False):
            owners[param] = owners.get(param, 0) + 1
    # It computes with out_proj's weight and does not call it.
    inside = {part.out_proj for part in module.modules() if isinstance(part, nn.MultiheadAttention)}
    found: dict[Tensor, tuple[str, Layer]] = {}
    for path, part in module.named_modules():
        if not is_supported(part) or part in inside:
            continue
        assert isinstance(part, nn.Linear | nn.Conv2d)
        if isinstance(part._parameters.get("weight"), nn.Parameter) and owners[part.weight] == 1:
            found[part.weight] = (path, part)
    if not any(weight in found for weight in own):
        raise RecipeError(
            [
                f"module: {type(module).__name__} has no Linear or Conv2d layer (without groups) whose weight is among the "
                f"parameters of {name}. Pass the module that holds them."
            ]
        )
    return found
