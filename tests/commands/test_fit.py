"""`lit-opt fit` and a user's own LightningCLI: what is wrong is one message, what is right trains."""

import inspect
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel

from lit_opt import Recipe
from lit_opt.cli import FIT_VERBS, main
from lit_opt.commands.config_files import expand_configs
from lit_opt.errors import RecipeError

torch.set_num_threads(1)

BORING = "lightning.pytorch.demos.boring_classes.BoringModel"
MODEL = f"--model={BORING}"
LANGUAGE = "--model=lit_opt.workloads.LanguageModel"
LLM = "--recipe.name=llm"
QUIET = [
    "--trainer.max_steps=2", "--trainer.logger=false", "--trainer.enable_checkpointing=false",
    "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
]  # fmt: skip


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def message(capsys, *argv):
    """The one message of a refused call."""
    capsys.readouterr()
    assert main(list(argv)) == 2
    err = [
        line for line in capsys.readouterr().err.splitlines() if not line.startswith(("INFO", "Seed set", "GPU", "TPU"))
    ]
    text = "\n".join(err)
    assert text.count("lit-opt: ") == 1
    assert "usage:" not in text and "Traceback" not in text
    return text.partition("lit-opt: ")[2]


class Interrupts(Callback):
    """Ctrl-C in the first step."""

    def on_train_batch_start(self, *args):
        raise KeyboardInterrupt


class Breaks(Callback):
    """A bug of the user's."""

    def on_train_batch_start(self, *args):
        raise ZeroDivisionError("a real bug")


class Refuses(BoringModel):
    """Something the user can mend, found inside fit."""

    def on_train_start(self):
        raise RecipeError(["inside: mend me."])


def test_a_boring_model_trains_with_a_recipe(empty_folder, capsys):
    argv = [
        "fit",
        MODEL,
        LLM,
        "--recipe.lr=1e-3",
        "--recipe.warmup=1",
        "--trainer.max_steps=2",
        "--trainer.accelerator=cpu",
    ]
    assert main([*argv, "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]) == 0
    assert "Checkpoint: lightning_logs/version_0/" in capsys.readouterr().out
    saved = yaml.safe_load((empty_folder / "lightning_logs/version_0/config.yaml").read_text())
    assert (saved["recipe"]["name"], saved["recipe"]["lr"], saved["recipe"]["warmup"]) == ("llm", 1e-3, 1)
    assert saved["seed_everything"] == 0
    # The saved config is a config, for every verb.
    config = "lightning_logs/version_0/config.yaml"
    for verb in FIT_VERBS:
        assert main([verb, "--config", config, "--trainer.logger=false", "--trainer.enable_checkpointing=false"]) == 0


@pytest.mark.parametrize("verb", FIT_VERBS)
def test_help_shows_every_field_with_its_text(verb, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert main([verb, "--help"]) == 0
    out = capsys.readouterr().out
    flat = " ".join(out.split())
    assert f"examples:\n  lit-opt {verb} --config llm\n" in out
    texts = dict(
        re.findall(r"^        (\w+): (.*?)(?=^        \w+:|^$)", Recipe.__doc__ or "", re.MULTILINE | re.DOTALL)
    )
    for name in inspect.signature(Recipe).parameters:
        assert f"--recipe.{name} " in flat
        assert " ".join(texts[name].split()) in flat


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([MODEL], "recipe.name: a recipe is needed. Give --recipe.name=llm, or a section `recipe: {name: llm}`"),
        ([LLM], "model: a model is needed. Give --model=my_package.MyModel, or a shipped config: --config llm."),
        ([MODEL, "--recipe.name=llmm"], "recipe: 'llmm' is unknown. Did you mean 'llm'?"),
        ([MODEL, LLM, "--recipe.lrr=1"], "--recipe.lrr: unknown argument. Did you mean '--recipe.lr'?"),
        ([MODEL, LLM, "--trainer.max_step=1"], "Did you mean '--trainer.max_steps'?"),
        ([MODEL, LLM, "--recipe.lrr=1", "--trainer.max_step=1"], "2 problems:\n  - --recipe.lrr: unknown argument."),
        ([MODEL, LLM, "--recipe.lr=abc"], "recipe.lr: 'abc' is not allowed; give a finite number above 0"),
        ([MODEL, LLM, "--recipe.lr=-1", "--recipe.clip=-2"], "2 problems:\n  - lr: -1.0 is not allowed"),
        ([MODEL, LLM, "--recipe.betas=[0.9]"], "recipe.betas: [0.9] is not allowed; give two numbers in [0, 1)"),
        ([MODEL, LLM, "--recipe.existing=keeep"], "recipe.existing: 'keeep' is unknown. Did you mean 'keep'?"),
        ([MODEL, LLM, "--recipe.decay=cosin"], "decay: 'cosin' is unknown. Did you mean 'cosine'?"),
        ([MODEL, LLM, "--recipe.groups=[{mach: a}]"], "'mach' is no field of GroupRule. Did you mean 'match'?"),
        ([MODEL, LLM, "--recipe.optimizer=sdg"], "optimizer: 'sdg' is unknown. Did you mean 'sgd'?"),
        ([MODEL, LLM, "--recipe.momentum=0.9"], "momentum: adamw has no momentum. It has betas=."),
        ([MODEL, LLM, "--trainer.max_steps=x"], "trainer.max_steps: 'x' is not allowed; give a whole number."),
        ([MODEL, LLM, "--trainer.precision=bf16mixed"], "Did you mean 'bf16-mixed'?"),
        ([MODEL, LLM, "--trainer.accelerator=gpux"], "trainer: You selected an invalid accelerator name"),
        (["--model=Borring", LLM], "model: 'Borring' is no class that can be imported."),
        ([LANGUAGE, LLM, "--model.layerss=3"], "LanguageModel has no argument 'layerss'. Did you mean 'layers'?"),
        ([LANGUAGE, LLM, "--model.layers=x"], "model.layers: 'x' is not allowed; give a whole number."),
        ([LANGUAGE, LLM, "--model.layers=0"], "layers=0: a whole number of at least 1 is needed."),
        ([MODEL, LLM, "--config"], "--config: a value is needed."),
        ([MODEL, LLM, "--config=nowhere.yaml"], "config: nowhere.yaml: no such file."),
        ([MODEL, LLM, "--config", "lm"], "config: lm: no such file. Did you mean 'llm'?"),
        ([MODEL, LLM, "--config", "."], "config: .: is a folder."),
        ([MODEL, LLM, "--trainer.callbacks+=lit_opt.Recipe", "--trainer.callbacks.name=llm"], "two recipes"),
        ([f"--model={__name__}.Refuses", LLM], "inside: mend me."),
        (
            [LANGUAGE, LLM, "--data=lit_opt.workloads.ByteText", "--data.path=/nowhere"],
            "/nowhere: there is no such file or folder.",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_message(capsys, argv, said):
    assert said in message(capsys, "fit", *QUIET, *argv)


@pytest.mark.parametrize("verb", FIT_VERBS[1:])
def test_the_other_verbs_say_it_as_well(capsys, verb):
    argv = [a for a in QUIET if "steps" not in a]
    assert "Did you mean '--recipe.lr'?" in message(capsys, verb, *argv, MODEL, LLM, "--recipe.lrr=1")
    assert f"See `lit-opt {verb} --help`" in message(capsys, verb, *argv, MODEL, LLM, "--recipe.lrr=1")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("recipe:\n  name: llm\n lr: 3\n", "config: c.yaml, line 3, column 2: this is no YAML"),
        ("recipe:\n\tname: llm\n", "config: c.yaml, line 2, column 1: this is no YAML"),
        ("recipe: {name: llm\n", "config: c.yaml, line 2, column 1: this is no YAML"),
        ("recipe:\n  name: llm\n  lrr: 3\n", "recipe.lrr: unknown in the config. Did you mean 'recipe.lr'?"),
        ("recpie:\n  name: llm\n", "recpie: unknown in the config. Did you mean 'recipe'?"),
        ("recipe:\n  name: llm\n  lr: abc\n", "recipe.lr: 'abc' is not allowed; give a finite number above 0"),
        ("recipe:\n  lr: 1.0e-3\n", "recipe.name: a recipe is needed."),
        ("- a\n", "config: c.yaml: no sections in it"),
        ("", "config: c.yaml: no sections in it"),
        (b"\xff\xfe\x00\x01", "config: c.yaml: cannot be read"),
        (
            f"recipe: {{name: llm}}\nmodel: {{class_path: {BORING}}}\ntrainer:\n  callbacks:\n"
            "  - class_path: lightning.pytorch.callbacks.ModelCheckpoint\n    init_args: {monitr: x}\n",
            "ModelCheckpoint has no argument 'monitr'. Did you mean 'monitor'?",
        ),
    ],
)
def test_a_config_that_is_wrong(empty_folder, capsys, content, said):
    path = Path("c.yaml")
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert said in message(capsys, "fit", *QUIET, MODEL, "--config=c.yaml")


def test_a_users_file_wins_over_a_shipped_config(empty_folder):
    assert expand_configs(["fit", "--config", "llm"])[2].endswith("configs/llm.yaml")
    Path("llm").write_text("recipe: {name: cnn}")
    assert expand_configs(["fit", "--config", "llm"])[2] == "llm"
    Path("mine.yaml").write_text("recipe: {name: cnn}")
    with pytest.raises(RecipeError, match=r"Did you mean 'mine\.yaml'"):
        expand_configs(["fit", "--config=mine.yml"])


LIGHTNING = {"pytorch-lightning_version": "2.5.0", "epoch": 0, "global_step": 0, "loops": {}, "optimizer_states": [], "lr_schedulers": []}  # fmt: skip


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such file. Did you mean 'model_b.ckpt'?"),
        (b"hello", "is damaged or no checkpoint"),
        (b"", "it is empty"),
        ({"weights": 1}, "is no checkpoint of Lightning (no 'state_dict' in it)."),
        ([1, 2], "is no checkpoint of Lightning"),
        ({"state_dict": {}}, "(no 'pytorch-lightning_version' in it)."),
        ({"state_dict": {"w": torch.zeros(2)}, **LIGHTNING}, "the checkpoint is of another model."),
    ],
)
@pytest.mark.parametrize("verb", ["fit", "validate"])
def test_a_checkpoint_that_is_wrong(empty_folder, capsys, verb, content, said):
    Path("model_b.ckpt").write_bytes(b"")
    if isinstance(content, bytes):
        Path("model_a.ckpt").write_bytes(content)
    elif content is not None:
        torch.save(content, "model_a.ckpt")
    text = message(capsys, verb, *(QUIET if verb == "fit" else QUIET[1:]), MODEL, LLM, "--ckpt_path=model_a.ckpt")
    assert text.startswith("ckpt_path: ") and said in text


def test_a_damaged_checkpoint_of_our_own(empty_folder, capsys):
    argv = [a for a in QUIET if "logger" not in a and "checkpointing" not in a]
    assert main(["fit", *argv, MODEL, LLM]) == 0
    checkpoint = next(empty_folder.rglob("*.ckpt"))
    assert main(["fit", *QUIET, MODEL, LLM, "--trainer.max_steps=3", f"--ckpt_path={checkpoint}"]) == 0
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    assert "it is cut short" in message(capsys, "fit", *QUIET, MODEL, LLM, f"--ckpt_path={checkpoint}")


def test_a_real_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError, match="a real bug"):
        main(["fit", *QUIET, MODEL, LLM, f"--trainer.callbacks={__name__}.Breaks"])


def test_ctrl_c_exits_130(capsys):
    before = signal.getsignal(signal.SIGINT)
    try:
        assert main(["fit", *QUIET, MODEL, LLM, f"--trainer.callbacks={__name__}.Interrupts"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)  # Lightning ignores the signal from then on
    err = capsys.readouterr().err
    assert err.endswith("lit-opt: interrupted.\n") and "Traceback" not in err


def test_a_wrong_config_is_found_before_torch_is_loaded():
    root = Path(__file__).parents[2]
    code = "import sys; from lit_opt.cli import main; print(main(['fit', '--config', 'nowhere.yaml']), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout == "2 False\n"
    assert done.stderr.startswith("lit-opt: config: nowhere.yaml: no such file.") and done.stderr.count("\n") == 1


# ---- a user's own LightningCLI, without ours


def own_cli(*argv):
    return LightningCLI(
        BoringModel, BoringDataModule, args=["fit", *QUIET, *argv], auto_configure_optimizers=False,
        save_config_callback=None, parser_kwargs={"fit": {"exit_on_error": False}},
    )  # fmt: skip


@pytest.fixture
def plain_argv(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])


def only_recipe(cli):
    (recipe,) = [c for c in cli.trainer.callbacks if isinstance(c, Recipe)]
    return recipe


def test_own_cli_from_the_command_line(plain_argv):
    cli = own_cli("--trainer.callbacks+=lit_opt.Recipe", "--trainer.callbacks.name=llm", "--trainer.callbacks.lr=2e-3")
    recipe = only_recipe(cli)
    assert recipe.resolved.lr == 2e-3
    assert [g["name"] for g in recipe.optimizer.param_groups] == ["decay", "no_decay"]
    assert cli.trainer.global_step == 2


def test_own_cli_from_yaml(plain_argv):
    recipe = """
        class_path: lit_opt.Recipe
        init_args:
          name: cnn
          batch_size: 256
          warmup: 1
          decay: {kind: linear, final: 0.1}
          clip: {limit: 0.5, kind: norm}
          groups: [{match: "*.weight", lr_scale: 0.5}]
    """
    config = {"trainer": {"callbacks": [yaml.safe_load(recipe)]}}
    Path("own.yaml").write_text(yaml.safe_dump(config))
    resolved = only_recipe(own_cli("--config=own.yaml")).resolved
    assert (resolved.name, resolved.lr, resolved.schedule.kind, resolved.schedule.final) == ("cnn", 0.1, "linear", 0.1)
    assert (resolved.schedule.warmup_steps, resolved.clip.limit) == (1, 0.5)
    assert resolved.groups[0].lr_scale == 0.5


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("--recipe.warmup=500", 500),
        ("--recipe.warmup=0.1", 0.1),
        ("--recipe.warmup=5 epochs", "5 epochs"),
        ("--recipe.ema=true", True),
        ("--recipe.ema=0.99", 0.99),
        ("--recipe.decay.final=0.2", {"final": 0.2}),
        ("--recipe.decay={kind: wsd, cooldown: 100}", {"kind": "wsd", "cooldown": 100}),
        ("--recipe.optimizer_kwargs.eps=1e-7", {"eps": 1e-7}),
        ("--recipe.betas=[0.8, 0.9]", [0.8, 0.9]),
        ("--recipe.clip=0", 0.0),
    ],
)
def test_types_survive_the_command_line(capsys, given, kept):
    assert main(["fit", MODEL, LLM, given, "--print_config"]) == 0
    key = given.removeprefix("--recipe.").partition("=")[0].partition(".")[0]
    value = yaml.safe_load(capsys.readouterr().out)["recipe"][key]
    if isinstance(value, dict):
        value = {k: v for k, v in value.items() if v is not None}
    assert value == kept and type(value) is type(kept)


def test_an_optimizer_class_by_its_path():
    argv = ["--recipe.optimizer=torch.optim.NAdam", "--recipe.lr=1e-3", "--recipe.weight_decay=0"]
    assert main(["fit", *QUIET, MODEL, LLM, *argv]) == 0


def test_export_ema(empty_folder, capsys):
    argv = [a for a in QUIET if "logger" not in a and "checkpointing" not in a]
    assert main(["fit", *argv, MODEL, LLM, "--recipe.ema=0.5"]) == 0
    checkpoint = next(empty_folder.rglob("*.ckpt"))
    assert main(["export-ema", str(checkpoint), "weights.pt"]) == 0
    assert capsys.readouterr().out.endswith("are in weights.pt.\n")
    raw, averages = torch.load(checkpoint, weights_only=True)["state_dict"], torch.load("weights.pt", weights_only=True)
    assert set(averages) == set(raw)
    assert not torch.equal(averages["layer.weight"], raw["layer.weight"])
    assert "nowhere.ckpt" in message(capsys, "export-ema", "nowhere.ckpt", "weights.pt")
