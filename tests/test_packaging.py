"""The wheel holds lit_opt and nothing else, and all of it."""

import email
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import lit_opt
from lit_opt.optim.registry import ROWS

ROOT = Path(__file__).resolve().parents[1]


def tracked(*paths):
    done = subprocess.run(["git", "ls-files", "-z", "--", *paths], cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in done.stdout.split("\0") if name and (ROOT / name).exists()]


def built(hook, folder, out):
    """The name of what a PEP 517 hook of the build backend writes, as `python -m build --no-isolation` calls it."""
    code = f"from setuptools import build_meta; print('built', build_meta.{hook}({str(out)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out / done.stdout.rsplit("built ", 1)[1].strip()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of what git tracks."""
    copy = tmp_path_factory.mktemp("source")
    for name in tracked():
        target = copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target, follow_symlinks=False)
    return copy


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    """Built without an index."""
    return built("build_wheel", source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def wheel_names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


@pytest.fixture(scope="module")
def metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(archive.read(name))


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


def test_beside_the_package_there_is_its_description_alone(wheel_names):
    names = {name.split("/", 1)[1] for name in wheel_names if ".dist-info/" in name}
    assert names == {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt", "licenses/LICENSE"}


def test_metadata(metadata):
    assert metadata["Name"] == "lit-opt" and metadata["Version"] == lit_opt.__version__
    assert metadata["License-Expression"] == "Apache-2.0" and metadata["Requires-Python"] == ">=3.11"
    extras = {"workloads", "datasets", "optimizers", "lowbit", "compare", "docs", "dev", "all"}
    assert set(metadata.get_all("Provides-Extra")) == extras
    # What rows and workloads tell their users to install is there.
    assert {row.extra for row in ROWS if row.extra} <= extras
    core = [name for name in metadata.get_all("Requires-Dist") if "extra ==" not in name]
    assert {re.split(r"[>\[]", name)[0] for name in core} == {"torch", "lightning", "timm", "jsonargparse", "rich"}


def test_the_citation_and_the_changelog_name_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == lit_opt.__version__ and citation["license"] == "Apache-2.0"
    assert f"## {lit_opt.__version__}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.slow
def test_the_sdist_builds_the_same_wheel(source, wheel_names, tmp_path):
    sdist = built("build_sdist", source, tmp_path)
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    again = built("build_wheel", tmp_path / sdist.name.removesuffix(".tar.gz"), tmp_path)
    with zipfile.ZipFile(again) as archive:
        assert sorted(archive.namelist()) == sorted(wheel_names)


MODULE = """
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

import lit_opt
from lit_opt import Recipe


class Mine(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 2))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)


data = torch.utils.data.TensorDataset(torch.randn(64, 8), torch.randint(2, (64,)))
trainer = Trainer(max_steps=1, accelerator="cpu", logger=False, callbacks=[Recipe("vit", optimizer="adamw")])
trainer.fit(Mine(), torch.utils.data.DataLoader(data, batch_size=16))
print("steps", trainer.global_step, lit_opt.__file__)
"""


@pytest.mark.slow
def test_the_wheel_in_an_empty_environment(wheel, tmp_path):
    """Its dependencies are those of this environment, by path: nothing is downloaded."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "env")], check=True)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True)
    [site] = (tmp_path / "env" / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    work = tmp_path / "work"
    work.mkdir()

    def run(*command):
        done = subprocess.run([str(c) for c in command], cwd=work, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    command = tmp_path / "env" / "bin" / "lit-opt"
    assert "llm/muon" in run(command, "list")
    assert run(command, "--version").strip() == f"lit-opt {lit_opt.__version__}"
    (work / "train.py").write_text(MODULE)
    assert f"steps 1 {site}" in run(python, "train.py")
    run(
        command,
        "fit",
        "--config",
        "llm",
        "--trainer.max_steps=1",
        "--trainer.limit_val_batches=0",
        "--trainer.accelerator=cpu",
    )
