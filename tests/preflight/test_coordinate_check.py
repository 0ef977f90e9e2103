"""Coordinate checks on the package's language model: flat with the transfer, and plainly not without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lit_opt.cli import main
from lit_opt.errors import RecipeError
from lit_opt.preflight.coordinate_check import CoordinateCheck, coordinate_check
from lit_opt.preflight.coordinate_report import check_markdown, check_plot
from lit_opt.workloads import LanguageModel

torch.set_num_threads(1)

WIDTHS = (32, 64, 128, 256)


def make(width: int) -> LanguageModel:
    """Heads of 16, as many as the width has room for."""
    return LanguageModel(layers=2, width=width, heads=width // 16, mlp_width=width * 11 // 4, context=32)


def run(optimizer: str, lr: float, **overrides: Any) -> CoordinateCheck:
    batch = torch.randint(0, 256, (2, 17), generator=torch.Generator().manual_seed(0))
    return coordinate_check(
        make, WIDTHS, batch=batch, optimizer=optimizer, lr=lr, weight_decay=0.1, seeds=(0, 1), **overrides
    )


@pytest.mark.parametrize(
    ("optimizer", "lr", "overrides"),
    [
        ("adamw", 3e-3, {}),
        ("muon", 0.02, {"fallback": {"lr": 3e-3}}),
        ("muon", 3e-3, {"optimizer_kwargs": {"scale": "match_rms_adamw"}}),
    ],
    ids=["adamw", "muon", "muon in AdamW's units"],
)
def test_slopes(optimizer: str, lr: float, overrides: dict[str, Any]) -> None:
    found = run(optimizer, lr, **overrides)
    names = [line.layer.rpartition(".")[2] for line in found.layers]
    assert names == [
        *("embed_tokens", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head")
    ]
    for line in found.layers:
        # The logits keep a part of the initial head, which falls as 1 / sqrt(width) and takes steps to be forgotten.
        assert abs(line.slope) < (0.15 if line.layer.endswith("lm_head") else 0.12), line
        if not line.layer.endswith("embed_tokens"):
            assert line.without > 0.4, line
    scores, without = found.attention or (9.0, 9.0)
    assert abs(scores) < 0.1 < without
    assert found.layers[-1].at_start == pytest.approx(-0.5, abs=0.1), "muP's logits vanish with the width at the start"


def test_one_width_is_refused() -> None:
    with pytest.raises(RecipeError, match="at least two rising widths"):
        coordinate_check(make, (64,), batch=None)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "140")
    sizes = {"layers": 1, "heads": 1, "width": 16, "mlp_width": 32}
    config = {
        "recipe": {
            "name": "llm",
            "lr": 3e-3,
            "transfer": {"base": {"class_path": "lit_opt.workloads.LanguageModel", "init_args": sizes}},
        },
        "model": {
            "class_path": "lit_opt.workloads.LanguageModel",
            "init_args": sizes | {"width": 64, "heads": 4, "mlp_width": 128},
        },
        "data": {"class_path": "lit_opt.workloads.ByteText", "init_args": {"seq_len": 16, "batch_size": 2}},
    }
    Path("mine.yaml").write_text(yaml.safe_dump(config))
    command = ["transfer", "check", "--config", "mine.yaml", "--factors", "1,4", "--seeds", "1"]
    code = main([*command, "--plot", "check.png"])
    said = capsys.readouterr()
    assert code in (0, 1) and said.err == ""
    assert "widths 16, 64" in said.out and "attention scores" in said.out and Path("check.png").stat().st_size > 10_000
    assert main(["plan", "--config", "mine.yaml"]) == 0
    assert "Transfer from a small model" in capsys.readouterr().out
    assert main([*command, "--recipe.transfer=null"]) == 2
    assert "recipe.transfer: the config has none" in capsys.readouterr().err


def test_markdown_and_picture(tmp_path: Path) -> None:
    found = CoordinateCheck(title="t", widths=(8, 16), steps=1, seeds=1, layers=(), attention=(0.0, 0.5))
    assert check_markdown(found)[-1].startswith("| attention scores |")
    assert check_plot(found, tmp_path / "check.png").is_file()
