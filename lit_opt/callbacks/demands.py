"""What some optimizers ask of a run: hooks on layers, and a part in what processes exchange."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from lit_opt.optim import get_row
from lit_opt.resolve.resolved import ResolvedRecipe

# By name: DeepSpeedStrategy derives from DDPStrategy.
_FITTING = {"SingleDeviceStrategy", "DDPStrategy"}


def demand_problems(resolved: ResolvedRecipe, trainer: Any) -> list[str]:
    """What the optimizer needs and this Trainer does not have.

    Args:
        resolved: The recipe's numbers.
        trainer: A Trainer inside `fit`.
    """
    row = get_row(resolved.optimizer) if isinstance(resolved.optimizer, str) else None
    if row is None or not (row.needs_module or row.exchanges):
        return []
    problems = []
    strategy = trainer.strategy
    kinds = {base.__name__ for base in type(strategy).__mro__}
    if not kinds & _FITTING or "DeepSpeedStrategy" in kinds:
        problems.append(
            f"optimizer: {row.name} needs whole parameters in every process, and {type(strategy).__name__} shards them or "
            "steps by itself. Use strategy='ddp' or one device, or Recipe(..., optimizer='adamw')."
        )
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        why = "would skip different steps in different processes" if row.exchanges else "sees scaled gradients"
        problems.append(
            f"optimizer: {row.name} {why} under precision='16-mixed' (a GradScaler). Use 'bf16-mixed' or '32-true'."
        )
    if row.exchanges and getattr(strategy, "_ddp_comm_hook", None) is not None:
        problems.append(
            f"optimizer: {row.name} brings its own communication hook, and DDPStrategy(ddp_comm_hook=...) was given. "
            "Remove it, or choose another optimizer."
        )
    return problems


def meet_demands(resolved: ResolvedRecipe, optimizer: Optimizer, trainer: Any) -> None:
    """Register the optimizer with the DDP model, which exists from `on_train_start` on."""
    row = get_row(resolved.optimizer) if isinstance(resolved.optimizer, str) else None
    if row is not None and row.exchanges and "DDPStrategy" in {b.__name__ for b in type(trainer.strategy).__mro__}:
        optimizer.register(trainer.strategy.model)  # type: ignore[attr-defined]


def release(optimizer: Optimizer) -> None:
    """Take the optimizer's hooks off the module."""
    remove = getattr(optimizer, "remove_hooks", None)
    if remove is not None:
        remove()
