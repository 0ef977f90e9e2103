"""Optimizers that evaluate the model twice in a step (SAM, MARS-M exact), under Lightning: what one pass must not leave."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

from lightning.pytorch.loops.optimization.closure import AbstractClosure
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchmetrics import Metric

from lit_opt.callbacks.facts import largest_accumulation
from lit_opt.optim.matrix.mars_m import MarsM
from lit_opt.optim.sam import SAM, frozen_statistics


def two_pass_problems(name: str, trainer: Any, module: Any) -> list[str]:
    """Why this run cannot evaluate twice in a step, in words; strategy and precision aside.

    Args:
        name: The optimizer's registry name.
        trainer: A Trainer inside `fit`.
        module: Its LightningModule.
    """
    problems = []
    if not module.automatic_optimization:
        problems.append(
            f"optimizer: {name} evaluates the loss twice inside its step, and under manual optimization there is no closure "
            "to do it with. Use automatic optimization, or build the optimizer yourself and pass step(closure=...)."
        )
    accumulation = largest_accumulation(trainer)
    if accumulation > 1:
        problems.append(
            f"optimizer: {name} with accumulate_grad_batches={accumulation}: the second pass would see "
            "the last micro-batch alone, and add to the gradients of all. Use a larger batch, more devices, or another "
            "optimizer."
        )
    return problems


def prepare_two_passes(optimizer: Any, trainer: Any, module: Any) -> None:
    """Give SAM what each pass needs: no all-reduce in the first under DDP, and a second that leaves no trace.

    Each process of DDP goes up by its own gradient (m-sharpness, as in the paper); FSDP2 by the gradient of all. The
    extra pass of MARS-M's exact variant leaves no trace either; its gradient is that of all processes.
    """
    if isinstance(optimizer, SAM):
        optimizer.first_pass = partial(_first_pass, trainer)
        optimizer.second_pass = partial(_apart, trainer, module)
    if isinstance(optimizer, MarsM):
        optimizer.extra_pass = partial(_apart, trainer, module)


def _first_pass(trainer: Any, closure: Any) -> AbstractContextManager[Any]:
    model = trainer.strategy.model
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


@contextmanager
def _apart(trainer: Any, module: Any, closure: Any) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(frozen_statistics(module))
        stack.enter_context(_frozen_metrics(module))
        stack.enter_context(_logging_apart(trainer))
        stack.enter_context(_first_result(closure))
        yield


@contextmanager
def _frozen_metrics(module: nn.Module) -> Iterator[None]:
    """Metrics count each batch once."""
    held = [(metric, _metric_state(metric)) for metric in module.modules() if isinstance(metric, Metric)]
    try:
        yield
    finally:
        for metric, state in held:
            metric.__dict__.update(state)


def _metric_state(metric: Metric) -> dict[str, Any]:
    state = {key: _copied(getattr(metric, key)) for key in metric._defaults}
    return state | {key: metric.__dict__[key] for key in ("_update_count", "_computed", "_forward_cache")}


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else list(value)


@contextmanager
def _logging_apart(trainer: Any) -> Iterator[None]:
    """What is logged goes to a collection that nobody reads."""
    loop = trainer.fit_loop.epoch_loop
    real = loop._results
    loop._results = apart = type(real)(training=True)
    apart.batch, apart.batch_size, apart.dataloader_idx = real.batch, real.batch_size, real.dataloader_idx
    try:
        yield
    finally:
        loop._results = real


@contextmanager
def _first_result(closure: Any) -> Iterator[None]:
    """Lightning shows the result of the closure's last call; keep that of the first."""
    lightnings = next((arg for arg in getattr(closure, "args", ()) if isinstance(arg, AbstractClosure)), None)
    first = None if lightnings is None else lightnings._result
    try:
        yield
    finally:
        if lightnings is not None:
            lightnings._result = first
