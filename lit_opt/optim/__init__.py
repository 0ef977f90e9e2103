"""HOW a step is taken. Pure PyTorch: knows nothing of Lightning. `import lit_opt.optim` imports no torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from lit_opt.optim.registry import get_row, list_optimizers

if TYPE_CHECKING:
    from lit_opt.optim.adafactor import Adafactor as Adafactor
    from lit_opt.optim.curvature.kfac import KFAC as KFAC
    from lit_opt.optim.curvature.natural_gradient import NaturalGradient as NaturalGradient
    from lit_opt.optim.factory import build as build
    from lit_opt.optim.lookahead import Lookahead as Lookahead
    from lit_opt.optim.matrix.aro import Aro as Aro
    from lit_opt.optim.matrix.mars_m import MarsM as MarsM
    from lit_opt.optim.matrix.muon import Muon as Muon
    from lit_opt.optim.matrix.normuon import NorMuon as NorMuon
    from lit_opt.optim.matrix.scion import Scion as Scion
    from lit_opt.optim.matrix.shampoo import Shampoo as Shampoo
    from lit_opt.optim.matrix.soap import Soap as Soap
    from lit_opt.optim.matrix.splus import SPlus as SPlus
    from lit_opt.optim.matrix.teon import Teon as Teon
    from lit_opt.optim.onebit_adam import OneBitAdam as OneBitAdam
    from lit_opt.optim.sam import ASAM as ASAM
    from lit_opt.optim.sam import SAM as SAM

# No module of this package may be called like a public function: importing it would replace the function.
_LAZY = {
    "build": "lit_opt.optim.factory",
    "KFAC": "lit_opt.optim.curvature.kfac",
    "NaturalGradient": "lit_opt.optim.curvature.natural_gradient",
    "OneBitAdam": "lit_opt.optim.onebit_adam",
    "Adafactor": "lit_opt.optim.adafactor",
    "ASAM": "lit_opt.optim.sam",
    "Lookahead": "lit_opt.optim.lookahead",
    "SAM": "lit_opt.optim.sam",
    "Muon": "lit_opt.optim.matrix.muon",
    "NorMuon": "lit_opt.optim.matrix.normuon",
    "MarsM": "lit_opt.optim.matrix.mars_m",
    "Aro": "lit_opt.optim.matrix.aro",
    "Scion": "lit_opt.optim.matrix.scion",
    "Teon": "lit_opt.optim.matrix.teon",
    "Shampoo": "lit_opt.optim.matrix.shampoo",
    "Soap": "lit_opt.optim.matrix.soap",
    "SPlus": "lit_opt.optim.matrix.splus",
}

__all__ = [*sorted(_LAZY), "get_row", "list_optimizers"]


def __getattr__(name: str) -> object:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}. It has: {', '.join(__all__)}.")
