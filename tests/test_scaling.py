"""Batch rules against the factors typed out by hand, and the tables that go by size."""

import math
import random

import pytest

from lit_opt.scaling import RULES, batch_factor, pick_row, scale_lr

INF = float("inf")


@pytest.mark.parametrize(
    ("batch", "reference", "rule", "limit", "expected"),
    [
        (1024, 256, "linear", None, 4.0),
        (64, 256, "linear", None, 0.25),
        (8192, 256, "linear", 8192, 32.0),
        (65536, 256, "linear", 8192, 32.0),
        (1024, 256, "sqrt", None, 2.0),
        (2**21, 2**19, "sqrt", 2**21, 2.0),
        (2**25, 2**19, "sqrt", 2**21, 2.0),
        (1024, 256, "linear_then_sqrt", 1024, 4.0),
        (4096, 256, "linear_then_sqrt", 1024, 8.0),
        (512, 256, "linear_then_sqrt", 1024, 2.0),
        (1024, 256, "linear_then_sqrt", None, 4.0),
        (9999, 256, "none", None, 1.0),
        # A user's own base may lie beyond the limit: at that batch the rate is the base.
        (4096, 4096, "linear_then_sqrt", 1024, 1.0),
        (16384, 4096, "linear_then_sqrt", 1024, 2.0),
        (16384, 16384, "linear", 8192, 1.0),
        (32768, 16384, "linear", 8192, 1.0),
    ],
)
def test_factors(batch, reference, rule, limit, expected):
    assert batch_factor(batch, reference, rule, limit) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_properties_of_factors(rule):
    rng = random.Random(rule)
    for _ in range(500):
        reference, limit = rng.randint(1, 10**5), rng.choice([None, rng.randint(1, 10**6)])
        batches = sorted(rng.randint(1, 10**7) for _ in range(5))
        factors = [batch_factor(b, reference, rule, limit) for b in batches]
        assert factors == sorted(factors)
        assert batch_factor(reference, reference, rule, limit) == pytest.approx(1.0)
        # Two steps of scaling are one.
        a, b = batches[0], batches[-1]
        chained = batch_factor(a, reference, rule, limit) * batch_factor(b, a, rule, limit)
        assert chained == pytest.approx(batch_factor(b, reference, rule, limit))


@pytest.mark.parametrize("batch", [0, -1, float("nan")])
def test_impossible_batches(batch):
    with pytest.raises(ValueError, match="positive"):
        batch_factor(batch, 256, "linear")
    with pytest.raises(ValueError, match="positive"):
        batch_factor(256, batch, "linear")


def test_unknown_rule():
    with pytest.raises(ValueError, match="'cubic' is unknown"):
        batch_factor(1, 1, "cubic")


def test_words_show_the_arithmetic():
    assert scale_lr(0.1, batch=1024, reference=256, rule="linear") == (0.4, "0.1 at 256 samples x 4 (linear) at 1,024")
    assert scale_lr(0.1, batch=256, reference=256, rule="linear") == (0.1, "0.1 at 256 samples")
    assert scale_lr(1e-4, batch=8, reference=4, rule="none") == (1e-4, "0.0001 at 4 samples, not scaled")
    lr, words = scale_lr(0.1, batch=16384, reference=256, rule="linear", limit=8192)
    assert lr == pytest.approx(3.2) and words.endswith("x 32 (linear) at 16,384, the rule ends at 8,192")
    lr, words = scale_lr(3e-4, batch=2**23, reference=2**19, rule="sqrt", limit=2**21, unit="tokens")
    assert lr == pytest.approx(6e-4) and "524,288 tokens x 2 (sqrt)" in words and "ends at 2,097,152" in words


def test_scaling_down():
    assert scale_lr(1e-3, batch=16, reference=1024, rule="linear")[0] == 1e-3
    assert scale_lr(0.1, batch=128, reference=256, rule="linear", down=True, floor=0.01)[0] == pytest.approx(0.05)
    lr, words = scale_lr(0.1, batch=8, reference=256, rule="linear", down=True, floor=0.01)
    assert lr == 0.01 and words == "0.1 at 256 samples x 0.03125 (linear) at 8, held at the low end 0.01"
    # A base that is already below the range is neither raised to it nor lowered further.
    lr, words = scale_lr(0.005, batch=8, reference=256, rule="linear", down=True, floor=0.01)
    assert lr == 0.005 and words == "0.005 at 256 samples, not scaled down at 8"


def test_never_below_base_or_floor():
    rng = random.Random(0)
    for _ in range(500):
        base, floor = 10 ** rng.uniform(-6, 1), 10 ** rng.uniform(-6, 1)
        batch, reference = rng.randint(1, 10**5), rng.randint(1, 10**5)
        rule = rng.choice(RULES[1:])
        kept, _ = scale_lr(base, batch=batch, reference=reference, rule=rule)
        assert kept >= base
        lowered, _ = scale_lr(base, batch=batch, reference=reference, rule=rule, down=True, floor=floor)
        assert lowered >= min(base, floor)
        if batch >= reference:
            assert lowered == kept
        assert math.isfinite(lowered)


def test_pick_row_limits_are_inclusive():
    rows = ((350e6, "a"), (13e9, "b"), (INF, "c"))
    found = [pick_row(n, rows) for n in (0, 350_000_000, 350_000_001, 13_000_000_000, 13_000_000_001, 10**15)]
    assert found == ["a", "a", "b", "b", "c", "c"]
