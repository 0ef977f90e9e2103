"""Hypothesis draws runs: each trains, or is refused with our message, and leaves everything as it found it."""

from __future__ import annotations

import os
from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from tests.survival.fuzz import Draw, draws, try_out

torch.set_num_threads(1)
SLOW = int(os.environ.get("LIT_OPT_FUZZ_DRAWS", "3000"))
quiet = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck), "print_blob": True}


def check(draw: Draw, seen: Counter[str]) -> None:
    outcome = try_out(draw)
    seen[outcome[:20]] += 1
    assert outcome in ("trained", "refused", "interrupted"), f"{draw}\n{outcome}"


def test_dozens_of_runs() -> None:
    seen: Counter[str] = Counter()

    @settings(max_examples=80, derandomize=True, **quiet)  # type: ignore[arg-type]
    @given(draws())
    def few(draw: Draw) -> None:
        check(draw, seen)

    few()
    assert seen["trained"] >= 10, seen


@pytest.mark.slow
def test_thousands_of_runs() -> None:
    seen: Counter[str] = Counter()

    @settings(max_examples=SLOW, **quiet)  # type: ignore[arg-type]
    @given(draws())
    def many(draw: Draw) -> None:
        check(draw, seen)

    many()
    print(dict(seen))
    assert seen["trained"] > 0.15 * sum(seen.values()), seen  # one that refuses everything would find nothing
