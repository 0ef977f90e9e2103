"""What a run says of itself, for the contract to compare and the report to show."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lit_opt import __version__
from lit_opt.comparison.cost import optimizer_flops
from lit_opt.comparison.ranks import place

if TYPE_CHECKING:
    from lit_opt.callbacks.recipe import Recipe
    from lit_opt.comparison.observer import Observer


def versions() -> dict[str, str]:
    """Of what decides about numbers.

    Example:
        >>> sorted(versions())
        ['lightning', 'lit-opt', 'numpy', 'python', 'torch']
    """
    lightning = next((v for name in ("lightning", "pytorch-lightning") if (v := _version(name))), "")
    return {
        "lit-opt": __version__,
        "torch": torch.__version__,
        "lightning": lightning,
        "numpy": _version("numpy"),
        "python": platform.python_version(),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def state_hash(module: nn.Module) -> str:
    """Of all parameters and buffers, names, shapes and numbers.

    Example:
        >>> state_hash(nn.Linear(2, 2)) == state_hash(nn.Linear(2, 2))
        False
    """
    running = hashlib.sha256()
    for name, value in module.state_dict().items():
        running.update(name.encode())
        if isinstance(value, Tensor):
            flat = value.detach().cpu().contiguous().reshape(-1)
            running.update(f"{tuple(value.shape)}{value.dtype}".encode())
            running.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return running.hexdigest()[:16]


def text_hash(text: str) -> str:
    """Of a text.

    Example:
        >>> text_hash("a") == text_hash("b")
        False
    """
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def facts_before(trainer: Any, module: Any, recipe: Recipe) -> dict[str, Any]:
    """What is there before the first step.

    Args:
        trainer: A Trainer inside `fit`, its optimizers configured.
        module: Its LightningModule.
        recipe: Of the run.

    Example:
        >>> facts_before.__name__  # needs a Trainer inside `fit`; tests/comparison/test_run.py
        'facts_before'
    """
    assert recipe.run is not None
    resolved, optimizer = recipe.run.resolved, recipe.run.optimizer
    parameters = dict(module.named_parameters())
    trainable = [name for name, p in parameters.items() if p.requires_grad]
    name = resolved.optimizer if isinstance(resolved.optimizer, str) else None
    own, how = optimizer_flops(optimizer, name)
    return {
        "init_hash": state_hash(module),
        "structure_hash": text_hash(str(module)),
        "trainable_hash": text_hash("\n".join(trainable)),
        "parameters": sum(p.numel() for p in parameters.values()),
        "trainable_parameters": sum(parameters[name].numel() for name in trainable),
        "precision": str(trainer.precision),
        "accumulation": int(trainer.accumulate_grad_batches),
        "device": _device(module.device),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "optimizer": resolved.optimizer_name,
        "hyperparameters": {key: repr(value) for key, value in resolved.hyperparameters.items()},
        "clip": resolved.clip.limit if resolved.clip is not None else None,
        "decay": resolved.schedule.kind if resolved.schedule is not None else None,
        "warmup_steps": resolved.schedule.warmup_steps if resolved.schedule is not None else None,
        "ema": resolved.ema.decay if resolved.ema is not None else None,
        "optimizer_flops_per_step": own,
        "optimizer_flops_how": how,
        "groups": [
            {
                "name": group.get("name", ""),
                "algorithm": group.get("algorithm", name),
                "lr": float(group.get("initial_lr", group["lr"])),
                "weight_decay": float(group.get("weight_decay", 0.0)),
                "tensors": len(group["params"]),
                "numbers": sum(p.numel() for p in group["params"]),
            }
            for group in optimizer.param_groups
        ],
    }


def facts_after(observer: Observer) -> dict[str, Any]:
    """What was counted on the way.

    Args:
        observer: Of the run.

    Example:
        >>> from lit_opt import Recipe
        >>> from lit_opt.comparison.observer import Observer
        >>> facts_after(Observer(Recipe("llm"), "val_loss", 10, (0, 10), seed=1))["samples_unit"]
        'samples'
    """
    steps = max(observer.step, 1)
    per_step = observer.passes * observer.model_flops * place().world / steps
    device = observer.device
    cuda = device is not None and device.type == "cuda"
    return {
        "first_loss": observer.first_loss,
        "batch_hashes": dict(observer.batch_hashes),
        "samples_per_step": observer.samples / steps,
        "samples_unit": "samples",
        "eval_steps": [reading.step for reading in observer.readings],
        "passes_per_step": observer.passes / max(observer.batches, 1),
        "model_flops_per_step": per_step or None,
        "ms_per_step": 1000 * observer.seconds_per_step,
        "peak_bytes": torch.cuda.max_memory_allocated(device) if cuda else None,
    }


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()})"
