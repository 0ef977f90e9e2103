"""Shorter runs with schedules of their own length: what may be asked for, when they come, and what is read from them."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from pathlib import Path
from typing import Any, cast

import pytest

from lit_opt import Recipe, compare
from lit_opt.comparison import report
from lit_opt.comparison.compare import write_report
from lit_opt.comparison.contract import check
from lit_opt.comparison.horizon_report import fitted_table, sentence
from lit_opt.comparison.ledger import Ledger
from lit_opt.comparison.results import compute
from lit_opt.comparison.stages import progress_of
from lit_opt.errors import RecipeError
from tests.comparison.made import confirmation, made_run, protocol, search
from tests.comparison.test_compare import cut, events, outcome
from tests.comparison.toy import CPU, Data, Net

FITTED: dict[str, Any] = {
    "arms": {"slow": Recipe("llm", lr=0.01, warmup=0.25), "fast": Recipe("llm", lr=0.03, warmup=0.25)},
    "budget_steps": 16,
    "eval_every": 4,
    "trials": 1,
    "seeds": 2,
    "horizons": (0.5, 0.75, 1.0),
    "trainer": CPU,
    "quiet": True,
}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("horizons")
    compare(Net, Data, **FITTED, out=folder)
    return folder


def runs_of(folder: Path) -> list[Any]:
    return list(progress_of(Ledger(folder).read()).runs.values())


def test_each_winner_is_trained_on_the_same_seeds_with_schedules_of_its_length(fitted):
    runs = runs_of(fitted)
    shorter = [run for run in runs if run.stage == "horizon"]
    confirmed = {(run.arm, run.seed): run for run in runs if run.stage == "confirm"}
    assert {(r.arm, r.seed, r.steps) for r in shorter} == {(*key, steps) for key in confirmed for steps in (8, 12)}
    for run in shorter:
        whole = confirmed[run.arm, run.seed]
        assert run.values == whole.values and run.readings["raw"][-1].step == run.steps
        assert run.facts["warmup_steps"] == run.steps / 4 and whole.facts["warmup_steps"] == 4
        assert run.facts["init_hash"] == whole.facts["init_hash"]
        shared = run.facts["batch_hashes"].keys() & whole.facts["batch_hashes"].keys()
        assert {k: run.facts["batch_hashes"][k] for k in shared} == {k: whole.facts["batch_hashes"][k] for k in shared}
        at_the_same_step = next(r for r in whole.readings["raw"] if r.step == run.steps)
        assert run.readings["raw"][-1].metric != at_the_same_step.metric, "the schedule is that of the long run"
    stages = [event["stage"] for event in events(fitted) if event["event"] == "started"]
    assert stages == ["tune"] * 2 + ["confirm"] * 4 + ["horizon"] * 8


def test_they_are_in_every_part_of_the_report(fitted):
    found = json.loads((fitted / "results.json").read_text())
    assert found["violations"] == [] and found["total"]["runs"] == {"tune": 2, "confirm": 4, "horizon": 8}
    assert found["horizons"]["steps"] == [8, 12, 16]
    page = (fitted / "report.html").read_text()
    assert "fitted to their length" in page and "fast/horizons: 4 runs" in page
    with (fitted / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(len(run.readings["raw"]) for run in runs_of(fitted))
    last = {(r["stage"], r["arm"], r["seed"], r["budget_steps"]): r for r in rows}
    for run in runs_of(fitted):
        row = last[run.stage, run.arm, str(run.seed), str(run.steps or 16)]
        assert (int(row["step"]), float(row["val_loss"])) == (run.steps or 16, run.readings["raw"][-1].metric)


def test_a_comparison_that_was_cut_among_them_goes_on_to_the_same_results(fitted, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "write", lambda out, _, __, found: (out / "results.json").write_text(json.dumps(found)))
    write_report(fitted, quiet=True)
    cut(fitted, tmp_path / "again", len(events(fitted)) - 5)
    compare(Net, Data, **FITTED, out=tmp_path / "again")
    assert outcome(tmp_path / "again") == outcome(fitted)
    with pytest.raises(RecipeError, match=r"horizons: \[8, 12\] then, \[8\] now"):
        compare(Net, Data, **(FITTED | {"horizons": (0.5,)}), out=tmp_path / "again")


def test_the_announcement_counts_them(tmp_path, capsys):
    plan = compare(Net, Data, **(FITTED | {"quiet": False}), out=tmp_path / "out", dry_run=True)
    # 2 x (1 + 2) whole runs, and 2 x 2 of each of 8 and 12 steps
    assert (plan["runs"], plan["steps"], plan["samples"]) == (14, 6 * 16 + 4 * 20, (6 * 16 + 4 * 20) * 16)
    assert plan["hours"] == pytest.approx(
        (1 + 2 + 2 * 20 / 16) * sum(plan["seconds_per_run"].values()) / 3600, abs=0.001
    )
    assert "Horizons: 8 shorter runs of 8 and 12 steps, each with a schedule of its length." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"horizons": (0.55,)}, "horizons: 0.55 of 16 steps is 8.8, no whole number of evaluations (one every 4 steps). Give 0.5 or 0.75"),
        ({"horizons": (0.1,)}, "Give 0.25, or another eval_every"),
        ({"horizons": (1.5, 0.5)}, "horizons: 1.5 is not allowed"),
        ({"horizons": (True,)}, "horizons: True is not allowed"),
        ({"horizons": "0.5"}, "horizons: '0.5' is not allowed; give shares"),
        ({"horizons": (1.0,)}, "1 alone is the confirmation itself"),
        ({"horizons": (0.5, 0.5)}, "one is there twice"),
        ({"arms": ["llm", Recipe("llm/muon", warmup=8)]}, "horizons: llm/muon at 8 steps: warmup: 8 steps are as long as the run"),
        ({"arms": ["cnn", Recipe("llm", warmup=0.06)]}, "horizons: llm at 8 steps: no step of warmup is left, where 16 steps have 1"),
    ],
)  # fmt: skip
def test_what_is_refused(change, words, tmp_path):
    with pytest.raises(RecipeError) as refused:
        compare(Net, Data, **(FITTED | {"readout": "raw"} | change), out=tmp_path / "out")
    assert words in str(refused.value)
    assert not (tmp_path / "out").exists()


# ---- what is read from them, with hand-made runs

LEVEL = 2.1


def ladders(ends: dict[str, list[tuple[float, float, float]]], **changes: Any) -> tuple[Any, list[Any]]:
    """Protocol and runs: arm -> for each seed its final metrics after 100, 150 and 200 steps."""
    plan = protocol(tuple(ends), horizons=(100, 150), seeds=len(next(iter(ends.values()))), **changes)
    runs: list[Any] = []
    for arm, seeds in ends.items():
        whole = confirmation(arm, [0.0] * len(seeds))
        runs += search(arm)
        for one, metrics in zip(whole, seeds, strict=True):
            for steps, metric in zip((100, 150, 200), metrics, strict=True):
                readings = [r for r in one.readings["raw"] if r.step <= steps]
                readings[-1] = dataclasses.replace(readings[-1], metric=metric)
                change = {} if steps == 200 else {"stage": "horizon", "steps": steps, "key": f"{one.key}-{steps}"}
                runs.append(dataclasses.replace(one, readings={"raw": tuple(readings)}, **cast(Any, change)))
    return plan, runs


def test_a_seed_needs_what_its_shortest_run_took_that_reaches_the_target():
    plan, runs = ladders({"adamw": [(3, 2.5, 2.0)] * 4, "muon": [(2.1, 2.0, 1.9)] * 3 + [(2.2, 2.0, 1.9)]})
    found = compute(plan, runs, target=LEVEL)
    muon = found["horizons"]["arms"]["muon"]["samples"]
    assert [one["value"] for one in muon["seeds"]] == [6400, 6400, 6400, 9600]
    assert [one["above"] for one in muon["seeds"]] == [0, 0, 0, 6400]
    assert (muon["reached"], muon["of"], muon["at_shortest"]) == (4, 4, 3)
    ratio = muon["speedup"]
    assert ratio["ratio"] == pytest.approx((2**3 * (4 / 3)) ** (1 / 4))
    # Three seeds may need nothing at all, for all that is known; the baseline needs more than 150 steps.
    assert ratio["spacing_low"] == pytest.approx((1.5**3 * 1.0) ** (1 / 4)) and ratio["spacing_high"] is None
    clock = found["timing"]["horizons"]["muon"]["speedup"]
    assert clock["ratio"] == pytest.approx(ratio["ratio"])
    assert [at["reached"] for at in found["horizons"]["arms"]["muon"]["at"]] == [3, 4, 4]
    assert "4 of 4 seeds reach it, 3 at the shortest" in sentence(found)
    assert "{1.36 to open}" in fitted_table(found)


def test_bounds_by_the_spacing_are_closed_where_both_missed_a_shorter_run():
    plan, runs = ladders({"adamw": [(3, 2.5, 2.0)] * 3, "muon": [(2.2, 2.0, 1.9)] * 3})
    ratio = compute(plan, runs, target=LEVEL)["horizons"]["arms"]["muon"]["samples"]["speedup"]
    assert (ratio["ratio"], ratio["spacing_low"], ratio["spacing_high"]) == pytest.approx((4 / 3, 1.0, 2.0))


def test_misses_are_infinite_and_stay():
    plan, runs = ladders({"adamw": [(3, 2.5, 2.0)] * 5, "muon": [(3.0, 3.0, 3.0)] * 3 + [(2.0, 2.0, 2.0)] * 2})
    muon = compute(plan, runs, target=LEVEL)["horizons"]["arms"]["muon"]["samples"]
    assert (muon["reached"], muon["of"], muon["median"]) == (2, 5, None)
    assert muon["speedup"]["ratio"] == 0 and muon["speedup"]["spacing_low"] is None
    failed = [dataclasses.replace(r, state="diverged") if r.arm == "muon" and r.stage == "horizon" else r for r in runs]
    muon = compute(plan, failed, target=LEVEL)["horizons"]["arms"]["muon"]["samples"]
    assert [one["value"] for one in muon["seeds"]] == [None] * 3 + [12800] * 2


def test_seeds_that_are_not_finished_do_not_count_and_no_target_says_so():
    plan, runs = ladders({"adamw": [(3, 2.5, 2.0)] * 4, "muon": [(2, 2, 2)] * 4})
    fewer = [r for r in runs if not (r.arm == "muon" and r.steps == 150 and r.seed > 102)]
    found = compute(plan, fewer, target=LEVEL)["horizons"]["arms"]["muon"]
    assert found["samples"]["of"] == 2 and found["samples"]["speedup"]["pairs"] == 2
    failed = [dataclasses.replace(r, state="diverged") if r.stage == "confirm" else r for r in runs]
    assert compute(plan, failed)["horizons"] == {"steps": [100, 150, 200], "arms": {}}
    assert "they need a target" in fitted_table(compute(plan, failed))


def test_where_higher_is_better():
    plan, runs = ladders({"adamw": [(-3, -2.5, -2.0)] * 3, "muon": [(-2.0, -2.0, -1.9)] * 3}, mode="max")
    muon = compute(plan, runs, target=-LEVEL)["horizons"]["arms"]["muon"]["samples"]
    assert muon["speedup"]["ratio"] == pytest.approx(2)


def test_blank_times_are_not_measured():
    plan, runs = ladders({"adamw": [(3, 2.5, 2.0)] * 3, "muon": [(2, 2, 2)] * 3})
    blank = [
        dataclasses.replace(
            r, readings={"raw": tuple(dataclasses.replace(x, seconds=math.nan) for x in r.readings["raw"])}
        )
        for r in runs
    ]
    found = compute(plan, blank, target=LEVEL)
    assert found["timing"]["horizons"]["muon"]["measured"] is False
    assert "not measured" in fitted_table(found)


def test_a_shorter_run_with_the_evaluations_of_another_length_is_a_violation():
    plan, runs = ladders({"adamw": [(3, 2.5, 2.0)] * 3, "muon": [(2, 2, 2)] * 3})
    assert check(plan, runs) == []
    short = made_run("muon", seed=101, until=100)
    wrong = dataclasses.replace(short, stage="horizon", steps=150, key="wrong")
    assert [one["rule"] for one in check(plan, [*runs, wrong])] == ["evaluations"]
