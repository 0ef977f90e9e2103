"""Two machines that share a folder, as two containers: other process numbers, and other host names or the same one."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lit_opt.comparison.ledger import Ledger
from lit_opt.comparison.stages import is_complete, progress_of
from tests.comparison.test_compare import outcome
from tests.comparison.test_workers import opened

ROOT = Path(__file__).parents[2]

WORKER = """
import sys, time
from pathlib import Path
from lit_opt import compare
from lit_opt.comparison import claims
from tests.comparison.conftest import SMALL
from tests.comparison.toy import Data, Net

claims.BEAT, claims.DEAD_AFTER = 0.2, 2.0
folder, stuck = Path(sys.argv[1]), sys.argv[2] == "stuck"

def never_ends(self, batch, batch_idx):
    (folder / "stuck").touch()
    time.sleep(600)

if stuck:
    Net.on_train_batch_start = never_ends
compare(Net, Data, **SMALL, out=folder)
"""


def container(name: str | None, folder: Path, kind: str) -> subprocess.Popen[bytes]:
    """A worker with process numbers of its own, and a host name where one is given."""
    spaces = ["--pid", "--fork", "--mount-proc", "--kill-child", *(["--uts"] if name else [])]
    named = f"hostname {name} && " if name else ""
    python = [sys.executable, "-c", WORKER, str(folder), kind]
    return subprocess.Popen(["unshare", *spaces, "sh", "-c", f'{named}exec "$@"', "sh", *python], cwd=ROOT)


def may_unshare() -> bool:
    spaces = ["--pid", "--fork", "--mount-proc", "--kill-child", "--uts"]
    return shutil.which("unshare") is not None and not subprocess.call(
        ["unshare", *spaces, "hostname", "one"], stderr=subprocess.DEVNULL
    )


@pytest.mark.slow
@pytest.mark.skipif(not may_unshare(), reason="needs Linux and the right to make namespaces (unshare)")
@pytest.mark.parametrize("names", [("one", "two"), (None, None)], ids=["two host names", "the same host name"])
def test_a_machine_that_is_gone_is_taken_over_and_one_that_lives_is_not(finished, tmp_path, names):
    folder = opened(finished, tmp_path / "shared")
    first = container(names[0], folder, "stuck")
    while not (folder / "stuck").exists():
        assert first.poll() is None
        time.sleep(0.05)
    second = container(names[1], folder, "works")
    # It does all that it can, and leaves the run of the other alone for as long as that one's heart beats.
    while len(list(Ledger(folder).read().of("finished"))) < 3:
        assert second.poll() is None
        time.sleep(0.05)
    time.sleep(4)
    assert second.poll() is None and not is_complete(progress_of(Ledger(folder).read()))
    started = [event["key"] for _, event in Ledger(folder).read().of("started")]
    assert len(started) == len(set(started))
    first.kill()
    first.wait()
    assert second.wait(60) == 0
    assert outcome(folder) == outcome(finished)
    assert {event["worker"].rpartition(":")[0] for _, event in Ledger(folder).read().of("started")} >= {
        name for name in names if name
    }
