"""The whole of a comparison on the toy: the order of its stages, resuming, refusing, crashes, widening, the announcement."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch.utils.data import DataLoader, IterableDataset

from lit_opt import Recipe, compare
from lit_opt.comparison import results as results_module
from lit_opt.comparison.compare import write_report
from lit_opt.comparison.ledger import Ledger
from lit_opt.comparison.points import unit_points
from lit_opt.comparison.stages import open_jobs, progress_of, search_jobs
from lit_opt.errors import RecipeError
from tests.comparison.conftest import SMALL
from tests.comparison.toy import CPU, Data, Net


def events(folder):
    return [event for _, event in Ledger(folder).read().events]


def kinds(folder):
    return [event["event"] for event in events(folder)]


def outcome(folder):
    """All that may not depend on when, where and by whom a run was done."""
    runs = progress_of(Ledger(folder).read()).runs
    plain = {}
    for key, run in runs.items():
        facts = {k: v for k, v in run.facts.items() if k not in ("timing", "ms_per_step", "peak_bytes")}
        readings = {name: [(r.step, r.samples, r.flops, r.metric) for r in rs] for name, rs in run.readings.items()}
        plain[key] = (run.arm, run.stage, run.point, run.seed, run.values, run.state, readings, facts)
    found = results_module.without_volatile(json.loads((folder / "results.json").read_text()))
    return plain, json.dumps(found, sort_keys=True)


# ---- the stages


def test_the_stages_come_in_their_order(finished):
    confirmed = [e for e in events(finished) if e["event"] == "started" and e["stage"] == "confirm"]
    order = kinds(finished)
    chosen, target = order.index("chosen"), order.index("target")
    assert order[0] == "opened" and order.count("chosen") == order.count("target") == 1
    tuned = [i for i, e in enumerate(events(finished)) if e["event"] == "finished" and e["run"]["stage"] == "tune"]
    assert len(tuned) == 4 and max(tuned) < chosen < target
    assert [e["arm"] for e in confirmed] == ["llm", "llm", "llm/muon", "llm/muon"]
    others = [i for i, e in enumerate(events(finished)) if e["event"] == "started" and e.get("arm") == "llm/muon"]
    assert [i for i in others if i > chosen] == [i for i in others if i > target]


def test_arms_are_tried_at_the_same_points_of_their_boxes(finished):
    progress = progress_of(Ledger(finished).read())
    where: dict[str, list[tuple[float, ...]]] = {}
    for job in sorted(search_jobs(progress), key=lambda job: job.point):
        arm = next(arm for arm in progress.protocol.arms if arm.name == job.arm)
        where.setdefault(job.arm, []).append(
            tuple(round(job.values[name] / arm.start[name], 4) for name in ("lr", "weight_decay"))
        )
    assert where["llm"] == where["llm/muon"]
    assert where["llm"][0] == (1.0, 1.0)
    for arm in progress.protocol.arms:
        low, high = arm.box["lr"]
        assert (low * 10, high / 10) == pytest.approx((arm.start["lr"], arm.start["lr"]))


def test_confirmed_seeds_are_fresh_and_the_same_for_all_arms(finished):
    runs = progress_of(Ledger(finished).read()).runs.values()
    tuned = {run.seed for run in runs if run.stage == "tune"}
    confirmed = {(run.arm, run.seed) for run in runs if run.stage == "confirm"}
    assert confirmed == {(arm, seed) for arm in ("llm", "llm/muon") for seed in (1, 2)}
    assert tuned == {0}


def test_the_report_is_there_and_every_number_has_its_lines(finished):
    for name in ("results.json", "runs.csv", "curves.csv", "report.html", "summary.md"):
        assert (finished / name).stat().st_size > 0
    reading = Ledger(finished).read()
    lines = dict(reading.events)
    for run in progress_of(reading).runs.values():
        (line,) = run.lines
        assert lines[line]["run"]["key"] == run.key
    assert json.loads((finished / "results.json").read_text())["violations"] == []


def test_times_are_there_with_one_worker(finished):
    for run in progress_of(Ledger(finished).read()).runs.values():
        assert cast(Any, run.facts["timing"])["alone"] and run.readings["raw"][-1].seconds > 0


# ---- resuming and refusing


def test_the_same_call_adds_nothing(finished, tmp_path):
    before = (finished / "ledger.jsonl").read_bytes()
    compare(Net, Data, **SMALL, out=finished)
    assert (finished / "ledger.jsonl").read_bytes() == before


def cut(source: Path, target: Path, lines: int) -> None:
    target.mkdir()
    whole = (source / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    (target / "ledger.jsonl").write_bytes(b"".join(whole[:lines]) + whole[lines][: len(whole[lines]) // 2])


@pytest.mark.parametrize("lines", [3, 12])
def test_a_comparison_that_was_cut_anywhere_goes_on_to_the_same_results(finished, tmp_path, lines):
    folder = tmp_path / "again"
    cut(finished, folder, lines)
    compare(Net, Data, **SMALL, out=folder)
    assert outcome(folder) == outcome(finished)
    assert Ledger(folder).read().torn == (lines + 1,)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"trials": 4}, "trials: 2 then, 4 now"),
        ({"budget_steps": 16}, "budget_steps: 8 then, 16 now"),
        ({"baseline": "llm/muon"}, "baseline: llm then, llm/muon now"),
        ({"arms": ["llm", Recipe("llm/muon", lr=0.01)]}, "lr=0.01"),
        ({"trainer": {**CPU, "precision": "bf16-mixed"}}, "precision=bf16-mixed"),
    ],
)
def test_another_protocol_in_the_same_folder_is_refused(finished, change, words):
    before = (finished / "ledger.jsonl").read_bytes()
    with pytest.raises(RecipeError) as refused:
        compare(Net, Data, **(SMALL | change), out=finished)
    assert words in str(refused.value) and "another folder" in str(refused.value)
    assert (finished / "ledger.jsonl").read_bytes() == before


def test_another_model_in_the_same_folder_is_refused(finished):
    class Other(Net):
        pass

    with pytest.raises(RecipeError, match=r"module: tests.comparison.toy.Net then, .*Other now"):
        compare(Other, Data, **SMALL, out=finished)


def test_an_edited_ledger_is_not_gone_on_with(finished, tmp_path):
    folder = tmp_path / "edited"
    cut(finished, folder, 9)
    text = (folder / "ledger.jsonl").read_text()
    (folder / "ledger.jsonl").write_text(text.replace('"seeds": 2', '"seeds": 3', 1))
    with pytest.raises(RecipeError, match="line 1 was changed after it was written"):
        compare(Net, Data, **SMALL, out=folder)


def test_the_report_of_an_unfinished_comparison(finished, tmp_path):
    folder = tmp_path / "half"
    cut(finished, folder, 12)
    found = write_report(folder, quiet=True)
    assert found["comparisons"]["llm/muon"]["verdict"] == "no verdict"


# ---- failures


class Flaky(Net):
    """Crashes when it is told to; a file counts how often."""

    counter: Path
    crashes = 1

    def training_step(self, batch, batch_idx):
        recipe = next(c for c in cast(Any, self.trainer).callbacks if isinstance(c, Recipe))
        if self.global_step == 6 and recipe.spec.name == "llm/muon":
            seen = int(self.counter.read_text()) if self.counter.exists() else 0
            if seen < self.crashes:
                self.counter.write_text(str(seen + 1))
                raise OSError("the network file system went away")
        return super().training_step(batch, batch_idx)


def test_a_crash_is_repeated_with_the_same_seed(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(Flaky, "counter", tmp_path / "count", raising=False)
    folder = tmp_path / "out"
    compare(Flaky, Data, **SMALL, out=folder)
    assert kinds(folder).count("failed") == 1
    progress = progress_of(Ledger(folder).read())
    assert {run.state for run in progress.runs.values()} == {"done"}
    (repeated,) = [run for run in progress.runs.values() if run.facts["attempts"] == 2]
    assert repeated.facts.get("error") is None
    metrics = {(r.arm, r.point, r.seed): [x.metric for x in r.readings["raw"]] for r in progress.runs.values()}
    undisturbed = progress_of(Ledger(finished).read()).runs.values()
    assert metrics == {(r.arm, r.point, r.seed): [x.metric for x in r.readings["raw"]] for r in undisturbed}


def test_what_always_crashes_counts_as_a_miss_after_two_repetitions(tmp_path, monkeypatch):
    monkeypatch.setattr(Flaky, "counter", tmp_path / "count", raising=False)
    monkeypatch.setattr(Flaky, "crashes", 10**9)
    folder = tmp_path / "out"
    found = compare(Flaky, Data, **(SMALL | {"trials": 1}), out=folder)
    (crashed,) = [run for run in progress_of(Ledger(folder).read()).runs.values() if run.arm == "llm/muon"]
    assert (crashed.state, crashed.facts["attempts"]) == ("crashed", 3)
    assert kinds(folder).count("failed") == 2
    assert found["comparisons"]["llm/muon"]["verdict"] == "no verdict"


class Interrupted(Net):
    def training_step(self, batch, batch_idx):
        if self.global_step == 6:
            raise KeyboardInterrupt
        return super().training_step(batch, batch_idx)


def test_an_interrupt_is_one_and_what_was_at_work_is_free_again(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        compare(Interrupted, Data, **SMALL, out=tmp_path / "out")
    assert signal.getsignal(signal.SIGINT) is before
    assert list((tmp_path / "out" / "claims").iterdir()) == []
    assert kinds(tmp_path / "out") == ["opened", "started"]


# ---- widening


def test_an_arm_at_the_edge_is_widened_and_all_arms_get_as_many_points_more(tmp_path):
    arms = {"slow": Recipe("llm", lr=1e-5), "fast": Recipe("llm", lr=3e-2)}
    at_edge = next(seed for seed in range(99) if max(u[0] for u in unit_points(2, seed, 0)) > 0.9)
    compare(Net, Data, **(SMALL | {"arms": arms, "trials": 3, "extend": 1, "seed": at_edge}), out=tmp_path / "out")
    progress = progress_of(Ledger(tmp_path / "out").read())
    (wider,) = [e for e in events(tmp_path / "out") if e["event"] == "widened"]
    assert wider["sides"]["slow"]["lr"] == "high"
    boxes = {arm.name: arm.box["lr"] for arm in progress.effective.arms}
    assert boxes["slow"] == pytest.approx((1e-6, 1e-3))
    tried = [run for run in progress.runs.values() if run.stage == "tune"]
    assert {arm: sum(run.arm == arm for run in tried) for arm in arms} == {"slow": 5, "fast": 5}
    added = [run.values["lr"] for run in tried if run.arm == "slow" and run.point >= 3]
    assert all(1e-4 <= lr <= 1e-3 for lr in added)


# ---- before the start


def test_the_announcement(tmp_path, capsys):
    plan = compare(Net, Data, **(SMALL | {"quiet": False, "studies": 2}), out=tmp_path / "out", dry_run=True)
    assert not (tmp_path / "out").exists()
    assert (plan["runs"], plan["steps"], plan["samples"]) == (16, 128, 2048)
    text = capsys.readouterr().out
    assert "2 arms, llm is the baseline; val_loss decides, lower is better." in text
    assert "llm/muon: lr 0.02 (0.002 to 0.2)" in text
    assert "16 runs of 8 steps with 3 evaluations each, 2,048 samples." in text


class Manual(Net):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


class Silent(Net):
    def validation_step(self, batch, batch_idx):
        pass


class Both(Net):
    """Logs in training as well, once under the name that validation has, too."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("train_loss", loss)
        self.log("both_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("my_acc", torch.tensor(0.5))
        self.log("both_loss", torch.tensor(0.5))


class Two(Net):
    def validation_step(self, batch, batch_idx):
        self.log("a_loss", torch.tensor(1.0))
        self.log("b_loss", torch.tensor(1.0))


class Unseeded(IterableDataset):
    """Draws from a generator of its own that nobody seeds."""

    def __iter__(self):
        generator = torch.Generator()
        generator.seed()
        for _ in range(64):
            x = torch.randn(8, generator=generator)
            yield x, x[:1]


class Stream(Data):
    dataset: Any = Unseeded

    def train_dataloader(self):
        return DataLoader(self.dataset(), 16)


class Seeded(IterableDataset):
    def __iter__(self):
        for _ in range(64):
            x = torch.randn(8)
            yield x, x[:1]


class Partial(Net):
    """Freezes a layer for one arm."""

    def configure_model(self):
        recipe = next(c for c in cast(Any, self.trainer).callbacks if isinstance(c, Recipe))
        self.layers[0].requires_grad_(recipe.spec.name == "llm")


class NotFinite(Net):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * math.nan


class Falls(Net):
    """Its loss is not finite from the third batch on, whatever the optimizer does."""

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * (math.nan if batch_idx >= 2 else 1.0)


class Patient(Net):
    """As many people write it: it stops where the loss does not fall any more."""

    def configure_callbacks(self):
        return [EarlyStopping("val_loss", patience=1)]


@pytest.mark.parametrize(
    ("module", "data", "change", "words"),
    [
        (Patient, Data, {}, "Patient: its configure_callbacks brings EarlyStopping"),
        (Manual, Data, {}, "automatic_optimization is False (manual optimization)"),
        (NotFinite, Data, {}, "loss: that of the first batch is nan, before any step was taken"),
        (NotFinite, Data, {"arms": ["llm/soap", "llm"]}, "not finite by step 1 of the rehearsal"),
        (Silent, Data, {}, "metric: which logged name decides? Nothing is logged in validation. Give metric="),
        (Two, Data, {}, "Logged are: a_loss, b_loss. Give metric="),
        (Both, Data, {"metric": "val_acc"}, "'val_acc' was not logged in validation; logged were: my_acc. Give one"),
        (Net, Data, {"trainer": {**CPU, "detect_anomaly": True}}, "it would make a crash of a run that diverges"),
        (Net, Data, {"metric": "val_acc"}, "metric: 'val_acc' was not logged in validation; logged were: val_loss"),
        (Net, Stream, {}, "An IterableDataset has an order of its own"),
        (Partial, Data, {}, "number of trainable parameters: 161 in llm, 17 in llm/muon"),
        (Net, None, {}, "Net: has no train_dataloader and no val_dataloader"),
        (Net, lambda: 3, {}, "make_datamodule: it returned int"),
        (Net(), Data, {}, "make_module: an object of Net is no factory"),
        (Net, Data, {"eval_every": 3}, "eval_every: 3 does not divide budget_steps=8"),
        (Net, Data, {"arms": ["llm", "lm/muon"]}, "'lm/muon' is no recipe. Did you mean 'llm/muon'?"),
        (Net, Data, {"arms": ["llm", "llm"]}, "'llm' is there twice"),
        (Net, Data, {"arms": ["llm"]}, "a comparison needs at least two"),
        (Net, Data, {"arms": ["llm", Recipe("cnn", ema=0.99)]}, "readout: cnn would be read by its averages"),
        (Net, Data, {"arms": ["llm", Recipe("cnn", total_steps=5)]}, "total_steps: the budget decides it"),
        (Net, Data, {"trainer": {"max_epochs": 3}}, "trainer: max_epochs: it is budget_steps"),
        (Net, Data, {"trainer": {**CPU, "accumulate_grad_batches": 3}}, "give trainer={'limit_train_batches': 3}"),
        (lambda: Net(), Data, {"workers": 2}, "make_module cannot be sent to them"),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_message(module, data, change, words, tmp_path):
    with pytest.raises(RecipeError) as refused:
        compare(module, data, **(SMALL | change), out=tmp_path / "out")
    assert words.lower() in str(refused.value).lower()


@pytest.mark.parametrize("metric", [None, "both_loss"])
def test_a_metric_that_training_logs_as_well_is_not_guessed_and_may_be_given(metric, tmp_path):
    found = compare(Both, Data, **(SMALL | {"trials": 1, "metric": metric}), out=tmp_path / "out")
    assert found["protocol"]["metric"] == (metric or "my_acc")


def test_what_is_said_of_an_epoch_that_does_not_divide_helps(tmp_path):
    trainer = {**CPU, "accumulate_grad_batches": 3, "limit_train_batches": 3}
    found = compare(Net, Data, **(SMALL | {"trials": 1, "trainer": trainer}), out=tmp_path / "out")
    assert found["violations"] == []


def test_arms_that_diverge_in_the_rehearsal_have_their_runs(tmp_path):
    found = compare(Falls, Data, **(SMALL | {"trials": 2}), out=tmp_path / "out")
    assert {arm["stability"]["search"]["states"]["diverged"] for arm in found["arms"].values()} == {2}
    (one,) = found["comparisons"].values()
    assert one["said"] == "no verdict"
    for arm in ("llm", "llm/muon"):
        assert f"nothing to confirm: no trial of {arm} has a finite result (2 diverged)" in one["reasons"]


def test_an_iterable_dataset_with_a_seedable_order_is_fine(tmp_path, monkeypatch):
    monkeypatch.setattr(Stream, "dataset", Seeded)
    found = compare(Net, Stream, **(SMALL | {"trials": 1}), out=tmp_path / "out")
    assert found["violations"] == []


def test_published_starts_against_each_other(tmp_path):
    """trials=1 tunes nothing, so that there is no edge."""
    found = compare(Net, Data, **(SMALL | {"trials": 1}), out=tmp_path / "out")
    reasons = found["comparisons"]["llm/muon"]["reasons"]
    assert not any("edge" in reason or "search" in reason for reason in reasons), reasons
    assert open_jobs(progress_of(Ledger(tmp_path / "out").read())) == []
