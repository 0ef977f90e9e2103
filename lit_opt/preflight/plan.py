"""The plan of a run before it: who gets what, when the rate turns, what it costs. Nothing is trained.

The same functions decide here and in the run: `resolve`, `group_parameters`, `build`. The optimizer is built over
stand-ins on the meta device, so that no memory is taken and the module is not touched.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from lit_opt.callbacks.configure import build_optimizer, refuse_shards
from lit_opt.callbacks.facts import is_flattened
from lit_opt.errors import RecipeError
from lit_opt.explain.values import Entry, explain
from lit_opt.optim.registry import row_of
from lit_opt.param_groups import GroupSummary, ParamRow, clean_name, group_parameters, snapshot_parameters
from lit_opt.param_groups.transfer import TransferRow, settle_base
from lit_opt.preflight.flops import Flops, count_flops
from lit_opt.preflight.folding import Folded, fold
from lit_opt.preflight.lr_plot import png_plot
from lit_opt.preflight.memory import Memory, as_plain, estimate_memory
from lit_opt.preflight.milestones import Milestone, milestones
from lit_opt.preflight.placement import Placement
from lit_opt.recipes.schema import RecipeSpec
from lit_opt.resolve import preview
from lit_opt.resolve.resolved import ResolvedRecipe, RunFacts
from lit_opt.resolve.strategies import refusals

# A placement's kind, where the rules of what runs (lit_opt.resolve.strategies) have another word for it.
_STRATEGY = {"fsdp": "fsdp1", "fsdp_grad_op": "fsdp1"}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a recipe will do to a module. Plain data; made by `make_plan` or `Recipe.plan`.

    Args:
        recipe: Its name.
        summary: Its one line.
        model: Class name of the module.
        parameters: Numbers of the module: "trainable", "frozen", "outside_embeddings" (trainable).
        resolved: The recipe's numbers.
        placement: Devices, strategy, precision.
        values: Every value with unit, range, practice, source and what was done to it.
        rows: One row a trainable parameter, in the module's own order.
        groups: One row a group.
        milestones: Turns of the schedule; empty without one.
        memory: Per device.
        flops: The optimizer's share.
        transfer: What a transfer from a small model changes, by group and rule; empty without one.
        notes: What was assumed, and what is unknown, in sentences.

    Example:
        >>> from lit_opt.recipes import get_recipe
        >>> plan = make_plan(get_recipe("llm"), {}, nn.Linear(8, 8), RunFacts(total_steps=100))
        >>> [(g.name, g.parameters) for g in plan.groups], plan.memory.held
        ([('decay', 64), ('no_decay', 8)], 1160)
        >>> [m.step for m in plan.milestones]
        [0, 2, 50, 99]
    """

    recipe: str
    summary: str
    model: str
    parameters: Mapping[str, int]
    resolved: ResolvedRecipe
    placement: Placement
    values: tuple[Entry, ...]
    rows: tuple[ParamRow, ...]
    groups: tuple[GroupSummary, ...]
    milestones: tuple[Milestone, ...]
    memory: Memory
    flops: Flops | None
    transfer: tuple[TransferRow, ...] = field(default=())
    notes: tuple[str, ...] = field(default=())

    @property
    def folded(self) -> list[Folded]:
        """The rows with repeated blocks joined."""
        return fold(self.rows)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dictionaries, for JSON."""
        return {
            "recipe": self.recipe,
            "summary": self.summary,
            "model": self.model,
            "parameters": dict(self.parameters),
            "resolved": self.resolved.as_dict(),
            "placement": asdict(self.placement),
            "values": [asdict(entry) | {"judgement": entry.judgement} for entry in self.values],
            "groups": [asdict(group) for group in self.groups],
            "patterns": [asdict(f) for f in self.folded],
            "rows": [asdict(row) for row in self.rows],
            "milestones": [asdict(milestone) for milestone in self.milestones],
            "memory": as_plain(self.memory),
            "flops": dataclasses.asdict(self.flops) if self.flops is not None else None,
            "transfer": [asdict(row) for row in self.transfer],
            "notes": list(self.notes),
        }

    def text(self, *, width: int = 100, rows: bool = False) -> str:
        """The plan as text of that width; `rows` lists every parameter instead of patterns."""
        from lit_opt.explain.show import as_text
        from lit_opt.preflight.plan_text import plan_text

        return as_text(plan_text(self, rows=rows, width=width), width=width)

    def markdown(self, *, rows: bool = False) -> str:
        """The plan as Markdown."""
        from lit_opt.preflight.plan_markdown import plan_markdown

        return plan_markdown(self, rows=rows)

    def show(self, *, rows: bool = False) -> None:
        """Print the plan."""
        from rich.console import Console

        from lit_opt.preflight.plan_text import plan_text

        console = Console(highlight=False, markup=False, emoji=False)
        console.print(plan_text(self, rows=rows, width=console.width))

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        return f"Plan({self.recipe!r}, {self.model}, {len(self.rows)} parameters, {len(self.groups)} groups)"

    def plot(self, path: str | Path) -> Path:
        """Write the learning rate of every group as PNG.

        Raises:
            RecipeError: The horizon is unknown, or matplotlib is missing.
        """
        schedule = self.resolved.schedule
        if schedule is None or schedule.total_steps is None:
            raise RecipeError(
                ["plot: the horizon is unknown, so there is no step axis. Give total_steps= (--total-steps)."]
            )
        turns = {m.step: m.what for m in self.milestones}
        title = f"{self.recipe} on {self.model}: {schedule.kind}, {schedule.total_steps:,} steps"
        return png_plot(path, schedule, [(g.name, g.lr) for g in self.groups], turns, title)


def make_plan(
    spec: RecipeSpec,
    overrides: Mapping[str, Any],
    module: nn.Module,
    facts: RunFacts | None = None,
    placement: Placement | None = None,
    *,
    notes: tuple[str, ...] = (),
    example: Any = None,
    cuda: bool = True,
) -> Plan:
    """Plan a run.

    Args:
        spec: The recipe.
        overrides: Arguments of `Recipe` that were given.
        module: Before it is sharded; on any device, also meta. It is not touched.
        facts: What is known of the run. What is unknown stays open in the plan.
        placement: Devices, strategy, precision; one device if unset.
        notes: Sentences to show with the plan.
        example: A batch as the module's forward takes it, to count the model's operations; the module's
            `example_input_array` if unset.
        cuda: The run is on CUDA devices.

    Raises:
        RecipeError: What the run itself would refuse: wrong overrides, nothing to train, a recipe that the strategy
            cannot run, a warmup longer than the run.

    Example:
        >>> from lit_opt.recipes import get_recipe
        >>> plan = make_plan(get_recipe("llm/muon"), {}, nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)))
        >>> [(row.name, row.algorithm) for row in plan.rows if row.name.endswith("weight")]
        [('0.weight', 'muon'), ('1.weight', 'adamw')]
    """
    placement = placement or Placement()
    snapshot = snapshot_parameters(module)
    known = replace(
        facts or RunFacts(), parameter_count=snapshot.parameter_count, data_parallel_size=placement.data_parallel
    )
    resolved = preview(spec, overrides, known)
    if resolved.transfer is not None:
        resolved = replace(resolved, transfer=settle_base(resolved.transfer, module))
    problems = refusals(resolved, _STRATEGY.get(placement.kind, placement.kind), placement.precision)
    if problems:
        raise RecipeError(problems)
    if is_flattened(module):
        refuse_shards(resolved, "flat shards (FSDP1 or ZeRO)")
    groups = group_parameters(snapshot, resolved)
    said = [*notes, *groups.notes, *resolved.notes]
    optimizer = _stand_in(module, resolved, groups, said)
    if resolved.schedule is None or (resolved.schedule.total_steps is None and resolved.schedule.kind != "constant"):
        said.append("schedule: the horizon is unknown, so it cannot be placed; give total_steps= (--total-steps).")
    note = resolved.provenance["lr"].note
    if "unknown, not scaled" in note:
        said.append(f"lr: {note}; give {'batch_tokens=' if 'batch in tokens' in note else 'batch_size='}.")
    memory, flops = Memory(unknown="the optimizer could not be built without a run"), None
    if optimizer is not None:
        memory = estimate_memory(module, optimizer, placement, ema=resolved.ema, cuda=cuda)
        if hasattr(optimizer, "remove_hooks"):
            optimizer.remove_hooks()
        flops = _flops(module, optimizer, resolved, placement, example, cuda)
    return Plan(
        recipe=spec.name,
        summary=spec.summary,
        model=type(module).__name__,
        parameters={
            "trainable": sum(p.numel() for p in module.parameters() if p.requires_grad),
            "frozen": sum(p.numel() for p in module.parameters() if not p.requires_grad),
            "outside_embeddings": snapshot.parameter_count,
        },
        resolved=resolved,
        placement=placement,
        values=tuple(explain(spec, overrides, resolved.facts)),
        rows=tuple(groups.rows()),
        groups=tuple(groups.summary()),
        milestones=tuple(milestones(resolved.schedule, resolved.facts)) if resolved.schedule is not None else (),
        memory=memory,
        flops=flops,
        transfer=groups.transfer,
        notes=tuple(said),
    )


def _stand_in(module: nn.Module, resolved: ResolvedRecipe, groups: Any, notes: list[str]) -> Optimizer | None:
    """The run's optimizer over parameters without memory; None where a user's class cannot be built so.

    One that watches layers finds them by the module's own parameters, and has hooks on it.
    """
    row = row_of(resolved.optimizer, resolved.hyperparameters) if isinstance(resolved.optimizer, str) else None
    watches = row is not None and row.needs_module
    named = [
        (
            clean_name(name),
            p if watches else nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad),
        )
        for name, p in module.named_parameters()
    ]
    try:
        return build_optimizer(resolved, groups.for_optimizer(named), {id(p): name for name, p in named}, module)
    except RecipeError:
        raise
    except Exception as error:  # somebody else's optimizer
        notes.append(
            f"optimizer: {resolved.optimizer_name} cannot be built on the meta device ({type(error).__name__})."
        )
        return None


def _flops(
    module: nn.Module, optimizer: Optimizer, resolved: ResolvedRecipe, placement: Placement, example: Any, cuda: bool
) -> Flops | None:
    if not isinstance(resolved.optimizer, str):
        return None
    return count_flops(
        module,
        optimizer,
        setting=resolved.setting,
        tokens=resolved.facts.tokens_per_batch,
        samples=resolved.facts.global_batch,
        placement=placement,
        example=getattr(module, "example_input_array", None) if example is None else example,
        cuda=cuda,
    )
