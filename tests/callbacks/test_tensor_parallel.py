"""A small transformer divided by layers' rows and columns (tensor parallelism, two gloo processes) is one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.callbacks.matrix_processes import STEPS
from tests.callbacks.tensor_parallel_processes import CASES, DTYPES, Transformer, fit
from tests.contract.record import distance
from tests.processes import launch

# Gradients are sums in another order: of the weights' way, of losses and norms.
NEAR = {"float32": (1e-3, 1e-5), "float64": (1e-9, 1e-11)}


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    folder = tmp_path_factory.mktemp("tensor_parallel")
    result = launch("tests.callbacks.tensor_parallel_processes", folder)
    assert result.returncode == 0, result.stderr[-6000:]
    return [read(folder, rank) for rank in (0, 1)]


def read(folder: Path, rank: int) -> dict[Any, Any]:
    found: dict[Any, Any] = torch.load(folder / f"{rank}.pt")
    return found


@pytest.mark.parametrize(("name", "plan", "dtype"), CASES)
def test_two_processes_are_one(launched: list[dict[Any, Any]], name: str, plan: str, dtype: str) -> None:
    alone = fit(name, plan, dtype, 1)
    start = {key: p.detach() for key, p in Transformer(plan, DTYPES[dtype]).named_parameters()}
    weights, numbers = NEAR[dtype]
    for rank in launched:
        found = rank[name, plan, dtype]
        assert "error" not in found, found["error"]
        run = found["straight"]
        # 14 matrices of blocks, embedding and head; norms only where the sequence is divided.
        assert run["sharded"] == (21 if plan == "sequence" else 16) and alone["sharded"] == 0
        assert run["step"] == found["resumed"]["step"] == STEPS
        assert run["losses"] == pytest.approx(alone["losses"], rel=numbers)
        assert len(alone["norms"]) == STEPS and run["norms"] == pytest.approx(alone["norms"], rel=numbers)
        assert 0 < distance(run["weights"], alone["weights"], start) < weights
        for key, weight in run["weights"].items():
            assert torch.equal(weight, launched[0][name, plan, dtype]["straight"]["weights"][key]), key
            assert torch.equal(weight, found["resumed"]["weights"][key]), key
