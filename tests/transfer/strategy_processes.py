"""Run by test_strategies.py, in two processes: `python -m tests.transfer.strategy_processes FOLDER`.

Both processes see the same batches, so that averaged gradients are those of one process to the last bit.
"""

from __future__ import annotations

import os
import sys
import traceback
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch.distributed.tensor import DTensor

from lit_opt import Recipe, Transfer, scale_initial
from lit_opt.workloads import LanguageModel
from tests.callbacks.matrix_processes import STEPS, Batches
from tests.callbacks.modules import SaveAt, trainer
from tests.processes import share_meshes

METHODS = {"adamw": 1e-2, "muon": 0.02}
STRATEGIES = ("ddp", "fsdp2")


class Llama(LanguageModel):
    """A model of any size that shards itself where the strategy has a mesh."""

    def __init__(self, width: int = 32, layers: int = 2, **options: Any) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            super().__init__(layers=layers, width=width, heads=width // 8, mlp_width=2 * width, context=16, **options)

    def configure_model(self) -> None:
        from torch.distributed.fsdp import fully_shard

        if self.device_mesh is None or any(isinstance(p, DTensor) for p in self.parameters()):
            return
        mesh = self.device_mesh["data_parallel"]
        for layer in self.model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(self.model, mesh=mesh)


SMALL = partial(Llama, 16, 1)


def fit(method: str, how: dict[str, Any], *callbacks: Any, ckpt_path: Path | None = None) -> dict[str, Any]:
    """Train a model twice as wide and as deep as its base; its weights and groups."""
    module = Llama(32, 2, residual_scale=0.5)
    scale_initial(module, SMALL)
    kwargs = {"ns_dtype": "float32"} if method == "muon" else {}
    recipe = Recipe(
        "llm", optimizer=method, lr=METHODS[method], weight_decay=0.1, warmup=2, batch_tokens=128,
        transfer=Transfer(base=SMALL, depth=True), optimizer_kwargs=kwargs or None,
    )  # fmt: skip
    t = trainer(recipe, *callbacks, max_steps=STEPS, use_distributed_sampler=False, **how)
    t.fit(module, Batches(), ckpt_path=ckpt_path)
    assert recipe.optimizer is not None
    names = {id(p): name for name, p in module.named_parameters()}
    groups = {
        group["name"]: (
            sorted(names[id(p)] for p in group["params"]),
            *(group[key] for key in ("initial_lr", "lr", "weight_decay")),
            group.get("eps"),
        )
        for group in recipe.optimizer.param_groups
    }
    weights = {
        name: p.full_tensor() if isinstance(p, DTensor) else p.detach().clone() for name, p in module.named_parameters()
    }
    return {"weights": weights, "groups": groups}


def strategy(kind: str) -> dict[str, Any]:
    if kind == "ddp":
        return {"devices": 2, "strategy": DDPStrategy(process_group_backend="gloo")}
    sharding = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, save_distributed_checkpoint=False)
    return {"devices": 2, "strategy": sharding}


def main(folder: Path) -> None:
    """Each method under each strategy: a run that saves half way, and two that resume, what it saved and what one process saved."""
    rank = int(os.environ.get("LOCAL_RANK", 0))
    share_meshes()
    for kind in STRATEGIES:
        for method in METHODS:
            try:
                saved = folder / f"{kind}.{method}.ckpt"
                result = {"straight": fit(method, strategy(kind), SaveAt(saved, STEPS // 2))}
                result["resumed"] = fit(method, strategy(kind), ckpt_path=saved)
                result["from one"] = fit(method, strategy(kind), ckpt_path=folder / f"alone.{method}.ckpt")
            except BaseException:
                result = {"error": {"trace": traceback.format_exc()}}
            torch.save(result, folder / f"{kind}.{method}.{rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
