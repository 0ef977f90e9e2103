"""`lit-opt new`: what it writes is whole and tidy, passes its own test and trains; it never writes over a file."""

import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lit_opt.cli import main
from lit_opt.commands.new import settings, write_project
from lit_opt.commands.starter.files import PROJECTS, project_files
from lit_opt.commands.starter.source import Source, starter_file
from lit_opt.errors import RecipeError
from lit_opt.recipes import get_recipe

torch.set_num_threads(1)
NAMES = list(PROJECTS)
FILES = {"model.py", "data.py", "config.yaml", "train.py", "test_project.py", "README.md", ".gitignore"}
# Of the projects that share a workload one is enough; the others differ in what the fast tests read.
FAST = ("llm", "cnn", "flow", "vlm", "llm/lora", "vit/finetune")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Write a project into an empty folder; its modules are forgotten afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    own = ("model", "data", "train", "test_project")

    def forget():
        for name in own:
            sys.modules.pop(name, None)
        importlib.invalidate_caches()

    def write(name):
        forget()
        folder = tmp_path / name.replace("/", "-")
        write_project(name, folder)
        monkeypatch.chdir(folder)
        return folder

    yield write
    forget()


def marked(names):
    return [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in names]


@pytest.mark.parametrize("name", NAMES)
def test_a_project_is_whole(name, project):
    folder = project(name)
    assert {path.name for path in folder.iterdir()} == FILES
    config = yaml.safe_load((folder / "config.yaml").read_text())
    work = PROJECTS[name].work
    assert config["recipe"]["name"] == PROJECTS[name].recipe
    assert {k: v for k, v in config["recipe"].items() if k != "name"} == {k: v for k, (v, _) in work.labelled.items()}
    assert config["model"]["class_path"] == f"model.{PROJECTS[name].model_class}"
    # Every value of the recipe stands there with its source.
    text = " ".join((folder / "config.yaml").read_text().replace("##", "").split())
    spec = get_recipe(PROJECTS[name].recipe)
    for value in (spec.weight_decay, spec.clip, spec.warmup.length, spec.lr.scaling.reference_batch):
        assert " ".join(value.source.split()) in text or "lr" in config["recipe"]
    readme = (folder / "README.md").read_text()
    assert "lit-opt fit --config config.yaml" in readme and "Your own data" in readme
    for file in FILES - {"README.md", ".gitignore"}:
        assert f"`{file}`" in readme


@pytest.mark.parametrize("name", NAMES)
def test_the_code_stands_alone(name):
    """Nothing of the library's insides is left, and the classes are those of the workload, argument for argument."""
    files = project_files(name)
    for file in ("model.py", "data.py"):
        for word in ("problems", "require(", ">>>", "Raises:"):
            assert word not in files[file], file
    own = re.findall(r"^(?:from|import) (lit_opt\S*)", files["model.py"], re.M)
    assert set(own) <= {"lit_opt.errors", "lit_opt.workloads.pretrained"}
    assert ("import peft" in files["model.py"]) == (name == "llm/lora")
    own = re.findall(r"^from (lit_opt\S*)", files["data.py"], re.M)
    assert set(own) <= {"lit_opt.workloads", "lit_opt.errors", "lit_opt.workloads.glyphs"}


def test_ruff_has_nothing_to_say(tmp_path):
    for name in NAMES:
        write_project(name, tmp_path / name.replace("/", "-"))
        # isort tells the project's own modules by the folder it is run in
        run = {"cwd": tmp_path / name.replace("/", "-"), "capture_output": True, "text": True}
        rules = ["--isolated", "--line-length=120"]
        ruff = [sys.executable, "-m", "ruff"]
        lint = subprocess.run(
            [*ruff, "check", *rules, "--select=E,F,I,UP,B,SIM,C4,ANN001,ANN201", "--ignore=E501", "."], **run
        )
        assert lint.returncode == 0, f"{name}: {lint.stdout}{lint.stderr}"
        layout = subprocess.run([*ruff, "format", "--diff", *rules, "."], **run)
        assert layout.returncode == 0, f"{name}: {layout.stdout}{layout.stderr}"


@pytest.mark.parametrize("name", marked(NAMES))
def test_its_own_test_passes(name, project, tmp_path):
    """In this process, without pytest around it; one project is run as a user does, below."""
    folder = project(name)
    sys.path.insert(0, str(folder))
    module = importlib.import_module("test_project")
    assert Path(module.__file__ or "").parent == folder
    tests = {key: value for key, value in vars(module).items() if key.startswith("test_")}
    assert set(tests) == {"test_shapes", "test_the_loss_falls"}
    for test in tests.values():
        test(**({"tmp_path": tmp_path} if "tmp_path" in inspect.signature(test).parameters else {}))


@pytest.mark.slow
def test_as_a_user_runs_it(project):
    folder = project("cnn")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q"], cwd=folder, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout + done.stderr


def test_its_own_test_can_fail(project):
    """A model that does not learn is noticed."""
    folder = project("cnn")
    sys.path.insert(0, str(folder))
    module = importlib.import_module("test_project")
    whole = module.ImageClassifier.training_step
    module.ImageClassifier.training_step = lambda self, batch, i: whole(self, (batch[0], batch[1].roll(1)), i)
    with pytest.raises(AssertionError):
        module.test_the_loss_falls()


@pytest.mark.parametrize("name", marked(NAMES))
def test_its_config_trains(name, project, capsys):
    folder = project(name)
    short = ["max_steps=2", "limit_val_batches=1", "val_check_interval=2", "accelerator=cpu"]
    short += ["enable_progress_bar=false", "enable_model_summary=false"]
    if PROJECTS[name].work.trainer.get("accumulate_grad_batches"):
        short += ["accumulate_grad_batches=2"]
    # From another folder: the classes are found beside the config.
    config = str(folder / "config.yaml")
    argv = ["fit", "--config", config, *(f"--trainer.{arg}" for arg in short)]
    assert main(argv) == 0, capsys.readouterr().err
    [run] = (folder / "runs").rglob("version_0")
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["recipe"]["name"] == PROJECTS[name].recipe
    assert (run / "checkpoints" / "last.ckpt").is_file()
    assert "model" in sys.modules and Path(sys.modules["model"].__file__ or "").parent == folder


def test_train_py_runs_the_same(project, monkeypatch):
    """The Python way has the config's numbers: the Trainer and the recipe get them."""
    from lightning.pytorch import Trainer

    folder = project("llm")
    seen: dict[str, Any] = {}
    monkeypatch.setattr(Trainer, "fit", lambda self, model, data: seen.update(trainer=self, model=model, data=data))
    sys.path.insert(0, str(folder))
    exec(compile((folder / "train.py").read_text(), "train.py", "exec"), {"__name__": "__main__"})
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert seen["trainer"].max_steps == config["trainer"]["max_steps"]
    recipe = next(c for c in seen["trainer"].callbacks if type(c).__name__ == "Recipe")
    assert recipe.spec.name == "llm"
    assert recipe.overrides == {"lr": 2e-3, "warmup": 0.22}


# ---- what the READMEs say of one's own data


QUIET = ["--trainer.max_steps=2", "--trainer.logger=false", "--trainer.enable_checkpointing=false"]
QUIET += ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
QUIET += ["--trainer.limit_val_batches=1", "--trainer.callbacks=[]"]


def test_own_images(project, tmp_path, capsys):
    from PIL import Image

    folder = project("cnn")
    for part in ("train", "val"):
        for i, kind in enumerate(("cat", "dog", "owl")):
            (tmp_path / "images" / part / kind).mkdir(parents=True)
            for n in range(4):
                Image.new("RGB", (40, 36), (80 * i, 20 * n, 90)).save(tmp_path / "images" / part / kind / f"{n}.png")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    images = {"root": str(tmp_path / "images"), "image_size": 32, "batch_size": 4, "num_workers": 0}
    config["data"] = {"class_path": "data.ImageFolder", "init_args": images}
    config["model"]["init_args"] = {"num_classes": 3, "width": 0.125}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", "config.yaml", *QUIET]) == 0, capsys.readouterr().err
    # A wrong folder is one message.
    assert main(["fit", "--config", "config.yaml", *QUIET, f"--data.init_args.root={tmp_path / 'imagse'}"]) == 2
    assert "Images are expected as train/<class>/<image>" in capsys.readouterr().err


def test_own_text_with_a_tokenizer(project, tmp_path, capsys):
    import tokenizers
    import transformers

    project("llm/finetune")
    words = {w: i for i, w in enumerate(["<unk>", "the", "cat", "sat", "on", "a", "mat", "and", "saw", "owls"])}
    model = tokenizers.models.WordLevel(words, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    saved = str(tmp_path / "pretrained")
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(saved)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=len(words), **small)).save_pretrained(saved)
    (tmp_path / "text.txt").write_text("the cat sat on a mat and saw owls " * 200)
    own = [f"--model.init_args.pretrained={saved}", f"--data.init_args.tokenizer={saved}"]
    own += [f"--data.init_args.path={tmp_path / 'text.txt'}", "--data.init_args.seq_len=16"]
    assert main(["fit", "--config", "config.yaml", *QUIET, *own, "--trainer.val_check_interval=1.0"]) == 0, (
        capsys.readouterr().err
    )
    data = sys.modules["data"].ByteText(path=tmp_path / "text.txt", tokenizer=saved, seq_len=9)
    assert data.datasets()[0][0].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 1]


# ---- refusals


def test_nothing_is_overwritten(tmp_path, capsys):
    (tmp_path / "model.py").write_text("mine")
    (tmp_path / "README.md").write_text("mine as well")
    assert main(["new", "cnn", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert f"folder: {tmp_path / 'model.py'}, {tmp_path / 'README.md'} are there already" in err
    assert "Nothing was written" in err
    assert {p.name for p in tmp_path.iterdir()} == {"model.py", "README.md"}
    assert (tmp_path / "model.py").read_text() == "mine"


def test_a_folder_with_other_files_is_fine(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    write_project("cnn", tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == FILES | {"notes.txt"}


def test_a_dangling_link_is_not_written_through(tmp_path):
    (tmp_path / "data.py").symlink_to(tmp_path / "elsewhere.py")
    with pytest.raises(RecipeError, match=r"data\.py is there already"):
        write_project("cnn", tmp_path)
    assert not (tmp_path / "elsewhere.py").exists()


def test_a_file_that_appears_meanwhile_is_kept(tmp_path, monkeypatch):
    """Somebody writes config.yaml after the check: it stays, and what was written goes again."""
    folder = tmp_path / "a" / "b"
    whole = Path.mkdir

    def mkdir(self, *args, **kwargs):
        whole(self, *args, **kwargs)
        if self == folder:
            (folder / "config.yaml").write_text("theirs")

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(RecipeError, match=r"config\.yaml is there already"):
        write_project("cnn", folder)
    assert [p.name for p in folder.iterdir()] == ["config.yaml"]
    assert (folder / "config.yaml").read_text() == "theirs"


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(RecipeError, match="cannot be written"):
        write_project("cnn", tmp_path / "taken")
    with pytest.raises(RecipeError, match="cannot be written"):
        write_project("cnn", tmp_path / "taken" / "below")
    assert (tmp_path / "taken").read_text() == "mine"


def test_words_that_are_refused(tmp_path, capsys):
    assert main(["new", "cn", str(tmp_path / "x")]) == 2
    assert "setting: 'cn' is unknown. Did you mean 'cnn'? Known: llm, vlm," in capsys.readouterr().err
    assert main(["new", "cnn"]) == 2
    assert "folder: is needed. Type: lit-opt new cnn my-project." in capsys.readouterr().err
    assert main(["new", "cnn", str(tmp_path / "x"), "--forse"]) == 2
    assert "--forse: unknown argument" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_the_list(capsys):
    assert main(["new"]) == 0
    out = capsys.readouterr().out
    for name, line in settings().items():
        assert re.search(rf"^{name} +{re.escape(line)}$", out, re.M)
    assert max(map(len, out.splitlines())) <= 100
    assert set(settings()) >= {"llm", "vlm", "vit", "cnn", "diffusion", "flow", "large_batch"}


def test_new_needs_no_torch(tmp_path):
    code = (
        "import sys; from lit_opt.cli import main; main(['new', 'llm', 'p']);"
        " print([m for m in ('torch', 'lightning', 'timm') if m in sys.modules])"
    )
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {root!r}); {code}"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "[]"


# ---- the source


def test_an_edit_that_does_not_fit_is_noticed():
    with pytest.raises(LookupError, match="0 times"):
        starter_file("x", [Source(file="text_data.py", keep=("ByteText",), edits=(("no such text", ""),))])
    with pytest.raises(LookupError, match="Bytetext"):
        starter_file("x", [Source(file="text_data.py", keep=("Bytetext",))])
