"""`Recipe.configure` and `Recipe.clip_gradients`: a recipe without a Trainer (plain PyTorch, Fabric)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lit_opt.callbacks.clipping import clip_gradients
from lit_opt.callbacks.configure import Configured, configure_run
from lit_opt.callbacks.lr_scheduler import RecipeLR
from lit_opt.param_groups import snapshot_parameters
from lit_opt.recipes.schema import RecipeSpec
from lit_opt.resolve import preview
from lit_opt.resolve.resolved import RunFacts


class OutsideTrainer:
    """The methods of a recipe that need no Trainer."""

    spec: RecipeSpec
    overrides: dict[str, Any]
    run: Configured | None

    def configure(
        self,
        module: nn.Module,
        *,
        total_steps: int | None = None,
        global_batch: int | None = None,
        tokens_per_batch: int | None = None,
        steps_per_epoch: float | None = None,
    ) -> tuple[Optimizer, RecipeLR]:
        """Optimizer and scheduler for plain PyTorch or Fabric. Call `scheduler.step()` after each optimizer step.

        Clipping is yours to call: `recipe.clip_gradients(module)` before each `optimizer.step()`.

        Args:
            module: Any torch module, before it is sharded.
            total_steps: Horizon in optimizer steps.
            global_batch: Samples an optimizer step, over all processes.
            tokens_per_batch: Tokens an optimizer step, over all processes.
            steps_per_epoch: Optimizer steps an epoch, for a warmup in epochs.

        Raises:
            RecipeError: All problems at once.

        Example:
            >>> import torch
            >>> from lit_opt import Recipe
            >>> module = torch.nn.Linear(4, 2)
            >>> optimizer, scheduler = Recipe("cnn").configure(module, total_steps=100, global_batch=256)
            >>> [(g["name"], g["weight_decay"]) for g in optimizer.param_groups]
            [('decay', 0.0001), ('no_decay', 0.0)]
        """
        snapshot = snapshot_parameters(module)
        facts = RunFacts(
            total_steps=total_steps,
            global_batch=global_batch,
            tokens_per_batch=tokens_per_batch,
            parameter_count=snapshot.parameter_count,
            steps_per_epoch=steps_per_epoch,
        )
        self.run = configure_run(self.spec, self.overrides, facts, snapshot, module)
        return self.run.optimizer, self.run.scheduler

    def clip_gradients(self, module: nn.Module) -> Tensor | None:
        """Clip the gradients of `module` as the recipe says, after `configure`.

        Returns:
            The total norm before clipping, 0-D; None where the recipe does not clip by norm.
        """
        clip = preview(self.spec, self.overrides).clip
        return clip_gradients(module.parameters(), clip) if clip is not None else None
