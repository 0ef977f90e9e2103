"""lit-opt: optimizer recipes for PyTorch Lightning. The public names load lazily, without torch or lightning.

Example:
    >>> import lit_opt
    >>> lit_opt.__version__
    '0.1.0'
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lit_opt.callbacks.ema import EMA as EMA
    from lit_opt.callbacks.monitor import OptimizerMonitor as OptimizerMonitor
    from lit_opt.callbacks.noise_scale import GradientNoiseScale as GradientNoiseScale
    from lit_opt.callbacks.posthoc_ema import PostHocEMA as PostHocEMA
    from lit_opt.callbacks.recipe import Recipe as Recipe
    from lit_opt.callbacks.trajectory import TrajectoryCallback as TrajectoryCallback
    from lit_opt.comparison.compare import compare as compare
    from lit_opt.param_groups.initial import scale_initial as scale_initial
    from lit_opt.preflight.recipe_check import RecipeCheck as RecipeCheck
    from lit_opt.recipes.schema import ClipSpec as ClipSpec
    from lit_opt.recipes.schema import DecaySpec as DecaySpec
    from lit_opt.recipes.schema import EMASpec as EMASpec
    from lit_opt.recipes.schema import GroupRule as GroupRule
    from lit_opt.transfer.spec import Transfer as Transfer

__version__ = "0.1.0"

_LAZY = {
    "EMA": "lit_opt.callbacks.ema",
    "OptimizerMonitor": "lit_opt.callbacks.monitor",
    "GradientNoiseScale": "lit_opt.callbacks.noise_scale",
    "PostHocEMA": "lit_opt.callbacks.posthoc_ema",
    "Recipe": "lit_opt.callbacks.recipe",
    "TrajectoryCallback": "lit_opt.callbacks.trajectory",
    "RecipeCheck": "lit_opt.preflight.recipe_check",
    "compare": "lit_opt.comparison.compare",
    "ClipSpec": "lit_opt.recipes.schema",
    "DecaySpec": "lit_opt.recipes.schema",
    "EMASpec": "lit_opt.recipes.schema",
    "GroupRule": "lit_opt.recipes.schema",
    "Transfer": "lit_opt.transfer.spec",
    "scale_initial": "lit_opt.param_groups.initial",
}

__all__ = [*sorted(_LAZY), "__version__"]


def __getattr__(name: str) -> object:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'lit_opt' has no attribute {name!r}. Public names: {', '.join(__all__)}.")
