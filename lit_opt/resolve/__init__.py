"""spec + overrides + facts of the run -> ResolvedRecipe (floats with their provenance), or all errors at once.

No torch: `lit-opt explain` resolves as well, with the facts that it does not know left open.
"""

from __future__ import annotations

from lit_opt.resolve.recipe import preview, resolve
from lit_opt.resolve.resolved import Provenance, ResolvedRecipe, RunFacts

__all__ = ["Provenance", "ResolvedRecipe", "RunFacts", "preview", "resolve"]
