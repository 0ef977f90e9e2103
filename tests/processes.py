"""Two processes: of Lightning, which starts the second by running the script again, or of gloo alone."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist

ROOT = Path(__file__).parents[1]
# What Lightning's launcher leaves in a process. One that has LOCAL_RANK takes itself for one of several, and waits.
LIGHTNINGS = ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def launch(module: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `python -m module folder` to its end, as the first of its processes, on one thread each."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PL_") and k not in LIGHTNINGS}
    return subprocess.run(
        [sys.executable, "-m", module, str(folder)],
        cwd=ROOT,
        env=environment | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def in_two_processes(work: Callable[[], None]) -> None:
    """Run a function in each of two gloo processes, on one thread each; what one raises is raised here.

    Args:
        work: On the top level of a test file.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with mock.patch.dict(os.environ, {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}):
        torch.multiprocessing.spawn(_join, args=(port, work), nprocs=2, join=True)


def _join(rank: int, port: int, work: Callable[[], None]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        work()
        dist.barrier()
    finally:
        dist.destroy_process_group()


def share_meshes() -> None:
    """Let all runs of this process under ModelParallelStrategy have one mesh of each shape.

    A mesh's groups keep busy threads, which take all cores after a hundred runs. They cannot be dropped after a run:
    DTensor's caches keep the first of equal meshes, and ask for its groups again (torch 2.15).
    """
    from lightning.pytorch.strategies import model_parallel

    model_parallel._setup_device_mesh = cache(model_parallel._setup_device_mesh)
