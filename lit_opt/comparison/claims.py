"""Who works on what: one lock file a run, which a dead worker's successor takes over."""

from __future__ import annotations

import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lit_opt.comparison.ledger import Ledger

BEAT = 5.0  # seconds between heartbeats
DEAD_AFTER = 60.0  # seconds without one, for a worker on another machine or in another container


def worker_name() -> str:
    """Host and process.

    Example:
        >>> worker_name() == f"{socket.gethostname()}:{os.getpid()}"
        True
    """
    return f"{socket.gethostname()}:{os.getpid()}"


class Claims:
    """The claims of a folder.

    Args:
        folder: Of the comparison.
        ledger: Its lock makes looking and taking over one action.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     claims = Claims(Path(folder), Ledger(Path(folder)))
        ...     claims.take("k"), claims.take("k"), claims.others()
        (True, False, [])
    """

    def __init__(self, folder: Path, ledger: Ledger) -> None:
        self.folder = folder / "claims"
        self.folder.mkdir(exist_ok=True)
        self._ledger = ledger

    def take(self, key: str) -> bool:
        """Claim a run; False where a living worker has it."""
        path = self._path(key)
        with self._ledger.locked():
            if path.exists() and self._is_dead(path):
                path.unlink(missing_ok=True)
            try:
                handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            except FileExistsError:
                return False
            with os.fdopen(handle, "w") as file:
                json.dump(
                    {
                        "host": socket.gethostname(),
                        "pid": os.getpid(),
                        "pids": _pids(),
                        "since": time.time(),
                        "born": _born(os.getpid()),
                    },
                    file,
                )
            return True

    def release(self, key: str) -> None:
        """Give a run back, done or not."""
        self._path(key).unlink(missing_ok=True)

    @contextmanager
    def beating(self, key: str) -> Iterator[None]:
        """Show, while inside, that the worker is alive."""
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(BEAT):
                try:
                    os.utime(self._path(key))
                except OSError:  # taken over while the machine slept: the result is the same, whoever writes it
                    return

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def others(self) -> list[str]:
        """Runs that other living workers on this machine are at."""
        mine = (socket.gethostname(), os.getpid())
        found = []
        for path in self.folder.glob("*.claim"):
            owner = _owner(path)
            own = (owner.get("host"), owner.get("pid")) == mine and owner.get("pids") == _pids()
            if owner.get("host") == mine[0] and not own and not self._is_dead(path):
                found.append(path.stem)
        return sorted(found)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.claim"

    def _is_dead(self, path: Path) -> bool:
        owner = _owner(path)
        if owner.get("host") == socket.gethostname() and owner.get("pids") == _pids() and "pid" in owner:
            return _born(owner["pid"]) != owner.get("born")
        # The clock of the file system, since two machines' clocks may differ.
        with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".now-") as probe:
            now = os.fstat(probe.fileno()).st_mtime
        try:
            return now - path.stat().st_mtime > DEAD_AFTER
        except FileNotFoundError:
            return True


def _owner(path: Path) -> dict[str, Any]:
    try:
        owner = json.loads(path.read_text())
    except (OSError, ValueError):  # gone, or its writer died before it had written: judged by its age
        return {}
    return owner if isinstance(owner, dict) else {}


def _pids() -> str:
    """Where process numbers are the same ones: two containers with one host name may each have a process 1."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _born(pid: int) -> str | None:
    """When a living process of this machine began, so that a number that is used again is not taken for it; else None."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            return "alive"
        return "alive"
    return None if fields[0] == "Z" else fields[19]
