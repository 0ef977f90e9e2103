"""What test_sharded.py lets two and four processes do; one process group for each number of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.tensor import DTensor, Partial
from torch.nn import Parameter

from lit_opt.averaging.shards import local, own_part
from lit_opt.errors import RecipeError
from lit_opt.optim import build
from lit_opt.optim.matrix import exchange
from tests.optim.matrix.sharded_models import (
    BLOCKS,
    METHODS,
    OWNED,
    STEPS,
    Weights,
    cut,
    noise,
    optimizer_of,
    shards_of,
    train,
    whole,
)

# (processes, how the weights are cut, dtype, methods).
CASES = [
    (2, "fsdp", torch.float64, (*METHODS, *BLOCKS)),
    (2, "fsdp", torch.float32, tuple(METHODS)),
    (2, "tp", torch.float64, tuple(METHODS)),
    (4, "fsdp", torch.float64, tuple(METHODS)),
    (4, "hsdp", torch.float64, (*METHODS, *BLOCKS)),
    (4, "fsdp+tp", torch.float64, ("normuon", "teon", "soap")),
    (4, "twice", torch.float64, ("normuon", "teon", "splus")),
    (4, "stage", torch.float64, ("normuon", "shampoo")),
]
# Processes -> shapes of the mesh for the simulator; None for DDP.
SIMULATED: dict[int, dict[str, tuple[int, ...] | None]] = {
    2: {"fsdp": (2,), "ddp": None},
    4: {"fsdp": (4,), "hsdp": (2, 2), "ddp": None},
}
SAVED_AT = 25
# Two processes save, these load.
LOADING = (1, 4)


def save(module: Weights, optimizer: Any, path: Path) -> None:
    state = {"model": get_model_state_dict(module), "optimizer": get_optimizer_state_dict(module, optimizer)}
    dcp.save(state, checkpoint_id=path)


def load(module: Weights, optimizer: Any, path: Path) -> None:
    state: dict[str, Any] = {
        "model": get_model_state_dict(module),
        "optimizer": get_optimizer_state_dict(module, optimizer),
    }
    dcp.load(state, checkpoint_id=path, no_dist=not dist.is_initialized())
    set_model_state_dict(module, state["model"])
    set_optimizer_state_dict(module, optimizer, state["optimizer"])


def resumed(method: str, how: str | None, folder: Path) -> dict[str, torch.Tensor]:
    """Weights after the steps that the checkpoint lacks."""
    module = Weights(torch.float64)
    if how is not None:
        cut(module, how)
    optimizer = optimizer_of(method, module)
    load(module, optimizer, folder / f"checkpoint.{method}")
    rest = noise(torch.float64)[SAVED_AT:]
    train(module, optimizer, rest if how is None else shards_of(rest, module), first=SAVED_AT)
    return whole(module)


def resumed_by_hand(method: str, folder: Path) -> dict[str, torch.Tensor]:
    """From a file that one process wrote with torch.save, by `load_state_dict` alone: whole tensors, no DTensors."""
    module = cut(Weights(torch.float64), "fsdp")
    saved = torch.load(folder / f"plain.{method}.pt", weights_only=True)
    with torch.no_grad():
        for name, param in module.named_parameters():
            local(param).copy_(own_part(saved["model"][name], param))
    optimizer = optimizer_of(method, module)
    optimizer.load_state_dict(saved["optimizer"])
    rest = shards_of(noise(torch.float64)[SAVED_AT:], module)
    train(module, optimizer, rest, first=SAVED_AT)
    return whole(module)


def written_by_one_process(method: str, folder: Path) -> None:
    """Half of the steps in this process alone, saved as users do."""
    module = Weights(torch.float64)
    optimizer = optimizer_of(method, module)
    train(module, optimizer, noise(torch.float64)[:SAVED_AT])
    state = {"model": module.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state, folder / f"plain.{method}.pt")


def owned_state(method: str, how: str) -> dict[str, Any]:
    """What this process holds of the matrices' state, and what torch gathers of it, beside what one process has."""
    module = cut(Weights(torch.float64), how)
    optimizer = optimizer_of(method, module)
    train(module, optimizer, shards_of(noise(torch.float64)[:3], module))
    held = {
        (name, key): value
        for name, param in module.named_parameters()
        for key, value in optimizer.state[param].items()
        if param.ndim > 1 and key not in ("step", "average") and name != "embedding"
    }
    full = StateDictOptions(full_state_dict=True, flatten_optimizer_state_dict=True)
    gathered = get_optimizer_state_dict(module, optimizer, options=full)
    # There and back.
    before = {key: value.clone() for key, value in held.items()}
    optimizer.load_state_dict(optimizer.state_dict())
    params = dict(module.named_parameters())
    assert all(torch.equal(optimizer.state[params[name]][key], value) for (name, key), value in before.items())
    return {
        "averaged": averaged(module, optimizer) if method == "splus" else None,
        "bytes": {name: value.nbytes for name, value in held.items() if name[0] != "plain"},
        "gathered": {key: value for key, value in gathered.items() if key.startswith("state.")},
    }


def averaged(module: Weights, optimizer: Any) -> dict[str, torch.Tensor]:
    """SPlus's averages as weights; afterwards the weights are what they were."""
    before = whole(module)
    optimizer.eval()
    found = whole(module)
    optimizer.train()
    assert all(torch.equal(value, before[name]) for name, value in whole(module).items())
    return found


def straight(method: str, how: str | None, dtype: torch.dtype, save_to: Path | None = None) -> dict[str, torch.Tensor]:
    """Weights after all steps."""
    module, noises = Weights(dtype), noise(dtype)
    if how is not None:
        noises = shards_of(noises, cut(module, how))
    optimizer = optimizer_of(method, module)
    train(module, optimizer, noises[:SAVED_AT])
    if save_to is not None:
        save(module, optimizer, save_to)
    train(module, optimizer, noises[SAVED_AT:STEPS], first=SAVED_AT)
    return whole(module)


def disagreement() -> str:
    """One process has no gradient of one weight."""
    module = cut(Weights(torch.float32), "fsdp")
    optimizer = optimizer_of("muon", module)
    for name, param in module.named_parameters():
        if name != "experts" or dist.get_rank():
            param.grad = torch.zeros_like(param)
    before = whole(module)["square"]
    try:
        optimizer.step()
    except RecipeError as error:
        assert torch.equal(whole(module)["square"], before)
        return str(error)
    return "no error"


def traffic(method: str, how: str) -> dict[str, int]:
    """Bytes that this process really sends to others and receives from them, and what it orthogonalises, in a step."""
    module = cut(Weights(torch.float32), how) if how != "ddp" else Weights(torch.float32)
    optimizer = optimizer_of(method, module)
    if how == "ddp":
        optimizer.share_work()
    found = {"sent": 0, "received": 0, "flops": 0}
    rank, others = dist.get_rank(), dist.get_world_size() - 1
    all_to_all, gather, precondition = exchange.all_to_all, exchange.all_gather, optimizer._preconditioned

    def counting(out: torch.Tensor, sent: Sequence[int], received: Sequence[int], group: Any) -> Any:
        assert sum(sent) == out.numel()
        found["sent"] += (sum(sent) - sent[rank]) * out.element_size()
        found["received"] += (sum(received) - received[rank]) * out.element_size()
        return all_to_all(out, sent, received, group)

    def gathering(out: torch.Tensor, group: Any) -> Any:
        for way in ("sent", "received"):
            found[way] += others * out.nbytes
        return gather(out, group)

    def computing(chunks: Sequence[Any], batches: Sequence[torch.Tensor]) -> Any:
        for chunk, batch in zip(chunks, batches, strict=True):
            if batch.any():
                found["flops"] += chunk.flops * batch.size(0) // chunk.shape[0]
        return precondition(chunks, batches)

    exchange.all_to_all, exchange.all_gather, optimizer._preconditioned = counting, gathering, computing
    try:
        for param in module.parameters():
            param.grad = torch.ones_like(param) if param.requires_grad else None
        optimizer.step()
    finally:
        exchange.all_to_all, exchange.all_gather = all_to_all, gather
    return found


def refusals() -> list[str]:
    """What the optimizer says of tensors in which no matrix is whole."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    sums = Parameter(DTensor.from_local(torch.ones(4, 4), mesh, [Partial()]))
    said = []
    for params in [
        [sums],
        *(
            list(FSDP(nn.Linear(8, 8), use_orig_params=o, device_id=torch.device("cpu")).parameters())
            for o in (True, False)
        ),
    ]:
        try:
            build("muon", params, lr=0.02)
            said.append("no error")
        except RecipeError as error:
            said.append(str(error))
    return said


def work(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # torch on DTensors that are gathered in two steps
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet{world}", rank=rank, world_size=world)
    results: dict[str, Any] = {}
    for processes, how, dtype, methods in CASES:
        for method in methods if processes == world else ():
            saves = (processes, how, dtype) == (2, "fsdp", torch.float64)
            path = folder / f"checkpoint.{method}" if saves else None
            results[f"{method}/{how}/{dtype}"] = straight(method, how, dtype, path)
    for method in METHODS if world in LOADING else ():
        results[f"{method}/resumed"] = resumed(method, "fsdp", folder)
    for method in OWNED:
        results[f"{method}/owned"] = owned_state(method, "fsdp" if world == 2 else "hsdp")
        if world == 2:
            results[f"{method}/by_hand"] = resumed_by_hand(method, folder)
    for how in SIMULATED[world]:
        for method in ("muon", "normuon", "teon"):
            results[f"traffic/{how}/{method}"] = traffic(method, how)
    results["disagreement"] = disagreement()
    results["refusals"] = refusals()
    torch.save(results, folder / f"{world}.{rank}.pt")
    dist.destroy_process_group()
