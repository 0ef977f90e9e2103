"""A transfer under DDP and FSDP2 is that of one process, and a checkpoint resumes under another number of processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.callbacks.matrix_processes import STEPS
from tests.callbacks.modules import SaveAt
from tests.processes import launch
from tests.transfer.strategy_processes import METHODS, STRATEGIES, fit

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With what one process and two processes made."""
    path = tmp_path_factory.mktemp("transfer_strategies")
    for method in METHODS:
        torch.save(fit(method, {}, SaveAt(path / f"alone.{method}.ckpt", STEPS // 2)), path / f"alone.{method}.pt")
    result = launch("tests.transfer.strategy_processes", path)
    assert result.returncode == 0, result.stderr[-6000:]
    return path


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["groups"] == other["groups"]
    for name, weights in other["weights"].items():
        torch.testing.assert_close(one["weights"][name], weights, rtol=0, atol=1e-6, msg=f"{name} differs")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", STRATEGIES)
def test_two_processes_are_one_and_resume_one_another(folder: Path, kind: str, method: str) -> None:
    alone = torch.load(folder / f"alone.{method}.pt")
    both = [torch.load(folder / f"{kind}.{method}.{rank}.pt") for rank in (0, 1)]
    for result in both:
        assert "error" not in result, result["error"]["trace"]
        same(result["straight"], alone)
        same(result["resumed"], alone)
        same(result["from one"], alone)
    same(fit(method, {}, ckpt_path=folder / f"{kind}.{method}.ckpt"), alone)


@pytest.mark.parametrize("method", METHODS)
def test_the_multipliers_are_those_of_unsharded_shapes(folder: Path, method: str) -> None:
    """In one process, and by the test above in two: a shard has half the rows, and must not be compared with the base."""
    groups = torch.load(folder / f"alone.{method}.pt")["groups"]
    rates = {name: initial for members, initial, *_ in groups.values() for name in members}
    hidden, head = "model.model.layers.1.mlp.up_proj.weight", "model.lm_head.weight"
    beside = METHODS["adamw"] if method == "adamw" else rates["model.model.embed_tokens.weight"]
    assert rates[hidden] == pytest.approx(METHODS["adamw"] / 2 if method == "adamw" else METHODS["muon"])
    assert rates[head] == pytest.approx(beside / 2)
    assert rates["model.model.embed_tokens.weight"] == beside
