"""From hand-made runs of every state to numbers and verdicts."""

import dataclasses
import json
import math
import random

import numpy as np
import pytest
from scipy import stats

from lit_opt.comparison import results as R
from lit_opt.comparison.records import Reading
from lit_opt.comparison.verdicts import compare_arms
from tests.comparison.made import STEPS, comparison, confirmation, made_run, protocol, search


def verdicts(plan, runs, **keywords):
    return {name: one["verdict"] for name, one in R.compute(plan, runs, **keywords)["comparisons"].items()}


def reasons(plan, runs, arm="muon", **keywords):
    return "; ".join(R.compute(plan, runs, **keywords)["comparisons"][arm]["reasons"])


def without(runs, **fields):
    return [run for run in runs if any(getattr(run, name) != value for name, value in fields.items())]


# ---- verdicts


def test_better_worse_and_not_shown():
    plan, runs = comparison((0.0, -0.1, 0.1, 0.0), rng=2)
    results = R.compute(plan, runs)
    assert verdicts(plan, runs) == {"muon": "better", "soap": "worse", "shampoo": "not shown"}
    muon, shampoo = results["comparisons"]["muon"], results["comparisons"]["shampoo"]
    assert muon["low"] < -0.1 < muon["high"] < 0
    assert shampoo["said"] == f"not shown, {shampoo['more']} more seeds needed"
    assert shampoo["needed"] == shampoo["more"] + 8


def test_higher_is_better_where_the_mode_says_so():
    plan, runs = comparison((0.0, -0.1, 0.1), metric="acc", mode="max")
    runs = [
        dataclasses.replace(
            run, readings={"raw": tuple(dataclasses.replace(r, metric=8 - r.metric) for r in run.readings["raw"])}
        )
        for run in runs
    ]
    results = R.compute(plan, runs)
    assert verdicts(plan, runs) == {"muon": "better", "soap": "worse"}
    assert results["comparisons"]["muon"]["mean"] > 0
    low_plan, low_runs = comparison((0.0, -0.1, 0.1))
    low = R.compute(low_plan, low_runs)
    assert results["target"]["level"] == pytest.approx(8 - low["target"]["level"])
    for name in ("adamw", "muon"):
        assert results["target"]["arms"][name]["samples"]["median"] == low["target"]["arms"][name]["samples"]["median"]
        assert results["arms"][name]["studies"][0]["winner"] == low["arms"][name]["studies"][0]["winner"]


def test_the_verdict_is_scipys_t_test_with_holm():
    """40 comparisons of small effects: the words follow from p values computed elsewhere."""
    seen = set()
    for seed in range(40):
        plan, runs = comparison((0.0, -0.02, 0.02), seeds=6, rng=seed, sd=0.03)
        runs = [run for run in runs if run.stage == "confirm" or run.point == 3]
        plan = dataclasses.replace(plan, trials=1)
        finals = {
            name: [r.readings["raw"][-1].metric for r in runs if r.arm == name and r.stage == "confirm"]
            for name in ("adamw", "muon", "soap")
        }
        p = {name: stats.ttest_rel(finals[name], finals["adamw"]).pvalue for name in ("muon", "soap")}
        first, second = sorted(p, key=lambda name: p[name])
        adjusted = {first: min(1, 2 * p[first]), second: min(1, max(2 * p[first], p[second]))}
        for name, one in compare_arms(plan, runs, []).items():
            assert one["reasons"] == []
            assert one["p_holm"] == pytest.approx(adjusted[name], rel=1e-9)
            side = "better" if np.mean(finals[name]) < np.mean(finals["adamw"]) else "worse"
            assert one["verdict"] == (side if adjusted[name] < 0.05 else "not shown")
            seen.add(one["verdict"])
    assert seen == {"better", "worse", "not shown"}


def test_the_sign_flip_p_decides_nothing():
    plan, runs = comparison((0.0, -0.3, 0.3), seeds=5)
    one = R.compute(plan, runs)["comparisons"]["muon"]
    assert one["p_sign_flip"] == 2 / 2**5 and one["verdict"] == "better"


def test_equal_arms_are_not_shown():
    plan = protocol(("adamw", "adamw2"))
    floors = np.linspace(1.9, 2.1, 8)
    runs = [run for name in ("adamw", "adamw2") for run in search(name) + confirmation(name, floors)]
    one = R.compute(plan, runs)["comparisons"]["adamw2"]
    assert (one["verdict"], one["p"], one["more"]) == ("not shown", 1.0, None)
    assert "more than 1,000" in one["said"]
    assert one["rho"]["estimate"] == 1.0


# ---- never a verdict where it was not fair


def test_unequal_budget_is_named():
    plan, runs = comparison((0.0, -0.1, 0.0))
    handicapped = [run for run in runs if not (run.arm == "adamw" and run.stage == "tune" and run.point >= 4)]
    assert set(verdicts(plan, handicapped).values()) == {"no verdict"}
    assert "unequal budget: adamw tried 4 points, muon 16" in reasons(plan, handicapped)


def test_one_lr_tried_for_the_baseline_is_named():
    plan, runs = comparison((0.0, -0.1, 0.0))
    runs = [
        dataclasses.replace(run, values=run.values | {"lr": 1e-3})
        if run.arm == "adamw" and run.stage == "tune"
        else run
        for run in runs
    ]
    assert set(verdicts(plan, runs).values()) == {"no verdict"}
    assert "unequal budget: adamw tried 1 value of lr, muon 16" in reasons(plan, runs)


def test_unfinished_is_named():
    plan, runs = comparison((0.0, -0.1, 0.0))
    assert "confirmation not finished: 7 of 8 seeds of muon" in reasons(plan, without(runs, arm="muon", seed=101))
    assert verdicts(plan, without(runs, arm="muon", seed=101)) == {"muon": "no verdict", "soap": "not shown"}
    fewer = [run for run in runs if run.stage == "confirm" or run.point < 10]
    assert "search not finished: 10 of 16 points of adamw" in reasons(plan, fewer)
    assert verdicts(plan, []) == {"muon": "no verdict", "soap": "no verdict"}


def test_two_seeds_are_too_few():
    plan, runs = comparison((0.0, -0.1, 0.0))
    few = dataclasses.replace(plan, seeds=2)
    kept = [
        run for run in runs if run.stage == "tune" or run.seed <= min(r.seed for r in runs if r.stage == "confirm") + 1
    ]
    assert verdicts(few, kept) == {"muon": "no verdict", "soap": "no verdict"}
    assert "2 seeds: too few for a verdict, which needs 3; the default is 6 or more" in reasons(few, kept)


def test_a_broken_contract_takes_the_verdict():
    plan, runs = comparison((0.0, -0.1, -0.1))
    broken = [{"rule": "batch order", "arms": ["muon"], "text": "seed 101: muon saw other batches"}]
    assert verdicts(plan, runs, violations=broken) == {"muon": "no verdict", "soap": "better"}
    assert "contract broken: seed 101: muon saw other batches" in reasons(plan, runs, violations=broken)
    assert set(verdicts(plan, runs, violations=[broken[0] | {"arms": ["adamw"]}]).values()) == {"no verdict"}
    assert set(verdicts(plan, runs, violations=[broken[0] | {"arms": []}]).values()) == {"no verdict"}


def at_the_edge(runs, arm, lr=9.5e-3, **better):
    """The best point of an arm's search moved to the edge, and made better than all others where a floor is given."""
    moved = []
    for run in runs:
        if run.arm == arm and run.point == 3:
            run = dataclasses.replace(run, values=run.values | {"lr": lr})
            if better and run.stage == "tune":
                run = dataclasses.replace(run, readings=made_run(arm, **better).readings)
        moved.append(run)
    return moved


def test_an_edge_takes_the_verdict():
    plan, runs = comparison((0.0, -0.1, -0.1))
    moved = at_the_edge(runs, "muon", floor=1.8)
    assert verdicts(plan, moved) == {"muon": "no verdict", "soap": "better"}
    assert "not tuned: muon: lr 0.0095 stands at the upper edge of its box" in reasons(plan, moved)
    moved = at_the_edge(runs, "adamw", 1.1e-4, floor=1.8)
    assert set(verdicts(plan, moved).values()) == {"no verdict"}


def test_a_value_that_hardly_matters_is_no_edge():
    """The published start lies in the middle and is as good within the noise of the seeds."""
    plan, runs = comparison((0.0, -0.1, 0.0))
    assert verdicts(plan, at_the_edge(runs, "muon"))["muon"] == "better"


def test_another_point_than_the_best_is_named():
    plan, runs = comparison((0.0, -0.1, 0.0))
    runs = [dataclasses.replace(r, point=5) if r.arm == "muon" and r.stage == "confirm" else r for r in runs]
    assert "muon confirmed point 5 in study 0; the best of its search is 3" in reasons(plan, runs)


def test_studies_that_disagree_show_nothing():
    plan = protocol(("adamw", "muon"), studies=2, seeds=6)
    runs = []
    for study, shift in enumerate((-0.3, 0.01)):
        noise = np.random.default_rng(study).normal(size=(2, 6)) * 0.01
        for name, floors in (("adamw", 2 + noise[0]), ("muon", 2 + shift + noise[1])):
            runs += search(name, study=study) + confirmation(name, floors, study=study, first_seed=1001 + 1000 * study)
    one = R.compute(plan, runs)["comparisons"]["muon"]
    assert one["p_holm"] < 0.05 and one["verdict"] == "not shown"
    assert one["said"] == "not shown: the studies point in different directions"


# ---- failures stay, as the worst there is


@pytest.mark.parametrize("state", ["diverged", "oom", "crashed", "timeout"])
def test_failures_are_infinitely_bad(state):
    plan, runs = comparison((0.0, -0.1, 0.0))
    lost = [made_run("muon", seed=seed, state=state, until=50) for seed in range(101, 106)]
    runs = [r for r in runs if not (r.arm == "muon" and r.stage == "confirm" and r.seed < 106)] + lost
    results = R.compute(plan, runs)
    one, final = results["comparisons"]["muon"], results["arms"]["muon"]["final"]
    assert (one["test"], one["verdict"], one["mean"], one["failed"]["muon"]) == ("signed rank", "not shown", None, 5)
    assert (final["mean"], final["median"], final["failed"]) == (None, None, 5)  # the median is one of the failures
    assert results["arms"]["muon"]["stability"]["confirmation"]["states"] == {"done": 3, state: 5}
    reached = results["target"]["arms"]["muon"]["samples"]
    assert (reached["reached"], reached["of"], reached["median"], reached["at_mean"]) == (3, 8, None, None)
    assert reached["speedup"]["ratio"] == 0  # the median pair is one in which muon never got there


def test_an_arm_that_always_diverges_is_worse():
    plan, runs = comparison((0.0, -0.1, 0.0))
    runs = [
        dataclasses.replace(r, state="diverged", readings={"raw": ()})
        if r.arm == "muon" and r.stage == "confirm"
        else r
        for r in runs
    ]
    assert verdicts(plan, runs)["muon"] == "worse"


def test_a_run_that_ends_on_nan_has_failed():
    plan, runs = comparison((0.0, -0.1, 0.0))
    i = next(i for i, r in enumerate(runs) if r.arm == "soap" and r.stage == "confirm")
    last = runs[i].readings["raw"]
    runs[i] = dataclasses.replace(
        runs[i], readings={"raw": (*last[:-1], dataclasses.replace(last[-1], metric=math.nan))}
    )
    assert R.compute(plan, runs)["comparisons"]["soap"]["failed"]["soap"] == 1
    runs[i] = dataclasses.replace(runs[i], readings={"raw": last[:-1]})
    assert R.compute(plan, runs)["comparisons"]["soap"]["failed"]["soap"] == 1


# ---- the target


def test_the_target_is_reached_by_nine_of_ten_seeds():
    plan = protocol(("adamw", "muon"), seeds=10, target_share=0.98)
    floors = [2.0] * 8 + [2.15, 2.6]
    level = R.target_level(plan, confirmation("adamw", floors))
    reached = [made_run("adamw", floor=f).readings["raw"][-1].metric <= level for f in floors]
    assert sum(reached) == 9  # 98 % of the mean drop would be 2.16; the last seed is left behind
    easy = R.target_level(plan, confirmation("adamw", [2.0] * 10))
    assert easy == pytest.approx(6 - 0.98 * (6 - made_run("adamw").readings["raw"][-1].metric))
    assert R.target_level(plan, []) is None
    failed = [made_run("adamw", seed=i, state="diverged", until=20) for i in (1, 2)]
    assert R.target_level(plan, confirmation("adamw", [2.0] * 8) + failed) is None


def test_a_frozen_target_is_kept():
    plan, runs = comparison()
    assert R.compute(plan, runs, target=2.5)["target"]["level"] == 2.5
    assert R.compute(plan, runs, target=2.5)["target"]["frozen"] is True
    assert R.compute(plan, runs)["target"]["frozen"] is False


def test_speedups_are_geometric_means_over_pairs():
    plan, runs = comparison((0.0, 0.0, 0.0), speeds=[1, 1.3, 1], sd=0.001)
    results = R.compute(plan, runs, target=2.2)
    samples = results["target"]["arms"]["muon"]["samples"]
    assert samples["speedup"]["ratio"] == pytest.approx(1.3, rel=0.1)  # the grid of evaluations is coarse
    own = np.array([one["value"] for one in samples["seeds"]])
    base = np.array([one["value"] for one in results["target"]["arms"]["adamw"]["samples"]["seeds"]])
    assert samples["speedup"]["ratio"] == pytest.approx(stats.gmean(base / own))
    # 13 ms a step against 10: as long on the clock.
    clock = results["timing"]["target"]["muon"]
    assert clock["speedup"]["ratio"] == pytest.approx(samples["speedup"]["ratio"] * 10 / 13)


def test_the_mean_crosses_not_the_luckiest_seed():
    plan = protocol(("adamw", "muon"), seeds=4)
    steps = [0, 100, STEPS]
    curves = {1: [5, 2.0, 1.9], 2: [5, 3.0, 1.9], 3: [5, 3.0, 1.9], 4: [5, 3.0, 1.9]}
    runs = [
        dataclasses.replace(
            made_run("adamw", seed=seed),
            readings={"raw": tuple(Reading(s, s * 64, s * 1e9, s * 0.01, m) for s, m in zip(steps, c, strict=True))},
        )
        for seed, c in curves.items()
    ]
    samples = R.compute(plan, runs, target=2.5)["target"]["arms"]["adamw"]["samples"]
    assert min(one["value"] for one in samples["seeds"]) == 6400
    assert samples["at_mean"] == 12800


def test_blanked_times_are_not_measured():
    plan, runs = comparison()
    blank = [
        dataclasses.replace(
            r, readings={"raw": tuple(dataclasses.replace(x, seconds=math.nan) for x in r.readings["raw"])}
        )
        for r in runs
    ]
    results = R.compute(plan, blank)
    assert results["timing"]["target"]["muon"]["measured"] is False
    assert results["timing"]["target"]["muon"]["speedup"] is None
    assert results["target"]["arms"]["muon"]["samples"]["speedup"]["ratio"] is not None


# ---- the dictionary


def test_the_same_runs_give_the_same_bytes():
    plan, runs = comparison((0.0, -0.1, 0.1))
    results = R.to_json(R.compute(plan, runs))
    shuffled = list(runs)
    random.Random(0).shuffle(shuffled)
    assert R.to_json(R.compute(plan, shuffled)) == results
    other_clock = [
        dataclasses.replace(
            run,
            lines=(7,),
            facts=run.facts | {"ms_per_step": 99.0, "peak_bytes": 1},
            readings={"raw": tuple(dataclasses.replace(r, seconds=r.seconds * 3) for r in run.readings["raw"])},
        )
        for run in shuffled
    ]
    again = R.compute(plan, other_clock)
    assert R.to_json(again) != results
    assert R.to_json(R.without_volatile(again)) == R.to_json(R.without_volatile(json.loads(results)))


def test_every_number_names_runs_that_exist():
    plan, runs = comparison()
    results = R.compute(plan, runs)
    keys = {run.key for run in runs}
    assert {key for group in results["sources"].values() for key in group} == keys
    assert set(results["ledger"]["muon/confirmation"]) == {
        n for r in runs if r.arm == "muon" and r.stage == "confirm" for n in r.lines
    }

    def sources(node):
        if isinstance(node, dict):
            yield from node.get("source", [])
            for value in node.values():
                yield from sources(value)
        elif isinstance(node, list):
            for value in node:
                yield from sources(value)

    named = list(sources(results))
    assert named and set(named) <= set(results["sources"])
    assert {r for pair in results["comparisons"]["muon"]["pairs"] for r in pair["runs"]} <= keys


def test_the_search_is_described_but_is_no_result():
    plan, runs = comparison((0.0, -0.1, 0.0))
    arm = R.compute(plan, runs)["arms"]["muon"]
    assert arm["studies"][0]["winner"]["point"] == 3
    assert len(arm["studies"][0]["best_after"]) == 16
    best = min(point["metric"] for point in arm["studies"][0]["points"])
    assert arm["studies"][0]["best_after"][-1]["expected"] == best
    assert arm["final"]["mean"] != best
    stability = arm["stability"]
    near = [p["values"]["lr"] for p in arm["studies"][0]["points"] if p["metric"] <= 1.1 * best]
    assert (stability["lr_low"], stability["lr_high"]) == (min(near), max(near))


def test_profiles_count_problems():
    plan, runs = comparison((0.0, 0.0, 0.0), speeds=[1, 1.5, 1])
    profile = R.compute(plan, runs)["profile"]
    assert profile["problems"] == 8 * 4
    assert profile["shares"]["muon"][0] == 1.0  # always the fastest
    assert profile["score"]["muon"] > profile["score"]["adamw"]
