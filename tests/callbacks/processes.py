"""Run by test_processes.py, in two processes: `python -m tests.callbacks.processes FOLDER`.

Each rank writes what it saw to FOLDER/KIND.RANK.pt; the test compares it with one process.
"""

import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn import Parameter

from lit_opt import ClipSpec, GroupRule, Recipe
from lit_opt.callbacks.clipping import clip_gradients
from lit_opt.errors import RecipeError
from tests.callbacks.modules import Net, SaveAt, trainer

KINDS = ("ddp", "fsdp2", "fsdp1")
STEPS = 6


def rank() -> int:
    return int(os.environ.get("LOCAL_RANK", 0))


class Share:
    """This process's part of each global batch of 8; knows its position."""

    def __init__(self, rank: int, world_size: int) -> None:
        g = torch.Generator().manual_seed(0)
        inputs, labels = torch.randn(STEPS, 8, 8, generator=g), torch.randint(0, 4, (STEPS, 8), generator=g)
        part = slice(rank * 8 // world_size, (rank + 1) * 8 // world_size)
        self.batches = [[x[part], y[part]] for x, y in zip(inputs, labels, strict=True)]
        self.batch_size = 8 // world_size
        self.position = 0

    def __len__(self) -> int:
        return STEPS

    def __iter__(self) -> Any:
        for position in range(self.position, STEPS):
            self.position = position + 1
            yield self.batches[position]

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


class Draws(Net):
    """Draws a number a step, another on each process."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[float] = []

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.drawn.append(float(torch.rand(())))


class Sharded(Draws):
    def configure_model(self) -> None:
        from torch.distributed.fsdp import fully_shard

        assert self.device_mesh is not None
        if any(isinstance(p, DTensor) for p in self.parameters()):
            return
        for layer in (self.net[0], self.net[3], self.net):
            fully_shard(layer, mesh=self.device_mesh["data_parallel"])


def recipe(**kwargs: Any) -> Recipe:
    given: dict[str, Any] = {"lr": 1e-2, "warmup": 2, "clip": 0.05}
    return Recipe("llm", **(given | {"groups": [GroupRule(match="net.0.*", lr_scale=0.5)]} | kwargs))


def make(kind: str) -> tuple[Draws, dict[str, Any]]:
    if kind == "ddp":
        return Draws(), {"strategy": "ddp"}
    if kind == "fsdp2":
        sharding = ModelParallelStrategy(
            data_parallel_size=2, tensor_parallel_size=1, save_distributed_checkpoint=False
        )
        return Sharded(), {"strategy": sharding}
    return Draws(), {"strategy": FSDPStrategy(auto_wrap_policy={nn.Linear}, use_orig_params=True)}


def allow_fsdp1_on_the_cpu() -> None:
    """Lightning refuses FSDPStrategy without a GPU; torch itself runs it with gloo."""
    from lightning.pytorch.trainer.connectors import accelerator_connector

    accelerator_connector._AcceleratorConnector._check_strategy_and_fallback = lambda self: None  # type: ignore[method-assign]
    init = FullyShardedDataParallel.__init__

    def on_cpu(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **(kwargs | {"device_id": torch.device("cpu")}))

    FullyShardedDataParallel.__init__ = on_cpu  # type: ignore[method-assign]


def fit(kind: str, ours: Recipe, *callbacks: Any, ckpt_path: Path | None = None) -> dict[str, Any]:
    module, how = make(kind)
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    root = logging.getLogger("lightning.pytorch")
    root.addHandler(handler)
    names = set(vars(module))
    t = trainer(ours, *callbacks, devices=2, max_steps=STEPS, use_distributed_sampler=False, **how)
    t.fit(module, Share(rank(), 2), ckpt_path=ckpt_path)
    root.removeHandler(handler)
    assert ours.run is not None
    left = [name for name in ("setup", "configure_model", "configure_optimizers", "configure_gradient_clipping",
            "on_save_checkpoint") if name in vars(module) and name not in names]  # fmt: skip
    return {
        "seen": module.seen,
        "drawn": module.drawn,
        "groups": ours.run.group_names,
        "facts": ours.run.resolved.facts,
        "clip": ours.run.resolved.clip,
        "recipes_logged": sum("Recipe llm" in line for line in lines),
        "left": left,
        "step": t.global_step,
    }


def one_kind(kind: str, folder: Path) -> dict[str, Any]:
    path, end, again = folder / f"{kind}.ckpt", folder / f"{kind}.end.ckpt", folder / f"{kind}.again.ckpt"
    torch.manual_seed(100 + rank())
    result: dict[str, Any] = {"straight": fit(kind, recipe(), SaveAt(path, 3), SaveAt(end, STEPS))}
    torch.manual_seed(200 + rank())
    result["resumed"] = fit(kind, recipe(), SaveAt(again, STEPS), ckpt_path=path)
    result["theirs"] = fit(kind, recipe(lr=0.5, clip=9.0, on_resume="checkpoint"), ckpt_path=path)
    try:
        fit(kind, recipe(lr=0.5), ckpt_path=path)
    except RecipeError as error:
        result["refused"] = str(error)
    return result


class CountsReductions(Callback):
    """How often DDP sends a bucket of gradients."""

    def __init__(self) -> None:
        self.count = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        def hook(state: Any, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
            self.count += 1
            return allreduce_hook(torch.distributed.group.WORLD, bucket)  # type: ignore[arg-type]

        trainer.strategy.model.register_comm_hook(None, hook)


def sam(kind: str) -> dict[str, Any]:
    """Weights after SAM steps at a constant rate without momentum, so that a test can repeat them by hand."""
    module, how = make(kind)
    counter = CountsReductions()
    ours = Recipe("cnn", optimizer="sam", lr=0.1, momentum=0.0, weight_decay=0.0, warmup=0, decay="constant", clip=0,
                  optimizer_kwargs={"rho": 0.5})  # fmt: skip
    t = trainer(ours, *([counter] if kind == "ddp" else []), devices=2, max_steps=STEPS,
                use_distributed_sampler=False, **how)  # fmt: skip
    t.fit(module, Share(rank(), 2))
    weights = [p.full_tensor() if isinstance(p, DTensor) else p.detach() for p in module.parameters()]
    return {"weights": weights, "reductions": counter.count, "step": t.global_step}


def mixed_buckets() -> dict[str, Any]:
    """Plain tensors beside DTensors: the norm is that of all full gradients."""
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
    g = torch.Generator().manual_seed(1)
    full, plain = torch.randn(6, 4, generator=g), torch.randn(5, generator=g)
    from torch.distributed.tensor import Replicate, Shard

    result: dict[str, Any] = {}
    for kind in ("norm", "value"):
        parameters = [
            Parameter(distribute_tensor(torch.zeros(6, 4), mesh, [Shard(0)])),
            Parameter(torch.zeros(5)),
            Parameter(distribute_tensor(torch.zeros(6, 4), mesh, [Replicate()])),
        ]
        parameters[0].grad = distribute_tensor(full.clone(), mesh, [Shard(0)])
        parameters[1].grad = plain.clone()
        parameters[2].grad = distribute_tensor(full.clone(), mesh, [Replicate()])
        norm = clip_gradients(parameters, ClipSpec(limit=0.5, kind=kind))
        grads = [p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad for p in parameters]
        result[kind] = {"norm": norm, "grads": grads, "full": [full, plain, full]}
    return result


def main(folder: Path) -> None:
    allow_fsdp1_on_the_cpu()
    for kind in KINDS:
        try:
            result: dict[str, Any] = one_kind(kind, folder)
            if kind == "ddp":
                result["mixed"] = mixed_buckets()
            if kind != "fsdp1":
                result["sam"] = sam(kind)
        except BaseException:
            result = {"error": traceback.format_exc()}
        torch.save(result, folder / f"{kind}.{rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
