"""The ledger: append-only, torn lines passed over, changes found; claims of the dead taken over."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from lit_opt.comparison.claims import Claims
from lit_opt.comparison.ledger import Ledger, read_lines


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path)
    for n in range(4):
        ledger.append("number", {"n": n})
    return ledger


def numbers(reading):
    return [event["n"] for _, event in reading.events]


def test_lines_come_back_in_their_order(ledger):
    reading = ledger.read()
    assert numbers(reading) == [0, 1, 2, 3]
    assert [line for line, _ in reading.events] == [1, 2, 3, 4]
    assert (reading.problems, reading.torn) == ((), ())


@pytest.mark.parametrize("cut", [1, 30, 60])
def test_a_torn_last_line_is_passed_over_and_written_after(ledger, cut):
    whole = ledger.path.read_bytes()
    ledger.path.write_bytes(whole[:-cut])
    torn = ledger.read()
    # Without its end of line the line is whole all the same.
    assert numbers(torn) == ([0, 1, 2, 3] if cut == 1 else [0, 1, 2])
    assert torn.problems == ()
    ledger.append("number", {"n": 9})
    again = ledger.read()
    assert numbers(again) == [*numbers(torn), 9]
    assert again.problems == ()
    assert again.torn == (() if cut == 1 else (4,))


def test_what_was_there_is_never_rewritten(ledger):
    before = ledger.path.read_bytes()
    ledger.append("number", {"n": 5})
    assert ledger.path.read_bytes().startswith(before)


def edit(ledger, change):
    lines = ledger.path.read_text().splitlines()
    ledger.path.write_text("\n".join(change(lines)) + "\n")
    return ledger.read().problems


def test_an_edited_line_is_found(ledger):
    def change(lines):
        return [lines[0], lines[1].replace('"n": 1', '"n": 7'), *lines[2:]]

    assert edit(ledger, change) == ("line 2 was changed after it was written",)


def test_a_line_taken_out_is_found(ledger):
    assert edit(ledger, lambda lines: [lines[0], *lines[2:]]) == ("before line 2 a line was taken out or put in",)


def test_lines_in_another_order_are_found(ledger):
    assert edit(ledger, lambda lines: [lines[1], lines[0], *lines[2:]])


def test_a_line_of_something_else_is_found(ledger):
    assert edit(ledger, lambda lines: [*lines, json.dumps({"n": 3})]) == ("line 5 is not a line of a ledger",)


def test_unless_looks_under_the_lock(ledger):
    assert ledger.append("number", {"n": 5}, unless=lambda now: 3 in numbers(now)) is None
    assert numbers(ledger.read()) == [0, 1, 2, 3]


def test_an_empty_ledger():
    assert read_lines(b"").last == ""


# ---- several processes

APPEND = """
import sys
from pathlib import Path
from lit_opt.comparison.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]))
for n in range(25):
    ledger.append("number", {"n": n, "of": sys.argv[2]})
"""


def test_lines_of_several_processes_do_not_mix(tmp_path):
    processes = [subprocess.Popen([sys.executable, "-c", APPEND, str(tmp_path), name]) for name in "abc"]
    assert [process.wait() for process in processes] == [0, 0, 0]
    reading = Ledger(tmp_path).read()
    assert (reading.problems, reading.torn) == ((), ())
    for name in "abc":
        assert [event["n"] for _, event in reading.events if event["of"] == name] == list(range(25))


HOLD = """
import sys, time
from pathlib import Path
from lit_opt.comparison.claims import Claims
from lit_opt.comparison.ledger import Ledger
folder = Path(sys.argv[1])
assert Claims(folder, Ledger(folder)).take("k")
print("taken", flush=True)
time.sleep(600)
"""


def test_a_claim_is_respected_while_its_worker_lives_and_taken_over_when_it_is_dead(tmp_path):
    claims = Claims(tmp_path, Ledger(tmp_path))
    worker = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    assert worker.stdout is not None and worker.stdout.readline() == b"taken\n"
    assert not claims.take("k")
    assert claims.others() == ["k"]
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    assert claims.others() == []
    assert claims.take("k")
    assert not claims.take("k")


def test_a_claim_of_another_machine_dies_by_its_heartbeat(tmp_path):
    claims = Claims(tmp_path, Ledger(tmp_path))
    path = tmp_path / "claims" / "k.claim"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "born": "1"}))
    assert not claims.take("k")
    old = time.time() - 300
    os.utime(path, (old, old))
    assert claims.take("k")


def test_a_claim_of_a_container_with_the_same_host_name_dies_by_its_heartbeat(tmp_path, monkeypatch):
    """Its process numbers are others, so that nobody has that number here means nothing."""
    claims = Claims(tmp_path, Ledger(tmp_path))
    monkeypatch.setattr("lit_opt.comparison.claims._pids", lambda: "pid:[1]")
    assert claims.take("k")
    monkeypatch.undo()
    path = tmp_path / "claims" / "k.claim"
    path.write_text(path.read_text().replace(str(os.getpid()), "4194305"))  # no process has such a number
    assert not claims.take("k") and claims.others() == ["k"]
    os.utime(path, (0, 0))
    assert claims.others() == [] and claims.take("k")


def test_a_claim_is_beating(tmp_path, monkeypatch):
    monkeypatch.setattr("lit_opt.comparison.claims.BEAT", 0.01)
    claims = Claims(tmp_path, Ledger(tmp_path))
    claims.take("k")
    path = tmp_path / "claims" / "k.claim"
    os.utime(path, (0, 0))
    with claims.beating("k"):
        while path.stat().st_mtime == 0:
            time.sleep(0.01)
    claims.release("k")
    assert claims.take("k")


def test_a_pid_that_is_used_again_is_not_taken_for_the_worker(tmp_path):
    claims = Claims(tmp_path, Ledger(tmp_path))
    claims.take("k")
    path = tmp_path / "claims" / "k.claim"
    owner = json.loads(path.read_text())
    path.write_text(json.dumps(owner | {"born": "another start of this pid"}))
    assert claims.take("k")
