"""A finished comparison of two arms on the toy, shared by the tests that read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lit_opt.comparison import report
from lit_opt.comparison.compare import compare
from lit_opt.comparison.results import to_json
from tests.comparison.toy import CPU, Data, Net

# Eight runs of eight steps.
SMALL: dict[str, Any] = {
    "arms": ["llm", "llm/muon"],
    "budget_steps": 8,
    "eval_every": 4,
    "trials": 2,
    "seeds": 2,
    "trainer": CPU,
    "quiet": True,
}


@pytest.fixture(autouse=True)
def _without_pictures(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A report takes longer than all runs of the toy; `finished` has one, made before this."""
    if request.module.__name__.endswith(("test_compare", "test_workers")):
        monkeypatch.setattr(report, "write", _numbers_alone)


def _numbers_alone(out: Path, protocol: Any, runs: Any, results: dict[str, Any]) -> None:
    (out / "results.json").write_text(to_json(results))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its folder; not to be written to."""
    folder: Path = tmp_path_factory.mktemp("comparison")
    compare(Net, Data, **SMALL, out=folder)
    return folder
