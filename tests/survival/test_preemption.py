"""SIGUSR1 and SIGTERM under Lightning's SLURM handling: raw and averaged weights are kept, and the run goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_opt import EMA
from tests.callbacks.modules import Net
from tests.processes import LIGHTNINGS, ROOT
from tests.survival.runs import difference


def start(folder: Path, where: str) -> subprocess.CompletedProcess[str]:
    bin_ = folder / "bin"
    bin_.mkdir(parents=True, exist_ok=True)
    (bin_ / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {folder}/scontrol\n')
    (bin_ / "scontrol").chmod(0o755)
    slurm = {"SLURM_JOB_ID": "17", "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "0",
             "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NTASKS_PER_NODE": "1"}  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PL_") and k not in LIGHTNINGS}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PATH": f"{bin_}:{os.environ['PATH']}"}
    return subprocess.run(
        [sys.executable, "-m", "tests.survival.preempted", str(folder), where],
        cwd=ROOT, env=environment | (slurm if where != "never" else {}), capture_output=True, text=True, check=False,
    )  # fmt: skip


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("straight")
    assert start(folder, "never").returncode == 0
    return read(folder / "end.ckpt")


@pytest.mark.parametrize("where", ["batch end", "validation", "inside"])
def test_preempted_and_continued(where: str, straight: dict[str, Any], tmp_path: Path) -> None:
    first = start(tmp_path, where)
    assert (tmp_path / "scontrol").read_text() == "requeue 17\n", first.stderr[-3000:]
    assert not (tmp_path / "end.ckpt").exists() and (tmp_path / "left").read_text() == "[]"
    saved = read(tmp_path / "hpc_ckpt_1.ckpt")
    assert saved["lit_opt_ema"]["steps"] == 4
    raw, averaged = saved["state_dict"], saved["ema_state_dict"]
    assert raw.keys() == averaged.keys() and not torch.equal(raw["net.0.weight"], averaged["net.0.weight"])
    EMA.load(Net(), tmp_path / "hpc_ckpt_1.ckpt")
    second = start(tmp_path, where)
    assert second.returncode == 0, second.stderr[-3000:]
    end = read(tmp_path / "end.ckpt")
    assert end["global_step"] == 9 and end["lit_opt_ema"]["steps"] == 9
    if where != "inside":
        keys = ("state_dict", "ema_state_dict", "optimizer_states", "lr_schedulers", "lit_opt")
        assert {key: difference(end[key], straight[key]) for key in keys} == dict.fromkeys(keys, 0.0)
