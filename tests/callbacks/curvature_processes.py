"""Run by test_curvature.py, in two processes: `python -m tests.callbacks.curvature_processes FOLDER`.

Each rank writes what it saw to FOLDER/RANK.pt; the test compares it with one process.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook

from lit_opt import GradientNoiseScale, Recipe
from lit_opt.errors import RecipeError
from tests.callbacks.modules import Net, SaveAt, trainer
from tests.callbacks.processes import STEPS, Share

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "kfac": {"lr": 0.05, "weight_decay": 1e-3},
    "natural_gradient": {"lr": 0.05, "weight_decay": 1e-3},
    "onebit_adam": {"lr": 1e-3, "weight_decay": 1e-2, "optimizer_kwargs": {"freeze_step": 2}},
}


class Plain(Net):
    """Linear layers alone, which is what the natural gradient takes, in float64."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)).double()

    def loss(self, batch: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(self.net(batch[0].double()), batch[1])


def recipe(name: str, **kwargs: Any) -> Recipe:
    return Recipe("cnn", optimizer=name, **({"warmup": 2, "clip": 0.5} | OPTIMIZERS[name] | kwargs))


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def fit(name: str, rank: int, world: int, *callbacks: Any, ckpt_path: Path | None = None, **how: Any) -> Plain:
    module = Plain()
    t = trainer(recipe(name), *callbacks, devices=world, max_steps=STEPS, use_distributed_sampler=False, **how)
    t.fit(module, Share(rank, world), ckpt_path=ckpt_path)
    return module


def main(folder: Path) -> None:
    rank = int(os.environ.get("LOCAL_RANK", 0))
    result: dict[str, Any] = {}
    try:
        for name in OPTIMIZERS:
            path = folder / f"{name}.ckpt"
            straight = fit(name, rank, 2, SaveAt(path, 4), strategy="ddp")
            resumed = fit(name, rank, 2, ckpt_path=path, strategy="ddp")
            hooks = sum(len(part._forward_hooks) for part in straight.modules())
            result[name] = {"straight": weights(straight), "resumed": weights(resumed), "hooks": hooks}
        noise = GradientNoiseScale(decay=0.5)
        fit("kfac", rank, 2, noise, strategy="ddp")
        result["noise"] = noise.state_dict()
        try:
            fit("onebit_adam", rank, 2, strategy=DDPStrategy(ddp_comm_hook=fp16_compress_hook))
        except RecipeError as error:
            result["hook"] = str(error)
    except BaseException:
        result["error"] = traceback.format_exc()
    torch.save(result, folder / f"{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
