"""What some optimizers ask of a run: hooks on layers, a second pass, a part in what processes exchange or divide."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer

from lit_opt.callbacks.facts import strategy_kind, takes_scaled_gradients
from lit_opt.callbacks.matrix import exact_problems, share_work
from lit_opt.callbacks.two_passes import prepare_two_passes, two_pass_problems
from lit_opt.errors import RecipeError
from lit_opt.optim import get_row
from lit_opt.resolve.resolved import ResolvedRecipe
from lit_opt.resolve.strategies import refusals


def demand_problems(resolved: ResolvedRecipe, trainer: Any, module: Any, *, optimizer: bool = True) -> list[str]:
    """What the recipe needs and this run does not have.

    Args:
        resolved: The recipe's numbers.
        trainer: A Trainer inside `fit`.
        module: Its LightningModule.
        optimizer: Whether the recipe's optimizer is used, not one of the module's own.
    """
    row = get_row(resolved.optimizer) if optimizer and isinstance(resolved.optimizer, str) else None
    precision = "16-mixed" if takes_scaled_gradients(trainer) else "32-true"
    if getattr(trainer.precision_plugin, "precision", "") == "bf16-true":
        precision = "bf16-true"
    problems = refusals(resolved, strategy_kind(trainer), precision, optimizer=optimizer)
    problems += clip_problems(resolved, module)
    if optimizer:
        problems += exact_problems(resolved, trainer, module) + sparse_problems(resolved, module)
        problems += complex_problems(resolved, module)
    if row is not None and row.needs_closure:
        problems += two_pass_problems(row.name, trainer, module)
    if row is not None and row.exchanges and getattr(trainer.strategy, "_ddp_comm_hook", None) is not None:
        problems.append(
            f"optimizer: {row.name} brings its own communication hook, and DDPStrategy(ddp_comm_hook=...) was given. "
            "Remove it, or choose another optimizer."
        )
    return problems


def sparse_problems(resolved: ResolvedRecipe, module: Any) -> list[str]:
    """Layers whose gradients are sparse, under an optimizer that needs whole ones.

    Args:
        resolved: The recipe's numbers.
        module: Any torch module.

    Example:
        >>> from lit_opt.recipes import get_recipe
        >>> from lit_opt.resolve import preview
        >>> sparse_problems(preview(get_recipe("llm")), torch.nn.Embedding(2, 2))
        []
    """
    takes = (torch.optim.SGD, torch.optim.Adagrad, torch.optim.SparseAdam)
    own = isinstance(resolved.optimizer, type) and issubclass(resolved.optimizer, takes)
    if own or (resolved.optimizer == "sgd" and resolved.clip is None):
        return []
    found = [
        name or type(part).__name__
        for name, part in module.named_modules()
        if isinstance(part, torch.nn.Embedding | torch.nn.EmbeddingBag) and part.sparse and part.weight.requires_grad
    ]
    if not found:
        return []
    what = f"{resolved.optimizer_name} with clipping" if resolved.optimizer == "sgd" else resolved.optimizer_name
    return [
        f"optimizer: {what} cannot take the sparse gradients of {', '.join(found[:3])}. Build the embedding with sparse=False, "
        "or take optimizer='sgd' with clip=0."
    ]


def complex_problems(resolved: ResolvedRecipe, module: Any) -> list[str]:
    """Complex parameters under an optimizer that takes real ones; those of torch see pairs of real numbers.

    Args:
        resolved: The recipe's numbers.
        module: Any torch module.

    Example:
        >>> from lit_opt.recipes import get_recipe
        >>> from lit_opt.resolve import preview
        >>> complex_problems(preview(get_recipe("llm")), torch.nn.Linear(2, 2, dtype=torch.complex64))
        []
    """
    if not isinstance(resolved.optimizer, str) or get_row(resolved.optimizer).provider == "torch":
        return []
    found = _complex(module)
    if not found:
        return []
    return [
        f"optimizer: {resolved.optimizer} takes real parameters, and these are complex: {', '.join(found[:3])}. Hold real and imaginary "
        "part as a last dimension of 2 (torch.view_as_complex in the forward), or take an optimizer of torch, such as 'adamw'."
    ]


def clip_problems(resolved: ResolvedRecipe, module: Any) -> list[str]:
    """Complex parameters under clipping by value: torch has no clamp for them.

    Args:
        resolved: The recipe's numbers.
        module: Any torch module.

    Example:
        >>> from lit_opt.recipes import get_recipe
        >>> from lit_opt.resolve import preview
        >>> clip_problems(preview(get_recipe("llm")), torch.nn.Linear(2, 2, dtype=torch.complex64))
        []
    """
    found = _complex(module) if resolved.clip is not None and resolved.clip.kind == "value" else []
    if not found:
        return []
    return [
        f"clip: kind 'value' has no meaning for complex parameters, and these are: {', '.join(found[:3])}. Clip by the norm, "
        "ClipSpec(limit=1.0), or take clip=0."
    ]


def _complex(module: Any) -> list[str]:
    return [name for name, p in module.named_parameters() if p.is_complex() and p.requires_grad]


def left_out(optimizer: Optimizer, module: Any) -> list[str]:
    """Names of trainable parameters that the optimizer does not have.

    Args:
        optimizer: Of the recipe.
        module: Any torch module.

    Example:
        >>> layer = torch.nn.Linear(2, 2)
        >>> left_out(torch.optim.SGD([layer.weight]), layer)
        ['bias']
    """
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return [name for name, p in module.named_parameters() if p.requires_grad and id(p) not in held]


def fit_to_run(resolved: ResolvedRecipe, optimizer: Optimizer, trainer: Any, module: Any) -> None:
    """Give the optimizer what it needs of this run, once it is made.

    Args:
        resolved: The recipe's numbers.
        optimizer: Of the recipe.
        trainer: A Trainer inside `fit`.
        module: Its LightningModule.

    Raises:
        RecipeError: What it needs is not there.
    """
    problems = demand_problems(resolved, trainer, module)
    if problems:
        raise RecipeError(problems)
    prepare_two_passes(optimizer, trainer, module)
    share_work(optimizer, trainer, module)


def meet_demands(resolved: ResolvedRecipe, optimizer: Optimizer, trainer: Any) -> None:
    """Register the optimizer with the DDP model, which exists from `on_train_start` on."""
    row = get_row(resolved.optimizer) if isinstance(resolved.optimizer, str) else None
    if row is not None and row.exchanges and "DDPStrategy" in {b.__name__ for b in type(trainer.strategy).__mro__}:
        optimizer.register(trainer.strategy.model)  # type: ignore[attr-defined]


def release(optimizer: Optimizer) -> None:
    """Take the optimizer's hooks off the module."""
    remove = getattr(optimizer, "remove_hooks", None)
    if remove is not None:
        remove()
