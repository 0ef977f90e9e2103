"""Two gloo processes on the CPU: the groups under FSDP1 and FSDP2 are those of one process."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lit_opt.errors import RecipeError
from lit_opt.param_groups import group_parameters, snapshot_parameters
from tests.processes import in_two_processes


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 8)
        self.pos_embed = nn.Parameter(torch.zeros(1, 4, 8))
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16) for _ in range(2))
        self.head = nn.Linear(8, 16, bias=False)
        self.head.weight = self.embed.weight


def _members(groups: list[dict], names: dict[int, str]) -> dict[str, list[str]]:
    return {g["name"]: [names[id(p)] for p in g["params"]] for g in groups}


def _expected() -> dict[str, list[str]]:
    rows = group_parameters(Net(), "llm").rows()
    return {group: [r.name for r in rows if r.group == group] for group in ("decay", "no_decay")}


def _clean(module: nn.Module) -> dict[int, str]:
    return {id(p): n.replace("_fsdp_wrapped_module.", "") for n, p in module.named_parameters()}


def _fsdp1() -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    module = Net()
    before = snapshot_parameters(module)
    policy = ModuleWrapPolicy({nn.TransformerEncoderLayer})
    device = torch.device("cpu")
    wrapped = FSDP(module, auto_wrap_policy=policy, use_orig_params=True, device_id=device)
    # This is the trap: nothing has two dimensions any more.
    assert {p.ndim for p in wrapped.parameters()} == {1}
    for snapshot in (before, snapshot_parameters(wrapped)):
        live = group_parameters(snapshot, "llm").for_optimizer(wrapped.named_parameters())
        assert _members(live, _clean(wrapped)) == _expected()
    shapes = [(i.name, i.shape, i.role, i.owner, i.aliases, i.layer) for i in before.parameters]
    after = snapshot_parameters(wrapped).parameters
    assert [(i.name, i.shape, i.role, i.owner, i.aliases, i.layer) for i in after] == shapes

    flat = FSDP(Net(), auto_wrap_policy=policy, use_orig_params=False, device_id=device)
    with pytest.raises(RecipeError, match="use_orig_params=True"):
        snapshot_parameters(flat)


def _fsdp2() -> None:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    module = Net()
    before = snapshot_parameters(module)
    for layer in module.layers:
        fully_shard(layer)
    fully_shard(module)
    assert all(isinstance(p, DTensor) for p in module.parameters())
    assert snapshot_parameters(module) == before
    live = group_parameters(before, "llm").for_optimizer(module.named_parameters())
    assert _members(live, _clean(module)) == _expected()
    optimizer = torch.optim.AdamW(live)
    assert [g["name"] for g in optimizer.param_groups] == ["decay", "no_decay"]

    # Only the layers sharded: DTensors and plain tensors are kept apart.
    partly = Net()
    groups = group_parameters(partly, "llm")
    for layer in partly.layers:
        fully_shard(layer)
    names = [g["name"] for g in groups.for_optimizer(partly.named_parameters())]
    assert names == ["decay", "no_decay/plain", "no_decay/mesh_1"]


def _both() -> None:
    _fsdp1()
    _fsdp2()


def test_groups_of_two_processes_are_those_of_one():
    in_two_processes(_both)
