"""The natural gradient itself, with the whole Fisher matrix: for tiny models, and as what K-FAC is judged by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lit_opt.errors import RecipeError
from lit_opt.optim.curvature.layers import Layer, inputs_of, output_gradients
from lit_opt.optim.curvature.watching import WatchingOptimizer

LIMIT = 10_000
"""Largest number of parameters: the matrix of twice as many takes four times the memory, eight times the time."""


class NaturalGradient(WatchingOptimizer):
    """Steepest descent in the metric of the damped Fisher matrix of all parameters together.

        F = mean over the samples of g g^T,  u = (F + damping I)^-1 dL/dw,  w <- w - lr (u + weight_decay w)

    g is the gradient of one sample's loss by all parameters, taken from the inputs and output gradients of Linear and
    Conv2d layers (without groups); a model with other trainable parameters is refused. The loss is a mean over the
    samples, the first dimension of each layer's input. F is of this batch alone; micro-batches that accumulate to one
    step, and processes under DistributedDataParallel, count as one batch. A GradScaler is not supported.

    F is of the true labels (the empirical Fisher); for the model's own see `KFAC`, it goes the same way.

    Args:
        params: Tensors, (name, tensor) pairs or group dicts, with at most 10,000 numbers in all.
        module: The module that holds the layers; None: call `attach` before the first step.
        lr: Learning rate.
        weight_decay: L2, multiplied by lr.
        damping: Added to the diagonal of F; above 0. One for all groups.

    Raises:
        RecipeError: Too many parameters, or some of other layers; damping not above 0; sharded or compiled.

    Source: Amari 1998, "Natural gradient works efficiently in learning"; https://arxiv.org/abs/1412.1193 (damping).

    Example:
        >>> from lit_opt.optim import build
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        >>> optimizer = build("natural_gradient", model.parameters(), module=model, lr=0.1)
        >>> model(torch.randn(16, 4)).square().mean().backward()
        >>> optimizer.step()
    """

    name = "natural_gradient"

    def __init__(
        self,
        params: Any,
        module: nn.Module | None = None,
        *,
        lr: float,
        weight_decay: float = 0.0,
        damping: float = 1e-3,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "damping": damping}, module)

    def attach(self, module: nn.Module, process_group: Any = None) -> None:
        """Put hooks on the layers of a module, in place of those that were there.

        Args:
            module: Whose parameters the optimizer holds.
            process_group: Over which statistics are averaged; None for all processes.

        Raises:
            RecipeError: As the class.
        """
        super().attach(module, process_group)
        self._names: dict[Tensor, str] = {param: name for name, param in module.named_parameters()}
        problems = self._of_other_layers()
        if problems:
            self.remove_hooks()
            raise RecipeError(problems)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group.

        Raises:
            RecipeError: Too many parameters, damping not above 0, sharded parameters.
        """
        super().add_param_group(param_group)
        group, problems = self.param_groups[-1], self._of_other_layers() if self._layers else []
        if not group["damping"] > 0:
            problems.append(f"damping: {group['damping']!r} has to be above 0, such as 0.001: F is singular.")
        count = sum(param.numel() for each in self.param_groups for param in each["params"])
        if count > LIMIT:
            problems.append(
                f"params: {count:,} numbers, and the Fisher matrix of {LIMIT:,} is the largest that is inverted here "
                f"({LIMIT**2 * 4 / 1e9:.1f} GB in float32). Use 'kfac', which keeps two small matrices a layer."
            )
        if problems:
            self._own -= set(self.param_groups.pop()["params"])
            raise RecipeError(problems)

    def _of_other_layers(self) -> list[str]:
        known = {param for _, layer in self._layers.values() for param in (layer.weight, layer.bias)}
        others = [self._names.get(param, f"a tensor of shape {tuple(param.shape)}") for param in self._own - known]
        if not others:
            return []
        names = ", ".join(sorted(others)[:5]) + (", ..." if len(others) > 5 else "")
        return [
            f"params: {names}: not of a Linear or Conv2d layer (without groups, with weights of its own), and gradients of "
            "single samples are known of those alone. Freeze them and leave them out, or use 'kfac'."
        ]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient.

        Args:
            closure: Evaluates the model, calls backward and returns the loss, as in torch.

        Returns:
            What the closure returned, or None.

        Raises:
            RecipeError: Gradients that none of the watched layers saw, or layers that saw different samples.
        """
        loss = self._evaluate(closure)
        layers = [layer for _, layer in self._active()]
        fisher, samples = self._fisher(layers) if layers else (torch.zeros(0), 0.0)
        if samples == 0 and self.recording:
            self._refuse_unseen()
        directions = self._directions(layers, fisher) if samples else {}
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    direction = directions[param].to(param.dtype) if param in directions else param.grad
                    param.add_(direction.add(param, alpha=group["weight_decay"]), alpha=-group["lr"])
        self._forget()
        return loss

    def _forget(self) -> None:
        # Backward pass -> layer -> gradients of its samples.
        self._records: dict[int, dict[Layer, Tensor]] = {}

    def _record(self, layer: Layer, a: Tensor, g: Tensor) -> None:
        dtype = _dtype(layer)
        rows, grads = inputs_of(layer, a, self._has_bias(layer), dtype), output_gradients(layer, g, dtype)
        gradients = torch.einsum("nto,ntd->nod", grads, rows)
        records = self._records.setdefault(torch._C._current_graph_task_id(), {})
        if layer in records and records[layer].shape == gradients.shape:
            gradients += records[layer]
        records[layer] = gradients

    def _fisher(self, layers: list[Layer]) -> tuple[Tensor, float]:
        """(numbers, numbers) over all layers in order, [weight, bias] row by row; and the number of samples."""
        sizes = [layer.weight.numel() + (len(layer.weight) if self._has_bias(layer) else 0) for layer in layers]
        reference = layers[0].weight
        fisher = torch.zeros(sum(sizes), sum(sizes), dtype=_dtype(layers[0]), device=reference.device)
        samples = 0
        for records in self._records.values():
            counts = {len(gradients) for gradients in records.values()}
            if len(counts) > 1:
                raise RecipeError(
                    [
                        f"natural_gradient: the first dimension of the layers' inputs is not the same for all of them "
                        f"({', '.join(map(str, sorted(counts)))}), so it is not clear what a sample is. Keep the batch in "
                        "the first dimension, also of tokens: (batch, tokens, features)."
                    ]
                )
            count = counts.pop()
            parts = [
                records[layer].flatten(1) if layer in records else fisher.new_zeros(count, size)
                for layer, size in zip(layers, sizes, strict=True)
            ]
            gradients = torch.cat(parts, dim=1)
            fisher.addmm_(gradients.T, gradients)
            samples += count
        used = {layer for records in self._records.values() for layer in records}
        unseen = [name for name, layer in self._active() if layer not in used and bool(_gradient(layer.weight).any())]
        if used and unseen:
            raise RecipeError(
                [
                    f"natural_gradient: {unseen[0]!r} has a gradient and was not called as a layer, so nothing is known of its "
                    "samples. Call the layer itself, in training mode."
                ]
            )
        total, everyone = self._summed([fisher, fisher.new_tensor([samples])])
        return total * (float(everyone) / self._processes() ** 2), float(everyone)

    def _directions(self, layers: list[Layer], fisher: Tensor) -> dict[Tensor, Tensor]:
        gradients, shapes = [], []
        for layer in layers:
            weight, bias = layer.weight, layer.bias if self._has_bias(layer) else None
            parts = [_gradient(weight).flatten(1)] + ([_gradient(bias).unsqueeze(1)] if bias is not None else [])
            gradients.append(torch.cat(parts, dim=1).to(fisher.dtype))
            shapes.append((weight, bias, gradients[-1].shape))
        whole = torch.cat([gradient.flatten() for gradient in gradients])
        fisher.diagonal().add_(self.param_groups[0]["damping"])
        u = torch.linalg.solve(fisher, whole)
        directions: dict[Tensor, Tensor] = {}
        for (weight, bias, shape), part in zip(shapes, u.split([g.numel() for g in gradients]), strict=True):
            rows = part.view(shape)
            directions[weight] = rows[:, : weight[0].numel()].reshape(weight.shape)
            if bias is not None:
                directions[bias] = rows[:, -1]
        return directions


def _dtype(layer: Layer) -> torch.dtype:
    return layer.weight.dtype if layer.weight.dtype == torch.float64 else torch.float32


def _gradient(param: Tensor) -> Tensor:
    return torch.zeros_like(param) if param.grad is None else param.grad
