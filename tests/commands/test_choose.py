"""`lit-opt choose`: what it prints for a config, and what it refuses."""

import json
import shlex

import pytest
import torch

from lit_opt.cli import main

torch.set_num_threads(1)
BORING = "--model=lightning.pytorch.demos.boring_classes.BoringModel"


def said(capsys, *argv):
    capsys.readouterr()
    assert main(["choose", *argv]) == 0
    return capsys.readouterr().out


def test_the_text(capsys):
    out = said(capsys, "--config", "cnn", "--trainer.max_epochs=2")
    assert out.startswith("Proposal  cnn  confidence: high\n")
    for heading in ("Why", "Values at this run", "Otherwise", "Next"):
        assert f"\n{heading}\n" in out
    assert "The run: 44 steps, 64 samples a step" in out
    assert "0.025   inside 0.01 .. 0.1" in out and "mmpretrain" in out
    assert max(map(len, out.split("\nNext\n")[0].splitlines())) <= 100
    assert out.endswith("  lit-opt fit --config cnn --trainer.max_epochs=2 --recipe.name=cnn\n")


def test_json_and_text_agree(capsys):
    answer = json.loads(said(capsys, "--config", "vlm", "--format", "json"))
    assert (answer["recipe"], answer["setting"], answer["configured"]) == ("vlm", "vlm", "vlm")
    assert answer["facts"]["global_batch"] == 128
    values = {value["name"]: value for value in answer["values"]}
    assert values["lr"]["number"] == 1e-4 and values["lr"]["source"]
    assert values["parts.projector"]["number"] == 10
    assert any("from scratch they are low" in reason for reason in answer["reasons"])


def test_what_it_says_to_type_works(capsys, tmp_path, monkeypatch):
    """The proposal's own command trains."""
    monkeypatch.chdir(tmp_path)  # a run leaves its checkpoints where it starts
    answer = json.loads(said(capsys, "--config", "cnn", "--recipe.name=llm", "--recipe.clip=1.0", "--format=json"))
    assert answer["recipe"] == "cnn" and answer["configured"] == "llm"
    assert answer["next"][-1] == "lit-opt fit --config cnn --recipe.clip=1.0 --recipe.name=cnn"
    short = ["--trainer.fast_dev_run=true", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    assert main([*shlex.split(answer["next"][-1])[1:], *short]) == 0
    text = said(capsys, "--config", "cnn", "--recipe.name=llm", "--recipe.clip=1.0")
    assert "The config has llm, whose own values (lr, clip) stay set: take them out." in " ".join(text.split())


def test_it_says_when_it_is_not_sure(capsys):
    out = said(capsys, BORING)
    assert out.startswith("No proposal  I am not sure which setting this is.")
    assert "Values" not in out and "lit-opt list" in out
    answer = json.loads(said(capsys, BORING, "--format", "json"))
    assert answer["recipe"] is None and answer["confidence"] == "unsure" and answer["values"] == []


def test_a_large_batch_of_a_config(capsys):
    answer = json.loads(said(capsys, "--config", "cnn", "--recipe.batch_size=16384", "--format", "json"))
    assert answer["recipe"] == "large_batch/lars"
    assert next(v for v in answer["values"] if v["name"] == "lr")["number"] == 25


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "model: a model is needed."),
        (["--config", "cnnn"], "config: cnnn: no such file. Did you mean 'cnn'?"),
        (["--config", "cnn", "--format", "yaml"], "'yaml' is unknown."),
        (["--config", "cnn", "--recipe.lrr=1"], "Did you mean '--recipe.lr'? See `lit-opt choose --help`."),
    ],
)
def test_refusals(argv, message, capsys):
    assert main(["choose", *argv]) == 2
    assert message in capsys.readouterr().err


def test_the_help_teaches(capsys):
    assert main(["choose", "--help"]) == 0
    assert "lit-opt choose --config mine.yaml --format json" in capsys.readouterr().out
