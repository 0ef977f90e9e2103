"""Averages saved by two processes are read by one and by four, from whole checkpoints and from shards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.callbacks.ema_resizes import KINDS, STEPS
from tests.processes import launch


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resizes")
    for processes in ("2", "1", "4"):
        (folder / processes).mkdir()
        result = launch("tests.callbacks.ema_resizes", folder / processes)
        assert result.returncode == 0, result.stderr[-6000:]
    return folder


@pytest.mark.parametrize("processes", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_saved_on_two_and_resumed(kind: str, processes: int, launched: Path) -> None:
    saved = torch.load(launched / "2" / f"{kind}.0.pt", weights_only=True)
    assert "error" not in saved, saved["error"]
    for rank in range(processes):
        found = torch.load(launched / str(processes) / f"{kind}.{rank}.pt", weights_only=True)
        assert "error" not in found, found["error"]
        assert found["first"].keys() == saved["first"].keys() and found["updates"] == saved["updates"] == STEPS
        for name, average in saved["first"].items():
            assert torch.equal(found["first"][name], average), name
            assert not torch.equal(found["last"][name], average), name
        torch.testing.assert_close(found["last"], saved["last"], rtol=1e-5, atol=1e-6)
