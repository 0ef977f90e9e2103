"""Five arms, eight trials, six seeds on a CPU toy: what a first try of a user looks like. Its time is in the log, not a limit."""

from __future__ import annotations

import time

import pytest

from lit_opt import compare
from tests.comparison.toy import CPU, Data, Net

ARMS = ["llm", "llm/muon", "llm/soap", "large_batch/lamb", "cnn/sam"]


@pytest.mark.slow
def test_five_arms(tmp_path):
    began = time.perf_counter()
    found = compare(
        Net,
        Data,
        arms=ARMS,
        budget_steps=40,
        eval_every=10,
        trials=8,
        seeds=6,
        readout="raw",
        trainer=CPU,
        out=tmp_path,
    )
    print(f"five arms, 70 runs of 40 steps and the report: {time.perf_counter() - began:.0f} s")
    assert found["violations"] == []
    assert set(found["comparisons"]) == set(ARMS[1:])
    assert found["total"]["runs"] == {"tune": 40, "confirm": 30}
    assert (tmp_path / "report.html").stat().st_size > 0
