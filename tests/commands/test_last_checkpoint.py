"""`--ckpt_path=last`, damaged checkpoints on the command line, and configs that try to run code."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_opt.cli import main
from lit_opt.commands.last_checkpoint import run_folders
from tests.commands.test_fit import LLM, MODEL, message

torch.set_num_threads(1)

RUN = [
    MODEL, LLM, "--recipe.lr=1e-3", "--recipe.warmup=1", "--recipe.total_steps=8", "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
    "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: Any) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def steps_of(*epochs_and_more: str) -> int:
    """Run with `--ckpt_path=last`; the global step of the checkpoint that it wrote."""
    assert main(["fit", *RUN, *epochs_and_more, "--ckpt_path=last"]) == 0
    newest = max(Path().rglob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    step: int = torch.load(newest, weights_only=True)["global_step"]
    return step


def test_last_goes_on_over_versions_and_over_damage(caplog: Any, capsys: Any) -> None:
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        assert steps_of("--trainer.max_epochs=1") == 2
        assert "there is no whole checkpoint in lightning_logs; the run starts from the beginning" in caplog.text
        assert steps_of("--trainer.max_epochs=2") == 4
        assert "last is lightning_logs/version_0/checkpoints/epoch=0-step=2.ckpt" in caplog.text
        newest = Path("lightning_logs/version_1/checkpoints/epoch=1-step=4.ckpt")
        newest.write_bytes(newest.read_bytes()[:-9])
        caplog.clear()
        assert steps_of("--trainer.max_epochs=3") == 6
        assert f"{newest} is passed over: it is cut short" in caplog.text
        assert "last is lightning_logs/version_0/checkpoints/epoch=0-step=2.ckpt" in caplog.text
    (newest.parent / "epoch=0-step=3.ckpt").write_bytes(Path("lightning_logs/version_0/checkpoints/epoch=0-step=2.ckpt").read_bytes())  # fmt: skip
    text = message(capsys, "fit", *RUN, f"--ckpt_path={newest}")
    assert "it is cut short. The newest whole checkpoint beside it is" in text
    assert "To go on from there give ckpt_path='lightning_logs/version_1/checkpoints/epoch=0-step=3.ckpt'" in text


@pytest.mark.parametrize(
    ("section", "folders"),
    [
        ({}, ["lightning_logs"]),
        ({"default_root_dir": "out"}, ["out/lightning_logs"]),
        ({"logger": False, "default_root_dir": "out"}, ["out/checkpoints"]),
        ({"logger": {"class_path": "x.CSVLogger", "init_args": {"save_dir": "runs", "name": "a"}}}, ["runs/a"]),
        ({"logger": [{"class_path": "x.WandbLogger", "init_args": {"save_dir": "w", "name": "n", "project": "p"}}]}, ["w/p"]),
        (
            {"callbacks": [{"class_path": "x.ModelCheckpoint", "init_args": {"dirpath": "here"}}, {"class_path": "x.Y"}]},
            ["here", "lightning_logs"],
        ),
    ],
)  # fmt: skip
def test_where_it_looks(section: dict[str, Any], folders: list[str]) -> None:
    assert [str(folder) for folder in run_folders(section)] == folders


@pytest.mark.parametrize(
    "line",
    [
        "recipe: !!python/object/apply:os.mkdir [ran]",
        "recipe: {name: llm, optimizer_kwargs: !!python/object/apply:os.mkdir [ran]}",
        "model: !!python/object/new:os.mkdir [ran]",
        "recipe: {name: !!python/name:os.mkdir ''}",
        "model: {class_path: os.mkdir, init_args: {path: ran}}",
        "data: {class_path: subprocess.Popen, init_args: {args: [touch, ran]}}",
        "trainer: {callbacks: [{class_path: os.mkdir, init_args: {path: ran}}]}",
        "recipe: {name: llm, optimizer: os.mkdir}",
    ],
)
@pytest.mark.parametrize("where", ["config", "argument"])
def test_no_config_runs_code(capsys: Any, line: str, where: str) -> None:
    key, _, value = line.partition(": ")
    Path("evil.yaml").write_text(line)
    argv = ["--config=evil.yaml"] if where == "config" else [f"--{key}={value}"]
    rest = [a for a in RUN if not a.startswith(f"--{key}")]
    assert message(capsys, "fit", *rest, *argv)
    assert not Path("ran").exists()
