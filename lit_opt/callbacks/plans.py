"""`Recipe.plan`: what the recipe will do to a module, before a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from lit_opt.recipes.schema import RecipeSpec
from lit_opt.resolve.resolved import RunFacts

if TYPE_CHECKING:
    from lit_opt.preflight.plan import Plan


class Plans:
    """The method `plan` of a recipe."""

    spec: RecipeSpec
    overrides: dict[str, Any]

    def plan(
        self,
        module: nn.Module,
        *,
        batch_size: int | None = None,
        total_steps: int | None = None,
        tokens_per_batch: int | None = None,
        steps_per_epoch: float | None = None,
        devices: int = 1,
        num_nodes: int = 1,
        strategy: str | dict[str, Any] = "auto",
        precision: str | int | None = None,
        accelerator: str = "gpu",
        example: Any = None,
    ) -> Plan:
        """What this recipe will do to a module, without training and without a GPU.

        Nothing is allocated, and the module is not touched: build it under `torch.device("meta")` where it is large.

        Args:
            module: Any torch module, before it is sharded.
            batch_size: Global batch in samples: loader x accumulation x data-parallel processes.
            total_steps: Optimizer steps of the run.
            tokens_per_batch: Tokens an optimizer step, over all processes.
            steps_per_epoch: Optimizer steps an epoch.
            devices: Of one node.
            num_nodes: Machines.
            strategy: "auto", "ddp", "fsdp2", "fsdp", "deepspeed_stage_2", ..., or a dict with "class_path" and
                "init_args", as in a config.
            precision: One of Lightning's words; "32-true" if unset.
            accelerator: "gpu" or "cpu".
            example: A batch as the module's forward takes it, to count the model's operations.

        Returns:
            The plan: `print(plan)`, `plan.rows`, `plan.memory`, `plan.as_dict()`, `plan.markdown()`, `plan.plot("lr.png")`.

        Raises:
            RecipeError: What the run itself would refuse.

        Example:
            >>> import torch
            >>> from lit_opt import Recipe
            >>> with torch.device("meta"):
            ...     module = torch.nn.Linear(10_000, 10_000)
            >>> plan = Recipe("llm").plan(module, total_steps=1000, devices=8, strategy="fsdp2")
            >>> [(line.name, line.bytes) for line in plan.memory.lines]
            [('weights', 50005000), ('gradients', 50005000), ('optimizer state', 100010008)]
        """
        from lit_opt.preflight.placement import read_placement
        from lit_opt.preflight.plan import make_plan

        placement = read_placement(
            {
                "devices": devices,
                "num_nodes": num_nodes,
                "strategy": strategy,
                "precision": precision,
                "accelerator": accelerator,
            }
        )
        facts = RunFacts(
            total_steps=total_steps,
            global_batch=batch_size,
            tokens_per_batch=tokens_per_batch,
            steps_per_epoch=steps_per_epoch,
        )
        return make_plan(
            self.spec,
            self.overrides,
            module,
            facts,
            placement,
            notes=placement.notes,
            example=example,
            cuda=accelerator != "cpu",
        )
