"""Run by test_tensor_parallel.py, in two processes: `python -m tests.callbacks.tensor_parallel_processes FOLDER`.

A small transformer whose layers `configure_model` divides among two processes, trained through a Recipe. Both see the
same batches, as the processes of one tensor-parallel group do.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from lit_opt import Recipe
from tests.callbacks.matrix_processes import STEPS, Batches
from tests.callbacks.modules import SaveAt, trainer
from tests.contract.strategy_runs import Watch, quiet
from tests.processes import share_meshes

METHODS = ("llm", "llm/muon", "llm/normuon", "llm/scion")
# "whole": activations between layers are whole, norms plain tensors. "sequence": activations between layers are cut
# along the sequence, and the gradients of norms are sums that nobody has added up.
PLANS = ("whole", "sequence")
DTYPES = {"float32": torch.float32, "float64": torch.float64}
# In float64 rounding hides nothing; one method is enough for that.
CASES = [(name, plan, "float32") for name in METHODS for plan in PLANS] + [
    ("llm/muon", plan, "float64") for plan in PLANS
]
WIDTH, HEAD, MLP = 16, 4, 36


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        # As many heads as this process has.
        q, k, v = (
            part(x).unflatten(-1, (-1, HEAD)).transpose(1, 2) for part in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.o_proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class GatedMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(WIDTH, MLP, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(MLP, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.self_attn, self.mlp = Attention(), GatedMLP()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Transformer(LightningModule):
    """Named as Hugging Face's Llama is."""

    def __init__(self, plan: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.plan, self.losses = plan, list[float]()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.embed_tokens = nn.Embedding(256, WIDTH)
            self.layers = nn.ModuleList(Block() for _ in range(2))
            self.norm = nn.RMSNorm(WIDTH)
            self.lm_head = nn.Linear(WIDTH, 256, bias=False)
        self.to(dtype)

    def configure_model(self) -> None:
        if self.device_mesh is not None and not any(isinstance(p, DTensor) for p in self.parameters()):
            parallelise(self, self.device_mesh["tensor_parallel"], self.plan)

    def training_step(self, windows: Tensor, batch_idx: int) -> Tensor:
        x = self.embed_tokens(windows[:, :-1])
        for layer in self.layers:
            x = layer(x)
        loss = F.cross_entropy(self.lm_head(self.norm(x)).flatten(0, 1), windows[:, 1:].flatten())
        self.losses.append(loss.item())
        return loss


def parallelise(module: Transformer, mesh: Any, plan: str) -> None:
    """The plan of torch's tutorial on tensor parallelism: columns, then rows; embedding and head by their tokens."""
    between = Shard(1) if plan == "sequence" else Replicate()
    ends: dict[str, ParallelStyle] = {
        "embed_tokens": RowwiseParallel(input_layouts=Replicate(), output_layouts=between),
        "lm_head": ColwiseParallel(input_layouts=between, output_layouts=Replicate()),
    }
    block: dict[str, ParallelStyle] = {
        f"{part}.{name}_proj": ColwiseParallel()
        for part, names in {"self_attn": "qkv", "mlp": ("gate", "up")}.items()
        for name in names
    }
    block |= {name: RowwiseParallel(output_layouts=between) for name in ("self_attn.o_proj", "mlp.down_proj")}
    if plan == "sequence":
        ends["norm"] = SequenceParallel()
        for name in ("self_attn", "mlp"):
            block[name] = PrepareModuleInput(input_layouts=Shard(1), desired_input_layouts=Replicate())
        block |= {name: SequenceParallel() for name in ("input_layernorm", "post_attention_layernorm")}
    for layer in module.layers:
        parallelize_module(layer, mesh, block)
    parallelize_module(module, mesh, ends)


def fit(
    name: str, plan: str, dtype: str, devices: int, *callbacks: Any, ckpt_path: Path | None = None
) -> dict[str, Any]:
    """Train, and say what was seen: weights and norms are whole."""
    module, watch = Transformer(plan, DTYPES[dtype]), Watch()
    recipe = Recipe(name, batch_tokens=64, warmup=2, clip=0.3)  # each step is clipped
    strategy: Any = "auto"
    if devices > 1:
        strategy = ModelParallelStrategy(
            data_parallel_size=1, tensor_parallel_size=devices, save_distributed_checkpoint=False
        )
    t = trainer(recipe, watch, *callbacks, devices=devices, max_steps=STEPS, strategy=strategy)
    t.fit(module, Batches(), ckpt_path=ckpt_path)
    return {
        "losses": module.losses,
        "norms": watch.norms,
        "weights": watch.weights,
        "sharded": sum(isinstance(p, DTensor) for p in module.parameters()),
        "step": t.global_step,
    }


def cell(name: str, plan: str, dtype: str, folder: Path) -> dict[str, Any]:
    """Straight, and resumed from the middle."""
    path = folder / f"{name.replace('/', '-')}.{plan}.{dtype}.ckpt"
    try:
        straight = fit(name, plan, dtype, 2, SaveAt(path, STEPS // 2))
        return {"straight": straight, "resumed": fit(name, plan, dtype, 2, ckpt_path=path)}
    except BaseException:
        return {"error": traceback.format_exc()}


def main(folder: Path) -> None:
    quiet()
    share_meshes()
    found = {case: cell(*case, folder) for case in CASES}
    torch.save(found, folder / f"{os.environ.get('LOCAL_RANK', 0)}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
