"""Schedules: per epoch for per step, lengths that do not fit, warmups."""

from __future__ import annotations

import pytest
import torch
from torch.optim import lr_scheduler as lrs

from tests.preflight.setups import LM, by_role, cnn, cosine, ids, llm, run, schedule, stepped, the, vit


def optimizer_of(module, lr=3e-4):
    return torch.optim.AdamW(by_role(module, "llm"), lr=lr, betas=(0.9, 0.95))


def judged(make, interval="step", total=10_000, per_epoch=1000, setting=None, **more):
    """A language model whose scheduler `make` makes from the optimizer."""
    module = LM()
    optimizer = more.pop("optimizer", optimizer_of)(module)
    schedulers = stepped(make(optimizer), interval)
    return run(module, optimizer, schedulers, setting, total=total, per_epoch=per_epoch, trainer={"clip": 1.0}, **more)


def loud(report):
    return [finding.id for finding in report.findings if finding.level != "note"]


# ---- per epoch


def test_a_schedule_in_steps_that_is_stepped_per_epoch():
    report = judged(lambda o: lrs.CosineAnnealingLR(o, T_max=10_000), "epoch")
    found = the(report, "schedule-per-epoch")
    assert found.level == "error"
    assert "CosineAnnealingLR is 10,000 long and is stepped once an epoch" in found.message
    assert "stepped 10 times in 10,000 optimizer steps; the rate goes from 0.0003 to 0.0003" in found.evidence
    assert "horizon-mismatch" not in ids(report)


def test_one_cycle_and_transformers_schedules_per_epoch():
    from transformers import get_linear_schedule_with_warmup

    for make in (
        lambda o: lrs.OneCycleLR(o, max_lr=3e-4, total_steps=10_000),
        lambda o: get_linear_schedule_with_warmup(o, 200, 10_000),
        lambda o: lrs.LambdaLR(o, cosine(10_000, 200)),
    ):
        report = judged(make, "epoch")
        assert "schedule-per-epoch" in ids(report), ids(report)


def test_a_schedule_in_epochs_that_is_stepped_per_epoch_is_silent():
    report = judged(lambda o: lrs.CosineAnnealingLR(o, T_max=10), "epoch")
    assert loud(report) == []
    report = judged(lambda o: lrs.MultiStepLR(o, [4, 8]), "epoch")
    assert loud(report) == []


def test_a_schedule_per_epoch_in_a_run_of_one_epoch():
    found = the(judged(lambda o: lrs.CosineAnnealingLR(o, T_max=1), "epoch", total=1000), "schedule-per-epoch")
    assert found.level == "warning" and "1,000 optimizer steps in one epoch" in found.evidence


def test_timm_schedules():
    from timm.scheduler import CosineLRScheduler

    module = LM()
    optimizer = optimizer_of(module)
    right = stepped(CosineLRScheduler(optimizer, t_initial=95, warmup_t=5, warmup_prefix=True), "epoch")
    assert loud(run(module, optimizer, right, total=100_000)) == []
    optimizer = optimizer_of(module)
    in_steps = CosineLRScheduler(optimizer, t_initial=100_000, t_in_epochs=False)
    assert loud(run(module, optimizer, stepped(in_steps, "step"), total=100_000)) == []
    optimizer = optimizer_of(module)
    wrong = CosineLRScheduler(optimizer, t_initial=100_000, warmup_t=500, warmup_lr_init=1e-6)
    report = run(module, optimizer, stepped(wrong, "epoch"), total=100_000)
    assert {"schedule-per-epoch", "warmup-longer-than-run"} & set(ids(report))
    assert optimizer.param_groups[0]["lr"] == 1e-6  # and nothing was stepped


# ---- the horizon


@pytest.mark.parametrize(
    "make",
    [
        lambda o: lrs.CosineAnnealingLR(o, T_max=20_000),
        lambda o: lrs.LambdaLR(o, cosine(20_000, 200)),
        lambda o: lrs.SequentialLR(
            o, [lrs.LinearLR(o, 0.01, total_iters=200), lrs.CosineAnnealingLR(o, 19_800)], [200]
        ),
    ],
)
def test_a_schedule_longer_than_the_run(make):
    found = the(judged(make), "horizon-mismatch")
    assert found.level == "warning"
    assert "its length is 20,000, the run steps it 10,000 times and stops at 5" in found.evidence


def test_a_cosine_that_rises_again():
    found = the(judged(lambda o: lrs.CosineAnnealingLR(o, T_max=5000)), "horizon-mismatch")
    assert found.level == "error"
    assert "lowest at optimizer step 5,000 of 10,000, then up to 100 % of the peak" in found.evidence


def test_a_one_cycle_that_raises_before_the_end():
    found = the(judged(lambda o: lrs.OneCycleLR(o, 3e-4, total_steps=8000)), "horizon-mismatch")
    assert found.level == "error"
    assert "it fails at optimizer step 8,001 of 10,000 (its length is 8,000)" in found.evidence
    assert "horizon-mismatch" not in ids(judged(lambda o: lrs.OneCycleLR(o, 3e-4, total_steps=10_000)))
    assert "horizon-mismatch" in ids(judged(lambda o: lrs.OneCycleLR(o, 3e-4, total_steps=9_999)))


def test_a_schedule_that_ends_early():
    found = the(judged(lambda o: lrs.LambdaLR(o, cosine(6000, 100))), "horizon-mismatch")
    assert found.level == "warning"
    assert "its length is 6,000, the run steps it 10,000 times: 40 % of the run at 0 % of the peak" in found.evidence
    floor = the(judged(lambda o: lrs.LambdaLR(o, cosine(6000, 100, 0.1))), "horizon-mismatch")
    assert floor.level == "note"


def test_milestones_in_epochs_that_are_counted_in_steps():
    found = the(judged(lambda o: lrs.MultiStepLR(o, [30, 60, 80])), "horizon-mismatch")
    assert found.level == "error"
    assert "below 1 % of the peak from optimizer step 60 of 10,000 on" in found.evidence
    assert "interval='epoch'" in found.why


def test_drops_that_never_come():
    report = judged(lambda o: lrs.StepLR(o, 30), "epoch")
    assert "never drops the rate in this run" in the(report, "horizon-mismatch").message
    assert loud(judged(lambda o: lrs.StepLR(o, 4), "epoch")) == []


@pytest.mark.parametrize(
    "make",
    [
        lambda o: lrs.LambdaLR(o, cosine(10_000, 200, 0.1)),
        lambda o: lrs.LambdaLR(o, lambda s: min(1.0, (s + 1) / 200)),  # warmup, then constant
        lambda o: lrs.LambdaLR(o, lambda s: min((s + 1) / 400, (400 / (s + 1)) ** 0.5)),  # Noam has no end
        lambda o: lrs.LambdaLR(o, lambda s: min(1.0, (10_000 - s) / 2000)),  # stable, then decay
        lambda o: lrs.CosineAnnealingWarmRestarts(o, T_0=1000, T_mult=2),
        lambda o: lrs.CyclicLR(o, 1e-5, 3e-4, step_size_up=500, cycle_momentum=False),
        lambda o: lrs.ExponentialLR(o, 0.9997),
        lambda o: lrs.PolynomialLR(o, total_iters=10_000),
        lambda o: lrs.ConstantLR(o, factor=1.0),
    ],
)
def test_schedules_that_fit_are_silent(make):
    assert loud(judged(make)) == []


def test_a_scheduler_of_ones_own_is_stepped_through():
    class Halves(lrs.LRScheduler):
        def get_lr(self):
            return [group["lr"] * (0.5 if self.last_epoch == 7000 else 1.0) for group in self.optimizer.param_groups]

    report = judged(Halves)
    assert loud(report) == []
    report = judged(Halves, total=100_000)
    reasons = [item.reason for item in report.unjudged]
    assert any("no closed form, and only the first 10,000 steps were played" in reason for reason in reasons)


def test_what_cannot_be_foreseen_is_said():
    report = judged(lambda o: lrs.ReduceLROnPlateau(o), setting="llm")
    assert any("ReduceLROnPlateau follows a metric" in item.reason for item in report.unjudged)
    assert not {"no-warmup", "no-schedule", "horizon-mismatch"} & set(ids(report))
    unknown = judged(lambda o: lrs.LambdaLR(o, cosine(100, 10)), total=None)
    assert any("a long warmup" in item.checks for item in unknown.unjudged)


# ---- warmups


def test_a_warmup_longer_than_the_run():
    report = judged(lambda o: lrs.LambdaLR(o, cosine(100_000, 20_000)))
    found = the(report, "warmup-longer-than-run")
    assert found.level == "error"
    assert "from 1.5e-08 to 0.00015 in 10,000 optimizer steps; the optimizer was given 0.0003" in found.evidence
    per_epoch = judged(lambda o: lrs.LinearLR(o, 0.01, total_iters=20), "epoch")
    assert "stepped once an epoch, stepped 10 times" in the(per_epoch, "warmup-longer-than-run").evidence
    # 500 is nearer to the steps of the run than to its epochs, and that is what is said.
    in_steps = judged(lambda o: lrs.LinearLR(o, 0.01, total_iters=500), "epoch")
    assert [i for i in ids(in_steps) if i in ("schedule-per-epoch", "warmup-longer-than-run")] == ["schedule-per-epoch"]


def test_a_warmup_that_takes_much_of_the_run():
    found = the(judged(lambda o: lrs.LambdaLR(o, cosine(10_000, 3000))), "warmup-too-long")
    assert found.level == "warning" and found.evidence == "3,000 of 10,000 optimizer steps"
    short = the(judged(lambda o: lrs.LambdaLR(o, cosine(400, 100)), total=400), "warmup-too-long")
    assert short.level == "note"
    assert loud(judged(lambda o: lrs.OneCycleLR(o, 3e-4, total_steps=10_000))) == []  # 30 % by design


def test_no_warmup():
    found = the(judged(lambda o: lrs.CosineAnnealingLR(o, T_max=10_000), setting="llm"), "no-warmup")
    assert found.level == "warning" and found.evidence == "0.0003 at step 0"
    # Fine-tuning begins at its peak in the Hugging Face Trainer.
    assert "no-warmup" not in ids(judged(lambda o: lrs.CosineAnnealingLR(o, T_max=10_000), setting="llm/finetune"))


def test_no_warmup_with_a_large_batch():
    module_wide = {"schedulers": None}
    assert "no-warmup" not in ids(cnn(**module_wide))
    from tests.preflight.setups import CNN

    module = CNN()
    optimizer = torch.optim.SGD(by_role(module, "cnn"), lr=0.8, momentum=0.9)
    flat = stepped(lrs.CosineAnnealingLR(optimizer, 100_000))
    report = cnn(module=module, optimizer=optimizer, schedulers=flat, batch=2048)
    assert the(report, "no-warmup").evidence == "0.8 at step 0 with a batch of 2,048"
    small = cnn(module=module, optimizer=optimizer, schedulers=flat, batch=256)
    assert "no-warmup" not in ids(small)


def test_a_constant_rate():
    for report in (llm(schedulers=[]), vit(schedulers=[])):
        found = the(report, "no-schedule")
        assert found.level == "warning" and "no scheduler is configured" in found.evidence
    assert "no-schedule" not in ids(run(LM(), optimizer_of(LM()), setting="diffusion"))


def test_rates_that_the_module_writes_itself_are_not_judged():
    class ByHand(LM):
        def optimizer_step(self, optimizer):
            for group in optimizer.param_groups:
                group["lr"] = 1e-4

    module = ByHand()
    report = llm(module=module, schedulers=[])
    assert not {"no-schedule", "no-warmup"} & set(ids(report))
    assert any("the module writes group['lr'] itself" in item.reason for item in report.unjudged)


def test_nothing_is_stepped_or_drawn():
    """Scheduler, optimizer and random state are as before."""
    module = LM()
    optimizer = optimizer_of(module)
    parts = [lrs.LinearLR(optimizer, 0.01, total_iters=200), lrs.CosineAnnealingLR(optimizer, 9800)]
    scheduler = lrs.SequentialLR(optimizer, parts, [200])
    before = repr(scheduler.state_dict()), repr(optimizer.state_dict()), torch.get_rng_state()
    weights = [p.clone() for p in module.parameters()]
    run(module, optimizer, schedule_of(scheduler), "llm", total=10_000)
    assert (repr(scheduler.state_dict()), repr(optimizer.state_dict())) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert all(torch.equal(a, b) for a, b in zip(weights, module.parameters(), strict=True))


def schedule_of(scheduler):
    return stepped(scheduler)


def test_a_resumed_schedule_is_judged_as_a_whole():
    module = LM()
    optimizer = optimizer_of(module)
    resumed = schedule(optimizer, cosine(10_000, 200))
    for _ in range(5000):
        resumed[0].scheduler.step()
    assert loud(run(module, optimizer, resumed, total=10_000)) == []
