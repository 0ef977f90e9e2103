"""The ledger: one file of JSON lines to which is only ever added. What is not in it has not happened.

Each line holds the hash of the line before it, so a line that was changed, removed or put in later is found. A line is
written with one call, under a lock of the operating system, and flushed to the disk before anything follows from it. A
line that a crash has cut short is no JSON and is passed over.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_opt.comparison.codec import digest, plain

try:
    import fcntl
except ImportError:  # no fcntl on Windows: one worker at a time is the user's affair there
    fcntl = None  # type: ignore[assignment]

NAME = "ledger.jsonl"
Event = dict[str, Any]


@dataclass(frozen=True)
class Lines:
    """What a ledger holds.

    Attributes:
        events: (number of the line from 1, its content) of every whole line.
        torn: Numbers of the lines that a crash has cut short.
        problems: Sentences about lines that do not follow from the one before.
        last: Hash of the last line, "" for none.

    Example:
        >>> Lines((), (), (), "").last
        ''
    """

    events: tuple[tuple[int, Event], ...]
    torn: tuple[int, ...]
    problems: tuple[str, ...]
    last: str

    def of(self, kind: str) -> Iterator[tuple[int, Event]]:
        """The events of one kind."""
        return ((number, event) for number, event in self.events if event["event"] == kind)


class Ledger:
    """The ledger of a folder; every process makes its own.

    Args:
        folder: Made if it is not there.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ledger = Ledger(Path(folder))
        ...     _ = ledger.append("opened", {"x": 1})
        ...     [(number, event["x"]) for number, event in ledger.read().events]
        [(1, 1)]
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / NAME
        self._lock = folder / "ledger.lock"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time; the lock is the system's and goes with the process that holds it."""
        with self._lock.open("a") as handle:
            if fcntl is not None:
                fcntl.lockf(handle, fcntl.LOCK_EX)
            yield

    def append(
        self, kind: str, content: Mapping[str, Any], unless: Callable[[Lines], bool] | None = None
    ) -> Event | None:
        """Add a line.

        Args:
            kind: Its event.
            content: What it says, plain data.
            unless: Looks at the ledger under the lock; nothing is written where it says so.

        Returns:
            The line, or None where `unless` was true.
        """
        with self.locked():
            whole = self.path.read_bytes() if self.path.exists() else b""
            reading = read_lines(whole)
            if unless is not None and unless(reading):
                return None
            event: Event = {"event": kind, **plain(content), "time": round(time.time(), 3), "prev": reading.last}
            event["sha"] = digest(event, 64)
            line = json.dumps(event, ensure_ascii=False, allow_nan=False).encode() + b"\n"
            torn = b"" if not whole or whole.endswith(b"\n") else b"\n"
            handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(handle, torn + line)
                os.fsync(handle)
            finally:
                os.close(handle)
            return event

    def read(self) -> Lines:
        """All of it, checked."""
        return read_lines(self.path.read_bytes() if self.path.exists() else b"")


def read_lines(content: bytes) -> Lines:
    """Read and check the lines of a ledger.

    Args:
        content: Of the file.

    Example:
        >>> read_lines(b'{"event": "opened", "prev": "", "sha": "0"}').problems
        ('line 1 was changed after it was written',)
        >>> read_lines(b'{"event": "op').torn
        (1,)
    """
    events, torn, problems, last = [], [], [], ""
    for number, line in enumerate(content.splitlines(), 1):
        try:
            event = json.loads(line)
        except ValueError:
            torn.append(number)
            continue
        if not isinstance(event, dict) or not {"event", "prev", "sha"} <= set(event):
            problems.append(f"line {number} is not a line of a ledger")
            continue
        if digest({key: value for key, value in event.items() if key != "sha"}, 64) != event["sha"]:
            problems.append(f"line {number} was changed after it was written")
        elif event["prev"] != last:
            problems.append(f"before line {number} a line was taken out or put in")
        last = event["sha"]
        events.append((number, event))
    return Lines(tuple(events), tuple(torn), tuple(problems), last)
