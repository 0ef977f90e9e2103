"""Run by test_forms.py, in two processes: `python -m tests.callbacks.forms_processes FOLDER`."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.tensor import DTensor

from lit_opt import ClipSpec, Recipe
from tests.callbacks.forms import FORMS, module_of, placed
from tests.callbacks.modules import trainer
from tests.callbacks.processes import STEPS, Share, allow_fsdp1_on_the_cpu, rank

LAYOUTS = ("ddp", "fsdp2", "fsdp1")


def recipe_of(form: str) -> Recipe:
    return Recipe("llm/lora" if form == "lora" else "llm", lr=1e-2, warmup=0, clip=0.05)


def strategy_of(layout: str, form: str) -> Any:
    if layout == "ddp":
        return DDPStrategy(process_group_backend="gloo")
    if layout == "fsdp1":
        # A wrapper inside a compiled part is more than torch.compile can trace, with or without a recipe.
        policy: Any = None if form == "compiled" else {nn.Linear}
        return FSDPStrategy(auto_wrap_policy=policy, use_orig_params=True)
    return ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, save_distributed_checkpoint=False)


def fit(module: Any, recipe: Recipe, layout: str, form: str = "plain") -> dict[str, Any]:
    t = trainer(recipe, devices=2, strategy=strategy_of(layout, form), max_steps=STEPS, use_distributed_sampler=False)
    t.fit(module, Share(rank(), 2))
    module = t.lightning_module
    if layout == "fsdp1":
        from torch.distributed.fsdp import FullyShardedDataParallel

        assert t.strategy.model is not None
        with FullyShardedDataParallel.summon_full_params(t.strategy.model, writeback=False):
            weights = [p.detach().clone() for p in module.parameters()]
    else:
        weights = [(p.full_tensor() if isinstance(p, DTensor) else p).detach() for p in module.parameters()]
    return {"placed": placed(recipe), "weights": weights}


def by_value(layout: str) -> dict[str, Any]:
    """Plain SGD and a limit for each entry that most gradients exceed: what was clipped can be seen in the weights."""
    clip = ClipSpec(limit=1e-3, kind="value")
    return fit(
        module_of("plain", layout), Recipe("cnn", lr=0.1, momentum=0.0, warmup=0, clip=clip, batch_size=8), layout
    )


def nameless() -> str:
    """FSDP1 without use_orig_params has one parameter that nobody can take apart."""
    strategy = FSDPStrategy(auto_wrap_policy={nn.Linear}, use_orig_params=False)
    t = trainer(Recipe("llm"), devices=2, strategy=strategy, max_steps=1, use_distributed_sampler=False)
    try:
        t.fit(module_of("plain"), Share(rank(), 2))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was refused"


def main(folder: Path) -> None:
    allow_fsdp1_on_the_cpu()
    for layout in LAYOUTS:
        found: dict[str, Any] = {}
        for form in FORMS:
            try:
                found[form] = fit(module_of(form, layout), recipe_of(form), layout, form)
            except Exception:
                found[form] = {"error": traceback.format_exc()}
        found["by_value"] = by_value(layout)
        if layout == "fsdp1":
            found["nameless"] = nameless()
        torch.save(found, folder / f"{layout}.{rank()}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
