"""The command `lit-opt` where it needs no torch: list, explain, help, version, and what can be mistyped."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import lit_opt
from lit_opt.cli import FIT_VERBS, main
from lit_opt.optim import list_optimizers
from lit_opt.recipes import get_recipe, list_recipes

ROOT = Path(__file__).parents[2]


def says(capsys, *argv):
    """Exit code, stdout, stderr."""
    code = main(list(argv))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_version(capsys):
    assert says(capsys, "--version") == (0, f"lit-opt {lit_opt.__version__}\n", "")


def test_the_entry_point_is_main():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"lit-opt": "lit_opt.cli:main"}


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"]])
def test_help_teaches(capsys, argv):
    code, out, err = says(capsys, *argv)
    assert (code, err) == (0, "")
    for words in (
        "lit-opt list",
        "lit-opt explain llm",
        "lit-opt fit --config llm",
        "Shipped: cnn, cnn/adamw, ",
        'Recipe("llm")',
    ):
        assert words in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("verb", ["list", "explain", "plan", "export-ema"])
def test_each_verb_has_examples(capsys, verb):
    code, out, err = says(capsys, verb, "--help")
    assert (code, err) == (0, "")
    assert "examples:" in out and f"lit-opt {verb}" in out


def test_list_for_a_pipe_is_one_line_each(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    code, out, err = says(capsys, "list")
    assert (code, err) == (0, "")
    lines = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    for name in list_recipes():
        spec = get_recipe(name)
        assert str(spec.optimizer.number) in lines[name] and spec.summary in lines[name] and spec.deviate in lines[name]
    assert set(list_optimizers()) <= set(lines)


@pytest.mark.parametrize("width", [80, 120])
def test_list_for_a_terminal(capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    _, out, _ = says(capsys, "list")
    assert max(map(len, out.splitlines())) <= width
    flat = " ".join(out.split())
    assert all(name in flat for name in [*list_recipes(), *list_optimizers()])
    assert "…" not in out


def test_list_as_json(capsys):
    _, out, _ = says(capsys, "list", "--format", "json")
    data = json.loads(out)
    assert [row["name"] for row in data["recipes"]] == list_recipes()
    assert [row["name"] for row in data["optimizers"]] == list_optimizers()


def test_explain_reads_its_options(capsys):
    options = [
        "--lr", "1e-3", "--weight_decay=0.05", "--betas", "0.9,0.99", "--decay", "linear", "--clip", "0",
        "--total-steps", "2000", "--batch-tokens", "65536", "--parameters", "124000000", "--warmup", "100 steps",
    ]  # fmt: skip
    code, out, err = says(capsys, "explain", "llm", *options, "--format", "json")
    assert (code, err) == (0, "")
    values = {e["name"]: e for e in json.loads(out)["values"]}
    assert values["lr"]["number"] == 1e-3 and values["lr"]["judgement"] == "outside"
    assert values["weight_decay"]["number"] == 0.05
    assert values["betas"]["number"] == [0.9, 0.99]
    assert (values["decay"]["number"], values["decay"]["default"]) == ("linear", "cosine")
    assert values["clip"]["number"] == 0
    assert values["warmup"]["notes"] == []


def test_explain_in_text(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = says(capsys, "explain", "cnn", "--batch-size", "512")
    assert code == 0
    assert "0.1 at 256 samples x 2 (linear) at 512" in out
    assert not any(line != line.rstrip() for line in out.splitlines())


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["lst"], "verb: 'lst' is unknown. Did you mean 'list'? Known: list, explain, "),
        (["--config", "llm", "fit"], "verb: '--config' is unknown."),
        (["explain"], "NAME: needed. Type: lit-opt explain NAME. See `lit-opt explain --help`."),
        (["explain", "lllm"], "name: 'lllm' is neither a recipe nor an optimizer. Did you mean 'llm'?"),
        (["explain", "llm", "--lrr", "1"], "--lrr: unknown argument. Did you mean '--lr'? See `lit-opt explain --help`."),
        (["explain", "llm", "--format", "ymal"], "'ymal' is unknown. Did you mean 'yaml'? Known: text, yaml, json, markdown."),
        (["explain", "llm", "--lr", "abc"], "lr: 'abc' is not allowed; give a finite number above 0, such as 0.0003."),
        (["explain", "llm", "--lr", "nan", "--clip", "-1"], "2 problems:\n  - lr: nan is not allowed"),
        (["explain", "llm", "--optimizer", "adamv"], "optimizer: 'adamv' is unknown. Did you mean"),
        (["explain", "llm", "--total-steps", "1.5"], "total_steps: 1.5 is not allowed; give a whole number above 0."),
        (["export-ema", "a.ckpt"], "OUT: needed. Type: lit-opt export-ema CKPT OUT. See `lit-opt export-ema --help`."),
        (["list", "recipes"], "recipes: unknown argument."),
        (["list", "--format", "yaml"], "'yaml' is unknown. Known: text, json, markdown."),
    ],
)  # fmt: skip
def test_what_is_mistyped_is_one_message(capsys, argv, said):
    code, out, err = says(capsys, *argv)
    assert code == 2
    assert out == ""
    assert err.startswith("lit-opt: ") and said in err
    assert "usage" not in err.lower() and "Traceback" not in err


@pytest.mark.parametrize(
    "argv", [["--help"], ["--version"], ["list"], ["explain", "llm"], ["explain", "cnn", "--format", "yaml"], ["explain", "--help"]]
)  # fmt: skip
def test_looking_loads_neither_torch_nor_lightning(argv):
    code = (
        "import sys\nfrom lit_opt.cli import main\n"
        f"assert main({argv!r}) == 0\n"
        "heavy = {'torch', 'lightning', 'timm', 'jsonargparse', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_python_m_and_a_reader_that_stops_early():
    command = f"{sys.executable} -m lit_opt list | head -1"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("Recipes\n", "")


def test_exit_code_of_the_process():
    done = subprocess.run([sys.executable, "-m", "lit_opt", "lst"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_verbs_are_lightnings():
    from lit_opt.commands.fit import VERBS, RecipeCLI

    assert tuple(RecipeCLI.subcommands()) == FIT_VERBS == tuple(VERBS)


def test_export_ema_writes_the_averages(tmp_path, capsys):
    import torch
    from lightning.pytorch import Trainer
    from lightning.pytorch.demos.boring_classes import BoringModel

    from lit_opt import Recipe

    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        max_steps=5,
        limit_val_batches=0,
        callbacks=[Recipe("diffusion", ema=0.5, lr=0.1)],
        accelerator="cpu",
        default_root_dir=tmp_path,
        **quiet,
    )
    trainer.fit(BoringModel())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert main(["export-ema", str(tmp_path / "last.ckpt"), str(tmp_path / "weights.pt")]) == 0
    assert "weights.pt" in capsys.readouterr().out
    averages = torch.load(tmp_path / "weights.pt", weights_only=True)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert all(torch.equal(averages[k], saved["ema_state_dict"][k]) for k in averages)
    assert not torch.equal(averages["layer.weight"], saved["state_dict"]["layer.weight"])


def test_export_ema_of_nothing_is_one_message(tmp_path, capsys):
    assert main(["export-ema", str(tmp_path / "none.ckpt"), str(tmp_path / "w.pt")]) == 2
    assert "there is no file" in capsys.readouterr().err
