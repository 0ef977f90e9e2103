"""Several workers, and workers that are killed: the same results, bit for bit."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any, cast

import pytest

from lit_opt import compare
from lit_opt.comparison.ledger import Ledger
from lit_opt.comparison.stages import is_complete, progress_of
from tests.comparison.conftest import SMALL
from tests.comparison.test_compare import outcome
from tests.comparison.toy import Data, Net

# Forked from a process with one thread: a worker is there at once. lit_opt itself spawns.
FORK = multiprocessing.get_context("fork")


def worker(folder: Path) -> None:
    compare(Net, Data, **SMALL, out=folder)


def complete(folder: Path) -> bool:
    return (folder / "ledger.jsonl").exists() and is_complete(progress_of(Ledger(folder).read()))


def opened(source: Path, folder: Path) -> Path:
    """A folder with the first line only: the rehearsal, which is timed, is not repeated."""
    folder.mkdir()
    first = (source / "ledger.jsonl").read_bytes().splitlines(keepends=True)[0]
    (folder / "ledger.jsonl").write_bytes(first)
    return folder


def test_four_workers_give_what_one_gives(finished, tmp_path):
    folder = opened(finished, tmp_path / "four")
    processes = [FORK.Process(target=worker, args=(folder,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0, 0]
    assert outcome(folder) == outcome(finished)
    reading = Ledger(folder).read()
    assert (reading.problems, reading.torn) == ((), ())
    finished_lines = [event["run"]["key"] for _, event in reading.of("finished")]
    assert len(finished_lines) == len(set(finished_lines)) == 8
    workers = {event["worker"] for _, event in reading.of("finished")}
    assert len(workers) > 1, "one did it all: this has shown nothing"


def test_times_are_left_out_where_others_worked_at_the_same_time(finished, tmp_path):
    folder = opened(finished, tmp_path / "two")
    processes = [FORK.Process(target=worker, args=(folder,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    runs = progress_of(Ledger(folder).read()).runs.values()
    disturbed = [run for run in runs if not cast(Any, run.facts["timing"])["alone"]]
    assert disturbed
    for run in disturbed:
        assert run.facts["ms_per_step"] is None
        assert all(r.seconds != r.seconds for r in run.readings["raw"])


def seconds_of_a_run(folder: Path) -> float:
    reading = Ledger(folder).read()
    began = {event["key"]: event["time"] for _, event in reading.of("started")}
    spans = [event["time"] - began[event["run"]["key"]] for _, event in reading.of("finished")]
    return sum(spans) / len(spans)


def lines(folder: Path) -> int:
    return (folder / "ledger.jsonl").read_bytes().count(b"\n")


def killed_at_random(source: Path, folder: Path, kills: int, seed: int) -> int:
    """Kill a worker at random moments until it was killed that often or is done; then let one finish. The kills that hit."""
    moments, hits = random.Random(seed), 0
    longest = seconds_of_a_run(source)
    opened(source, folder)
    for _ in range(kills):
        if complete(folder):
            break
        process = FORK.Process(target=worker, args=(folder,))
        process.start()
        # By lines as well as by the clock: however busy the machine is, every stage gets its kills.
        until = lines(folder) + moments.randint(0, 3)
        while process.is_alive() and lines(folder) < until:
            time.sleep(0.01)
        time.sleep(moments.uniform(0.0, longest))
        if process.is_alive():
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            hits += 1
        process.join()
    process = FORK.Process(target=worker, args=(folder,))
    process.start()
    process.join()
    assert process.exitcode == 0
    return hits


def started_again(folder: Path) -> int:
    keys = [event["key"] for _, event in Ledger(folder).read().of("started")]
    return len(keys) - len(set(keys))


def test_kills_at_random_moments_change_nothing(finished, tmp_path):
    folder = tmp_path / "killed"
    hits = killed_at_random(finished, folder, kills=5, seed=1)
    assert hits > 0
    assert outcome(folder) == outcome(finished)
    # A kill loses one run's work at most.
    assert started_again(folder) <= hits


@pytest.mark.slow
def test_fifty_kills_at_random_moments_change_nothing(finished, tmp_path):
    hits = round_ = 0
    while hits < 50:
        folder = tmp_path / f"killed-{round_}"
        hit = killed_at_random(finished, folder, kills=50 - hits, seed=round_ + 2)
        assert outcome(folder) == outcome(finished)
        assert started_again(folder) <= hit
        hits, round_ = hits + hit, round_ + 1
    print(f"{hits} kills over {round_} comparisons")


@pytest.mark.slow
def test_workers_of_its_own(finished, tmp_path):
    """The processes that `workers=` starts."""
    compare(Net, Data, **(SMALL | {"workers": 2}), out=tmp_path / "own")
    assert outcome(tmp_path / "own")[0] == outcome(finished)[0]
