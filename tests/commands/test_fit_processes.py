"""`lit-opt fit` on several devices: it reaches its end in all processes, and one of them reports."""

from __future__ import annotations

from pathlib import Path

from tests.processes import launch


def test_two_processes(tmp_path: Path) -> None:
    result = launch("tests.commands.fit_processes", tmp_path)
    assert result.returncode == 0, result.stderr[-6000:]
    assert [(tmp_path / f"code.{rank}").read_text() for rank in (0, 1)] == ["0", "0"]
    assert result.stdout.count("After training:") == 1
    assert result.stdout.count("Picture of the run:") == 1
    assert result.stdout.count("Checkpoint:") == 1
