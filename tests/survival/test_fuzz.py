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
seen: Counter[str] = Counter()


def check(draw: Draw) -> None:
    outcome = try_out(draw)
    seen[outcome[:20]] += 1
    assert outcome in ("trained", "refused", "interrupted"), f"{draw}\n{outcome}"


@settings(max_examples=60, derandomize=True, **quiet)  # type: ignore[arg-type]
@given(draws())
def test_dozens_of_runs(draw: Draw) -> None:
    check(draw)


@pytest.mark.slow
@settings(max_examples=SLOW, **quiet)  # type: ignore[arg-type]
@given(draws())
def test_thousands_of_runs(draw: Draw) -> None:
    check(draw)


@pytest.mark.slow
def test_most_draws_are_not_refused_at_once() -> None:
    """A fuzz that never trains would find nothing. Runs after the one above."""
    assert seen["trained"] > 0.2 * sum(seen.values()), seen
