"""The facts of a run without a Trainer: horizon, global batch, steps of an epoch, from the config and the data module.

`lit_opt.callbacks.facts` reads the same off a live Trainer; tests hold the two side by side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from lightning.fabric.utilities.data import sized_len
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset

from lit_opt.callbacks.facts import loader_batch_size
from lit_opt.errors import RecipeError
from lit_opt.preflight.placement import Placement, read_placement
from lit_opt.resolve.resolved import RunFacts


@dataclass(frozen=True, kw_only=True)
class Foreseen:
    """What can be said of a run before it begins.

    Args:
        run: As `lit_opt.resolve` takes it; what is unknown is None.
        placement: Devices, strategy, precision.
        max_epochs: The Trainer's, -1 for no limit.
        notes: What was assumed, and why something is unknown, in sentences.
        training_data: The loader that was found, for those who want a batch of it; None where there is none.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> foreseen = foresee({"max_epochs": 2, "devices": 1, "accumulate_grad_batches": 3}, BoringModel())
        >>> foreseen.run.total_steps, foreseen.run.steps_per_epoch, foreseen.run.global_batch
        (44, 22, 3)
    """

    run: RunFacts
    placement: Placement
    max_epochs: int
    notes: tuple[str, ...] = ()
    training_data: Any = None


def foresee(
    trainer: Mapping[str, Any], module: Any, datamodule: Any = None, *, parameter_count: int | None = None
) -> Foreseen:
    """Read the facts of a run off the Trainer's arguments and the data.

    The data module is set up (`setup("fit")`), but `prepare_data` is not called, since it may download. Where its
    loader cannot be made so, the batch and the horizon may stay unknown; a note says so.

    Args:
        trainer: The Trainer's arguments by name, classes as dicts (the section `trainer:` of a config).
        module: The LightningModule.
        datamodule: Brings the training data; without one they are the module's.
        parameter_count: Trainable parameters without the embeddings.

    Raises:
        RecipeError: Arguments that no Trainer takes, or training data without a batch.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> foresee({"max_steps": 7, "devices": 2, "strategy": "ddp"}, BoringModel()).run.data_parallel_size
        2
    """
    placement = read_placement(trainer)
    notes = list(placement.notes)
    loader = _training_data(trainer, module, datamodule, placement, notes)
    size = placement.data_parallel
    per_process = _batch_size(loader, datamodule)
    batches = _batches(trainer, loader, placement, notes) if loader is not None else None
    if batches == 0:
        raise RecipeError(
            [
                "train_dataloader: it has no batch, so there is nothing to optimize. Check the dataset's length, "
                "drop_last with a batch_size above it, and Trainer(limit_train_batches=...)."
            ]
        )
    accumulation = _accumulation(trainer)
    max_epochs = _max_epochs(trainer)
    if trainer.get("max_epochs") is None and max_epochs == 1000:
        notes.append("trainer: neither max_steps nor max_epochs is set, so Lightning takes 1,000 epochs.")
    finite = batches is not None and math.isfinite(batches)
    if loader is not None and batches is not None and not finite:
        notes.append("train_dataloader: it has no length, so the steps of an epoch are unknown.")
    if per_process is None and loader is not None:
        notes.append("train_dataloader: its batch size cannot be read, so the global batch is unknown.")
    first = accumulation(0)
    return Foreseen(
        run=RunFacts(
            total_steps=_total_steps(trainer, batches, max_epochs, accumulation),
            global_batch=None if per_process is None else per_process * first * size,
            data_parallel_size=size,
            parameter_count=parameter_count,
            steps_per_epoch=math.ceil(batches / first) if batches is not None and finite else None,
            loader_batch=per_process,
            accumulation=first,
        ),
        placement=placement,
        max_epochs=max_epochs,
        notes=tuple(notes),
        training_data=loader,
    )


def tokens_of_a_sample(loader: Any) -> int | None:
    """Tokens of the first sample of a loader, None where they cannot be told: no batch is made of it.

    A dict's "input_ids", or a sample that is a one-dimensional tensor of whole numbers, alone or first in a tuple.

    Example:
        >>> import torch
        >>> tokens_of_a_sample(DataLoader([{"input_ids": torch.arange(7)}]))
        7
    """
    first = _first_tensor(loader)
    if first is None or first.ndim != 1 or first.is_floating_point() or first.is_complex():
        return None
    return first.numel() or None


def input_of_a_sample(loader: Any) -> Tensor | None:
    """The first sample of a loader twice (batch norm refuses one), where it is an image or the like: a tensor of floats.

    Example:
        >>> import torch
        >>> input_of_a_sample(DataLoader([(torch.zeros(3, 8, 8), 1)])).shape
        torch.Size([2, 3, 8, 8])
    """
    first = _first_tensor(loader)
    return torch.stack([first, first]) if first is not None and first.is_floating_point() and first.ndim else None


def _first_tensor(loader: Any) -> Tensor | None:
    try:
        sample = loader.dataset[0]
    except Exception:  # somebody else's data: streams have no index, and files may be missing
        return None
    if isinstance(sample, Mapping):
        sample = sample.get("input_ids")
    elif isinstance(sample, tuple | list) and sample:
        sample = sample[0]
    return sample if isinstance(sample, Tensor) else None


def _training_data(
    trainer: Mapping[str, Any], module: Any, datamodule: Any, placement: Placement, notes: list[str]
) -> Any:
    """What `train_dataloader` gives, or None and a note."""
    try:
        if datamodule is None:
            return module.train_dataloader()
        # Data modules ask their trainer for their share of the data.
        sampler = {"num_replicas": placement.data_parallel, "rank": 0}
        before, datamodule.trainer = (
            datamodule.trainer,
            SimpleNamespace(
                distributed_sampler_kwargs=sampler if placement.kind != "single" else None,
                world_size=placement.devices,
                num_devices=placement.devices,
                global_rank=0,
                local_rank=0,
                is_global_zero=True,
                overfit_batches=trainer.get("overfit_batches") or 0,
                accumulate_grad_batches=trainer.get("accumulate_grad_batches") or 1,
                current_epoch=0,
                lightning_module=module,
            ),
        )
        try:
            datamodule.setup("fit")
            return datamodule.train_dataloader()
        finally:
            datamodule.trainer = before
    except RecipeError:
        raise
    except Exception as error:  # somebody else's code: whatever it raises, the plan goes on without the data
        where = type(module if datamodule is None else datamodule).__name__
        notes.append(
            f"{where}: the training data could not be set up without a run ({type(error).__name__}: {_one_line(error)}; "
            "prepare_data was not called, since it may download), so what depends on them is unknown."
        )
        return None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or "no message"


def _batch_size(loader: Any, datamodule: Any) -> int | None:
    if loader is not None:
        return loader_batch_size(loader)
    given = getattr(datamodule, "batch_size", None) or getattr(getattr(datamodule, "hparams", None), "batch_size", None)
    return given if isinstance(given, int) and given > 0 else None


def _batches(trainer: Mapping[str, Any], loader: Any, placement: Placement, notes: list[str]) -> float | None:
    """Batches of one process in an epoch; inf without a length, None where it cannot be told."""
    limit = _limit(trainer)
    if limit == 0:
        return 0
    combined = loader if isinstance(loader, CombinedLoader) else CombinedLoader(loader, "max_size_cycle")
    spread = placement.kind != "single" and trainer.get("use_distributed_sampler", True)
    replicas = placement.data_parallel if spread else 1
    counts = []
    for one in combined.flattened:
        length = _length(one, replicas)
        if length is None:
            notes.append(
                "train_dataloader: with a batch sampler of its own, its length over several devices is unknown."
            )
            return None
        counts.append(_limited(length, limit))
    if combined._mode == "sequential":
        return sum(counts)
    return (min if combined._mode == "min_size" else max)(counts, default=0)


def _length(loader: Any, replicas: int) -> float | None:
    """Batches of one loader for one process, once Lightning has put in a DistributedSampler where it does."""
    length = sized_len(loader)
    if length is None:
        return math.inf
    if replicas == 1 or not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return length
    if isinstance(loader.sampler, DistributedSampler):
        return length
    if loader.batch_size is None or type(loader.batch_sampler) is not BatchSampler:
        return None
    share = math.ceil(len(loader.sampler) / replicas)  # type: ignore[arg-type]
    return share // loader.batch_size if loader.drop_last else math.ceil(share / loader.batch_size)


def _limit(trainer: Mapping[str, Any]) -> int | float:
    """A number of batches (int) or a share of them (float)."""
    overfit, dev = trainer.get("overfit_batches") or 0, trainer.get("fast_dev_run") or 0
    given = overfit if overfit else int(dev) if dev else trainer.get("limit_train_batches")
    if given is None:
        return 1.0
    if isinstance(given, int) and not isinstance(given, bool):
        return given
    share = float(given)
    return int(share) if share > 1 else share


def _limited(length: float, limit: int | float) -> float:
    if isinstance(limit, int):
        return min(length, limit)
    if math.isinf(length):
        return length
    return int(length * limit)


def _max_epochs(trainer: Mapping[str, Any]) -> int:
    if trainer.get("fast_dev_run"):
        return 1
    given = trainer.get("max_epochs")
    if given is not None:
        return int(given)
    timed = trainer.get("max_time") is not None or _callback(trainer, "Timer") is not None
    return 1000 if _max_steps(trainer) == -1 and not timed else -1


def _max_steps(trainer: Mapping[str, Any]) -> int:
    dev = trainer.get("fast_dev_run") or 0
    given = int(dev) if dev else trainer.get("max_steps")
    return -1 if given is None else int(given)


def _total_steps(trainer: Mapping[str, Any], batches: float | None, max_epochs: int, accumulation: Any) -> int | None:
    """As `Trainer.estimated_stepping_batches`, epoch by epoch where the accumulation changes."""
    steps = _max_steps(trainer)
    if max_epochs == -1 or batches is None or math.isinf(batches):
        # Without the batches of an epoch max_steps is the best that is known.
        return steps if steps > 0 else None
    if _callback(trainer, "GradientAccumulationScheduler") is None:
        counted = math.ceil(batches / accumulation(0)) * max(max_epochs, 1)
    else:
        counted = sum(math.ceil(batches / accumulation(epoch)) for epoch in range(max_epochs))
    return min(counted, steps) if steps > 0 else counted


def _accumulation(trainer: Mapping[str, Any]) -> Any:
    """A function of the epoch: batches of the loader an optimizer step."""
    scheduler = _callback(trainer, "GradientAccumulationScheduler")
    if scheduler is None:
        constant = int(trainer.get("accumulate_grad_batches") or 1)
        return lambda epoch: constant
    table = {int(start): int(factor) for start, factor in (scheduler.get("scheduling") or {}).items()}

    def at(epoch: int) -> int:
        return table.get(max((start for start in table if start <= epoch), default=-1), 1)

    return at


def _callback(trainer: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    """The arguments of a callback in the config, None where it is not there."""
    given = trainer.get("callbacks") or ()
    for entry in given if isinstance(given, Sequence) else (given,):
        if isinstance(entry, Mapping) and str(entry.get("class_path", "")).rpartition(".")[2] == name:
            return entry.get("init_args") or {}
    return None
