"""The same weights and gradients on one process and cut in every way: what test_sharded.py and benchmarks step on."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.nn import Parameter

from lit_opt.averaging.shards import is_sharded, like, local, own_part
from lit_opt.optim import build

# Method -> registry name and options.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "muon": ("muon", {"lr": 0.02}),
    "muon_rms": ("muon", {"lr": 1e-3, "scale": "match_rms_adamw", "weight_decay": 0.1}),
    "normuon": ("normuon", {"lr": 0.02}),
    "mars_m": ("mars_m", {"lr": 1e-3}),
    "mars_m_efficient": ("mars_m", {"lr": 1e-3, "variant": "efficient"}),
    "teon": ("teon", {"lr": 0.02}),
    "scion": ("scion", {"lr": 0.01, "scale": 2.0}),
    "aro": ("aro", {"lr": 1e-3}),
    "soap": ("soap", {"lr": 1e-3, "precondition_frequency": 3}),
    "splus": ("splus", {"lr": 0.01, "precondition_frequency": 3}),
    "shampoo": ("shampoo", {"lr": 1e-3, "precondition_frequency": 3}),
}
# The same in blocks: the parts of a matrix that have statistics of their own.
BLOCKS: dict[str, tuple[str, dict[str, Any]]] = {
    "shampoo_blocks": (
        "shampoo",
        {"lr": 1e-3, "precondition_frequency": 3, "max_preconditioner_dim": 5, "grafting": "adam"},
    )
}
# What has state that is divided among owners.
OWNED = ("soap", "splus", "shampoo", "shampoo_blocks")
# Name -> shape, options of its group. Rows that 4 does not divide, one row, fewer rows than processes, fused and stacked
# weights of every layout.
WEIGHTS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "stacked0": ((8, 5), {}),
    "stacked1": ((8, 5), {}),
    "wide": ((5, 8), {}),
    "square": ((6, 6), {}),
    "late": ((6, 6), {}),
    "frozen": ((6, 6), {}),
    "one_row": ((1, 6), {}),
    "three_rows": ((3, 7), {}),
    "kernel": ((9, 4, 2, 2), {}),
    "plain": ((6, 6), {}),
    "vector": ((7,), {}),
    "qkv": ((12, 4), {"split_sizes": [6, 3, 3]}),
    "heads": ((12, 4), {"num_heads": 3}),
    "conv1d": ((4, 6), {"layout": "transposed"}),
    "conv_transposed": ((4, 6, 2, 2), {"layout": "conv_transposed"}),
    "experts": ((3, 4, 5), {"layout": "experts"}),
    "experts_transposed": ((5, 4, 3), {"layout": "experts_transposed"}),
    "embedding": ((9, 4), {"algorithm": "adamw", "lr": 1e-3}),
}
STEPS = 50
LATE = 10
# Large enough for the paths that small matrices do not take.
LARGE: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "stacked0": ((96, 72), {}),
    "stacked1": ((96, 72), {}),
    "plain": ((64, 64), {}),
    "square0": ((128, 128), {}),
    "square1": ((128, 128), {}),
    "up": ((288, 96), {}),
    "down": ((96, 288), {}),
    "qkv": ((240, 80), {"split_sizes": [80, 80, 80]}),
}
Sizes = dict[str, tuple[tuple[int, ...], dict[str, Any]]]


class Weights(nn.Module):
    """Parameters without a forward pass."""

    def __init__(self, dtype: torch.dtype, sizes: Sizes = WEIGHTS) -> None:
        super().__init__()
        self.sizes = sizes
        generator = torch.Generator().manual_seed(0)
        for name, (shape, _) in sizes.items():
            value = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
            setattr(self, name, Parameter(value, requires_grad=name != "frozen"))


def cut(module: Any, how: str) -> Any:
    """Shard it: "fsdp", "hsdp", "tp", "fsdp+tp", "twice" (one dimension cut by both of the mesh, the slower way), or
    "stage" (a mesh of some of the processes, as a stage of a pipeline has it)."""
    if how == "fsdp":
        fully_shard(module, mesh=_mesh(1), ignored_params={module.plain})
    elif how == "hsdp":
        fully_shard(module, mesh=_mesh(2), ignored_params={module.plain})
    elif how == "tp":
        _distribute(module, _mesh(1), [[Shard(0)], [Shard(1)], [Replicate()]])
    elif how == "fsdp+tp":
        _distribute(module, _mesh(2)["second"], [[Shard(0)], [Shard(1)], [Replicate()]])
        fully_shard(module, mesh=_mesh(2)["first"], ignored_params={module.plain})
    elif how == "twice":
        _distribute(module, _mesh(2), [[Shard(0), Shard(0)], [Shard(1), Shard(0)], [Replicate(), Shard(1)]])
    elif how == "stage":
        _distribute(module, _mesh(3)["second", "third"], [[Shard(0), Shard(1)], [Shard(1), Shard(0)]])
    return module


@cache
def _mesh(dimensions: int) -> DeviceMesh:
    """All processes in a row, in two, or in two planes of one row each."""
    world = torch.distributed.get_world_size()
    shape = {1: (world,), 2: (2, world // 2), 3: (2, 1, world // 2)}[dimensions]
    return init_device_mesh("cpu", shape, mesh_dim_names=("first", "second", "third")[:dimensions])


def _distribute(module: Weights, mesh: Any, placements: list[Any]) -> None:
    for index, (name, param) in enumerate(module.named_parameters()):
        if name != "plain":
            some = placements[index % len(placements)]
            fitting = some if param.ndim > 1 else [Shard(0), *[Replicate()] * (mesh.ndim - 1)]
            cut = distribute_tensor(param.detach(), mesh, fitting, src_data_rank=None)
            setattr(module, name, Parameter(cut, requires_grad=param.requires_grad))


def optimizer_of(method: str, module: Weights, **options: Any) -> Any:
    """One group for each kind of weights, so that their options differ."""
    name, given = {**METHODS, **BLOCKS}[method]
    groups: dict[str, dict[str, Any]] = {}
    for key, param in module.named_parameters():
        own = module.sizes[key][1]
        groups.setdefault(repr(own), {"params": [], **own})["params"].append((key, param))
    if method == "teon":
        groups[repr({})]["stack"] = ["stacked0", "stacked1"]
    return build(name, list(groups.values()), **{**given, **options})


def noise(dtype: torch.dtype, sizes: Sizes = WEIGHTS) -> list[dict[str, Tensor]]:
    """Gradients for each step, whole."""
    generator = torch.Generator().manual_seed(1)
    return [
        {
            name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
            for name, (shape, _) in sizes.items()
        }
        for _ in range(STEPS)
    ]


def shards_of(noises: list[dict[str, Tensor]], module: Weights) -> list[dict[str, Tensor]]:
    """What this process holds of them."""
    params = dict(module.named_parameters())
    return [{name: own_part(value, params[name]) for name, value in step.items()} for step in noises]


def train(module: Weights, optimizer: Any, noises: list[dict[str, Tensor]], first: int = 0) -> None:
    """Steps on gradients that depend on the weights."""
    for step, values in enumerate(noises, first):
        for name, param in module.named_parameters():
            param.grad = None
            if param.requires_grad and (name != "late" or step >= LATE):
                param.grad = like(values[name] + local(param).detach(), param)
        optimizer.step()


def whole(module: nn.Module) -> dict[str, Tensor]:
    """Whole weights."""
    return {
        name: p.full_tensor().detach() if is_sharded(p) else p.detach().clone()  # type: ignore[attr-defined]
        for name, p in module.named_parameters()
    }


def distance(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """Largest difference of an entry."""
    return max((left[name] - right[name]).abs().max().item() for name in right)
