"""One, two and four processes with the same gradients take the same steps, sharing the work or not."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn import Parameter

from lit_opt.optim import build
from lit_opt.optim.matrix.plan import Chunk
from lit_opt.optim.matrix.sharing import shares

METHODS = ("muon", "normuon", "mars_m", "teon", "soap", "splus", "shampoo")
SHAPES = ((8, 5), (8, 5), (5, 8), (6, 6), (6, 6), (6, 6), (9, 4, 2, 2), (7,), (4, 20))
STEPS = 50


def train(name: str, dtype: torch.dtype, share: bool) -> list[Tensor]:
    """Steps on gradients that depend on the weights, with an unused and a frozen parameter."""
    generator = torch.Generator().manual_seed(0)
    params = [Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)) for shape in SHAPES]
    params[3].requires_grad_(False)
    special: dict[str, dict[str, Any]] = {"teon": {"stack": params[:2]}, "shampoo": {"precondition_frequency": 7}}
    keywords = special.get(name, {})
    optimizer = build(name, params, lr=0.02, **keywords)
    if share:
        optimizer.share_work()  # type: ignore[attr-defined]
    for step in range(STEPS):
        generator.manual_seed(step)
        for index, param in enumerate(params):
            noise = torch.randn(param.shape, generator=generator, dtype=torch.float64).to(dtype)
            unused = index == 3 or (index == 5 and step < 10)
            param.grad = None if unused else noise + param.detach()
        optimizer.step()
    return [param.detach() for param in params]


def _work(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet{world}", rank=rank, world_size=world)
    results = {
        f"{name}/{dtype}": train(name, dtype, share=world > 1)
        for name in METHODS
        for dtype in (torch.float64, torch.float32)
    }
    if world > 1:
        results["ddp"] = under_ddp(share=True)
        results["ddp alone"] = under_ddp(share=False)
        dist.destroy_process_group()
    torch.save(results, f"{folder}/{world}_{rank}.pt")


def under_ddp(share: bool) -> list[Tensor]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    wrapped = nn.parallel.DistributedDataParallel(module)
    optimizer = build("normuon", module.parameters(), lr=0.02)
    if share:
        optimizer.share_work()  # type: ignore[attr-defined]
    for step in range(5):
        generator = torch.Generator().manual_seed(100 * step + dist.get_rank())
        optimizer.zero_grad()
        wrapped(torch.randn(4, 6, generator=generator, dtype=torch.float64)).square().sum().backward()
        optimizer.step()
    return [param.detach() for param in module.parameters()]


Results = list[dict[str, list[Tensor]]]


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What each process reached, and in the last place what one process alone reaches."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    _work(0, 1, str(folder))
    mp.spawn(_work, args=(request.param, str(folder)), nprocs=request.param)
    names = [f"{request.param}_{rank}.pt" for rank in range(request.param)] + ["1_0.pt"]
    return [torch.load(folder / name) for name in names]


def distance(left: list[Tensor], right: list[Tensor]) -> float:
    return max((a - b).abs().max().item() for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)], ids=str)
def test_processes_agree(results: Results, name: str, dtype: torch.dtype, tolerance: float):
    *ranks, alone = (result[f"{name}/{dtype}"] for result in results)
    for rank in ranks:
        assert distance(rank, ranks[0]) == 0.0
        assert distance(rank, alone) <= tolerance


def test_under_ddp(results: Results):
    for result in results[:-1]:
        assert distance(result["ddp"], results[0]["ddp"]) == 0.0
        assert distance(result["ddp"], results[0]["ddp alone"]) <= 1e-12


def test_work_is_balanced_and_complete():
    chunks = [
        Chunk((count, rows, cols), torch.float32, {"ns_steps": 5}, (), True)
        for count, rows, cols in ((12, 768, 768), (7, 768, 3072), (1, 64, 64), (5, 256, 64))
    ]
    for processes in (1, 2, 3, 4, 8):
        ranges = shares(chunks, processes)
        load = [0.0] * processes
        for chunk, parts in zip(chunks, ranges, strict=True):
            covered = [i for part in parts for i in range(part.start, part.stop)]
            assert covered == list(range(chunk.shape[0]))
            for rank, part in enumerate(parts):
                load[rank] += chunk.flops * (part.stop - part.start) / chunk.shape[0]
        largest = chunks[1].flops / 7
        assert max(load) - min(load) <= largest
