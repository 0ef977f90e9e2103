"""The newcomer's hour: the built wheel, a new environment, an empty folder, and docs/tutorials/first_hour.md as it stands.

The page's files are written as they are given, its commands run in its order; each test looks at what one section promises.
The dependencies are those of this environment, by path: nothing is downloaded.
"""

import os
import re
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from tests.processes import LIGHTNINGS
from tests.test_packaging import ROOT, source, wheel  # noqa: F401

PAGE = (ROOT / "docs/tutorials/first_hour.md").read_text()
FILES = dict(re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```$', PAGE, re.M | re.S))
SECTIONS = {
    title: [line for block in re.findall(r"^```console\n(.*?)^```$", text, re.M | re.S) for line in block.splitlines()]
    for title, text in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
}


@pytest.fixture(scope="module")
def follow(wheel, tmp_path_factory):  # noqa: F811
    """Run the commands of a section, or those given, in the folder that has the page's files; the folder and what was printed."""
    folder = tmp_path_factory.mktemp("newcomer")
    env, work = folder / "env", folder / "work"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(env)], check=True)
    [site] = (env / "lib").glob("python*/site-packages")
    install = [sys.executable, "-m", "pip", "--python", str(env / "bin/python"), "install", "--quiet"]
    subprocess.run([*install, "--no-deps", "--no-index", str(wheel)], check=True)
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    work.mkdir()
    for name, text in FILES.items():
        (work / name).write_text(text)
    clean = {k: v for k, v in os.environ.items() if k not in (*LIGHTNINGS, "PYTHONPATH")}
    clean |= {"OMP_NUM_THREADS": "1", "PATH": f"{env / 'bin'}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "160"}

    def run(title: str, *instead: str, code: int = 0) -> tuple[Path, str]:
        printed = ""
        for command in instead or SECTIONS[title]:
            done = subprocess.run(shlex.split(command), cwd=work, env=clean, capture_output=True, text=True)
            assert done.returncode == code, f"{command}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
            printed += done.stdout + done.stderr
        return work, printed

    return run


@pytest.fixture(scope="module")
def straight(follow):
    """The run from YAML, which others are compared with."""
    return follow("From YAML")


def weights(folder):
    last = max(folder.rglob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    return torch.load(last, weights_only=True)


def losses(folder):
    """Validation losses, in order."""
    [table] = folder.rglob("metrics.csv")
    head, *lines = (line.split(",") for line in table.read_text().split())
    return [float(line[head.index("val_loss")]) for line in lines if line[head.index("val_loss")]]


def test_the_page_has_what_the_hour_needs():
    assert set(FILES) == {"my.py", "train.py", "my.yaml", "same.py"}
    assert [title for title, commands in SECTIONS.items() if commands] == [
        *("Train", "From YAML", "With Muon", "On two processes", "Stopped, and continued", "Which is better")
    ]
    model = FILES["my.py"].split("class Bytes")[1].split("class Text")[0]
    assert len([line for line in model.splitlines() if line.strip()]) <= 20


def test_a_recipe_in_a_script(follow):
    _, printed = follow("Train")
    assert "80 steps" in printed
    found = re.search(r"'val_loss': ([\d.]+)", printed)
    assert found and float(found[1]) < 4.5  # 5.5 is chance
    assert "no_decay" in printed


def test_yaml(straight):
    work, printed = straight
    found = losses(work / "runs/adamw")
    assert len(found) == 4 and found[-1] < found[0] < 5 and found[-1] < 3.6
    assert (work / "lr.png").stat().st_size > 5000
    assert "0.002" in printed and "outside" in printed


def test_muon(follow):
    work, _ = follow("With Muon")
    found = losses(work / "runs/muon")
    assert found[-1] < found[0] and found[-1] < 3.6
    [state] = weights(work / "runs/muon")["optimizer_states"]
    assert {group["algorithm"] for group in state["param_groups"]} == {"muon", "adamw"}


def test_a_rate_in_the_wrong_unit(follow):
    [command] = re.findall(r"is refused, with the arithmetic: `(.+)`", PAGE)
    _, printed = follow("With Muon", command, code=2)
    assert "AdamW's kind of rate" in printed and "llm/muon_rms" in printed


def test_two_processes_are_one(follow, straight):
    work, printed = follow("On two processes")
    assert "MEMBER: 2/2" in printed
    assert weights(work / "runs/two")["global_step"] == 80
    assert losses(work / "runs/two") == pytest.approx(losses(work / "runs/adamw"), rel=1e-3)


def test_stopped_and_continued_is_the_run_that_was_not(follow, straight):
    work, printed = follow("Stopped, and continued")
    assert printed.splitlines()[-1] == "True"
    one, other = weights(work / "runs/adamw"), weights(work / "runs/again")
    assert one["global_step"] == other["global_step"] == 80
    assert all(torch.equal(one["state_dict"][name], other["state_dict"][name]) for name in one["state_dict"])
    assert len(list((work / "runs/again").rglob("*.ckpt"))) == 2


@pytest.mark.slow  # the others take 90 s of processor time together; tests/comparison follows `compare` closely
def test_compared(follow):
    work, printed = follow("Which is better")
    report = (work / "runs/compared/report.html").read_text()
    assert "llm/muon" in report
    assert re.search("better|worse|not shown|no verdict", printed)
