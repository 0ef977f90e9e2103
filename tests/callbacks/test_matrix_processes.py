"""Matrix methods through a Trainer in two processes (gloo) are one process: DDP with its work divided, FSDP2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.callbacks.matrix_processes import MATRICES, METHODS, STRATEGIES, fit
from tests.processes import launch as launch_processes


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("matrix_processes")
    result = launch_processes("tests.callbacks.matrix_processes", folder)
    assert result.returncode == 0, result.stderr[-6000:]
    return folder


@pytest.fixture(scope="module")
def alone() -> dict[str, dict[str, Any]]:
    return {method: fit(method, {}) for method in METHODS}


def results(folder: Path, kind: str, method: str) -> list[dict[str, Any]]:
    both = [torch.load(folder / f"{kind}.{method}.{rank}.pt") for rank in (0, 1)]
    for result in both:
        assert "error" not in result, result["error"]
    return both


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", STRATEGIES)
def test_two_processes_are_one(launched: Path, alone: dict[str, dict[str, Any]], kind: str, method: str) -> None:
    first, second = results(launched, kind, method)
    for name, expected in alone[method]["weights"].items():
        for run in ("straight", "resumed"):
            assert torch.equal(first[run]["weights"][name], second[run]["weights"][name]), name
            torch.testing.assert_close(first[run]["weights"][name], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", STRATEGIES)
def test_each_orthogonalises_its_share(
    launched: Path, alone: dict[str, dict[str, Any]], kind: str, method: str
) -> None:
    stacked = 3 if method == "teon" else 0  # query, key and value of both blocks in one matrix each
    assert alone[method]["matrices"] == MATRICES - stacked and alone[method]["processes"] == 1
    for run in ("straight", "resumed"):
        both = [result[run] for result in results(launched, kind, method)]
        assert sum(result["matrices"] for result in both) == MATRICES - stacked
        for result in both:
            assert result["processes"] == 2
            assert 5 <= result["matrices"] <= 7


def test_where_gradients_are_not_synchronised_nothing_is_divided(launched: Path) -> None:
    for result in results(launched, "ddp", "muon"):
        assert result["unsynchronised"]["processes"] == 1
        assert result["unsynchronised"]["matrices"] == MATRICES
