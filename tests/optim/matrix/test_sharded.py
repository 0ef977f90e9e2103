"""Matrix methods on FSDP2, HSDP and tensor parallelism: two and four processes (gloo) take the steps of one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

from lit_opt.optim.matrix.orthogonalize import orthogonalization_flops
from lit_opt.optim.matrix.traffic import ddp_traffic, sharded_traffic
from tests.optim.matrix.sharded_models import BLOCKS, METHODS, OWNED, Weights, distance, noise, optimizer_of, train
from tests.optim.matrix.sharded_processes import (
    CASES,
    LOADING,
    SIMULATED,
    averaged,
    resumed,
    straight,
    work,
    written_by_one_process,
)

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}
WORLDS = (2, 4)
Results = dict[int, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    for method in OWNED:
        written_by_one_process(method, folder)
    for world in WORLDS:
        mp.spawn(work, args=(world, folder), nprocs=world)
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> Results:
    return {world: [torch.load(folder / f"{world}.{rank}.pt") for rank in range(world)] for world in WORLDS}


@pytest.fixture(scope="module")
def alone() -> dict[tuple[str, torch.dtype], dict[str, torch.Tensor]]:
    found = {(method, dtype): straight(method, None, dtype) for method in METHODS for dtype in TOLERANCE}
    return found | {(method, torch.float64): straight(method, None, torch.float64) for method in BLOCKS}


@pytest.mark.parametrize(
    ("world", "how", "dtype", "method"), [(*case, method) for *case, methods in CASES for method in methods], ids=str
)
def test_many_processes_are_one(results: Results, alone, world: int, how: str, dtype: torch.dtype, method: str):
    first, *others = (result[f"{method}/{how}/{dtype}"] for result in results[world])
    assert distance(first, alone[method, dtype]) <= TOLERANCE[dtype]
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("world", LOADING)
def test_what_two_processes_saved_goes_on_in_one_and_in_four(
    results: Results, alone, folder: Path, method: str, world: int
):
    got = resumed(method, None, folder) if world == 1 else results[world][0][f"{method}/resumed"]
    assert distance(got, alone[method, torch.float64]) <= TOLERANCE[torch.float64]


@pytest.mark.parametrize("method", OWNED)
def test_what_one_process_saved_goes_on_in_two_without_torchs_checkpoints(results: Results, alone, method: str):
    for result in results[2]:
        assert distance(result[f"{method}/by_hand"], alone[method, torch.float64]) <= TOLERANCE[torch.float64]


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("method", OWNED)
def test_each_matrix_has_its_state_in_one_process(results: Results, method: str, world: int):
    """And torch gathers all of it, as one process has it."""
    module = Weights(torch.float64)
    optimizer = optimizer_of(method, module)
    train(module, optimizer, noise(torch.float64)[:3])
    params = dict(module.named_parameters())
    found = [result[f"{method}/owned"] for result in results[world]]
    for (name, key), size in found[0]["bytes"].items():
        assert size + sum(other["bytes"][name, key] for other in found[1:]) == optimizer.state[params[name]][key].nbytes
    held = [sum(one["bytes"].values()) for one in found]
    # The matrices here have twelve shapes and one number of each; alike ones are divided better.
    assert max(held) <= 1.3 * sum(held) / world
    for one in found:
        if method == "splus":
            assert distance(one["averaged"], averaged(module, optimizer)) <= TOLERANCE[torch.float64]
        for key, value in one["gathered"].items():
            _, name, key = key.split(".")
            torch.testing.assert_close(value, optimizer.state[params[name]][key], rtol=1e-9, atol=1e-9)


def test_a_gradient_that_some_processes_lack_is_refused_by_all(results: Results):
    for ranks in results.values():
        for result in ranks:
            assert result["disagreement"].startswith("grad: 'experts' has a gradient in processes [1")
            assert "none in [0]" in result["disagreement"]


@pytest.mark.parametrize("method", ["muon", "normuon", "teon"])
@pytest.mark.parametrize(("world", "how"), [(world, how) for world, hows in SIMULATED.items() for how in hows])
def test_the_simulator_says_what_is_moved_and_computed(results: Results, world: int, how: str, method: str):
    module = Weights(torch.float32)
    # Not sharded and frozen weights move nothing.
    for name in ("frozen", "plain") if how != "ddp" else ("frozen",):
        delattr(module, name)
    optimizer, mesh = optimizer_of(method, module), SIMULATED[world][how]
    if mesh is None:
        simulated = ddp_traffic(optimizer, world, cuda=False)
    else:
        simulated = sharded_traffic(optimizer, mesh, cuda=False)
    counted = [result[f"traffic/{how}/{method}"] for result in results[world]]
    for expected, found in zip(simulated, counted, strict=True):
        found["flops"] -= orthogonalization_flops(6, 6, 5) if mesh is not None else 0  # the weight that is not sharded
        assert asdict(expected) == found


def test_what_has_no_whole_matrices_is_refused(results: Results):
    partial, *flat = results[2][0]["refusals"]
    assert "sums that nobody has added up" in partial
    for said in flat:
        assert "flat shards of FSDP1 or ZeRO" in said and "fully_shard" in said
