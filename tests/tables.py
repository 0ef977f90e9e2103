"""Tables in docs/ that are written by the tests that fill them.

A test says which cell it stands for by `@capability("resume")`, its row being its parameter "name"; whether it passed is
recorded as pytest goes. The last test of the file calls `settle`, which compares the table in docs/ with what was seen
and what is claimed, or writes it under `pytest --write-tables`. Cells whose tests did not run in this call (deselected,
or marked slow) are left as they are.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[1] / "docs"
YES, FAILED = "yes", "FAILED"
Cell = tuple[str, str]
# Table -> (row, column) -> what its tests came to in this process.
_SEEN: dict[str, dict[Cell, set[str]]] = {}
_WORD = pytest.StashKey[str]()


def capability(column: str, *, table: str = "methods", row: str = "name") -> pytest.MarkDecorator:
    """The test stands for a cell: its row is its parameter `row`. Several tests may stand for one."""
    return pytest.mark.capability(column=column, table=table, row=row)


def say(request: pytest.FixtureRequest, word: str) -> None:
    """What the cell has instead of "yes" if the test passes."""
    request.node.stash[_WORD] = word


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-tables", action="store_true", help="write docs/ and lit_opt/explain/strategies.json from what passes"
    )


def register_marker(config: pytest.Config) -> None:
    """Called by conftest.py."""
    config.addinivalue_line(
        "markers", "capability(column, table, row): the cell of a table in docs/; see tests/tables.py"
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    for mark in item.iter_markers("capability"):
        at = mark.kwargs
        row = item.callspec.params[at["row"]]  # type: ignore[attr-defined]
        if report.failed or (report.when == "call" and report.passed):
            word = item.stash.get(_WORD, YES) if report.passed else FAILED
            _SEEN.setdefault(at["table"], {}).setdefault((row, at["column"]), set()).add(word)
    return report


def seen(table: str) -> dict[Cell, str]:
    """Cells that tests stood for in this process: "FAILED" where one failed, else their word."""
    words = {cell: found - {YES} or found for cell, found in _SEEN.get(table, {}).items()}
    return {cell: FAILED if FAILED in found else ", ".join(sorted(found)) for cell, found in words.items()}


def settle(
    config: pytest.Config,
    path: Path,
    *,
    table: str,
    facts: Mapping[str, Sequence[str]],
    columns: Sequence[str],
    claims: Mapping[Cell, tuple[str, str]],
) -> list[str]:
    """Compare a table with what was seen, or write it; returns what is wrong, in sentences.

    Args:
        config: pytest's, for --write-tables.
        path: The page; the table lies between `<!-- table -->` and `<!-- end of table -->`, the rest is kept.
        table: Its name.
        facts: Row -> the cells of its first columns, the first of them its own name.
        columns: Of all cells; the first ones are those of `facts`.
        claims: (row, column) -> the word where no test stands for it, and the reason, which becomes a note.
    """
    tested = columns[len(next(iter(facts.values()))) :]
    found, notes = seen(table), sorted({reason for _, reason in claims.values()})
    problems = [f"{row}, {column}: claimed to be {claims[row, column][0]!r}, and a test ran: {word}." for (row, column), word
                in found.items() if (row, column) in claims]  # fmt: skip
    claimed = {cell: f"{word} ({notes.index(reason) + 1})" for cell, (word, reason) in claims.items()}
    before, _, rest = path.read_text().partition(_begin(table))
    old, _, after = rest.partition(_end(table))
    committed = _cells(old)
    if config.getoption("--write-tables"):
        new = committed | found | claimed
        rows = [[*facts[row], *(new.get((row, column), "?") for column in tested)] for row in facts]
        lines = [_line(columns), _line(["---"] * len(columns)), *map(_line, rows), ""]
        lines += [f"{number}. {reason}" for number, reason in enumerate(notes, start=1)]
        path.write_text("\n".join([before + _begin(table), "", *lines, "", _end(table) + after]))
        committed = _cells("\n".join(lines))
    wanted = {(row, column): word for row, cells in facts.items() for column, word in zip(columns, cells, strict=False)}
    wanted |= claimed | found
    problems += [f"{row}, {column}: it has {committed.get((row, column))!r}, and it is {word!r}." for (row, column), word
                 in wanted.items() if committed.get((row, column)) != word]  # fmt: skip
    problems += [
        f"{row}: a line without a row." for row in dict.fromkeys(row for row, _ in committed) if row not in facts
    ]
    every = [(row, column) for row in facts for column in tested]
    problems += [f"{row}, {column}: not known." for row, column in every if committed.get((row, column), "?") == "?"]
    problems += [f"{row}, {column}: {FAILED}." for (row, column), word in found.items() if word == FAILED]
    problems += [
        f"note {n}: {reason!r} is not on the page."
        for n, reason in enumerate(notes, 1)
        if f"{n}. {reason}" not in path.read_text()
    ]
    return problems


def _begin(table: str) -> str:
    return f"<!-- {table}: written by `make tables` -->"


def _end(table: str) -> str:
    return f"<!-- end of {table} -->"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(text: str) -> dict[Cell, str]:
    """(row, column) -> word of the first table in a text."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    head, rows = (lines[0], lines[2:]) if lines else ([], [])
    return {(row[0], column): word for row in rows for column, word in zip(head, row, strict=False)}
