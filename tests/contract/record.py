"""What the table of strategies has, and what tests add to it."""

from __future__ import annotations

import json
from typing import Any

import torch

from lit_opt.explain.strategies import RECORD


class Record:
    """Cells that passed in this run."""

    def __init__(self) -> None:
        self.passed: dict[str, dict[str, list[str]]] = {}

    def note(self, strategy: str, precision: str, names: list[str]) -> None:
        self.passed.setdefault(strategy, {})[precision] = sorted(names)

    def write(self, versions: dict[str, str], of: str = "CPU, gloo") -> None:
        """Put what was noted into the file; what was not run stays."""
        data: dict[str, Any] = json.loads(RECORD.read_text())
        data["versions"][of] = ", ".join(f"{name} {version}" for name, version in versions.items())
        for strategy, cells in self.passed.items():
            data["runs"][strategy] = {**data["runs"].get(strategy, {}), **cells}
        RECORD.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n")


def recorded(strategy: str, precision: str, record: Record | None = None) -> list[str]:
    """What the file says has passed; while it is written anew, what has."""
    if record is not None and record.passed and WRITES["tables"]:
        return record.passed.get(strategy, {}).get(precision, [])
    names: list[str] = json.loads(RECORD.read_text())["runs"].get(strategy, {}).get(precision, [])
    return names


# Set by conftest.py from --write-tables.
WRITES = {"tables": False}


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], start: dict[str, torch.Tensor]) -> float:
    """How far two ends are from one another, as a part of the way from the start to the second; its own norm at 0."""
    apart = sum(float((a[key].double() - b[key].double()).square().sum()) for key in a)
    way = sum(float((b[key].double() - start[key].double()).square().sum()) for key in a)
    return float((apart / way if way else apart) ** 0.5)
