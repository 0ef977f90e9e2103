"""The files of a report: whole, self-contained, traceable, with honest digits."""

import csv
import dataclasses
import json
import re
import sys
from html.parser import HTMLParser

import pytest

from lit_opt import compare
from lit_opt.comparison import report, words
from lit_opt.comparison import results as R
from lit_opt.comparison.page import page
from tests.comparison.conftest import SMALL
from tests.comparison.made import comparison, made_run, search
from tests.comparison.toy import Data, Net

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Collects what the tests ask for, and fails on tags that do not match."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links, self.pictures, self.tags = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        if "id" in found:
            self.ids.append(found["id"])
        if tag == "a":
            self.links.append(found["href"])
        if tag == "img":
            self.pictures.append(found)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    plan, runs = comparison((0.0, -0.1, 0.0, 0.05), speeds=[1, 1.3, 1.1, 0.9])
    plan = dataclasses.replace(plan, metric="val <loss>")
    runs = [r for r in runs if not (r.arm == "shampoo" and (r.stage == "tune" or r.seed == 103))]
    runs += [*search("shampoo", failed=(2, 5)), made_run("shampoo", seed=103, state="diverged", until=60)]
    routed = [
        {"name": "matrices", "algorithm": "muon", "lr": 0.02, "weight_decay": 0.0, "tensors": 12, "numbers": 98765}
    ]
    runs = [dataclasses.replace(r, facts=r.facts | {"groups": routed}) if r.arm == "muon" else r for r in runs]
    results = R.compute(plan, runs, target=2.08)
    out = tmp_path_factory.mktemp("report")
    report.write(out, plan, runs, results)
    return out, plan, runs, results


def test_four_files_and_no_scraps(written):
    assert sorted(path.name for path in written[0].iterdir()) == sorted(report.FILES)


def test_results_are_what_was_computed(written):
    out, _, _, results = written
    assert json.loads((out / "results.json").read_text()) == results


def test_one_row_a_run(written):
    out, plan, runs, _ = written
    rows = list(csv.DictReader((out / "runs.csv").read_text().splitlines()))
    by_key = {run.key: run for run in runs}
    assert {row["key"] for row in rows} == set(by_key) and len(rows) == len(runs)
    for row in rows:
        run = by_key[row["key"]]
        assert float(row["lr"]) == run.values["lr"] and row["state"] == run.state
        if run.state == "done":
            assert float(row[plan.metric]) == run.readings["raw"][-1].metric
        else:
            assert row[plan.metric] == ""


def test_the_page_parses_and_needs_nothing(written):
    text = (written[0] / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert page.open == []
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    without_pictures = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", text)
    assert not re.search(r"https?:|//[a-z]|url\(|@import", without_pictures)
    assert all(link.removeprefix("#") in page.ids and link.startswith("#") for link in page.links) and page.links
    assert "val &lt;loss&gt;" in text and "<loss>" not in text
    # Every picture has words for those who cannot see it, and shrinks with the page.
    assert len(page.pictures) == 8 + 4 and all(one["alt"] and one["src"].startswith("data:") for one in page.pictures)
    assert "max-width: 100%" in text and 'name="viewport"' in text


def test_the_page_says_each_verdict_and_key(written):
    out, _, runs, results = written
    text = (out / "report.html").read_text()
    for one in results["comparisons"].values():
        assert one["said"] in text
    assert all(run.key in text for run in runs)
    assert "98765" in text  # the routing table
    assert "frozen before the other arms were confirmed" in text
    assert "these ratios do not" in text  # the horizon


def test_violations_stand_on_top(written):
    _, plan, runs, _ = written
    broken = [{"rule": "batch order", "arms": ["muon"], "text": "seed 101: other batches"}]
    results = R.compute(plan, runs, violations=broken)
    text = page(results, {}, [])
    assert text.index("seed 101: other batches") < text.index("<h2>")
    assert "no verdict (contract broken: seed 101: other batches)" in words.summary(results)


def test_a_report_in_the_middle_of_a_comparison(written, tmp_path):
    _, plan, runs, _ = written
    for part in ([], [r for r in runs if r.arm == "adamw" and r.point < 2]):
        report.write(tmp_path, plan, part, R.compute(plan, part))
        assert "no verdict" in (tmp_path / "summary.md").read_text()


def test_without_matplotlib_the_page_says_so(written, tmp_path, monkeypatch):
    _, plan, runs, results = written
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    report.write(tmp_path, plan, runs, results)
    text = (tmp_path / "report.html").read_text()
    assert "<img" not in text and "pip install 'lit-opt[workloads]'" in text.replace("&#x27;", "'")


def test_the_summary_can_be_pasted(written):
    text = (written[0] / "summary.md").read_text()
    assert "muon against adamw: better (val <loss> -0.0" in text
    assert "8 paired seeds" in text and "Nothing here speaks for models of 100 million parameters" in text


def test_honest_digits():
    assert words.rounded(3.412345, 0.0161) == "3.412"
    assert words.rounded(3.412345, 0.161) == "3.41"
    assert words.rounded(12345.6, 321.0) == "12,300"
    assert words.rounded(2.5e12) == "2.5 T"
    assert words.interval(-0.0963, -0.0747) == "-0.096 to -0.075"
    assert words.interval(None, None) == "never"


def test_level_schedules_have_another_note(written):
    _, plan, runs, _ = written
    level = [dataclasses.replace(run, facts=run.facts | {"decay": "wsd"}) for run in runs]
    assert "stay level until a late decay" in words.horizon_note(R.compute(plan, level))


def test_untuned_arms_are_said_to_be(tmp_path):
    plan, runs = comparison((0.0, -0.1), trials=1)
    plan = dataclasses.replace(plan, arms=tuple(dataclasses.replace(arm, box={}) for arm in plan.arms))
    runs = [
        dataclasses.replace(run, point=0, values={"lr": 1e-3, "weight_decay": 0.1})
        for run in runs
        if run.stage == "confirm" or run.point == 0
    ]
    results = R.compute(plan, runs)
    assert results["comparisons"]["muon"]["verdict"] == "better"
    assert any("No arm was tuned" in text for text in words.caveats(results))
    report.write(tmp_path, plan, runs, results)


def test_runs_of_one_step(tmp_path):
    """A schedule with a cooldown has none there, and a curve against time is a single point."""
    given = {"trials": 1, "budget_steps": 1, "eval_every": 1, "arms": ["llm", "llm/scion"]}
    found = compare(Net, Data, **(SMALL | given), out=tmp_path / "out")
    assert found["violations"] == [] and (tmp_path / "out" / "report.html").exists()
