"""The tables of docs/ notice what does not fit."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import tables

PAGE = "# Page\n\nKept.\n\n| a | table |\n|---|---|\n| of | ours |\n\n<!-- t: written by `make tables` -->\n<!-- end of t -->\n\nKept too.\n"
FACTS = {"one": ("one", "here"), "two": ("two", "there")}
COLUMNS = ("name", "from", "fast", "right")
CLAIMS = {("two", "fast"): ("no", "It is slow.")}
SEEN = {("one", "fast"): {"yes"}, ("one", "right"): {"yes", "nearly"}, ("two", "right"): {"yes"}}


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tables, "_SEEN", {"t": {cell: set(words) for cell, words in SEEN.items()}})
    path = tmp_path / "page.md"
    path.write_text(PAGE)
    return path


def settle(path: Path, *, write: bool = False, **more: Any) -> list[str]:
    config: Any = SimpleNamespace(getoption=lambda name: write)
    return tables.settle(config, path, **({"table": "t", "facts": FACTS, "columns": COLUMNS, "claims": CLAIMS} | more))


def test_what_is_written_fits_and_the_rest_is_kept(page: Path) -> None:
    assert settle(page) != []
    assert settle(page, write=True) == []
    text = page.read_text()
    assert "| one | here | yes | nearly |\n| two | there | no (1) | yes |\n\n1. It is slow." in text
    assert text.startswith(PAGE[:70]) and text.endswith("Kept too.\n")
    assert settle(page) == []
    assert settle(page, write=True) == [] and page.read_text() == text


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"facts": FACTS | {"three": ("three", "here")}}, "three, name: it has None, and it is 'three'."),
        ({"facts": {"one": FACTS["one"]}}, "two: a line without a row."),
        ({"facts": FACTS | {"one": ("one", "else")}}, "one, from: it has 'here', and it is 'else'."),
        ({"claims": {}}, "two, fast"),
        ({"claims": CLAIMS | {("one", "fast"): ("no", "It is slow.")}}, "one, fast: claimed to be 'no', and a test ran: yes."),
        ({"claims": {("two", "fast"): ("no", "Another reason.")}}, "'Another reason.' is not on the page."),
        ({"columns": (*COLUMNS, "new")}, "one, new: not known."),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(page: Path, more: dict[str, Any], words: str) -> None:
    settle(page, write=True)
    if more == {"claims": {}}:
        tables._SEEN["t"]["two", "fast"] = {"yes"}
    assert any(words in problem for problem in settle(page, **more))


def test_a_failure_is_not_a_capability(page: Path) -> None:
    settle(page, write=True)
    tables._SEEN["t"]["one", "fast"] = {"yes", tables.FAILED}
    assert "one, fast: it has 'yes', and it is 'FAILED'." in settle(page)
    assert "one, fast: FAILED." in settle(page, write=True)


def test_cells_that_were_not_seen_are_left(page: Path) -> None:
    settle(page, write=True)
    del tables._SEEN["t"]["one", "fast"]
    assert settle(page) == [] == settle(page, write=True)
    assert "| one | here | yes | nearly |" in page.read_text()
