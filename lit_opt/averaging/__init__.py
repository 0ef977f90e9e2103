"""Averaged weights in plain PyTorch, sharded or not. The EMA callback brings them to Lightning."""

from __future__ import annotations

from lit_opt.averaging.averages import Averages, decay_at, ema_window
from lit_opt.averaging.posthoc import reconstruct

__all__ = ["Averages", "decay_at", "ema_window", "reconstruct"]
