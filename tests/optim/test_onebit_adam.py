"""1-bit Adam: the formula in one process and two, its messages, its checkpoints, and what it refuses."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lit_opt.errors import RecipeError
from lit_opt.optim import OneBitAdam, build
from lit_opt.optim.onebit_messages import compressed, decompressed

FIXTURE = json.loads((Path(__file__).parents[1] / "fixtures" / "classic" / "onebit_adam.json").read_text())
NAMES = ("W1", "b1", "W2")


class Given(nn.Module):
    """The fixture's parameters; the gradient of its output is what it is called with."""

    def __init__(self) -> None:
        super().__init__()
        for name in NAMES:
            start = torch.tensor(FIXTURE["problem"]["params"][name], dtype=torch.float64)
            self.register_parameter(name, nn.Parameter(start))

    def forward(self, grads: dict[str, Any]) -> Tensor:
        terms = [(p * torch.tensor(grads[name], dtype=p.dtype)).sum() for name, p in self.named_parameters()]
        return torch.stack(terms).sum()


def hyper_of(case: str) -> dict[str, Any]:
    return dict(next(c for c in FIXTURE["cases"] if c["name"] == case)["hyper"])


def make(module: nn.Module, hyper: dict[str, Any]) -> OneBitAdam:
    keywords = {key: hyper[key] for key in ("lr", "betas", "eps", "weight_decay", "freeze_step")}
    optimizer = build("onebit_adam", module.parameters(), **keywords)
    assert isinstance(optimizer, OneBitAdam)
    return optimizer


def step(module: nn.Module, optimizer: OneBitAdam, grads: dict[str, Any]) -> None:
    optimizer.zero_grad()
    module(grads).backward()
    optimizer.step()


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def distance(reached: dict[int, dict[str, Tensor]], case: str) -> float:
    expected = next(c for c in FIXTURE["cases"] if c["name"] == case)["params_after"]
    return max(
        (reached[int(at)][name] - torch.tensor(value, dtype=torch.float64)).abs().max().item()
        for at, tensors in expected.items()
        for name, value in tensors.items()
    )


@pytest.mark.parametrize("case", ["world1_wd0.0", "world1_wd0.1"])
def test_equals_the_formula_in_one_process(case: str) -> None:
    module = Given()
    optimizer, reached = make(module, hyper_of(case)), {}
    for index, grads in enumerate(FIXTURE["problem"]["grads"], start=1):
        step(module, optimizer, grads)
        reached[index] = weights(module)
    assert distance(reached, case) < 1e-12
    assert optimizer.bytes_sent == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 1000])
def test_messages_are_one_bit_a_number_and_a_scale(count: int, dtype: torch.dtype) -> None:
    c = torch.randn(count, dtype=dtype, generator=torch.Generator().manual_seed(0))
    c[::3] = 0
    message, meaning = compressed(c)
    assert message.dtype == torch.uint8 and len(message) == -(-count // 8) + dtype.itemsize
    expected = torch.where(c >= 0, 1.0, -1.0).to(dtype) * (c.norm() / max(count, 1) ** 0.5)
    torch.testing.assert_close(meaning, expected, rtol=1e-6, atol=0)
    assert torch.equal(decompressed(message, (count,), dtype), meaning)


def test_errors_are_carried_and_a_resume_is_exact(tmp_path: Path) -> None:
    grads = FIXTURE["problem"]["grads"]
    module = Given()
    optimizer = make(module, hyper_of("world1_wd0.1"))
    for index in range(6):
        step(module, optimizer, grads[index])
    torch.save([module.state_dict(), optimizer.state_dict()], tmp_path / "c.pt")
    twin, twin_optimizer = copy.deepcopy((module, optimizer))
    third, third_optimizer = pickle.loads(pickle.dumps((module, optimizer)))
    again = Given()
    resumed = make(again, hyper_of("world1_wd0.1"))
    states = torch.load(tmp_path / "c.pt", weights_only=True)
    again.load_state_dict(states[0])
    resumed.load_state_dict(states[1])
    assert (resumed.steps, resumed.frozen) == (6, True)
    pairs = [(module, optimizer), (twin, twin_optimizer), (third, third_optimizer), (again, resumed)]
    for index in range(6, 10):
        for net, ours in pairs:
            step(net, ours, grads[index])
    for net, ours in pairs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(module.parameters(), net.parameters(), strict=True))
        assert all(torch.equal(optimizer.state[a]["worker_error"], ours.state[b]["worker_error"])
                   for a, b in zip(module.parameters(), net.parameters(), strict=True))  # fmt: skip


def test_half_precision_keeps_float32_errors(tmp_path: Path) -> None:
    module = Given().bfloat16()
    optimizer = make(module, hyper_of("world1_wd0.0"))
    for grads in FIXTURE["problem"]["grads"]:
        step(module, optimizer, grads)
    error = optimizer.state[module.W1]["worker_error"]  # type: ignore[index]
    assert error.dtype == torch.float32 and error.any()
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert torch.equal(optimizer.state[module.W1]["worker_error"], error)  # type: ignore[index]


def test_refusals() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    with pytest.raises(RecipeError, match=r"freeze_step: missing. onebit_adam has no default for it"):
        build("onebit_adam", module.parameters(), lr=0.1)
    with pytest.raises(RecipeError, match=r"freeze_step: 2.5 is not a number of steps"):
        build("onebit_adam", module.parameters(), lr=0.1, freeze_step=2.5)
    optimizer = build("onebit_adam", module.parameters(), lr=0.1, freeze_step=1)
    assert isinstance(optimizer, OneBitAdam)
    with pytest.raises(RecipeError, match="Sequential is no DistributedDataParallel model"):
        optimizer.register(module)
    module[1].requires_grad_(False)
    module(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    module[1].requires_grad_(True)
    module(torch.ones(1, 2)).sum().backward()
    with pytest.raises(RecipeError, match=r"shape \(1, 2\) has its first gradient after freeze_step=1"):
        optimizer.step()


# ---- two processes


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def _two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    result: dict[str, Any] = {}
    for case in ("world2_wd0.0", "world2_wd0.1"):
        module = Given()
        wrapped, optimizer = DistributedDataParallel(module), make(module, hyper_of(case))
        optimizer.register(wrapped)
        reached = {}
        for index, grads in enumerate(FIXTURE["worker_grads"][rank], start=1):
            step(wrapped, optimizer, grads)
            reached[index] = weights(module)
            if index == 3:
                result["bytes before"] = optimizer.bytes_sent
        result[case] = reached
        result["bytes"] = optimizer.bytes_sent
        result["errors"] = {n: optimizer.state[p]["worker_error"] for n, p in module.named_parameters()}
    result |= _resume(rank, folder)
    result["refused"] = _refused()
    result["accumulated"] = _accumulated(rank)
    torch.save(result, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def _resume(rank: int, folder: str) -> dict[str, Any]:
    """Straight, and from a checkpoint that the first process wrote after 6 of 10 steps."""
    hyper, grads = hyper_of("world2_wd0.1"), FIXTURE["worker_grads"][rank]
    for first in (0, 6):
        module = Given()
        wrapped, optimizer = DistributedDataParallel(module), make(module, hyper)
        optimizer.register(wrapped)
        if first:
            states = torch.load(f"{folder}/c.pt", weights_only=True)
            module.load_state_dict(states[0])
            optimizer.load_state_dict(states[1])
        for index in range(first, 10):
            step(wrapped, optimizer, grads[index])
            if index == 5:
                try:
                    optimizer.state_dict()
                except RecipeError as error:
                    message = str(error)
                optimizer.consolidate_state_dict()
                if rank == 0:
                    torch.save([module.state_dict(), optimizer.state_dict()], f"{folder}/c.pt")
                dist.barrier()
        if not first:
            straight = weights(module)
    return {"straight": straight, "resumed": weights(module), "not consolidated": message}


def _refused() -> list[str]:
    messages = []
    module = network()
    wrapped = DistributedDataParallel(module)
    optimizer = build("onebit_adam", module.parameters(), lr=0.01, freeze_step=1)
    try:
        for _ in range(2):
            wrapped(torch.ones(2, 6, dtype=torch.float64)).sum().backward()
            optimizer.step()
    except RecipeError as error:
        messages.append(str(error))
    optimizer.register(wrapped)  # type: ignore[attr-defined]
    try:
        optimizer.register(wrapped)  # type: ignore[attr-defined]
    except RecipeError as error:
        messages.append(str(error))
    return messages


def _accumulated(rank: int) -> list[Tensor]:
    """Two micro-batches with no_sync are one batch."""
    results = []
    for chunks in (1, 2):
        module = network()
        wrapped = DistributedDataParallel(module)
        optimizer = build("onebit_adam", module.parameters(), lr=0.01, freeze_step=2)
        optimizer.register(wrapped)  # type: ignore[attr-defined]
        for index in range(6):
            x = torch.randn(8, 6, generator=torch.Generator().manual_seed(10 * index + rank), dtype=torch.float64)
            parts = x.chunk(chunks)
            optimizer.zero_grad()
            for part in parts[:-1]:
                with wrapped.no_sync():
                    (wrapped(part).square().mean() / chunks).backward()
            (wrapped(parts[-1]).square().mean() / chunks).backward()
            optimizer.step()
        results.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
    return results


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("onebit")
    mp.spawn(_two, args=(str(folder),), nprocs=2)
    return folder, [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("case", ["world2_wd0.0", "world2_wd0.1"])
def test_equals_the_formula_in_two_processes(case: str, two: Any) -> None:
    for result in two[1]:
        assert distance(result[case], case) < 1e-12
    first, second = (result[case][10] for result in two[1])
    assert all(torch.equal(first[name], second[name]) for name in NAMES)
    assert any(not torch.equal(two[1][0]["errors"][name], two[1][1]["errors"][name]) for name in NAMES)


def test_bytes_are_one_bit_a_number_each_way(two: Any) -> None:
    """7 steps. W1 (40 numbers) and, at 5 to 40, b1 go... to whom the shares say: b1 and W2 (41) to the second process."""
    scale = 8  # float64
    w1, others = 5 + scale, (1 + scale) + (5 + scale)
    for result in two[1]:
        assert result["bytes before"] == 0
        # What is the other's to average goes out once, and what is one's own goes back once.
        assert result["bytes"] == 7 * (w1 + others)


def test_a_resume_in_two_processes_is_exact(two: Any) -> None:
    for result in two[1]:
        assert all(torch.equal(result["straight"][name], result["resumed"][name]) for name in NAMES)
        assert "consolidate_state_dict() in every process" in result["not consolidated"]


def test_another_number_of_processes_goes_on_with_the_mean_of_the_errors(two: Any) -> None:
    states = torch.load(two[0] / "c.pt", weights_only=True)
    saved = [states[1]["state"][i]["worker_error"] for i in range(3)]
    assert all(len(stack) == 2 for stack in saved)
    module = Given()
    optimizer = make(module, hyper_of("world1_wd0.1"))
    optimizer.load_state_dict(states[1])
    for p, stack in zip(module.parameters(), saved, strict=True):
        assert torch.equal(optimizer.state[p]["worker_error"], stack.mean(dim=0))
        assert "server_error" in optimizer.state[p]
    step(module, optimizer, FIXTURE["problem"]["grads"][6])


def test_processes_without_register_are_refused(two: Any) -> None:
    for result in two[1]:
        unregistered, twice = result["refused"]
        assert "Call optimizer.register(ddp_model) before the first step" in unregistered
        assert "a communication hook already" in twice


def test_accumulated_micro_batches_are_one_batch(two: Any) -> None:
    for result in two[1]:
        torch.testing.assert_close(*result["accumulated"], rtol=0, atol=1e-12)
    assert torch.equal(two[1][0]["accumulated"][0], two[1][1]["accumulated"][0])
