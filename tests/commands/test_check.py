"""`lit-opt check`: configs with and without a recipe, exit codes, formats, what only a run knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import Callback
from torch.optim import lr_scheduler as lrs

from lit_opt.cli import main
from tests.callbacks.modules import Net, loader


class Data(LightningDataModule):
    """Eight batches of 4."""

    def train_dataloader(self) -> Any:
        return loader()


class Right(Net):
    """Cosine by steps, its length asked of the Trainer."""

    interval = "step"

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=0.0)
        cosine = lrs.CosineAnnealingLR(optimizer, T_max=int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": self.interval}}


class Wrong(Right):
    """The same, stepped once an epoch."""

    interval = "epoch"


class Asks(Net):
    """Wants to know what only a run knows."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1 * self.trainer.strategy.root_device.index)


class NeedsARun(Callback):
    """Cannot be made without a run."""

    def __init__(self) -> None:
        raise RuntimeError("no process group")


class Warned(Net):
    """Adam with L2: a warning."""

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-3, weight_decay=0.01)


def config(tmp_path: Path, model: str | None, **sections: Any) -> str:
    trainer = {"max_epochs": 3, "accelerator": "cpu", "devices": 1} | sections.pop("trainer", {})
    content: dict[str, Any] = {"trainer": trainer, "data": {"class_path": f"{__name__}.Data"}, **sections}
    if model:
        content["model"] = {"class_path": f"{__name__}.{model}"}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def check(*args: str) -> int:
    return main(["check", "--config", *args])


def found(capsys: Any) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out)


def test_a_module_without_a_recipe(tmp_path, capsys):
    assert check(config(tmp_path, "Right")) == 0
    out = capsys.readouterr().out
    assert "No findings: 29 checks, setting unknown." in out
    assert "Not judged, since the setting is not known" in out and "--setting" in out


def test_errors_and_warnings_are_findings(tmp_path, capsys):
    assert check(config(tmp_path, "Wrong"), "--format", "json") == 1
    data = found(capsys)
    assert [(f["id"], f["level"]) for f in data["findings"]] == [("schedule-per-epoch", "error")]
    assert "stepped 3 times in 24 optimizer steps" in data["findings"][0]["evidence"]
    assert check(config(tmp_path, "Warned"), "--format", "json") == 1
    assert [f["id"] for f in found(capsys)["findings"] if f["level"] == "warning"] == ["decay-on-norms", "adam-l2"]


def test_notes_are_findings_when_strict(tmp_path):
    recipe = {"name": "llm", "lr": 1e-3}
    assert check(config(tmp_path, "Net", recipe=recipe)) == 0
    assert check(config(tmp_path, "Net", recipe=recipe), "--strict") == 1


def test_a_finding_that_is_meant_is_silenced_and_said_to_be(tmp_path, capsys):
    path = config(tmp_path, "Warned")
    assert check(path, "--format", "json") == 1
    before = [f["id"] for f in found(capsys)["findings"]]
    assert before[:2] == ["decay-on-norms", "adam-l2"]
    assert check(path, "--ignore", "adam-l2", "--format", "json") == 1  # the other warning counts
    data = found(capsys)
    assert [f["id"] for f in data["findings"]] == [one for one in before if one != "adam-l2"]
    assert [(f["id"], f["level"]) for f in data["silenced"]] == [("adam-l2", "warning")]
    assert check(path, "--ignore=adam-l2, decay-on-norms", "--ignore", "beta2-llm") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "Silenced by ignore: 2 findings: adam-l2 (warning), decay-on-norms (warning)." in out
    assert "Nothing to silence for beta2-llm." in out and "2 silenced." in out
    assert "decoupled" not in out  # adam-l2's advice


def test_an_unknown_id_to_ignore_is_an_error(tmp_path, capsys):
    assert check(config(tmp_path, "Warned"), "--ignore", "adam_l2,decay-on-norms,zzz") == 2
    err = " ".join(capsys.readouterr().err.split())
    assert "no check has the id 'adam_l2'. Did you mean 'adam-l2'?" in err and "'zzz'" in err
    assert "'decay-on-norms'" not in err.replace("Known", "")


def test_a_recipe_says_the_setting(tmp_path, capsys):
    path = config(tmp_path, "Net", recipe={"name": "vit", "batch_size": 256})
    assert check(path, "--format", "json") == 0
    assert found(capsys)["setting"] == "vit"
    callback = {"class_path": "lit_opt.Recipe", "init_args": {"name": "llm"}}
    assert check(config(tmp_path, "Net", trainer={"callbacks": [callback]}), "--format", "json") == 0
    assert found(capsys)["setting"] == "llm"


def test_arguments_win_over_the_config(tmp_path, capsys):
    path = config(tmp_path, "Wrong")
    assert check(path, "--setting", "cnn", "--trainer.max_epochs=5", "--format", "json") == 1
    data = found(capsys)
    assert "stepped 5 times in 40 optimizer steps" in data["findings"][0]["evidence"]
    assert data["setting"] == "cnn"


def test_the_trainers_settings_and_callbacks_are_read(tmp_path, capsys):
    averages = {"class_path": "lit_opt.EMA", "init_args": {"decay": 0.9999, "warmup": False}}
    trainer = {"callbacks": [averages], "gradient_clip_val": 1.0, "precision": "bf16-mixed"}
    assert check(config(tmp_path, "Right", trainer=trainer), "--setting", "diffusion", "--format", "json") == 1
    data = found(capsys)
    ids = [f["id"] for f in data["findings"]]
    assert "ema-window" in ids and "ema-missing" not in ids
    unread = {"callbacks": [{"class_path": f"{__name__}.NeedsARun"}]}
    check(config(tmp_path, "Right", trainer=unread))
    assert "callbacks: NeedsARun could not be built without a run" in capsys.readouterr().out


def test_what_only_a_run_knows_is_named(tmp_path, capsys):
    assert check(config(tmp_path, "Asks")) == 2
    err = capsys.readouterr().err
    assert "Asks asks for trainer.strategy, which is not known without a run" in err
    assert "lit_opt.RecipeCheck" in err


def test_usage_errors(tmp_path, capsys):
    assert check(config(tmp_path, "Net")) == 2
    assert "Net has no configure_optimizers, and the config has no `recipe:`" in capsys.readouterr().err
    assert main(["check"]) == 2
    assert "nothing to check" in capsys.readouterr().err
    assert check("no_such_file.yaml") == 2
    assert "no such file" in capsys.readouterr().err
    assert check(config(tmp_path, "Right"), "--setting", "lllm") == 2
    assert "setting: 'lllm' is unknown. Did you mean 'llm'?" in capsys.readouterr().err
    assert check(config(tmp_path, "Right"), "--format", "yaml") == 2
    assert check(config(tmp_path, "Right"), "--trainer.max_epoch=3") == 2
    assert "lit-opt check --help" in capsys.readouterr().err


def test_help_teaches(capsys):
    assert main(["check", "--help"]) == 0
    out = capsys.readouterr().out
    for words in (
        "exit codes:",
        "errors or warnings; with --strict notes as well",
        "--setting vit/finetune",
        "RecipeCheck",
    ):
        assert words in out
    assert max(map(len, out.splitlines())) <= 90
    assert main(["--help"]) == 0
    assert "lit-opt check --config" in capsys.readouterr().out


@pytest.mark.parametrize("columns", ["100", "80"])
def test_nothing_is_cut_off(tmp_path, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    assert check(config(tmp_path, "Warned")) == 1
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= int(columns)
    assert "…" not in out and "adam-l2" in out


@pytest.mark.parametrize("name", ["llm", "vit", "cnn", "diffusion"])
def test_shipped_configs_have_notes_only(name, capsys):
    assert check(name, "--format", "json") == 0
    assert found(capsys)["setting"] == name
