"""One small network in the forms that users bring: built late, on the meta device, compiled, wrapped, lazy, with adapters."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.tensor import DTensor

from tests.callbacks.modules import Net

# Those that compute what the plain one does.
SAME = ("configure_model", "meta", "compiled", "compiled_in_place", "compiled_whole", "checkpointed", "lazy")
FORMS = (*SAME, "weight_normed", "lora")


def plain() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 16), nn.Linear(16, 4))


class Formed(Net):
    """`layout` "fsdp2" shards it in configure_model, as FSDP2 wants it."""

    def __init__(self, form: str = "plain", layout: str = "") -> None:
        super().__init__()
        self.form, self.layout = form, layout
        self.net = nn.Sequential()
        if form == "meta":
            with torch.device("meta"):
                self.net = plain()
        elif form == "lazy":
            self.net = nn.Sequential(nn.LazyLinear(16), nn.LayerNorm(16), nn.LazyLinear(16), nn.LazyLinear(4))
        elif form != "configure_model":
            self.net = wrapped(plain(), form)

    def configure_model(self) -> None:
        if self.form == "configure_model" and not len(self.net):
            self.net = plain()
        if self.form == "lazy":
            self.net(torch.zeros(1, 8))
            self.net.load_state_dict(plain().state_dict())
        if self.layout == "fsdp2" and not any(isinstance(p, DTensor) for p in self.parameters()):
            from torch.distributed.fsdp import fully_shard

            assert self.device_mesh is not None
            for part in (*(m for m in self.net.children() if not isinstance(m, nn.LayerNorm)), self.net):
                fully_shard(part, mesh=self.device_mesh["data_parallel"])
        if self.form == "meta":
            self.net.to_empty(device="cpu")
            fill(self.net)


class NoConfigureModel(Formed):
    """FSDP1 and DDP wrap the module themselves, and here it has nothing to do in configure_model."""

    configure_model = Net.configure_model


def module_of(form: str, layout: str = "") -> Any:
    """The module as `Trainer.fit` takes it."""
    late = layout == "fsdp2" or form in ("configure_model", "meta", "lazy")
    module = (Formed if late else NoConfigureModel)(form, layout)
    return torch.compile(module, backend="eager") if form == "compiled_whole" else module


def wrapped(net: nn.Sequential, form: str) -> nn.Sequential:
    if form == "compiled":
        net[2] = torch.compile(net[2], backend="eager")  # type: ignore[assignment]
    elif form == "compiled_in_place":
        net.compile(backend="eager")
    elif form == "checkpointed":
        net[2] = checkpoint_wrapper(net[2])
    elif form == "weight_normed":
        nn.utils.parametrizations.weight_norm(net[2])
    elif form == "lora":
        import peft

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["0", "2"]), net)
    return net


def fill(net: nn.Module) -> None:
    """The plain weights into a module that was made on the meta device, sharded or not."""
    from torch.distributed.tensor import distribute_tensor

    with torch.no_grad():
        for live, value in zip(net.parameters(), plain().parameters(), strict=True):
            if isinstance(live, DTensor):
                value = distribute_tensor(value, live.device_mesh, live.placements)  # type: ignore[assignment]
            live.copy_(value)


def placed(recipe: Any) -> dict[str, tuple[str, float]]:
    """Parameter -> its group and decay, as the optimizer has them."""
    return {
        name: (names["name"], group["weight_decay"])
        for names, group in zip(recipe.run.group_names, recipe.optimizer.param_groups, strict=True)
        for name in names["params"]
    }
