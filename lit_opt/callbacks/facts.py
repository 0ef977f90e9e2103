"""What a Trainer knows of its run: horizon, global batch, data-parallel size."""

from __future__ import annotations

import math
from typing import Any

from lit_opt.averaging.shards import is_flat_shard
from lit_opt.errors import RecipeError
from lit_opt.resolve.resolved import RunFacts
from lit_opt.resolve.strategies import FLAT

# The most derived class that is listed counts: XLAStrategy derives from DDPStrategy.
_KINDS = {
    "XLAFSDPStrategy": "xla_fsdp",
    "XLAStrategy": "xla",
    "SingleDeviceXLAStrategy": "xla",
    "FSDPStrategy": "fsdp1",
    "ModelParallelStrategy": "fsdp2",
    "DDPStrategy": "ddp",
    "SingleDeviceStrategy": "single",
}


def run_facts(trainer: Any, parameter_count: int) -> RunFacts:
    """Read the facts off a Trainer, once its data are set up (from `configure_optimizers` on).

    Args:
        trainer: A Lightning Trainer inside `fit`.
        parameter_count: Trainable parameters without the embeddings.

    Raises:
        RecipeError: The training loader has no batch.
    """
    # Lightning does this when it estimates the horizon, but not for max_steps alone.
    trainer.fit_loop.setup_data()
    if trainer.num_training_batches == 0:
        raise RecipeError(
            [
                "train_dataloader: it has no batch, so there is nothing to optimize. Check the dataset's length, "
                "drop_last with a batch_size above it, and Trainer(limit_train_batches=...)."
            ]
        )
    total = total_steps(trainer)
    size = data_parallel_size(trainer)
    per_process = loader_batch_size(trainer.train_dataloader)
    accumulation = _accumulation(trainer, epoch=0)
    batches = trainer.num_training_batches
    return RunFacts(
        total_steps=total,
        global_batch=None if per_process is None else per_process * accumulation * size,
        data_parallel_size=size,
        parameter_count=parameter_count,
        steps_per_epoch=math.ceil(batches / accumulation) if _is_finite(batches) else None,
        loader_batch=per_process,
        accumulation=accumulation,
    )


def total_steps(trainer: Any) -> int | None:
    """Optimizer steps of the whole run, None where Lightning does not know.

    `estimated_stepping_batches` is inf for max_time alone, -1 for loaders without a length, and wrong under a
    GradientAccumulationScheduler (24 for 16 real steps): that one is counted epoch by epoch.
    """
    estimate = trainer.estimated_stepping_batches
    if not _is_finite(estimate):
        return None
    batches, epochs = trainer.num_training_batches, trainer.max_epochs
    if _accumulation_scheduler(trainer) is None or not _is_finite(batches) or epochs in (None, -1):
        return int(estimate)
    counted = sum(math.ceil(batches / _accumulation(trainer, epoch)) for epoch in range(epochs))
    return counted if trainer.max_steps == -1 else min(counted, trainer.max_steps)


def data_parallel_size(trainer: Any) -> int:
    """Processes that see different data: not the world size under tensor parallelism."""
    kwargs = trainer.distributed_sampler_kwargs
    return int(kwargs["num_replicas"]) if kwargs else 1


def loader_batch_size(loader: Any) -> int | None:
    """Samples a batch of one process; None where it cannot be read (several loaders, custom ones)."""
    size = getattr(loader, "batch_size", None)
    if size is None:
        size = getattr(getattr(loader, "batch_sampler", None), "batch_size", None)
    return size if isinstance(size, int) and size > 0 else None


def is_flattened(module: Any) -> bool:
    """FSDP1 and ZeRO replace parameters by flat shards; DTensors keep their global shape."""
    return any(is_flat_shard(parameter) for parameter in module.parameters())


def is_deepspeed(trainer: Any) -> bool:
    """DeepSpeed clips by itself."""
    return strategy_kind(trainer).startswith("zero")


def strategy_kind(trainer: Any) -> str:
    """The Trainer's strategy as a key of `lit_opt.resolve.strategies.STRATEGIES`; also "zero0", "xla_fsdp" and "other".

    FSDP2, HSDP and tensor parallelism are one class, and "fsdp2" here. By name, so that no library is imported.
    """
    names = [base.__name__ for base in type(trainer.strategy).__mro__]
    if "DeepSpeedStrategy" in names:
        config = getattr(trainer.strategy, "config", None)
        stage = config.get("zero_optimization", {}).get("stage", 0) if isinstance(config, dict) else 0
        return f"zero{stage}"
    return next((_KINDS[name] for name in names if name in _KINDS), "other")


def takes_scaled_gradients(trainer: Any) -> bool:
    """Whether a gradient scaler (16-mixed) stands between the gradients and the optimizer's step."""
    return getattr(trainer.precision_plugin, "scaler", None) is not None


def flat_shards(trainer: Any) -> str:
    """What a strategy turns parameters into before the optimizer sees them, in words; "" where they keep their shape.

    DeepSpeed's stages 1 and 2 keep the module's parameters whole, but step on flat partitions of copies.
    """
    return FLAT.get(strategy_kind(trainer), "")


def fsdp1_root(trainer: Any) -> Any:
    """FSDP1's root module, the only one that knows the norm over all shards; None elsewhere."""
    model = trainer.strategy.model
    return model if type(model).__name__ == "FullyShardedDataParallel" else None


def largest_accumulation(trainer: Any) -> int:
    """Batches an optimizer step, the most of any epoch."""
    scheduler = _accumulation_scheduler(trainer)
    return max(scheduler.scheduling.values()) if scheduler else int(trainer.accumulate_grad_batches)


def _accumulation_scheduler(trainer: Any) -> Any:
    return next((c for c in trainer.callbacks if type(c).__name__ == "GradientAccumulationScheduler"), None)


def _accumulation(trainer: Any, epoch: int) -> int:
    scheduler = _accumulation_scheduler(trainer)
    return int(scheduler.get_accumulate_grad_batches(epoch) if scheduler else trainer.accumulate_grad_batches)


def _is_finite(x: Any) -> bool:
    return x is not None and math.isfinite(x) and x > 0
