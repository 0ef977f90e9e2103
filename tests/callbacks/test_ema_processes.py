"""EMA in two processes on the CPU (gloo): DDP, and FSDP2 and FSDP1 with one checkpoint file or with shards.

The checks are in ema_processes.py, because Lightning starts the second process by running the script again.
All kinds share one launch, for most of its time goes into importing.
"""

from __future__ import annotations

import pytest

from tests.processes import launch as launch_processes


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    result = launch_processes("tests.callbacks.ema_processes", folder)
    return folder, result


@pytest.mark.parametrize("kind", ["ddp", "fsdp2", "fsdp2_sharded", "fsdp1", "fsdp1_sharded"])
def test_two_processes(kind, launch):
    folder, result = launch
    passed = sorted(file.name for file in (folder / kind).glob("passed.*"))
    assert passed == ["passed.0", "passed.1"], result.stdout[-3000:] + result.stderr[-6000:]


def test_both_processes_end_well(launch):
    assert launch[1].returncode == 0
