"""K-FAC: the natural gradient with a Kronecker product for the Fisher matrix of each layer."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from lit_opt.errors import RecipeError, nearest
from lit_opt.optim.curvature.factors import Record, factor_dtype, inverses
from lit_opt.optim.curvature.layers import Layer, inputs_of, output_gradients
from lit_opt.optim.curvature.watching import WatchingOptimizer

LARGEST = 16_384
"""Widest layer with factors: the side of a matrix of 1 GB in float32."""
DAMPING_MODES = ("eigen", "factored")
_FACTOR_STATE = ("A", "G", "Q_A", "Q_G", "d_A", "d_G", "A_inverse", "G_inverse")


class KFAC(WatchingOptimizer):
    """SGD with momentum on gradients that Linear and Conv2d layers precondition by Kronecker factors.

    With abar = [a, 1] a layer's input, g the gradient of one sample's loss by its output, and t counting steps:

        A <- rho A + (1 - rho) mean abar abar^T,  G <- rho G + (1 - rho) mean g g^T,  rho = min(1 - 1/t, factor_decay)
        eigen:     u = (A (x) G + damping I)^-1 dW, exactly, in the eigenbases of A and G
        factored:  u = (G + sqrt(damping) / pi I)^-1 dW (A + pi sqrt(damping) I)^-1,
                   pi = sqrt((tr A / dim A) / (tr G / dim G))
        nu = min(1, sqrt(kl_clip / |sum over layers of lr^2 <u, dW>|))
        v <- momentum v + nu u + weight_decay w,  w <- w - lr v

    All other parameters (norms, embeddings, grouped convolutions, weights that several modules share, attention's fused
    projections, layers with more than 16,384 inputs or outputs, such as the head of a language model) take the same step
    with their gradient for nu u: SGD with momentum, as in torch. So weight_decay is SGD's too: added to the step, inside
    the momentum. A layer whose weight is used without calling the layer goes the same way, with a warning.

    The loss is a mean over the samples of the batch, which are the first dimension of a layer's input. Further
    positions (pixels, tokens) are summed over in G and averaged over in A, as in KFC and K-FAC-expand. A loss that is a
    mean over T tokens a sample needs lr, damping and kl_clip divided by T. Micro-batches that accumulate to one step,
    and processes under DistributedDataParallel, count as one batch. A GradScaler is not supported: it scales g.

    G is of the true labels (the empirical Fisher). For the model's own Fisher, draw labels from the model, call
    backward on their loss, set the gradients to None by `module.zero_grad()`, set `optimizer.recording = False`, call
    backward on the real loss, step, and set it to True again.

    Inverses are computed anew at each layer's first step and then after every `inverse_every` steps. Factors, inverses
    and their counts are state, so a resume is exact.

    Args:
        params: Tensors, (name, tensor) pairs or group dicts. lr, momentum and weight_decay are each parameter's own;
            the others are those of the group that has the layer's weight.
        module: The module that holds the layers; None: call `attach` before the first step.
        lr: Learning rate.
        momentum: Decay of v, per step.
        weight_decay: L2.
        damping: Added to the Fisher matrix; above 0.
        factor_decay: Largest rho, in [0, 1).
        kl_clip: Bound on the step's length in the Fisher metric, the same for all groups; 0 for none.
        inverse_every: Steps from one inverse to the next.
        damping_mode: "eigen" or "factored".

    Raises:
        RecipeError: An option out of bounds, sharded parameters, a compiled module or one without a layer to watch.

    Source: https://arxiv.org/abs/1503.05671 (section 6.3), https://arxiv.org/abs/1602.01407 (convolutions),
    https://arxiv.org/abs/2311.00636 (positions); eigen form and kl_clip as in gpauloski/kfac-pytorch, which starts from
    A = G = I and, without its grad_scaler, has a G that is samples^2 too small.

    Example:
        >>> from lit_opt.optim import build
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        >>> optimizer = build("kfac", model.parameters(), module=model, lr=0.1)
        >>> model(torch.randn(16, 4)).square().mean().backward()
        >>> optimizer.step()
        >>> optimizer.state[model[0].weight]["A"].shape
        torch.Size([5, 5])
    """

    name = "kfac"

    def __init__(
        self,
        params: Any,
        module: nn.Module | None = None,
        *,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        damping: float = 1e-3,
        factor_decay: float = 0.95,
        kl_clip: float = 1e-3,
        inverse_every: int = 1,
        damping_mode: str = "eigen",
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "damping": damping,
            "factor_decay": factor_decay,
            "kl_clip": kl_clip,
            "inverse_every": inverse_every,
            "damping_mode": damping_mode,
        }
        super().__init__(params, defaults, module)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; the layers of its weights are watched from then on.

        Raises:
            RecipeError: An option out of bounds, or sharded parameters.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        problems = []
        if not group["damping"] > 0:
            problems.append(
                f"damping: {group['damping']!r} has to be above 0, such as 0.001: the factors are singular."
            )
        if group["inverse_every"] < 1:
            problems.append(f"inverse_every: {group['inverse_every']!r} is not a number of steps from 1 up.")
        if not 0 <= group["factor_decay"] < 1:
            problems.append(f"factor_decay: {group['factor_decay']!r} is not in [0, 1). Usual is 0.95.")
        if not group["kl_clip"] >= 0:
            problems.append(f"kl_clip: {group['kl_clip']!r} is below 0. Usual is 0.001; 0 is off.")
        mode = group["damping_mode"]
        if mode not in DAMPING_MODES:
            problems.append(f"damping_mode: {mode!r} is unknown.{nearest(mode, DAMPING_MODES)} 'eigen' or 'factored'.")
        if problems:
            self._own -= set(self.param_groups.pop()["params"])
            raise RecipeError(problems)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient.

        Args:
            closure: Evaluates the model, calls backward and returns the loss, as in torch.

        Returns:
            What the closure returned, or None.

        Raises:
            RecipeError: Gradients that none of the watched layers saw, or factors that cannot be inverted.
        """
        loss = self._evaluate(closure)
        group_of = {param: group for group in self.param_groups for param in group["params"]}
        if self._update_factors(group_of) == 0 and self.recording:
            self._refuse_unseen()
        directions: dict[Tensor, Tensor] = {}
        length: Any = 0.0
        for name, layer in self._active():
            if layer.weight.grad is None:
                continue
            if "A" not in self.state[layer.weight]:
                self._warn_once(name, layer)
                continue
            for param, direction in self._precondition(name, layer, group_of[layer.weight]).items():
                directions[param] = direction
                length = length + (direction * _gradient(param)).sum() * group_of[param]["lr"] ** 2
        kl_clip, length = self.param_groups[0]["kl_clip"], float(length)
        nu = min(1.0, math.sqrt(kl_clip / abs(length))) if kl_clip and length else 1.0
        for param, group in group_of.items():
            if param.grad is not None:
                direction = directions[param].mul(nu).to(param.dtype) if param in directions else param.grad
                self._sgd(param, direction, group)
        self._forget()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, which would round the factors of half-precision weights to their dtype."""
        super().load_state_dict(state_dict)
        ids = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        params = chain.from_iterable(group["params"] for group in self.param_groups)
        for key, param in zip(ids, params, strict=True):
            saved = state_dict["state"].get(key, {})
            for name in _FACTOR_STATE:
                if name in saved:
                    self.state[param][name] = saved[name].detach().clone().to(param.device)

    def _takes(self, layer: Layer) -> bool:
        return max(len(layer.weight), layer.weight[0].numel() + 1) <= LARGEST

    def _warn_once(self, name: str, layer: Layer) -> None:
        if layer not in self._told and bool(_gradient(layer.weight).any()):
            self._told.add(layer)
            warnings.warn(
                f"kfac: the weight of {name!r} has a gradient, but the layer was not called in training mode, so it takes "
                "SGD's step.",
                stacklevel=3,
            )

    def _start(self) -> None:
        super()._start()
        self._told: set[Layer] = set()

    def _forget(self) -> None:
        self._records: dict[Layer, Record] = {}

    def _record(self, layer: Layer, a: Tensor, g: Tensor) -> None:
        dtype = factor_dtype(layer.weight)
        rows = inputs_of(layer, a, self._has_bias(layer), dtype)
        grads = output_gradients(layer, g, dtype)
        record = self._records.get(layer)
        if record is None or len(record.A) != rows.shape[2]:
            record = self._records[layer] = self._empty(layer)
        samples, positions = rows.shape[:2]
        flat_rows, flat_grads = rows.flatten(0, 1), grads.flatten(0, 1)
        record.A.addmm_(flat_rows.T, flat_rows)
        record.G.addmm_(flat_grads.T, flat_grads)
        record.positions += samples * positions
        # A layer that is used several times in one backward pass sees the same samples again.
        backward = torch._C._current_graph_task_id()
        if backward not in record.passes:
            record.passes.add(backward)
            record.samples += samples

    def _empty(self, layer: Layer) -> Record:
        weight = layer.weight
        dtype, rows, columns = factor_dtype(weight), len(weight), weight[0].numel() + self._has_bias(layer)
        A, G = (torch.zeros(size, size, dtype=dtype, device=weight.device) for size in (columns, rows))
        return Record(A=A, G=G)

    def _update_factors(self, group_of: dict[Tensor, dict[str, Any]]) -> int:
        """Mix what was recorded into the factors; returns how many layers were seen."""
        layers = [layer for _, layer in self._active()]
        records = [self._records.get(layer) or self._empty(layer) for layer in layers]
        counts = [record.A.new_tensor([record.positions, record.samples]) for record in records]
        sums = self._summed([t for r, c in zip(records, counts, strict=True) for t in (r.A, r.G, c)])
        processes = self._processes()
        seen = 0
        for index, layer in enumerate(layers):
            A, G, (positions, samples) = sums[3 * index], sums[3 * index + 1], sums[3 * index + 2].tolist()
            if not samples:
                continue
            seen += 1
            # Recorded is the gradient of the process's own mean loss: its share of a sample's is 1 / (its samples), and
            # processes x its samples are all.
            self._mix(layer.weight, A / positions, G * (samples / processes**2), group_of[layer.weight])
        return seen

    def _mix(self, weight: Tensor, A: Tensor, G: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if "A" not in state or state["A"].shape != A.shape:
            state |= {"factor_steps": 0, "A": torch.zeros_like(A), "G": torch.zeros_like(G)}
        state["factor_steps"] += 1
        rho = min(1 - 1 / state["factor_steps"], group["factor_decay"])
        state["A"].mul_(rho).add_(A, alpha=1 - rho)
        state["G"].mul_(rho).add_(G, alpha=1 - rho)
        if (state["factor_steps"] - 1) % group["inverse_every"] == 0:
            for key in _FACTOR_STATE[2:]:
                state.pop(key, None)

    def _precondition(self, name: str, layer: Layer, group: dict[str, Any]) -> dict[Tensor, Tensor]:
        """The direction u of the layer's weight and, where the factors have its column, bias."""
        weight, state = layer.weight, self.state[layer.weight]
        dtype, columns = state["A"].dtype, weight[0].numel()
        gradient = _gradient(weight).flatten(1).to(dtype)
        bias = layer.bias if len(state["A"]) > columns else None
        if bias is not None:
            column = torch.zeros_like(bias) if bias.grad is None else bias.grad
            gradient = torch.cat([gradient, column.to(dtype).unsqueeze(1)], dim=1)
        key = "Q_A" if group["damping_mode"] == "eigen" else "A_inverse"
        if key not in state:
            state |= inverses(state["A"], state["G"], group["damping"], group["damping_mode"], name)
        if group["damping_mode"] == "eigen":
            rotated = state["Q_G"].T @ gradient @ state["Q_A"]
            rotated /= torch.outer(state["d_G"], state["d_A"]) + group["damping"]
            u = state["Q_G"] @ rotated @ state["Q_A"].T
        else:
            u = state["G_inverse"] @ gradient @ state["A_inverse"]
        found = {weight: u[:, :columns].view_as(weight)}
        if bias is not None and bias.grad is not None:
            found[bias] = u[:, columns]
        return found

    def _sgd(self, param: Tensor, direction: Tensor, group: dict[str, Any]) -> None:
        if group["weight_decay"]:
            direction = direction.add(param, alpha=group["weight_decay"])
        if group["momentum"]:
            state = self.state[param]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(param)
            direction = state["momentum_buffer"].mul_(group["momentum"]).add_(direction)
        param.add_(direction, alpha=-group["lr"])


def _gradient(param: Tensor) -> Tensor:
    assert param.grad is not None
    return param.grad
