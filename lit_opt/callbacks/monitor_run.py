"""What `OptimizerMonitor` asks of a Trainer: who clips and by how much, which optimizer, which step."""

from __future__ import annotations

import math
from typing import Any

from lit_opt.callbacks.patches import is_overridden
from lit_opt.callbacks.recipe import Recipe


def recipe_clipping(trainer: Any) -> tuple[Any, Any] | None:
    """How a Recipe among the callbacks clips by norm, and the last norm."""
    clip, norm = _clipping(trainer)
    return (clip, norm) if clip is not None and clip.kind == "norm" else None


def norm_limit(trainer: Any, module: Any) -> float | None:
    """The largest norm that is let through; inf where nothing clips, None where it is not known."""
    clip, _ = _clipping(trainer)
    if clip is not None:
        return float(clip.limit) if clip.kind == "norm" else None
    if not module.automatic_optimization:
        return math.inf
    if is_overridden(module, "configure_gradient_clipping"):
        return None
    if not trainer.gradient_clip_val:
        return math.inf
    algorithm = trainer.gradient_clip_algorithm
    by_norm = algorithm is None or getattr(algorithm, "value", algorithm) == "norm"
    return float(trainer.gradient_clip_val) if by_norm else None


def index_of(trainer: Any, optimizer: Any) -> int:
    """Place of an optimizer, wrapped or not, among the Trainer's."""
    raw = getattr(optimizer, "optimizer", optimizer)
    return next(i for i, other in enumerate(trainer.optimizers) if other is raw)


def logged_steps(trainer: Any) -> int:
    """What Lightning logs by: batches that ended with an optimizer step."""
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def _clipping(trainer: Any) -> tuple[Any, Any]:
    """What the Recipe of this fit clips to, and the norm of the last step's gradients before that."""
    sessions = [c._session for c in trainer.callbacks if isinstance(c, Recipe) and c._session is not None]
    return (sessions[0].clip, sessions[0].norm) if sessions else (None, None)
