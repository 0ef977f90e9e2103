"""`lit-opt plan`: a config in, a plan out, in three forms; what is wrong is one message."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from lit_opt.cli import main
from lit_opt.commands.plan import plan_config
from lit_opt.explain.shipped_configs import shipped_configs

torch.set_num_threads(1)

MODEL = "--model=lightning.pytorch.demos.boring_classes.BoringModel"


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    return tmp_path


def says(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["plan", *argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_shipped_config(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = says(capsys, "--config", "llm")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 100
    for words in (
        "Plan  llm for LanguageModel",
        "global batch 16 = loader 16 x accumulation 1 x data-parallel 1",
        "450 optimizer steps, 505 an epoch",
        "model.model.layers.*.self_attn.q_proj.weight",
        "peak, the warmup is over",
        "optimizer state",
        "activations: they grow with the batch",
        "practice: 3e-4 at 7-8 B",
        "tokens: 257 a sample",
    ):
        assert words in out, words


@pytest.mark.parametrize("columns", ["80", "100", "150"])
def test_the_width_of_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    code, out, _ = says(capsys, "-c", "llm/muon")
    assert code == 0 and max(map(len, out.splitlines())) <= int(columns)


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = says(capsys, "--config=cnn", "--format", "json", "--trainer.max_epochs=2")
    plan = json.loads(out)
    assert code == 0 and plan["recipe"] == "cnn"
    facts = plan["resolved"]["facts"]
    assert facts["total_steps"] == 2 * facts["steps_per_epoch"]
    assert facts["global_batch"] == facts["loader_batch"] and plan["memory"]["held"] > 0


def test_markdown_with_every_row(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = says(capsys, "--config", "llm", "--format=markdown", "--rows")
    assert code == 0 and out.startswith("# Plan of `llm` for LanguageModel")
    assert out.count("self_attn.q_proj.weight") == 4


def test_another_machine_and_another_batch(capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--devices", "8", "--num-nodes", "2", "--strategy", "fsdp2", "--precision", "bf16-mixed"]
    run = ["--batch-size", "512", "--total-steps", "1000", "--batch-tokens", "131072"]
    code, out, _ = says(capsys, "--config", "llm", "--trainer.accelerator=gpu", *where, *run, "--format", "json")
    plan = json.loads(out)
    assert code == 0
    assert (plan["placement"]["kind"], plan["placement"]["devices"]) == ("fsdp2", 16)
    facts = plan["resolved"]["facts"]
    assert (facts["global_batch"], facts["total_steps"], facts["tokens_per_batch"]) == (512, 1000, 131072)


def test_every_shipped_config_has_a_plan() -> None:
    for name in shipped_configs():
        plan = plan_config([f"--config={name}"], {})
        assert plan.resolved.facts.total_steps and plan.resolved.facts.global_batch, name
        assert plan.milestones and plan.memory.held > 0 and plan.flops is not None
        # A language model by its tokens, a classifier by its forward.
        assert (plan.flops.share is not None) == (plan.model in ("LanguageModel", "ImageClassifier")), name
        assert max(map(len, plan.text().splitlines())) <= 100, name


def test_a_picture(capsys: pytest.CaptureFixture[str], empty_folder: Path) -> None:
    code, out, err = says(capsys, "--config", "llm", "--plot", "lr.png", "--format", "json")
    assert code == 0 and json.loads(out)["recipe"] == "llm"
    assert "The learning rates are in lr.png." in err
    assert (empty_folder / "lr.png").read_bytes().startswith(b"\x89PNG")


def test_a_config_for_gpus_that_are_not_here(capsys: pytest.CaptureFixture[str], empty_folder: Path) -> None:
    config = {
        "trainer": {"accelerator": "gpu", "devices": 8, "strategy": "deepspeed_stage_2", "max_steps": 10},
        "recipe": {"name": "llm"},
    }
    (empty_folder / "big.yaml").write_text(yaml.safe_dump(config))
    code, out, _ = says(capsys, "--config", "big.yaml", MODEL)
    assert code == 0
    assert "8 devices: gradients and optimizer states in shards (ZeRO 2)" in out


@pytest.mark.parametrize(
    "argv, words",
    [
        ([], "Type `lit-opt plan --config llm`"),
        (["--format", "jsn", "--config", "llm"], "Did you mean 'json'"),
        (["--config", "lml2"], "no such file"),
        (["--config", "llm", "--batch-siz", "3"], "--batch-siz: unknown argument. Did you mean '--"),
        (["--config", "llm", "--devices", "two"], "--devices"),
        (["--config", "llm", "--strategy", "fspd"], "strategy: 'fspd' is unknown"),
        (["--config", "llm", "--total-steps", "0"], "total_steps: 0"),
        (["--config", "llm/muon", "--strategy", "fsdp", "--devices", "4"], "orthogonalises whole matrices"),
        ([MODEL], "recipe.name: a recipe is needed"),
    ],
)
def test_one_message(capsys: pytest.CaptureFixture[str], argv: list[str], words: str) -> None:
    code, out, err = says(capsys, *argv)
    assert code == 2 and out == ""
    assert err.count("lit-opt: ") == 1 and words in err, err
    assert "Traceback" not in err and "usage:" not in err
