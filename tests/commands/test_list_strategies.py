"""`lit-opt list --strategies` for a terminal of 100 columns, as JSON and as Markdown; without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lit_opt.cli import main
from lit_opt.recipes import list_recipes

ROOT = Path(__file__).parents[2]


def test_text_fits_into_100_columns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["list", "--strategies"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    first = next(i for i, line in enumerate(lines) if line.startswith("recipe "))
    rows = {line.split()[0]: line.split()[1:] for line in lines[first + 1 : lines.index("")]}
    assert list(rows) == list_recipes()
    for cells in rows.values():
        assert len(cells) == 11 and all(len(cell) == 4 and set(cell) <= set("+o-") for cell in cells)
    assert rows["llm/muon"][3] == "----"
    assert any("Use ModelParallelStrategy (FSDP2) or DDP" in line for line in lines)


def test_json_and_markdown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--strategies", "--format", "json"]) == 0
    data: dict[str, Any] = json.loads(capsys.readouterr().out)
    cell = data["recipes"]["llm/muon"]["fsdp1"]["32-true"]
    assert cell["status"] == "refused" and "whole matrices" in cell["why"][0]
    assert data["recipes"]["llm"]["ddp"]["32-true"] == {"status": "tested"}
    assert main(["list", "--strategies", "--format", "markdown"]) == 0
    assert capsys.readouterr().out == (ROOT / "docs" / "strategies.md").read_text()


def test_markdown_is_for_the_strategies(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--format", "markdown"]) == 2
    assert "'markdown' is for `lit-opt list --strategies`" in capsys.readouterr().err


def test_no_torch_is_loaded() -> None:
    script = "import sys; from lit_opt.cli import main; main(['list', '--strategies']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
