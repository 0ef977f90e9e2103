"""kill -9 at random moments: the run that goes on from the last whole checkpoint ends as the uninterrupted one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.processes import LIGHTNINGS, ROOT


def run(folder: Path, seed: int, kills: dict[str, int]) -> dict[str, Any]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PL_") and k not in LIGHTNINGS}
    done = subprocess.run(
        [sys.executable, "-m", "tests.survival.runs", str(folder), str(seed), *(f"{k}={n}" for k, n in kills.items())],
        cwd=ROOT,
        env=environment | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps({kind: {k: v for k, v in result.items() if k != "failed"} for kind, result in found.items()}))
    for result in found.values():
        assert "failed" not in result, result["failed"]
    return found


def assert_equal(found: dict[str, Any], kills: dict[str, int], tolerance: float = 0.0) -> None:
    for kind, result in found.items():
        assert len(result["differences"]) == kills[kind] and len(result["phases"]) >= kills[kind]
        assert max(result["differences"]) <= tolerance, (kind, result)


def test_four_kills(tmp_path: Path) -> None:
    kills = {"adamw": 2, "muon": 1, "sam": 1}
    assert_equal(run(tmp_path, 4, kills), kills)


@pytest.mark.slow
def test_thirty_kills(tmp_path: Path) -> None:
    """In every phase: the seed was chosen for that, and the moments still differ from machine to machine."""
    kills = {"adamw": 10, "muon": 10, "sam": 10}
    found = run(tmp_path, 11, kills)
    assert_equal(found, kills)
    phases = {phase for result in found.values() for phase in result["phases"]}
    assert {"warmup", "decay", "half a file"} <= phases


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    """Muon with float32 orthogonalisation."""
    kills = {"ddp": 4, "fsdp2": 4}
    assert_equal(run(tmp_path, 5, kills), kills, tolerance=1e-6)


@pytest.mark.slow
def test_another_number_of_processes(tmp_path: Path) -> None:
    """Saved by two, continued by one, and the other way round: as the run that had that number from the start."""
    kills = {"ddp-single": 1, "single-ddp": 1, "fsdp2-single": 1}
    assert_equal(run(tmp_path, 6, kills), kills, tolerance=1e-6)
