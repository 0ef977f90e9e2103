"""HOW a step is taken. Pure PyTorch: knows nothing of Lightning. `import lit_opt.optim` imports no torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from lit_opt.optim.registry import get_row, list_optimizers

if TYPE_CHECKING:
    from lit_opt.optim.factory import build as build

# No module of this package may be called like a public function: importing it would replace the function.
_LAZY = {"build": "lit_opt.optim.factory"}

__all__ = ["build", "get_row", "list_optimizers"]


def __getattr__(name: str) -> object:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}. It has: {', '.join(__all__)}.")
