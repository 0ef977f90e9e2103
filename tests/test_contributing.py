"""CONTRIBUTING.md is followed step by step, in a copy of the repository."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_packaging import ROOT, tracked

TEXT = (ROOT / "CONTRIBUTING.md").read_text()
FILES = dict(re.findall(r'```(?:python|text) title="([^"]+)"\n(.*?)```', TEXT, re.DOTALL))


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The repository after both walks: whole files are written, the row goes before the last line of its file."""
    folder = tmp_path_factory.mktemp("copy")
    for name in tracked("lit_opt", "tests", "docs", "pyproject.toml"):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target, follow_symlinks=False)
    assert len(FILES) == 3
    for name, text in FILES.items():
        path = folder / name
        if path.exists():
            *lines, last = path.read_text().splitlines()
            assert last == ")"
            text = "\n".join([*lines, text.rstrip(), last, ""])
        path.write_text(text)
    return folder


def run(copy: Path, *args: str) -> str:
    done = subprocess.run([sys.executable, *args], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def test_both_are_listed_and_explained(copy):
    listing = json.loads(run(copy, "-m", "lit_opt", "list", "--format", "json"))
    assert "sign_sgd" in [row["name"] for row in listing["optimizers"]]
    assert "llm/lion" in [row["name"] for row in listing["recipes"]]
    assert "- lr sign(g)" in run(copy, "-m", "lit_opt", "explain", "sign_sgd")
    larger = json.loads(
        run(copy, "-m", "lit_opt", "explain", "llm/lion", "--batch-tokens", "2097152", "--format", "json")
    )
    values = {value["name"]: value["number"] for value in larger["values"]}
    assert values["lr"] == pytest.approx(2e-4)  # the square root of four times the reference batch
    assert values["weight_decay"] == 0.3 and tuple(values["betas"]) == (0.9, 0.99)


def test_the_optimizer_is_in_the_contract_and_the_house_rules_hold(copy):
    out = run(
        copy,
        *("-m", "pytest", "-q", "-p", "no:cacheprovider"),
        *("tests/contract/test_every_optimizer.py", "tests/test_doctests.py", "tests/test_house.py"),
        # Two processes train every optimizer: that case is run for the rows that are there.
        *(
            "-k",
            "(sign_sgd and not two_processes) or every_row_is_found or every_optimizer_class or docstring or one_way",
        ),
    )
    assert int(re.search(r"(\d+) passed", out).group(1)) >= 20  # type: ignore[union-attr]


def test_they_are_written_as_the_linter_wants_it(copy):
    names = [str(copy / name) for name in FILES]
    run(copy, "-m", "ruff", "check", *names)


def test_a_recipe_can_use_both(copy):
    code = (
        "from lit_opt import Recipe; from torch import nn; model = nn.Linear(3, 2);"
        "optimizer, _ = Recipe('llm', optimizer='sign_sgd', lr=1e-3, weight_decay=0.0).configure(model, total_steps=10);"
        "print(type(optimizer).__name__);"
        "optimizer, _ = Recipe('llm/lion').configure(model, total_steps=10, global_batch=2**19); print(optimizer.param_groups[0]['betas'])"
    )
    assert run(copy, "-c", code).split("\n")[:2] == ["SignSGD", "(0.9, 0.99)"]
