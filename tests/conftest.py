"""What every test is protected from."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.processes import LIGHTNINGS
from tests.tables import pytest_addoption, pytest_runtest_makereport, register_marker  # noqa: F401


def pytest_configure(config: pytest.Config) -> None:
    register_marker(config)
    if config.getoption("--write-tables"):
        from tests.contract.record import WRITES

        WRITES["tables"] = True


@pytest.fixture(autouse=True)
def _environment_of_one_process() -> Iterator[None]:
    before = {key: os.environ.get(key) for key in LIGHTNINGS}
    yield
    for key, value in before.items():
        if value is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = value


# What Lightning and the workloads write into the current directory; git ignores these, so nobody else would see them.
WRITTEN = ("checkpoints", "lightning_logs", "runs")


@pytest.fixture(autouse=True)
def _nothing_is_left_in_the_checkout() -> Iterator[None]:
    here = Path.cwd()
    before = {name for name in WRITTEN if (here / name).exists()}
    yield
    left = [name for name in WRITTEN if (here / name).exists() and name not in before]
    assert not left, f"left in {here}: {', '.join(left)}. Use monkeypatch.chdir(tmp_path)."


@pytest.fixture(autouse=True)
def _loaders_as_they_were() -> Iterator[None]:
    """Lightning patches loaders while it calls train_dataloader(), and leaves them patched after an exception there."""
    yield
    data = sys.modules.get("torch.utils.data")
    if data is None:
        return
    for cls in (c for base in (data.DataLoader, data.BatchSampler) for c in (base, *_subclasses(base))):
        for name in ("__setattr__", "__delattr__", "__init__"):
            if f"__old{name}" in cls.__dict__:
                setattr(cls, name, getattr(cls, f"__old{name}"))
                delattr(cls, f"__old{name}")


def _subclasses(cls: type[Any]) -> set[type[Any]]:
    return {found for sub in cls.__subclasses__() for found in (sub, *_subclasses(sub))}
