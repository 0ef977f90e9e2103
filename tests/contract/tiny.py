"""One tiny module that every recipe fits, and the strategies that a CPU can run; for the table of strategies."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lit_opt.recipes import get_recipe

# Wide enough for one weight of 4,096 values, which moments of 8 bits begin at.
STEPS, BATCH, WIDTH, MLP = 3, 8, 32, 128


class Low(nn.Module):
    """A frozen layer with a low-rank adapter beside it, named as peft names them."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.base_layer = layer.requires_grad_(False)
        self.lora_A = nn.Linear(layer.in_features, 2, bias=False)
        self.lora_B = nn.Linear(2, layer.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, MLP), nn.Linear(MLP, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Language(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(8, WIDTH)
        self.layers = nn.ModuleList(Block() for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH)
        self.lm_head = nn.Linear(WIDTH, 5, bias=False)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        x = x + self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(self.norm(x))


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 2)
        self.mix, self.out = nn.Linear(12, 20), nn.Linear(20, 35)  # 35 rows: no two or four processes share them evenly

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.gelu(self.mix(self.conv(x.view(-1, 1, 2, 4)).flatten(1))))


class Everything(nn.Module):
    """Convolution, projector, embedding, repeated blocks, norms and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.vision_tower = Tower()
        self.multi_modal_projector = nn.Linear(35, WIDTH)
        self.language_model = Language()

    def forward(self, x: Tensor) -> Tensor:
        tokens = ((x[:, :3] > 0).long() * torch.tensor([1, 2, 4], device=x.device)).sum(1)
        seen = self.multi_modal_projector(self.vision_tower(x.to(self.multi_modal_projector.weight.dtype)))
        return self.language_model(seen, tokens)


class Tiny(LightningModule):
    """Sharded in `configure_model` as `layout` says, where the strategy has a mesh."""

    def __init__(self, recipe: str, layout: str = "") -> None:
        super().__init__()
        self.layout = layout
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.net = Everything()
            if get_recipe(recipe).trains == "adapters":
                self.net.requires_grad_(False)
                for layer in self.net.language_model.layers:
                    layer.up, layer.down = Low(layer.up), Low(layer.down)
                    for low in (layer.up, layer.down):
                        nn.init.normal_(low.lora_B.weight, std=0.02)
        self.losses: list[float] = []

    def configure_model(self) -> None:
        if not self.layout or any(isinstance(p, DTensor) for p in self.parameters()):
            return
        assert self.device_mesh is not None
        if self.layout == "tp":
            tensor_parallel(self.net, self.device_mesh["tensor_parallel"])
            return
        from torch.distributed.fsdp import fully_shard

        mesh = self.device_mesh["data_parallel"]
        if self.layout == "hsdp":
            mesh = replicas_of_shards()
        for part in (*self.net.language_model.layers, self.net):
            fully_shard(part, mesh=mesh)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self.net(batch[0]).float(), batch[1])
        self.losses.append(float(loss.detach()))
        return loss


@cache
def replicas_of_shards() -> Any:
    """One mesh for all runs of a process, as in tests.processes.share_meshes."""
    return torch.distributed.init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))


def tensor_parallel(net: Everything, mesh: Any) -> None:
    """Megatron's pair in each block; norms, embedding, head and convolution stay plain and replicated."""
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    for block in net.language_model.layers:
        whole = ColwiseParallel(output_layouts=Replicate())
        plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
        if isinstance(block.up, Low):
            plan = {"up.base_layer": whole, "up.lora_B": whole}
        parallelize_module(block, mesh, plan)


class Share:
    """This process's part of each global batch of 8, in one order; knows its position."""

    def __init__(self, part: int, parts: int) -> None:
        g = torch.Generator().manual_seed(0)
        x, y = torch.randn(STEPS, BATCH, 8, generator=g), torch.randint(0, 5, (STEPS, BATCH), generator=g)
        own = slice(part * BATCH // parts, (part + 1) * BATCH // parts)
        self.batches = [[a[own], b[own]] for a, b in zip(x, y, strict=True)]
        self.batch_size = BATCH // parts
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
