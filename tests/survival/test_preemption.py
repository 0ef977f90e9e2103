"""SIGUSR1 and SIGTERM under Lightning's SLURM handling: raw and averaged weights are kept, and the run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lit_opt import EMA
from tests.callbacks.modules import Net
from tests.processes import launch
from tests.survival.runs import difference


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("preempted")
    done = launch("tests.survival.preempted", path)
    assert done.returncode == 0, done.stderr[-3000:]
    return path


@pytest.mark.parametrize("where", ["batch end", "validation", "inside"])
def test_preempted_and_continued(where: str, folder: Path) -> None:
    straight, here = read(folder / "never" / "end.ckpt"), folder / where
    assert (here / "first.scontrol").read_text() == "requeue 17\n"
    assert (here / "first.left").read_text() == "[]" == (here / "left").read_text()
    saved = read(here / "first.hpc_ckpt_1.ckpt")
    assert saved["lit_opt_ema"]["steps"] == 4
    raw, averaged = saved["state_dict"], saved["ema_state_dict"]
    assert raw.keys() == averaged.keys() and not torch.equal(raw["net.0.weight"], averaged["net.0.weight"])
    EMA.load(Net(), here / "first.hpc_ckpt_1.ckpt")
    end = read(here / "end.ckpt")
    assert end["global_step"] == 9 and end["lit_opt_ema"]["steps"] == 9
    if where != "inside":
        keys = ("state_dict", "ema_state_dict", "optimizer_states", "lr_schedulers", "lit_opt")
        assert {key: difference(end[key], straight[key]) for key in keys} == dict.fromkeys(keys, 0.0)
