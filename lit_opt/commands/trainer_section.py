"""The section `trainer:` of a config in a comparison: what a run keeps of it, and what is said to be left out."""

from __future__ import annotations

import inspect
from typing import Any

from lightning.pytorch import Trainer

_KEPT = (
    "accelerator",
    "devices",
    "strategy",
    "precision",
    "accumulate_grad_batches",
    "limit_train_batches",
    "limit_val_batches",
    "deterministic",
    "benchmark",
    "inference_mode",
    "detect_anomaly",  # to be refused
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "sync_batchnorm",
)
# The comparison has its own of these, or none by its rules: docs/compare.md.
_DECIDED = (
    "max_steps",
    "max_epochs",
    "min_steps",
    "min_epochs",
    "max_time",
    "val_check_interval",
    "check_val_every_n_epoch",
    "num_sanity_val_steps",
    "logger",
    "log_every_n_steps",
    "enable_checkpointing",
    "enable_progress_bar",
    "enable_model_summary",
    "default_root_dir",
)
# They watch a run and do not change it.
_WATCH = ("ModelCheckpoint", "LearningRateMonitor", "DeviceStatsMonitor", "OptimizerMonitor", "ModelSummary")


def kept_trainer(config: Any) -> dict[str, Any]:
    """What a run keeps of the section `trainer:`."""
    section = config["trainer"].as_dict()
    kept = {key: section[key] for key in _KEPT if section.get(key) is not None}
    if str(kept.get("devices")).isdigit():  # the command line gives "2", and Lightning takes it for 2
        kept["devices"] = int(kept["devices"])
    default = {
        "accumulate_grad_batches": 1,
        "inference_mode": True,
        "detect_anomaly": False,
        "devices": "auto",  # one, in a comparison
        "strategy": "auto",
        "sync_batchnorm": False,
    }
    return {key: value for key, value in kept.items() if key not in default or value != default[key]}


def left_out(config: Any) -> str:
    """A sentence on what else the section asks for, which has no part in a comparison; empty where it is nothing."""
    section = config["trainer"].as_dict()
    defaults = {name: p.default for name, p in inspect.signature(Trainer).parameters.items()}
    names = [
        f"{key}={value!r}"
        for key, value in section.items()
        if key not in (*_KEPT, *_DECIDED, "callbacks") and value is not None and value != defaults.get(key)
    ]
    callbacks = section.get("callbacks") or []
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        name = str(callback.get("class_path", "")).rpartition(".")[2]
        if name not in _WATCH and not name.endswith("ProgressBar"):
            names.append(f"callback {name}")
    return f"Of the section trainer: left out, for all arms alike: {', '.join(names)}." if names else ""
