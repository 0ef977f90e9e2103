"""Each schedule against a formula written again here, its boundaries, and torch's schedulers where they agree."""

import math
import random

import pytest
import torch

from lit_opt.schedules import KINDS, Schedule, factor


def reference(s, step):
    """The same curves, written from their description instead of from the code."""
    if step < s.warmup_steps:
        # w + 1 equal parts from the start to the peak; step 0 is one part above the start.
        part = (1 - s.warmup_start) / (s.warmup_steps + 1)
        return s.warmup_start + part * (step + 1)
    if s.kind == "constant":
        return 1.0
    if s.kind == "step":
        value = 1.0
        for milestone in s.milestones:
            if step >= milestone:
                value *= s.gamma
        return value
    if step >= s.total_steps:
        return s.final
    if s.kind == "wsd":
        start = s.total_steps - s.cooldown_steps
        return 1.0 if step <= start else 1.0 + (s.final - 1.0) * (step - start) / s.cooldown_steps
    t = (step - s.warmup_steps) / (s.total_steps - s.warmup_steps)
    if s.kind == "cosine":
        return s.final + (1 - s.final) * math.cos(math.pi * t / 2) ** 2
    if s.kind == "linear":
        return 1 - (1 - s.final) * t
    return s.final + (1 - s.final) * (1 - t) ** s.power


def random_schedule(rng, kind):
    total = rng.choice([2, 3, 10, 101, 5000, rng.randint(2, 10**6)])
    warmup = rng.choice([0, 1, rng.randint(0, total - 1)])
    return Schedule(
        total_steps=total,
        warmup_steps=warmup,
        warmup_start=rng.choice([0.0, 0.01, rng.random()]),
        kind=kind,
        final=rng.choice([0.0, 0.1, rng.random()]),
        power=rng.choice([0.5, 1.0, 2.0, 3.5]),
        milestones=tuple(sorted(rng.sample(range(warmup, total + 1), min(2, total + 1 - warmup)))),
        gamma=rng.choice([0.1, 0.5, 1.0]),
        cooldown_steps=rng.randint(1, total - warmup),
    )


def steps_of(rng, s):
    marks = {0, 1, s.warmup_steps - 1, s.warmup_steps, s.warmup_steps + 1, s.total_steps - s.cooldown_steps}
    marks |= {s.total_steps - 1, s.total_steps, s.total_steps + 1, 10 * s.total_steps, *s.milestones}
    marks |= {rng.randrange(s.total_steps) for _ in range(20)}
    return sorted(m for m in marks if m >= 0)


@pytest.mark.parametrize("kind", KINDS)
def test_random_schedules(kind):
    rng = random.Random(kind)
    for _ in range(300):
        s = random_schedule(rng, kind)
        steps = steps_of(rng, s)
        got = [factor(s, step) for step in steps]
        for step, value in zip(steps, got, strict=True):
            assert value == pytest.approx(reference(s, step), abs=1e-12), (s, step)
            assert 0.0 <= value <= 1.0, (s, step)
            assert step >= s.warmup_steps or value > 0.0, (s, step)
        warm = [v for step, v in zip(steps, got, strict=True) if step <= s.warmup_steps]
        after = [v for step, v in zip(steps, got, strict=True) if step >= s.warmup_steps]
        if kind != "step" or s.warmup_steps not in s.milestones:
            assert warm == sorted(warm), s
        assert after == sorted(after, reverse=True), s


@pytest.mark.parametrize("kind", KINDS)
def test_boundaries(kind):
    s = Schedule(
        total_steps=1000, warmup_steps=100, kind=kind, final=0.1, power=2.0, milestones=(500,), cooldown_steps=200
    )
    assert factor(s, 0) == pytest.approx(1 / 101)
    assert factor(s, 99) == pytest.approx(100 / 101)
    assert factor(s, 100) == 1.0
    end = 1.0 if kind == "constant" else 0.1
    assert factor(s, 1000) == factor(s, 1001) == factor(s, 10**9) == pytest.approx(end)


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("constant", "step")])
@pytest.mark.parametrize(("total", "warmup", "cooldown"), [(1, 0, 0), (2, 1, 0), (2, 2, 0), (7, 0, 7)])
def test_the_horizon_reaches_the_final_value_even_in_tiny_runs(kind, total, warmup, cooldown):
    s = Schedule(total_steps=total, warmup_steps=warmup, kind=kind, final=0.25, cooldown_steps=cooldown)
    assert factor(s, total) == 0.25


def test_warmup_is_never_zero_and_starts_where_it_says():
    for warmup in (1, 2, 1000, 10**7):
        assert factor(Schedule(total_steps=10**8, warmup_steps=warmup), 0) > 0.0
    s = Schedule(total_steps=1000, warmup_steps=9, warmup_start=0.01)
    assert factor(s, 0) == pytest.approx(0.01 + 0.99 / 10)


def test_constant_needs_no_horizon_and_the_others_do():
    s = Schedule(total_steps=None, warmup_steps=10, kind="constant")
    assert factor(s, 5) == pytest.approx(6 / 11) and factor(s, 10**6) == 1.0
    with pytest.raises(ValueError, match="total_steps"):
        factor(Schedule(total_steps=None, kind="cosine"), 0)


def test_unknown_kind():
    with pytest.raises(ValueError, match="'cosin' is unknown"):
        factor(Schedule(total_steps=10, kind="cosin"), 0)


def test_step_multiplies_at_each_milestone():
    s = Schedule(total_steps=90, kind="step", milestones=(30, 60, 80), gamma=0.1)
    found = [factor(s, step) for step in (0, 29, 30, 59, 60, 79, 80, 89, 90)]
    assert found == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3, 1e-3])


def test_a_cooldown_from_a_checkpoint_of_the_stable_phase():
    """The stable phase does not depend on the horizon, so any of its checkpoints can be cooled down."""
    long = Schedule(total_steps=10_000, warmup_steps=100, kind="wsd", cooldown_steps=2000)
    for checkpoint in (100, 500, 3000):
        short = Schedule(total_steps=checkpoint + 400, warmup_steps=100, kind="wsd", cooldown_steps=400)
        for step in (0, 50, 100, checkpoint):
            assert factor(short, step) == factor(long, step)
        assert factor(short, checkpoint + 100) == pytest.approx(0.75)
        assert factor(short, checkpoint + 400) == 0.0


def torch_factors(make, steps):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make(optimizer)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_agrees_with_torch_cosine():
    s = Schedule(total_steps=137, kind="cosine", final=0.1)
    found = torch_factors(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=137, eta_min=0.1), 138)
    assert [factor(s, step) for step in range(138)] == pytest.approx(found, abs=1e-12)


def test_agrees_with_torch_linear():
    s = Schedule(total_steps=50, kind="linear", final=0.2)
    found = torch_factors(
        lambda o: torch.optim.lr_scheduler.LinearLR(o, start_factor=1.0, end_factor=0.2, total_iters=50), 70
    )
    assert [factor(s, step) for step in range(70)] == pytest.approx(found, abs=1e-12)


def test_warmup_agrees_with_torch_linear():
    s = Schedule(total_steps=None, warmup_steps=20, kind="constant")
    found = torch_factors(lambda o: torch.optim.lr_scheduler.LinearLR(o, start_factor=1 / 21, total_iters=20), 40)
    assert [factor(s, step) for step in range(40)] == pytest.approx(found, abs=1e-12)


def test_agrees_with_torch_polynomial_and_milestones():
    s = Schedule(total_steps=60, kind="polynomial", power=2.0)
    found = torch_factors(lambda o: torch.optim.lr_scheduler.PolynomialLR(o, total_iters=60, power=2.0), 70)
    assert [factor(s, step) for step in range(70)] == pytest.approx(found, abs=1e-12)
    s = Schedule(total_steps=60, kind="step", milestones=(20, 40), gamma=0.1)
    found = torch_factors(lambda o: torch.optim.lr_scheduler.MultiStepLR(o, milestones=[20, 40], gamma=0.1), 60)
    assert [factor(s, step) for step in range(60)] == pytest.approx(found, abs=1e-12)


@pytest.mark.parametrize("total", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_runs_of_a_few_steps_without_a_cooldown(kind, total):
    schedule = Schedule(total_steps=total, warmup_steps=0, kind=kind, cooldown_steps=0)
    assert all(0.0 <= factor(schedule, step) <= 1.0 for step in range(total + 2))
    assert factor(schedule, 0) == 1.0
