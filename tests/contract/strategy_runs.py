"""Run by test_strategies.py, in 1, 2 and 4 processes: `python -m tests.contract.strategy_runs FOLDER/PROCESSES`.

Each recipe trains under each strategy and precision that this number of processes is for, or with FOLDER/PROCESSES-quick
some of them; each rank writes what it saw.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.precision import FSDPPrecision, MixedPrecision
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from torch.distributed.tensor import DTensor

from lit_opt import Recipe
from lit_opt.errors import RecipeError
from lit_opt.recipes import list_recipes
from lit_opt.resolve.strategies import PRECISIONS, lightning_refuses
from tests.callbacks.modules import SaveAt, trainer
from tests.callbacks.processes import allow_fsdp1_on_the_cpu
from tests.contract.tiny import BATCH, STEPS, Block, Share, Tiny
from tests.processes import share_meshes

KINDS = {1: ("single",), 2: ("ddp", "fsdp1", "fsdp2", "tp"), 4: ("hsdp",)}
PROCESSES = {kind: n for n, kinds in KINDS.items() for kind in kinds}
# One recipe of each kind of optimizer, with clipping, averages, adapters, factors and two passes among them.
SOME = ["diffusion", "large_batch/lars", "llm/adafactor", "llm/lora", "llm/muon", "vit/sam"]


def quick(kind: str, precision: str) -> list[str]:
    """What is run in the default tests."""
    if precision == "32-true" and kind != "hsdp":
        return list_recipes()
    return ["diffusion", "llm/muon"]


def rank() -> int:
    return int(os.environ.get("LOCAL_RANK", 0))


def how(kind: str, precision: str) -> dict[str, Any]:
    """The Trainer's arguments. Where Lightning knows no float16 on a CPU, its plugin is given."""
    options: dict[str, Any] = {"precision": precision}
    if precision == "16-mixed":
        options = {"plugins": [MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=64.0))]}
        if kind == "fsdp1":
            plugin = FSDPPrecision("16-mixed")
            plugin.scaler = ShardedGradScaler("cpu", init_scale=64.0)  # as an argument it is refused (Lightning 2.6.6)
            options = {"plugins": [plugin]}
    n = PROCESSES[kind]
    if kind == "ddp":
        options["strategy"] = DDPStrategy(process_group_backend="gloo")
    elif kind == "fsdp1":
        # Sharded checkpoints: into whole ones FSDP1 on a CPU writes one tensor for both of Adam's moments (torch 2.15).
        options["strategy"] = FSDPStrategy(auto_wrap_policy={Block}, use_orig_params=True, state_dict_type="sharded")
    elif kind != "single":
        tensor = n if kind == "tp" else 1
        options["strategy"] = ModelParallelStrategy(
            data_parallel_size=n // tensor, tensor_parallel_size=tensor, save_distributed_checkpoint=False
        )
    return options | {"devices": n}


class Watch(Callback):
    """The norm before clipping and the weights after the last step, whole."""

    def __init__(self) -> None:
        self.norms: list[float] = []
        self.weights: dict[str, torch.Tensor] = {}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        session = next(c for c in trainer.callbacks if isinstance(c, Recipe))._session
        assert session is not None
        if session.norm is not None:
            self.norms.append(float(session.norm))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.weights = whole(trainer, pl_module)


def whole(trainer: Any, module: nn.Module) -> dict[str, torch.Tensor]:
    """Whole trainable weights by name, in all processes."""
    if type(trainer.strategy).__name__ == "FSDPStrategy":
        from torch.distributed.fsdp import FullyShardedDataParallel

        with FullyShardedDataParallel.summon_full_params(trainer.strategy.model, writeback=False):
            return {name: p.detach().clone() for name, p in _trainable(module)}
    return {name: (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone() for name, p in _trainable(module)}


def _trainable(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name.replace("_fsdp_wrapped_module.", ""), p) for name, p in module.named_parameters() if p.requires_grad]


def fit(kind: str, precision: str, name: str, *callbacks: Any, ckpt_path: Path | None = None) -> dict[str, Any]:
    module = Tiny(name, layout=kind if kind in ("fsdp2", "hsdp", "tp") else "")
    recipe, watch = Recipe(name, batch_size=BATCH), Watch()
    t = trainer(recipe, watch, *callbacks, max_steps=STEPS, use_distributed_sampler=False, **how(kind, precision))
    parts = 1 if kind in ("single", "tp") else PROCESSES[kind]
    t.fit(module, Share(rank() if parts > 1 else 0, parts), ckpt_path=ckpt_path)
    assert recipe.run is not None
    return {
        "losses": module.losses,
        "norms": watch.norms,
        "weights": watch.weights,
        "rows": [(row.name, row.group, row.weight_decay, row.lr) for row in recipe.run.groups.rows()],
        "step": t.global_step,
    }


def cell(kind: str, precision: str, name: str, folder: Path, resume: bool = True) -> dict[str, Any]:
    """One recipe under one strategy and precision: trained, and where weights are float32 also resumed."""
    path = folder / f"{kind}.ckpt"
    try:
        if precision != "32-true" or not resume:
            return {"straight": fit(kind, precision, name)}
        straight = fit(kind, precision, name, SaveAt(path, STEPS - 1))
        return {"straight": straight, "resumed": fit(kind, precision, name, ckpt_path=path)}
    except RecipeError as error:
        return {"refused": str(error)}
    except Exception:
        return {"error": traceback.format_exc()}


def main(folder: Path) -> None:
    quiet()
    share_meshes()
    allow_fsdp1_on_the_cpu()
    number, _, some = folder.name.partition("-")
    for kind in KINDS[int(number)]:
        found: dict[str, dict[str, Any]] = {}
        for precision in PRECISIONS:
            if not lightning_refuses(kind, precision):
                names = quick(kind, precision) if some else list_recipes()
                found[precision] = {n: cell(kind, precision, n, folder, not some or n in SOME) for n in names}
        torch.save(found, folder / f"{kind}.{rank()}.pt")


def quiet() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
