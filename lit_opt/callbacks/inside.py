"""`Recipe.attach` and `Recipe.configure_optimizers`: a recipe that the module brings, not the Trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lit_opt.callbacks.configure import Configured, configure_run
from lit_opt.callbacks.demands import fit_to_run
from lit_opt.callbacks.facts import run_facts
from lit_opt.callbacks.patches import Attached
from lit_opt.errors import RecipeError
from lit_opt.param_groups import snapshot_parameters
from lit_opt.recipes.schema import RecipeSpec
from lit_opt.resolve import preview

if TYPE_CHECKING:
    from lit_opt.callbacks.session import Session


class InsideModule:
    """The methods of a recipe that a LightningModule calls or is given."""

    spec: RecipeSpec
    overrides: dict[str, Any]
    on_nonfinite: str
    run: Configured | None
    _session: Session | None

    def attach(self, module: Any) -> Any:
        """Add the recipe to a LightningModule through its `configure_callbacks`; returns the module.

        Args:
            module: A LightningModule, before it is given to a Trainer.

        Raises:
            RecipeError: Another module.

        Example:
            >>> from lightning.pytorch.demos.boring_classes import BoringModel
            >>> from lit_opt import Recipe
            >>> module = Recipe("cnn", batch_size=1).attach(BoringModel())
            >>> module.configure_callbacks()
            [Recipe('cnn')]
        """
        if not callable(getattr(module, "configure_callbacks", None)):
            raise RecipeError(
                [
                    f"module: {type(module).__name__} is no LightningModule. In plain PyTorch use "
                    "Recipe(...).configure(module, total_steps=...)."
                ]
            )
        module.__dict__["configure_callbacks"] = Attached(module, self)
        return module

    def configure_optimizers(self, module: Any) -> dict[str, Any]:
        """For use inside one's own `configure_optimizers`: returns Lightning's dictionary.

        Args:
            module: The LightningModule, while a Trainer is attached.

        Raises:
            RecipeError: No Trainer; clipping or averaging would be lost, since the recipe is not also a callback.
        """
        trainer = getattr(module, "_trainer", None)
        if trainer is None:
            raise RecipeError(
                [
                    f"module: {type(module).__name__} is not attached to a Trainer, so the length of the run is unknown. Call this "
                    "from the module's own configure_optimizers; without a Trainer use Recipe(...).configure(module, total_steps=...)."
                ]
            )
        if self in trainer.callbacks:
            assert self._session is not None
            return self._session.configure()
        planned = preview(self.spec, self.overrides)
        if self.on_nonfinite == "skip":
            raise RecipeError(
                [
                    f"on_nonfinite: {self!r} cannot leave a step out from inside configure_optimizers. Add it to "
                    "Trainer(callbacks=[...]), or leave on_nonfinite= out."
                ]
            )
        lost = [name for name, part in (("clip", planned.clip), ("ema", planned.ema)) if part is not None]
        if lost:
            off = ", ".join(f"{name}=0" for name in lost)
            raise RecipeError(
                [
                    f"configure_optimizers: {' and '.join(lost)} of {self!r} would be lost, since an optimizer alone cannot "
                    f"do it. Add the recipe to Trainer(callbacks=[...]), or turn it off: Recipe(..., {off})."
                ]
            )
        snapshot = snapshot_parameters(module)
        facts = run_facts(trainer, snapshot.parameter_count)
        self.run = configure_run(self.spec, self.overrides, facts, snapshot, module)
        fit_to_run(self.run.resolved, self.run.optimizer, trainer, module)
        return {
            "optimizer": self.run.optimizer,
            "lr_scheduler": {"scheduler": self.run.scheduler, "interval": "step", "frequency": 1, "name": "lr"},
        }
