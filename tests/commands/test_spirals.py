"""`lit-opt spirals` from the command line."""

import pytest
from PIL import Image

from lit_opt.cli import main


def test_it_writes_both_pictures(tmp_path, capsys):
    out = tmp_path / "new"
    arguments = ["--optimizers", "adamw, sgd", "--lr", "sgd=0.1", "--steps", "6", "--frames", "3", "--out", str(out)]
    assert main(["spirals", *arguments]) == 0
    said = capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["spirals.gif", "spirals.png"]
    with Image.open(out / "spirals.gif") as picture:
        assert getattr(picture, "n_frames", 1) == 3
    [adamw] = [line for line in said.splitlines() if line.startswith("adamw")]
    [sgd] = [line for line in said.splitlines() if line.startswith("sgd")]
    assert "table" in adamw and "0.1" in sgd and "typed" in sgd
    assert "says nothing of real models" in said


def test_help_has_examples(capsys):
    assert main(["spirals", "--help"]) == 0
    assert "lit-opt spirals --optimizers adamw,muon,soap" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--optimizers", "muonn"], "Did you mean 'muon'"),
        (["--optimizers", "sgd,adamw,muon,soap,lion"], "are not one to 4 different names"),
        (["--optimizers", "sgd,sgd"], "are not one to 4 different names"),
        (["--lr", "muon"], "is not NAME=NUMBER"),
        (["--lr", "soap=0.1"], "'soap' is not among the optimizers"),
        (["--lr", "adamw=-1"], "not a positive number"),
        (["--steps", "1"], "steps: 1 is not 2 or more"),
        (["--steps", "many"], "--steps: 'many' is not allowed; give a whole number."),
    ],
)
def test_bad_arguments_are_one_message(arguments, message, capsys, tmp_path):
    assert main(["spirals", *arguments, "--out", str(tmp_path / "none")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
