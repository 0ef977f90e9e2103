"""Two processes of Lightning: it starts the second by running the script again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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
