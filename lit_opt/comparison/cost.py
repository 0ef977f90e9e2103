"""Floating-point operations of a run: those of the model measured once, those of the optimizer planned."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import Callback
from torch.optim import Optimizer
from torch.utils.flop_counter import FlopCounterMode

from lit_opt.optim import get_row
from lit_opt.optim.matrix.cost import step_flops, work_of

# An element-wise step, by AdamW's formula: moments 7, root, quotient and epsilon 3, decay and update 3.
_ELEMENTWISE = 13


def optimizer_flops(optimizer: Optimizer, name: str | None) -> tuple[float | None, str]:
    """Operations of one step, and how they were counted.

    Args:
        optimizer: Of the run.
        name: Its registry name; None for a class of the user's.

    Returns:
        None where there is no count, with the reason.

    Example:
        >>> import torch
        >>> from lit_opt.optim import build
        >>> weight = torch.nn.Parameter(torch.zeros(4, 4))
        >>> optimizer_flops(build("adamw", [weight], lr=1e-3), "adamw")
        (208.0, '13 operations a number')
    """
    if name is None:
        return None, "an optimizer of your own: not counted"
    inside = getattr(optimizer, "base", optimizer)  # SAM and Lookahead: the one inside takes the step
    row = get_row(inside.defaults.get("algorithm", name))
    if row.needs_module:
        return None, f"{name}: its statistics of the layers are not counted"
    numbers = sum(p.numel() for group in inside.param_groups for p in group["params"])
    how = f"{_ELEMENTWISE} operations a number"
    if not row.matrix:
        return float(_ELEMENTWISE * numbers), how
    return float(step_flops(inside) + _ELEMENTWISE * numbers), f"{work_of(inside)} as planned, and {how}"


class PassCounter(Callback):
    """Counts the operations of the first forward and backward pass of a run, in `flops`.

    Example:
        >>> PassCounter().flops is None
        True
    """

    def __init__(self) -> None:
        self.flops: float | None = None
        self._mode: FlopCounterMode | None = None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Begin."""
        if self.flops is None and self._mode is None:
            self._mode = FlopCounterMode(display=False)
            self._mode.__enter__()

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        """End."""
        self._end(counted=True)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Take it off."""
        self._end(counted=False)

    def _end(self, *, counted: bool) -> None:
        if self._mode is None:
            return
        self._mode.__exit__(None, None, None)
        if counted:
            self.flops = float(self._mode.get_total_flops())
        self._mode = None
