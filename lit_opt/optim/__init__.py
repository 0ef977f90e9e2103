"""HOW a step is taken. Pure PyTorch: knows nothing of Lightning. `import lit_opt.optim` imports no torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from lit_opt.optim.registry import list_optimizers

if TYPE_CHECKING:
    from lit_opt.optim.build import build as build

_LAZY = {"build": "lit_opt.optim.build"}

__all__ = ["build", "list_optimizers"]


def __getattr__(name: str) -> object:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}. It has: {', '.join(__all__)}.")
