"""A run on several devices, here two processes on the CPU: what one process does, and no process is waited for in vain."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, IterableDataset

from lit_opt import compare
from lit_opt.comparison.data_order import OrderedLoader
from lit_opt.comparison.ranks import Place, device_problems
from lit_opt.comparison.records import Arm, Protocol
from lit_opt.comparison.run import execute
from lit_opt.comparison.task import Job, Task
from lit_opt.errors import RecipeError
from tests.comparison.conftest import SMALL
from tests.comparison.toy import CPU, Data, Net

STEPS = 6
TWO = CPU | {"devices": 2}


def plain_net() -> Net:
    return Net(dropout=0.0)


def data_of_16() -> Data:
    return Data(batch_size=16)


def data_of_8() -> Data:
    return Data(batch_size=8)


def run(module: Any, data: Any, trainer: Mapping[str, Any], recipe: str = "llm") -> Any:
    arm = Arm(recipe, recipe, {}, {"lr": 0.01}, {})
    settings: dict[str, object] = {
        "model_flops_per_pass": 1000.0 / (2 if trainer.get("devices") == 2 else 1),
        "threads": 1,
    }
    protocol = Protocol((arm,), recipe, "val_loss", "min", STEPS, (0, 3, 6), 1, 1, settings=settings)
    task = Task(module, data, {recipe: (recipe, {})}, trainer)
    return execute(Job("k", "tune", 0, recipe, 0, 1, {"lr": 0.01}), arm, task, protocol)


@pytest.mark.parametrize("recipe", [pytest.param("llm", marks=pytest.mark.slow), "llm/muon"])
def test_two_processes_are_one_with_the_batch_of_both(recipe):
    one, two = run(plain_net, data_of_16, CPU, recipe), run(plain_net, data_of_8, TWO, recipe)
    assert two.state == "done", two.facts
    for alone, both in zip(one.readings["raw"], two.readings["raw"], strict=True):
        assert (both.step, both.samples) == (alone.step, alone.samples)
        assert both.metric == pytest.approx(alone.metric, rel=1e-5)
        assert both.flops == pytest.approx(alone.flops)
    assert two.facts["first_loss"] == pytest.approx(one.facts["first_loss"], rel=1e-6)
    assert two.facts["init_hash"] == one.facts["init_hash"]


class BreaksInOne(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 2 and dist.get_rank() == 1:
            raise ValueError("only here")
        return super().training_step(batch, batch_idx)


class KilledInOne(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 2 and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().training_step(batch, batch_idx)


class NotFiniteInOne(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return loss * float("nan") if batch_idx == 2 and dist.get_rank() == 1 else loss


@pytest.mark.parametrize(
    ("module", "state", "words"),
    [
        (BreaksInOne, "crashed", "ValueError: only here"),
        pytest.param(KilledInOne, "crashed", "SIGKILL", marks=pytest.mark.slow),
        (NotFiniteInOne, "diverged", "the loss was not finite"),
    ],
)
def test_what_happens_in_one_process_ends_the_run_in_all(module, state, words):
    found = run(module, data_of_8, TWO)
    assert (found.state, words in found.facts["error"]) == (state, True), found.facts


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        for i in range(1000):
            x = torch.full((8,), i / 1000)
            yield x, x[:1]


class Stream(Data):
    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Endless(), 16)


def test_processes_that_get_the_same_batches_are_refused():
    with pytest.raises(RecipeError, match="of 2 processes some got the same batches"):
        run(plain_net, Stream, TWO)


@pytest.mark.slow
def test_a_whole_comparison_on_two_devices(tmp_path):
    given = SMALL | {"trainer": TWO, "seeds": 3}
    found = compare(Net, data_of_8, **given, out=tmp_path / "out")
    assert found["violations"] == []
    (one,) = found["comparisons"].values()
    assert one["reasons"] == [] or all("not tuned" in reason for reason in one["reasons"])
    again = compare(Net, data_of_8, **given, out=tmp_path / "out")
    assert again["comparisons"] == found["comparisons"]
    with pytest.raises(RecipeError, match="trainer: "):
        compare(Net, data_of_8, **(given | {"trainer": CPU}), out=tmp_path / "out")


def test_the_batches_of_all_ranks_are_those_of_one(monkeypatch):
    def batches(place: Place, size: int) -> list[list[int]]:
        monkeypatch.setattr("lit_opt.comparison.ranks._place", place)
        loader = OrderedLoader(DataLoader(range(20), size, shuffle=True, drop_last=True), seed=3)  # type: ignore[arg-type]
        return [batch.tolist() for _ in range(2) for batch in loader]

    whole = batches(Place(), 4)
    monkeypatch.setattr("lit_opt.comparison.ranks._place", Place(1, 2))
    part = OrderedLoader(DataLoader(range(20), 4), seed=3)  # type: ignore[arg-type]
    assert (part.batch_size, len(part)) == (4, 2), "the recipe reads the batch size from the loader"
    first, second = (batches(Place(rank, 2), 2) for rank in (0, 1))
    assert [one + other for one, other in zip(first, second, strict=True)] == whole


@pytest.mark.parametrize(
    ("trainer", "workers", "words"),
    [
        ({"devices": "auto"}, 1, "devices: 'auto' is not allowed; give their number"),
        ({"devices": 0}, 1, "devices: 0 is not allowed"),
        ({"devices": [0, 1]}, 1, "devices: [0, 1] is not allowed"),
        (
            {"devices": 2, "strategy": "fsdp"},
            1,
            "strategy: 'fsdp' is not allowed; a run on several devices takes 'ddp'",
        ),
        ({"strategy": "ddp"}, 1, "a run on one device has none. Leave it out, or give devices=N as well."),
        ({"devices": 2}, 4, "workers: 4, and each run takes 2 devices"),
    ],
)
def test_devices_that_cannot_be_had(trainer, workers, words):
    (problem,) = device_problems(trainer, workers)
    assert words in problem


def test_factories_that_cannot_be_sent_to_the_processes_are_refused(tmp_path):
    with pytest.raises(RecipeError, match="trainer: devices=2: other processes, and make_module cannot be sent"):
        compare(lambda: Net(), Data, **(SMALL | {"trainer": TWO}), out=tmp_path)
