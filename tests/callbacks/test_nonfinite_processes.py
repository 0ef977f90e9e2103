"""Two processes agree on a step that is not finite, also where one of them alone has seen it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.callbacks.processes import STEPS
from tests.processes import launch


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    folder = tmp_path_factory.mktemp("nonfinite")
    done = launch("tests.callbacks.nonfinite_processes", folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize(
    ("kind", "optimizer"), [("ddp", "adamw"), ("ddp", "sam"), ("fsdp2", "adamw"), ("fsdp2", "muon")]
)
def test_both_leave_the_step_out(results: list[dict[Any, Any]], kind: str, optimizer: str) -> None:
    first, second = (result[kind, "skip", optimizer] for result in results)
    for one in (first, second):
        assert (one["skipped"], one["averaged"], one["step"], one["message"]) == (1, STEPS - 1, STEPS, "")
    for a, b in zip(first["weights"], second["weights"], strict=True):
        assert torch.equal(a, b) and a.isfinite().all()


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_both_raise(results: list[dict[Any, Any]], kind: str) -> None:
    first, second = (result[kind, "raise", "adamw"] for result in results)
    assert "at step 2 the gradients of 1 of 6 parameters are not finite (net.3.bias: nan)" in first["message"]
    assert "at step 2 another process has found one" in second["message"]
    assert first["step"] == second["step"] == 2
