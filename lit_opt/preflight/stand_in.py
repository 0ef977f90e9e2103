"""Optimizers and schedulers of a module's own `configure_optimizers`, without a Trainer.

The method may ask `self.trainer` for the length of the run. What is known from the config is told by a stand-in; whatever
else it asks for cannot be known, and is said by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lit_opt.errors import RecipeError
from lit_opt.preflight.facts import Foreseen


class TrainerStandIn:
    """What a config says of a Trainer.

    Args:
        section: The Trainer's arguments by name.
        foreseen: Horizon, batches, devices.
        module: The LightningModule.
        datamodule: Its data, or None.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lit_opt.preflight.facts import foresee
        >>> section, module = {"max_steps": 10, "devices": 1}, BoringModel()
        >>> trainer = TrainerStandIn(section, foresee(section, module), module)
        >>> trainer.estimated_stepping_batches, trainer.max_steps
        (10, 10)
        >>> trainer.checkpoint_callback
        Traceback (most recent call last):
        AttributeError: trainer.checkpoint_callback is not known without a run
    """

    def __init__(self, section: Mapping[str, Any], foreseen: Foreseen, module: Any, datamodule: Any = None) -> None:
        facts, place = foreseen.run, foreseen.placement
        per_epoch = facts.steps_per_epoch
        steps = section.get("max_steps")
        self.asked: list[str] = []
        self.known: dict[str, Any] = {
            "estimated_stepping_batches": math.inf if facts.total_steps is None else facts.total_steps,
            "max_steps": -1 if steps is None else steps,
            "max_epochs": foreseen.max_epochs,
            "min_epochs": section.get("min_epochs"),
            "min_steps": section.get("min_steps"),
            "num_training_batches": math.inf if per_epoch is None else int(per_epoch * (facts.accumulation or 1)),
            "accumulate_grad_batches": facts.accumulation or 1,
            "gradient_clip_val": section.get("gradient_clip_val"),
            "precision": place.precision,
            "world_size": place.devices,
            "num_devices": max(1, place.devices // (section.get("num_nodes") or 1)),
            "num_nodes": section.get("num_nodes") or 1,
            "global_rank": 0,
            "local_rank": 0,
            "node_rank": 0,
            "is_global_zero": True,
            "current_epoch": 0,
            "global_step": 0,
            "fast_dev_run": section.get("fast_dev_run") or False,
            "limit_train_batches": section.get("limit_train_batches") or 1.0,
            "overfit_batches": section.get("overfit_batches") or 0,
            "train_dataloader": foreseen.training_data,
            "datamodule": datamodule,
            "lightning_module": module,
            "model": module,
            "logger": None,
            "loggers": [],
            "callbacks": [],
            "training": True,
        }

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("known", "asked"):
            raise AttributeError(name)
        if name in self.known:
            return self.known[name]
        self.asked.append(name)
        raise AttributeError(f"trainer.{name} is not known without a run")


def configured_by_module(module: Any, trainer: TrainerStandIn) -> tuple[list[Any], list[Any]]:
    """Call the module's `setup` and `configure_optimizers` and read the result as Lightning does.

    Args:
        module: A LightningModule with its own method.
        trainer: Is its trainer during the call.

    Returns:
        Optimizers, and schedulers as Lightning's `LRSchedulerConfig`.

    Raises:
        RecipeError: It gives no optimizer, or asks for what is not known without a run.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lit_opt.preflight.facts import foresee
        >>> module, section = BoringModel(), {"max_epochs": 1, "devices": 1}
        >>> optimizers, schedulers = configured_by_module(module, TrainerStandIn(section, foresee(section, module), module))
        >>> type(optimizers[0]).__name__, schedulers[0].interval
        ('SGD', 'epoch')
    """
    # What Trainer.fit calls as well; private, and the same from 2.4 to 2.6.
    from lightning.pytorch.core import optimizer as lightning_optimizer

    name = type(module).__name__
    before, module._trainer = module._trainer, trainer
    try:
        module.setup("fit")
        returned = module.configure_optimizers()
    except AttributeError as error:
        if not trainer.asked:
            raise
        raise RecipeError(
            [
                f"model: {name} asks for trainer.{trainer.asked[-1]}, which is not known without a run. Check it in the run "
                "itself: Trainer(callbacks=[lit_opt.RecipeCheck(...)])."
            ]
        ) from error
    finally:
        module._trainer = before
    if returned is None:
        raise RecipeError([f"model: {name}.configure_optimizers returns None, so nothing would be trained."])
    optimizers, schedulers, monitor = lightning_optimizer._configure_optimizers(returned)
    if module.automatic_optimization:
        return optimizers, lightning_optimizer._configure_schedulers_automatic_opt(schedulers, monitor)
    return optimizers, lightning_optimizer._configure_schedulers_manual_opt(schedulers)
