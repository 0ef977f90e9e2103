"""Run by test_matrix_processes.py, in two processes: `python -m tests.callbacks.matrix_processes FOLDER`.

Both processes see the same batches, so that the averaged gradients are those of one process to the last bit, and what
is compared is the step alone.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch.distributed.tensor import DTensor

from lit_opt import Recipe
from lit_opt.optim.matrix import engine
from lit_opt.optim.matrix.sharded import dividing_processes
from lit_opt.workloads import LanguageModel
from tests.callbacks.modules import SaveAt, trainer

METHODS = ("muon", "normuon", "teon", "mars_m")
STRATEGIES = ("ddp", "fsdp2")
STEPS = 6
# Seven matrices in each of two blocks.
MATRICES = 14


class Llama(LanguageModel):
    """Small enough for a test; shards itself where the strategy has a mesh."""

    def __init__(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            super().__init__(layers=2, width=16, heads=2, mlp_width=36, context=16)

    def configure_model(self) -> None:
        from torch.distributed.fsdp import fully_shard

        if self.device_mesh is None or any(isinstance(p, DTensor) for p in self.parameters()):
            return
        mesh = self.device_mesh["data_parallel"]
        for layer in self.model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(self.model, mesh=mesh)


class Batches:
    """The same windows of bytes for every process; knows its position."""

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(0)
        self.windows = torch.randint(0, 256, (STEPS, 4, 17), generator=g)
        self.position = 0

    def __len__(self) -> int:
        return STEPS

    def __iter__(self) -> Any:
        for position in range(self.position, STEPS):
            self.position = position + 1
            yield self.windows[position]

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


def recipe(method: str) -> Recipe:
    lr = 1e-3 if method == "mars_m" else 0.02
    return Recipe(
        "llm",
        optimizer=method,
        lr=lr,
        weight_decay=0.01,
        warmup=2,
        batch_tokens=128,
        optimizer_kwargs={"ns_dtype": "float32"},
    )


def fit(method: str, how: dict[str, Any], *callbacks: Any, ckpt_path: Path | None = None) -> dict[str, Any]:
    """Train, and say how many matrices this process orthogonalised in each step."""
    counted: list[int] = []
    orthogonalise = engine.orthogonalize_

    def counting(batches: Sequence[torch.Tensor], *args: Any) -> list[torch.Tensor]:
        # under DDP one without work computes one zero matrix
        counted.extend(batch.size(0) if batch.any() else 0 for batch in batches)
        return orthogonalise(batches, *args)

    engine.orthogonalize_ = counting  # type: ignore[assignment]
    module, ours = Llama(), recipe(method)
    t = trainer(ours, *callbacks, max_steps=STEPS, use_distributed_sampler=False, **how)
    try:
        t.fit(module, Batches(), ckpt_path=ckpt_path)
    finally:
        engine.orthogonalize_ = orthogonalise
    assert ours.optimizer is not None
    weights = {
        name: p.full_tensor() if isinstance(p, DTensor) else p.detach().clone() for name, p in module.named_parameters()
    }
    steps = STEPS if ckpt_path is None else STEPS // 2
    return {"weights": weights, "matrices": sum(counted) / steps, "processes": dividing_processes(ours.optimizer)}


def strategy(kind: str) -> dict[str, Any]:
    if kind == "ddp":
        return {"devices": 2, "strategy": DDPStrategy(process_group_backend="gloo")}
    sharding = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, save_distributed_checkpoint=False)
    return {"devices": 2, "strategy": sharding}


def noop_hook(state: object, bucket: Any) -> Any:
    """Stands for a hook of DDP that leaves gradients as they are."""
    raise AssertionError("gloo never calls it")


def main(folder: Path) -> None:
    rank = int(os.environ.get("LOCAL_RANK", 0))
    for kind in STRATEGIES:
        for method in METHODS:
            path = folder / f"{kind}.{method}.ckpt"
            try:
                result: dict[str, Any] = {"straight": fit(method, strategy(kind), SaveAt(path, STEPS // 2))}
                result["resumed"] = fit(method, strategy(kind), ckpt_path=path)
                if (kind, method) == ("ddp", "muon"):
                    unsynchronised = {"devices": 2, "strategy": DDPStrategy(ddp_comm_hook=noop_hook)}
                    result["unsynchronised"] = fit(method, unsynchronised)
            except BaseException:
                result = {"error": traceback.format_exc()}
            torch.save(result, folder / f"{kind}.{method}.{rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
