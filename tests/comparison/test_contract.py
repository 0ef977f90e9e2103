"""Planted violations: each is detected, and the message names what was broken and by whom."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_opt.comparison import results
from lit_opt.comparison.codec import digest
from lit_opt.comparison.contract import check, check_ledger
from lit_opt.comparison.ledger import Ledger
from lit_opt.comparison.records import Arm, Protocol
from lit_opt.comparison.stages import progress_of
from tests.comparison.test_run import STEPS, Drawing, run
from tests.comparison.toy import Data, Net

ARMS = tuple(Arm(name, "llm", {}, {"lr": 0.01}, {"lr": (0.001, 0.1)}) for name in ("base", "other"))
PROTOCOL = Protocol(ARMS, "base", "val_loss", "min", STEPS, (0, 4, 8, 12), 1, 1)


@functools.cache
def base() -> Any:
    return run(arm="base")


def broken(protocol: Protocol = PROTOCOL, **other: Any) -> dict[str, str]:
    """Rule -> text of what is found where one arm runs as agreed and the other as given."""
    found = check(protocol, [base(), run(**({"arm": "other"} | other))])
    assert all(one["arms"] == ["other"] for one in found), found
    return {one["rule"]: one["text"] for one in found}


class Deeper(Net):
    def __init__(self) -> None:
        super().__init__()
        self.layers.append(nn.Linear(1, 1))


class Frozen(Net):
    def _get_name(self) -> str:
        return "Net"

    def __init__(self) -> None:
        super().__init__()
        self.layers[0].requires_grad_(False)


class HiddenDropout(Net):
    """As plain a number as can be: no layer shows it."""

    def _get_name(self) -> str:
        return "Net"

    def forward(self, x):
        return super().forward(torch.nn.functional.dropout(x, 0.3, self.training))


class OtherData(Data):
    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.train = TensorDataset(*(t.flip(0) for t in self.train.tensors))


class InOrder(Data):
    def train_dataloader(self):
        return DataLoader(self.train, self.batch_size)


def test_two_arms_that_keep_the_contract():
    assert broken() == {}
    assert broken(recipe="llm/muon") == {}


@pytest.mark.parametrize(
    ("rules", "other", "words"),
    [
        ({"model", "initial weights", "parameters", "frozen parameters", "first loss"}, {"module": Deeper}, "163"),
        ({"model", "first loss"}, {"module": lambda: Net(dropout=0.4)}, "such as dropout"),
        ({"first loss"}, {"module": HiddenDropout}, "loss of the first batch, before any step"),
        ({"frozen parameters"}, {"module": Frozen}, "number of trainable parameters: 161 in base, 17 in other"),
        ({"batch size", "batches", "first loss"}, {"data": lambda: Data(batch_size=8)}, "samples a step: 16.0 in base, 8.0 in other"),
        ({"batches", "first loss"}, {"data": OtherData}, "up to step 4, other has seen others than base"),
        ({"batches", "first loss"}, {"data": InOrder}, "up to step 4, other has seen others than base"),
        ({"precision", "first loss"}, {"trainer": {"precision": "bf16-mixed"}}, "32-true in base, bf16-mixed in other"),
        ({"evaluations"}, {"eval_every": 3}, "[0, 4, 8, 12] in base, [0, 3, 6, 9, 12] in other"),
        ({"passes"}, {"recipe": "cnn/sam"}, "other takes 2.0 forward and backward passes a batch, and 1 were declared"),
        (
            {"accumulation", "batch size", "batches"},
            {"trainer": {"accumulate_grad_batches": 2}},
            "batches a step: 1 in base, 2 in other",
        ),
    ],
    ids=["layer", "dropout", "hidden dropout", "frozen", "batch size", "data", "order", "precision", "evaluations", "sam", "accumulation"],
)  # fmt: skip
def test_a_planted_violation_is_named(rules, other, words):
    found = broken(**other)
    assert set(found) == rules
    assert any(words in text for text in found.values()), found


def test_sam_is_allowed_where_it_is_declared_and_its_operations_are_counted():
    protocol = replace(PROTOCOL, settings={"passes": {"other": 2.0}})
    assert broken(protocol, recipe="cnn/sam") == {}
    sam = run("cnn/sam", settings={"model_flops_per_pass": 1e6})
    assert sam.facts["model_flops_per_step"] == 2e6


def test_random_numbers_of_an_optimizer_are_harmless():
    assert broken(keywords={"optimizer": Drawing, "weight_decay": 0.0}) == {}


def base_and_other(**facts: Any) -> list[Any]:
    other = run(arm="other")
    return [base(), replace(other, facts={**other.facts, **facts})]


def rules(protocol: Protocol, runs: list[Any]) -> dict[str, str]:
    return {one["rule"]: one["text"] for one in check(protocol, runs)}


def test_other_package_versions_in_one_ledger():
    before = base().facts["versions"]
    found = rules(PROTOCOL, base_and_other(versions={**before, "torch": "2.9.0"}))
    assert list(found) == ["versions"] and "torch 2.9.0" in found["versions"]


def test_other_threads():
    assert list(rules(PROTOCOL, base_and_other(threads=7))) == ["threads"]


def test_a_seed_of_the_search_in_the_confirmation():
    tuned, confirmed = run(arm="other", seed=0), run(arm="other", seed=0, stage="confirm")
    found = rules(PROTOCOL, [tuned, confirmed])
    assert found == {"seeds": "seeds: other was confirmed with seed 0, on which it was tuned"}


def test_averages_against_raw_weights():
    first, other = base_and_other()
    averaged = replace(other, readings={"averages": other.readings["raw"]})
    assert (
        "run other-1 of other was read by its averages, and raw weights were agreed"
        in rules(PROTOCOL, [first, averaged])["readout"]
    )
    declared = replace(PROTOCOL, arms=(ARMS[0], replace(ARMS[1], readout="averages")))
    assert (
        "other is read by its averages, the baseline by its raw weights"
        in rules(declared, [first, averaged])["readout"]
    )


def test_more_trials_than_agreed():
    first = run(arm="other")
    found = rules(PROTOCOL, [first, replace(first, key="more", point=1)])
    assert found == {"trials": "trials: other had 2 trials in study 0, and 1 were agreed"}


def test_other_trials_than_the_baseline_and_an_optimum_at_the_edge_leave_no_verdict():
    """Said where verdicts are made: lit_opt.comparison.verdicts."""
    first, other = base(), run(arm="other", values={"lr": 0.099}, point=1)
    protocol = replace(PROTOCOL, trials=2)
    found = results.compute(protocol, [first, replace(first, key="2", point=1), other])
    reasons = " ".join(found["comparisons"]["other"]["reasons"])
    assert "unequal budget: base tried 2 points, other 1" in reasons
    assert "lr 0.099 stands at the upper edge" in reasons
    assert found["comparisons"]["other"]["verdict"] == "no verdict"


# ---- the ledger


@pytest.fixture
def folder(finished, tmp_path):
    copy = tmp_path / "comparison"
    shutil.copytree(finished, copy)
    return copy


def forge(folder, change: Callable[[list[dict[str, Any]]], None], *, sly: bool) -> dict[str, str]:
    """Change the lines, slyly with all hashes made anew; what the contract says."""
    ledger = Ledger(folder)
    lines = [event for _, event in ledger.read().events]
    change(lines)
    if sly:
        last = ""
        for line in lines:
            line["prev"] = last
            last = line["sha"] = digest({key: value for key, value in line.items() if key != "sha"}, 64)
    ledger.path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    reading = ledger.read()
    return {one["rule"]: one["text"] for one in check_ledger(reading, progress_of(reading))}


def line(lines, kind):
    return next(one for one in lines if one["event"] == kind)


def test_a_ledger_that_nobody_touched(folder):
    assert forge(folder, lambda lines: None, sly=False) == {}
    assert forge(folder, lambda lines: None, sly=True) == {}


def test_a_ledger_line_edited(folder):
    def better(lines):
        line(lines, "finished")["run"]["readings"]["raw"][-1][-1] = 0.0

    assert "was changed after it was written" in forge(folder, better, sly=False)["ledger"]


def test_a_ledger_line_taken_out(folder):
    assert (
        "a line was taken out"
        in forge(folder, lambda lines: lines.remove(line(lines, "finished")), sly=False)["ledger"]
    )


@pytest.mark.parametrize("sly", [False, True])
def test_the_protocol_edited_after_the_start(folder, sly):
    def fewer_trials(lines):
        line(lines, "opened")["protocol"]["seeds"] = 1

    found = forge(folder, fewer_trials, sly=sly)
    assert "it was changed after the start; line 2" in found["protocol"]
    assert sly or "line 1 was changed" in found["ledger"]


def test_the_target_changed_after_the_start(folder):
    def easier(lines):
        line(lines, "target")["level"] += 0.5

    assert "the baseline's runs give" in forge(folder, easier, sly=True)["target"]


def test_the_target_set_twice(folder):
    def again(lines):
        lines.append(dict(line(lines, "target"), level=9.0))

    assert "it was set again in line" in forge(folder, again, sly=True)["target"]


def test_the_target_frozen_after_others_were_confirmed(folder):
    def late(lines):
        target = line(lines, "target")
        lines.remove(target)
        lines.append(target)

    assert "after llm/muon was confirmed" in forge(folder, late, sly=True)["target"]


def test_a_broken_contract_leaves_no_verdict(folder):
    reading = Ledger(folder).read()
    progress = progress_of(reading)
    violations = [{"rule": "precision", "arms": ["llm/muon"], "text": "precision: they differ"}]
    found = results.compute(progress.effective, list(progress.runs.values()), violations=violations)
    assert found["comparisons"]["llm/muon"]["verdict"] == "no verdict"
    assert "contract broken: precision: they differ" in found["comparisons"]["llm/muon"]["reasons"]
