"""`GradientNoiseScale`: how large a batch is worth its samples, measured while a model trains."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from lit_opt.callbacks.facts import data_parallel_size, loader_batch_size
from lit_opt.errors import RecipeError
from lit_opt.scaling import NoiseScale

_FITTING = {"SingleDeviceStrategy", "DDPStrategy"}


class GradientNoiseScale(Callback):
    """Estimate the gradient noise scale tr(Sigma) / |G|^2 and log it as "gradient_noise_scale", in samples.

    It compares gradients of parts of the batch with their mean: micro-batches (accumulate_grad_batches), processes (DDP),
    or both. At a batch of this size a run needs about twice the fewest steps and twice the fewest samples; beyond it,
    more samples a step save few steps. It grows during training. Where the global batch is past it, one line says so.

    A measured step costs one reduction over the gradients a backward pass, and one number between processes. Gradients
    are taken before clipping, unless another callback clips in `on_before_optimizer_step`. Steps of fewer micro-batches,
    as at the end of an epoch, and steps that are not finite are left out.

    Args:
        every: Optimizer steps from one measured step to the next.
        decay: Of the averages of tr(Sigma) and |G|^2, per measured step, in [0, 1).
        batch_size: Global batch in samples, where it cannot be read off the loader.

    Raises:
        RecipeError: An argument out of bounds; at the start of `fit`, one process without accumulation, an unknown batch,
            sharded gradients, a GradScaler (16-mixed), or manual optimization.

    Source: https://arxiv.org/abs/1812.06162, appendix A.1.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(accumulate_grad_batches=4, callbacks=[GradientNoiseScale()], accelerator="cpu", logger=False)
    """

    def __init__(self, *, every: int = 1, decay: float = 0.99, batch_size: int | None = None) -> None:
        problems = []
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            problems.append(f"every: {every!r} is not a number of optimizer steps from 1 up.")
        if isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 <= decay < 1:
            problems.append(f"decay: {decay!r} is not in [0, 1). Usual is 0.99.")
        if batch_size is not None and (
            isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1
        ):
            problems.append(f"batch_size: {batch_size!r} is not a number of samples from 1 up.")
        if problems:
            raise RecipeError([f"GradientNoiseScale: {problem}" for problem in problems])
        self.every = every
        self.batch_size = batch_size
        self.noise = NoiseScale(decay=decay)
        self._said = False
        self._measures = False
        self._square: Tensor | float = 0.0
        self._parts: list[Tensor | float] = []
        self._hooks: dict[Tensor, RemovableHandle] = {}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuse what cannot be measured; watch the gradients."""
        problems = self._problems(trainer, pl_module)
        if problems:
            raise RecipeError([f"GradientNoiseScale: {problem}" for problem in problems])

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Watch parameters that became trainable as well."""
        for param in pl_module.parameters():
            if param.requires_grad and param not in self._hooks:
                self._hooks[param] = param.register_hook(self._add)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Decide whether this step is measured."""
        self._measures = trainer.global_step % self.every == 0
        self._square = 0.0

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        """One part's squared norm is complete."""
        if self._measures:
            self._parts.append(self._square)
            self._square = 0.0

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Compare the parts with their mean."""
        parts, self._parts = self._parts, []
        accumulated = trainer.accumulate_grad_batches
        batch = self._batch(trainer)
        count = accumulated * data_parallel_size(trainer)
        if not self._measures or len(parts) != accumulated or count == 1 or batch is None:
            return
        # Lightning divides each loss by the number of micro-batches.
        local = torch.as_tensor(sum(parts) / len(parts) * accumulated**2, dtype=torch.float64)
        small = float(trainer.strategy.reduce(local.to(pl_module.device), reduce_op="mean"))
        big = float(sum(_square(param.grad) for param in self._hooks if param.grad is not None))
        if not (math.isfinite(small) and math.isfinite(big)):
            return
        self.noise.update(small=small, big=big, small_batch=batch / count, big_batch=batch)
        value = self.noise.value
        if value is None:
            return
        pl_module.log("gradient_noise_scale", value)
        if not self._said and self.noise.updates * (1 - self.noise.decay) >= 1 and batch > value:
            self._said = True
            rank_zero_info(
                f"GradientNoiseScale: at step {trainer.global_step} the global batch of {batch} samples is past the gradient "
                f"noise scale of about {value:.3g}: a larger one would save few steps, a smaller one would cost few."
            )

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Say what was found."""
        value, batch = self.noise.value, self._batch(trainer)
        found = f"about {value:.3g} samples" if value is not None else "not determined (the noise hides the gradient)"
        rank_zero_info(
            f"GradientNoiseScale: {found} after {self.noise.updates} measured steps; the global batch was {batch}."
        )

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave the module as it was."""
        self._take_off()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave the module as it was; Lightning calls no teardown after an exception."""
        self._take_off()

    def state_dict(self) -> dict[str, Any]:
        """The averages, so that a resume continues them."""
        return asdict(self.noise) | {"said": self._said}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the averages of a checkpoint; the decay is that of this callback."""
        for name in ("squared_gradient", "trace", "updates"):
            setattr(self.noise, name, state_dict[name])
        self._said = state_dict["said"]

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles carry the settings and averages; hooks belong to one module."""
        return self.__dict__ | {"_hooks": {}, "_parts": [], "_square": 0.0}

    def _add(self, gradient: Tensor) -> None:
        """A hook on the parameter itself sees the gradient of this process and backward pass alone."""
        if self._measures:
            self._square = self._square + _square(gradient)

    def _take_off(self) -> None:
        while self._hooks:
            self._hooks.popitem()[1].remove()
        self._parts = []

    def _batch(self, trainer: Any) -> int | None:
        if self.batch_size is not None:
            return self.batch_size
        own = loader_batch_size(trainer.train_dataloader)
        return None if own is None else own * trainer.accumulate_grad_batches * data_parallel_size(trainer)

    def _problems(self, trainer: Any, module: Any) -> list[str]:
        problems = []
        kinds = {base.__name__ for base in type(trainer.strategy).__mro__}
        if not kinds & _FITTING or "DeepSpeedStrategy" in kinds:
            problems.append(
                f"{type(trainer.strategy).__name__} shards gradients, and no process has those of its own part of the batch. "
                "Measure with strategy='ddp', or on one device with accumulation."
            )
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            problems.append("precision='16-mixed' scales gradients. Use 'bf16-mixed' or '32-true'.")
        if not module.automatic_optimization:
            problems.append("under manual optimization it is not known which backward passes make up a step.")
        schedules = any(type(c).__name__ == "GradientAccumulationScheduler" for c in trainer.callbacks)
        if trainer.accumulate_grad_batches * data_parallel_size(trainer) == 1 and not schedules:
            problems.append(
                "one process without accumulation has one gradient a step, and two parts are needed to tell noise from "
                "gradient. Give Trainer(accumulate_grad_batches=2) with half the batch in the loader, or more processes."
            )
        if self._batch(trainer) is None:
            problems.append(
                "the batch size cannot be read off the loader; give batch_size= (the global one, in samples)."
            )
        return problems


def _square(gradient: Tensor) -> Tensor:
    return gradient.detach().to(torch.promote_types(gradient.dtype, torch.float32)).square().sum()
