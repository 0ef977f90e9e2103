"""A finished comparison of two arms on the toy, shared by the tests that read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lit_opt.comparison.compare import compare
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


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its folder; not to be written to."""
    folder: Path = tmp_path_factory.mktemp("comparison")
    compare(Net, Data, **SMALL, out=folder)
    return folder
