"""What a matrix optimizer asks of a run: what it cannot do there, its work divided, and one line on its cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lit_opt.callbacks.facts import largest_accumulation
from lit_opt.optim import get_row
from lit_opt.optim.matrix.cost import orthogonalization_share, work_of
from lit_opt.optim.matrix.preconditioned import PreconditionedOptimizer
from lit_opt.optim.matrix.sharded import dividing_processes, meshes_of
from lit_opt.resolve.resolved import ResolvedRecipe

# DDP hooks after which gradients still differ between processes.
_NOT_SYNCHRONISED = {"post_localSGD_hook", "noop_hook"}


def is_matrix_method(resolved: ResolvedRecipe) -> bool:
    """Whether the recipe's optimizer treats weights as matrices."""
    return isinstance(resolved.optimizer, str) and get_row(resolved.optimizer).matrix


def exact_problems(resolved: ResolvedRecipe, trainer: Any, module: Any) -> list[str]:
    """Why MARS-M's exact variant cannot evaluate the same batch twice in this run, each reason with its remedy."""
    if resolved.hyperparameters.get("variant") != "exact":
        return []
    start = "optimizer_kwargs.variant: 'exact' evaluates each batch twice, at the last weights and at these, and"
    instead = "or type variant='approx', which takes the last step's gradient instead."
    problems = []
    accumulation = largest_accumulation(trainer)
    if accumulation > 1:
        problems.append(
            f"{start} of {accumulation} accumulated batches only the last is there when the optimizer steps. Set "
            f"accumulate_grad_batches=1 with larger batches, {instead}"
        )
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        problems.append(
            f"{start} under precision={trainer.precision!r} Lightning steps without the closure that does so. Use "
            f"'bf16-mixed' or '32-true', {instead}"
        )
    if not module.automatic_optimization:
        problems.append(
            f"{start} under manual optimization nothing here knows how. Use automatic optimization, call "
            f"optimizer.step(closure) of lit_opt.optim.MarsM yourself, {instead}"
        )
    if type(trainer.strategy).__name__ == "ModelParallelStrategy":
        problems.append(
            f"{start} FSDP2 may still hold gathered weights of one when the other is to be seen. Use DDP, {instead}"
        )
    return problems


def share_work(optimizer: Optimizer, trainer: Any, module: Any) -> bool:
    """Let the processes of a DDP run divide the orthogonalisation; every process has to call it.

    FSDP2 and tensor parallelism need no call: the optimizer sees DTensors (lit_opt.optim.matrix.sharded). Nothing is
    divided where gradients may differ between processes (local SGD, parameters that DDP ignores, manual
    optimization, which may step before it synchronises), where there is one process, or under another strategy.

    Returns:
        Whether the work is divided.
    """
    strategy = trainer.strategy
    kinds = {kind.__name__ for kind in type(strategy).__mro__}
    hook = getattr(getattr(strategy, "_ddp_comm_hook", None), "__name__", "")
    divided = (
        hasattr(optimizer, "share_work")
        and "DDPStrategy" in kinds
        and not kinds & {"DeepSpeedStrategy", "XLAStrategy"}
        and trainer.world_size > 1
        and torch.distributed.is_initialized()
        and module.automatic_optimization
        and getattr(strategy, "_model_averaging_period", None) is None
        and hook not in _NOT_SYNCHRONISED
        and not getattr(module, "_ddp_params_and_buffers_to_ignore", None)
    )
    if divided:
        optimizer.share_work(strategy._ddp_kwargs.get("process_group"))  # type: ignore[attr-defined]
    return divided


def cost_line(optimizer: Optimizer, resolved: ResolvedRecipe, batch: Any, accumulation: int) -> str:
    """The share of a step's operations that the work on matrices takes, in words; "" where it cannot be known.

    The estimate needs tokens: those of the recipe (batch_tokens=), or in the setting llm those of the first batch.

    Args:
        optimizer: Of the run.
        resolved: Its recipe.
        batch: The first batch of this process.
        accumulation: Batches an optimizer step.
    """
    if not is_matrix_method(resolved):
        return ""
    processes = resolved.facts.data_parallel_size or 1
    tokens, how = resolved.facts.tokens_per_batch, "as given"
    if tokens is None and resolved.setting == "llm":
        ids = [x for x in _tensors(batch) if x.ndim > 1 and x.dtype in (torch.int64, torch.int32)]
        first = max((x.numel() for x in ids), default=0)
        tokens = first * accumulation * processes
        how = f"{first:,} in the first batch x accumulation {accumulation} x {processes} processes"
    if not tokens:
        return ""
    # Under DDP the statistics and products of these are each process's own; their decompositions alone are divided.
    decomposes = isinstance(optimizer, PreconditionedOptimizer) and not meshes_of(optimizer.param_groups)
    dividing = dividing_processes(optimizer)
    share = orthogonalization_share(
        optimizer, tokens if dividing > 1 and not decomposes else max(tokens // processes, 1)
    )
    work = "all of it in each process" if processes > 1 else ""
    if dividing > 1:
        work = f"{'before the decompositions are ' * decomposes}divided among {dividing} processes"
    return (
        f"{resolved.optimizer}: about {share:.0%} of a step's operations go into the {work_of(optimizer)}"
        f"{f', {work}' * bool(work)} (estimate at {tokens:,} tokens a step: {how})."
    )


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        yield from _tensors(list(batch.values()))
    elif isinstance(batch, list | tuple):
        for part in batch:
            yield from _tensors(part)
