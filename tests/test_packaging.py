"""The wheel holds lit_opt and nothing else, and all of it."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def tracked(*paths):
    done = subprocess.run(["git", "ls-files", "-z", "--", *paths], cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in done.stdout.split("\0") if name and (ROOT / name).exists()]


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory):
    """Names in a wheel built, without an index, from a copy of what git tracks."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in tracked():
        target = copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target, follow_symlinks=False)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        ".",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        str(out),
    ]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    [wheel] = out.glob("lit_opt-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_the_wheel_is_what_git_tracks(wheel_names):
    # .gitkeep only keeps an empty folder in git.
    expected = {name for name in tracked("lit_opt") if not name.endswith(".gitkeep")}
    found = {name for name in wheel_names if ".dist-info/" not in name}
    assert found == expected


def test_one_top_level_package(wheel_names):
    tops = {name.split("/")[0] for name in wheel_names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"lit_opt"}
    assert len(tops) == 2


def test_data_files_are_inside(wheel_names):
    assert "lit_opt/py.typed" in wheel_names
    assert not any(
        name.startswith(("recipes/", "callbacks/", "configs/", "tests/", "benchmarks/")) for name in wheel_names
    )
    configs = {name for name in tracked("lit_opt/configs") if name.endswith(".yaml")}
    assert configs <= set(wheel_names)


def test_metadata(wheel_names):
    names = {name.split("/", 1)[1] for name in wheel_names if ".dist-info/" in name}
    assert {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt"} <= names
