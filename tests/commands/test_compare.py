"""`lit-opt compare` from the command line: configs, arms, resuming, workers, the report, and one message for each mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lit_opt.cli import main
from lit_opt.commands.compare import FromConfig, found_config, parse_config, read_arms
from lit_opt.commands.trainer_section import kept_trainer, left_out
from lit_opt.comparison.ledger import Ledger
from lit_opt.comparison.stages import progress_of
from lit_opt.errors import RecipeError

CONFIG = """
trainer:
  accelerator: cpu
  max_steps: 100
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {monitor: val_loss, mode: min}
model:
  class_path: tests.comparison.toy.Net
  init_args: {width: 8}
data:
  class_path: tests.comparison.toy.Data
recipe:
  name: llm
  lr: 5.0e-3
"""
SMALL = ["--budget-steps=8", "--eval-every=4", "--trials=2", "--seeds=2"]


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(CONFIG)
    return str(path)


def test_a_comparison_from_a_config(config, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["compare", "--config", config, "--arms", "llm,llm/muon", *SMALL, "--out", str(out)]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "llm: lr 0.005 (0.0005 to 0.05)" in said, "the config's own values are the start of its recipe's arm"
    assert "val_loss decides, lower is better" in said, "as the config's checkpoint callback has it"
    assert "8 runs of 8 steps" in said and str(out / "report.html") in said
    progress = progress_of(Ledger(out).read())
    assert {run.state for run in progress.runs.values()} == {"done"}
    assert progress.protocol.settings["module"] == "tests.comparison.toy.Net(dropout=0.1, width=8)"
    results = json.loads((out / "results.json").read_text())
    assert results["violations"] == []

    before = (out / "ledger.jsonl").read_bytes()
    assert main(command) == 0, "the same command resumes"
    assert main(["compare", "worker", "--out", str(out)]) == 0
    (out / "report.html").unlink()
    assert main(["compare", "report", "--out", str(out)]) == 0
    assert (out / "report.html").exists()
    assert (out / "ledger.jsonl").read_bytes() == before

    capsys.readouterr()
    assert main([*command, "--trials=4"]) == 2
    assert "trials: 2 then, 4 now" in capsys.readouterr().err
    assert main([*command, "--model.width=16"]) == 2
    assert "width=16" in capsys.readouterr().err


def test_a_worker_in_another_folder_finds_the_files_of_the_arms(config, tmp_path, monkeypatch):
    here, there, out = tmp_path / "here", tmp_path / "there", tmp_path / "out"
    here.mkdir(), there.mkdir()
    (here / "other.yaml").write_text(CONFIG.replace("5.0e-3", "7.0e-3"))
    monkeypatch.chdir(here)
    small = ["--budget-steps=4", "--eval-every=4", "--trials=1", "--seeds=2"]
    assert (
        main(["compare", "--config", config, "--arms", "llm,other.yaml,mine=other.yaml", *small, f"--out={out}"]) == 0
    )
    monkeypatch.chdir(there)
    assert main(["compare", "worker", "--out", str(out)]) == 0


def test_horizons_from_the_command_line(config, tmp_path, capsys):
    command = [
        "compare",
        "--config",
        config,
        "--arms",
        "llm,llm/muon",
        *SMALL,
        f"--out={tmp_path / 'out'}",
        "--dry-run",
    ]
    assert main([*command, "--horizons=0.5,1.0"]) == 0
    said = capsys.readouterr().out
    assert "Horizons: 4 shorter runs of 4 steps" in said and "12 runs with evaluations every 4 steps" in said


def test_a_dry_run_writes_nothing(config, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["compare", "--config", config, "--arms", "llm,cnn", *SMALL, "--out", str(out), "--dry-run"]) == 0
    assert "8 runs of 8 steps with 3 evaluations each, 1,024 samples." in capsys.readouterr().out
    assert not out.exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "--config, --arms, --budget-steps: needed"),
        (["--arms", "llm,llm/moun", "--budget-steps=8"], "'llm/moun' is no recipe. Did you mean 'llm/muon'?"),
        (["--arms", "llm,llm", "--budget-steps=8"], "'llm' is there twice"),
        (["--arms", "llm,cnn", "--budget-steps=8", "--trails=3"], "trails"),
        (["--arms", "llm,cnn", "--budget-steps=8", "--mode=up"], "'up' is unknown"),
        (["--arms", "llm,nowhere.yaml", "--budget-steps=8"], "nowhere.yaml: no such file"),
        (["--arms", "llm,cnn", "--budget-steps=8", "--horizons=0.5,half"], "'0.5,half' is not allowed; give shares of"),
        (
            ["--arms", "llm,cnn", "--budget-steps=8", "--eval-every=4", "--horizons=0.3"],
            "Give 0.5, or another eval_every",
        ),
        (["work", "--out", "x"], "compare work: unknown. Did you mean 'worker'?"),
        (["report", "--out", "nowhere"], "nowhere: no such folder"),
        (["worker", "--out", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_mistakes(args, words, config, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = ["--config", config] if args and args[0].startswith("--") else []
    assert main(["compare", *(args if not first else [*first, *args])]) == 2
    assert words in capsys.readouterr().err


def test_arms_by_recipe_file_and_title(config, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text(CONFIG.replace("5.0e-3", "7.0e-3"))
    parsed = parse_config((f"--config={config}",), verb="compare")
    arms = read_arms(f"llm, {other}, Muon=llm/muon, cnn", config, parsed)
    assert arms["llm"]["lr"] == 5e-3 and arms["other"]["lr"] == 7e-3
    assert arms["Muon"] == {"name": "llm/muon"} and arms["cnn"] == {"name": "cnn"}
    with pytest.raises(RecipeError, match="is there twice"):
        read_arms("a=llm,a=cnn", config, parsed)


def test_an_arm_may_be_a_file_with_a_recipe_alone(config, tmp_path):
    other = tmp_path / "tuned.yaml"
    other.write_text("recipe: {name: llm/muon, lr: 7e-3}")
    for base in (config, "llm"):
        parsed = parse_config((f"--config={found_config(base)}",), verb="compare")
        arm = read_arms(f"llm,{other}", base, parsed)["tuned"]
        assert (arm["name"], arm["lr"]) == ("llm/muon", 7e-3)


def test_arms_of_a_shipped_config_start_from_the_shipped_configs():
    parsed = parse_config(("--config=llm",), verb="compare")
    arms = read_arms("llm,llm/muon,llm/soap", "llm", parsed)
    assert arms["llm"]["lr"] == 2e-3 and arms["llm/soap"]["name"] == "llm/soap"


def test_a_seed_among_the_arguments_gets_that_of_the_run():
    make = FromConfig("data", ("--config=llm",))
    assert [make(seed).seed for seed in (3, 4)] == [3, 4]
    assert "seed" not in make.label and make.label.startswith("lit_opt.workloads.ByteText(")


def test_what_is_kept_of_the_trainer_and_what_is_said_to_be_left_out(config):
    def of(*args: str) -> tuple[dict[str, object], str]:
        parsed = parse_config((f"--config={config}", *args), verb="compare")
        return kept_trainer(parsed), left_out(parsed)

    assert of() == ({"accelerator": "cpu"}, "")
    kept, words = of("--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.accumulate_grad_batches=2")
    assert kept == {"accelerator": "cpu", "devices": 2, "strategy": "ddp", "accumulate_grad_batches": 2} and not words
    _, words = of("--trainer.num_nodes=2", "--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val_loss")
    assert words == "Of the section trainer: left out, for all arms alike: num_nodes=2, callback EarlyStopping."


def test_devices_that_a_comparison_does_not_take_are_refused(config, tmp_path, capsys):
    command = ["compare", "--config", config, "--arms", "llm,llm/muon", *SMALL, "--out", str(tmp_path / "out")]
    assert main([*command, "--trainer.devices=2", "--trainer.strategy=fsdp", "--workers=2"]) == 2
    said = capsys.readouterr().err
    assert "strategy: 'fsdp' is not allowed; a run on several devices takes 'ddp'" in said
    assert "workers: 2, and each run takes 2 devices" in said


def test_the_help_teaches(capsys):
    assert main(["compare", "--help"]) == 0
    said = capsys.readouterr().out
    for words in ("--dry-run", "lit-opt compare worker --out", "lit-opt compare report --out", "examples:"):
        assert words in said
