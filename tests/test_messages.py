"""Mistakes that a beginner makes, and what the message has to say: the argument, the value, what is allowed, what to type.

Each case names parts of the message. What all of them share (one message, no traceback, exit code 2) is checked once for
every case.
"""

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import nn

import lit_opt
from lit_opt import EMA, EMASpec, GroupRule, Recipe, RecipeCheck
from lit_opt.cli import main
from lit_opt.errors import RecipeError
from lit_opt.optim import build
from lit_opt.param_groups import group_parameters

torch.set_num_threads(1)

CONFIG = """\
recipe: {name: llm, batch_tokens: 8}
trainer: {max_steps: 2, accelerator: cpu, logger: false, enable_checkpointing: false, enable_progress_bar: false, enable_model_summary: false}
model: lightning.pytorch.demos.boring_classes.BoringModel
data: lightning.pytorch.demos.boring_classes.BoringDataModule
"""
MODEL, DATA = "model: lightning.pytorch.demos.boring_classes.BoringModel", "boring_classes.BoringDataModule"
LANGUAGE = "model: {class_path: lit_opt.workloads.LanguageModel, init_args: "


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a good config and files that are none."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "ok.yaml").write_text(CONFIG)
    (folder / "folder.yaml").mkdir()
    (folder / "words.ckpt").write_text("no checkpoint")
    torch.save({"a": 1}, folder / "weights.ckpt")
    return folder


def told(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    """The one message of a refused command."""
    capsys.readouterr()
    assert main(argv) == 2
    lines = [
        line for line in capsys.readouterr().err.splitlines() if not line.startswith(("INFO", "Seed", "GPU", "TPU"))
    ]
    text = "\n".join(lines)
    assert text.startswith("lit-opt: ") and text.count("lit-opt: ") == 1
    assert "Traceback" not in text and "usage:" not in text
    return text.removeprefix("lit-opt: ")


def check(text: str, parts: tuple[str, ...]) -> None:
    """The parts, in any order; every problem begins with what it is about and is a sentence."""
    missing = [part for part in parts if part not in text]
    assert not missing, f"{missing} not in: {text}"
    problems = re.split(r"\n  - ", text)
    problems = problems[1:] if re.match(r"\d+ problems:", text) else [text]
    for problem in problems:
        assert re.match(r"[^:]{1,60}: ", problem), problem
        assert problem.rstrip().endswith((".", "?", ")")), problem


# What is typed -> parts of the message.
COMMANDS: list[tuple[str, tuple[str, ...]]] = [
    ("lst", ("verb: 'lst' is unknown.", "Did you mean 'list'?", "Known: list, explain", "Try `lit-opt --help`.")),
    ("fitt", ("Did you mean 'fit'?",)),
    ("--config llm fit", ("verb: '--config' is unknown.",)),
    ("list vit", ("vit: unknown argument.", "See `lit-opt list --help`.")),
    ("list --fromat json", ("--fromat: unknown argument. Did you mean '--format'?",)),
    ("list --format jason", ("--format: 'jason' is unknown. Did you mean 'json'? Known: text, json, markdown.",)),
    ("list --format", ("--format: a value is needed. See `lit-opt list --help`.",)),
    ("list --format markdown", ("'markdown' is for `lit-opt list --strategies`. Known here: text, json.",)),
    ("explain", ("NAME: needed. Type: lit-opt explain NAME.",)),
    ("explain lmm", ("name: 'lmm' is neither a recipe nor an optimizer. Did you mean 'llm'?", "Recipes: cnn", "soap")),
    ("explain llm/moun", ("Did you mean 'llm/muon'?",)),
    ("explain llm --optimizer admaw", ("optimizer: 'admaw' is unknown. Did you mean 'adamw'?", "Known: ", "soap")),
    ("explain llm --lr fast", ("lr: 'fast' is not allowed; give a finite number above 0, such as 0.0003.",)),
    ("explain llm --lr=-1 --betas=0.9,0.95,0.99 --clip=-1", ("3 problems:", "lr: -1", "betas: (0.9, 0.95, 0.99)", "clip: -1")),
    ("explain llm --betas 0.9 0.95", ("0.95: unknown argument. Several numbers are one word, such as 0.9,0.95.",)),
    ("explain llm --waarmup 3", ("--waarmup: unknown argument. Did you mean '--warmup'?",)),
    ("explain llm --warmup 3weeks", ("warmup: '3weeks' is not understood", '"5 epochs", "500 steps", 500')),
    ("explain llm/muon --lr 3e-4", ("lr: 0.0003 is AdamW's kind of rate", "Recipe('llm/muon_rms')")),
    ("explain adamw --lr 3", ("lit-opt explain RECIPE --optimizer adamw",)),
    ("new lmm x", ("setting: 'lmm' is unknown. Did you mean 'llm'?", "Known: llm, vlm")),
    ("new llm", ("folder: is needed. Type: lit-opt new llm my-project.",)),
    ("export-ema", ("CKPT, OUT: needed. Type: lit-opt export-ema CKPT OUT.",)),
    ("export-ema word.ckpt out.pt", ("checkpoint: there is no file 'word.ckpt'. Did you mean 'words.ckpt'?",)),
    ("export-ema words.ckpt out.pt", ("checkpoint: words.ckpt: it is damaged or no checkpoint", "weights.ckpt")),
    ("export-ema folder.yaml out.pt", ("checkpoint: 'folder.yaml' is a folder without meta.pt. Give a file",)),
    ("transfer", ("check: needed. Type: lit-opt transfer check. See",)),
    ("transfer chekc", ("check: 'chekc' is unknown. Did you mean 'check'?",)),
    ("export-ema weights.ckpt out.pt", ("holds no averages", "Recipe(..., ema=...)")),
    ("spirals --optimizers muonn", ("optimizers: 'muonn' is unknown. Did you mean 'muon'?",)),
    ("spirals --lr adam=0.1", ("lr: 'adam' is not among the optimizers (sgd, adamw, muon). Add it to --optimizers.",)),
    ("spirals --steps many", ("--steps: 'many' is not allowed; give a whole number.",)),
    ("fit", ("recipe.name: a recipe is needed. Give --recipe.name=llm", "model: a model is needed. Give --model=")),
    ("fit llm", ("llm: a config is named after --config. Type: lit-opt fit --config llm.",)),
    ("check ok.yaml", ("ok.yaml: a config is named after --config. Type: lit-opt check --config ok.yaml.",)),
    ("plan", ("config: nothing is given. Type `lit-opt plan --config llm`",)),
    ("plan --config ok.yaml --fromat json", ("--fromat: unknown argument. Did you mean '--format'?", "lit-opt plan --help")),
    ("plan --config ok.yaml --devices many", ("--devices: 'many' is not allowed; give a whole number.",)),
    ("check", ("config: nothing to check. Give --config NAME_OR_FILE",)),
    ("check --config ok.yaml --ignore beta-llm", ("Did you mean 'beta2-llm'?",)),
    ("choose --confg llm", ("--confg: unknown argument. Did you mean '--config'?",)),
    ("compare wroker", ("compare wroker: unknown. Did you mean 'worker'?",)),
    ("fit --config", ("--config: a value is needed.",)),
    ("fit --config lmm", ("config: lmm: no such file. Did you mean 'llm'?", "Shipped: cnn", "the path of a YAML file")),
    ("fit --config ok.yml", ("config: ok.yml: no such file. Did you mean 'ok.yaml'?",)),
    ("fit --config folder.yaml", ("config: folder.yaml: is a folder. Shipped: ",)),
    ("fit --config ok.yaml --recipe.lrr=1", ("--recipe.lrr: unknown argument. Did you mean '--recipe.lr'?",)),
    ("fit --config ok.yaml --recipe.learning_rate=1", ("Did you mean '--recipe.lr'?",)),
    ("fit --config ok.yaml --lr=0.1", ("--lr: unknown argument. Did you mean '--recipe.lr'?",)),
    ("fit --config ok.yaml --max_steps=5", ("--max_steps: unknown argument. Did you mean '--trainer.max_steps'?",)),
    ("fit --config ok.yaml --recipe=llm", ("recipe: 'llm' is no section. Write recipe: {name: llm}, or --recipe.name=llm.",)),
    ("fit --config ok.yaml --recipe.name=lmm", ("recipe: 'lmm' is unknown. Did you mean 'llm'?",)),
    ("fit --config ok.yaml --trainer.max_steps=lots", ("trainer.max_steps: 'lots' is not allowed; give a whole number.",)),
    ("fit --config ok.yaml --trainer.precision=fp16", ("Did you mean 'bf16'?", "Known: 64, 32, 16")),
    ("fit --config ok.yaml --trainer.strategy=dpp", ("trainer: You selected an invalid strategy", "lit-opt list --strategies")),
    ("fit --config ok.yaml --trainer.accelerator=gpux", ("invalid accelerator", "Give --trainer.accelerator=auto.")),
    ("fit --config ok.yaml --ckpt_path=word.ckpt", ("ckpt_path: word.ckpt: no such file. Did you mean 'words.ckpt'?",)),
    ("fit --config ok.yaml --ckpt_path=words.ckpt", ("ckpt_path: words.ckpt: it is damaged or no checkpoint",)),
    ("fit --config ok.yaml --ckpt_path=weights.ckpt", ("is no checkpoint of Lightning (no 'state_dict' in it).",)),
    ("fit --config ok.yaml --trainer.gradient_clip_val=0.5", ("clip: both Trainer(gradient_clip_val=0.5)", "clip=0")),
]  # fmt: skip


@pytest.mark.parametrize(("typed", "parts"), COMMANDS, ids=lambda x: x if isinstance(x, str) else "")
def test_commands(folder, monkeypatch, capsys, typed, parts):
    monkeypatch.chdir(folder)
    check(told(capsys, shlex.split(typed)), parts)


# (what is in the good config, what stands there instead) -> parts of the message.
CONFIGS: list[tuple[tuple[str, str], tuple[str, ...]]] = [
    (("name: llm", "name: lmm"), ("recipe: 'lmm' is unknown. Did you mean 'llm'?",)),
    (("name: llm, ", ""), ("recipe.name: a recipe is needed.", "`recipe: {name: llm}`", "Known: cnn")),
    (("{name: llm, batch_tokens: 8}", "llm"), ("recipe: 'llm' is no section. Write recipe: {name: llm}",)),
    (("recipe: {name: llm, batch_tokens: 8}\n", ""), ("recipe.name: a recipe is needed.",)),
    (("name: llm", "name: llm, learning_rate: 1"), ("recipe.learning_rate: unknown in the config. Did you mean 'recipe.lr'?",)),
    (("name: llm", "name: llm, wd: 1"), ("recipe.wd: unknown in the config. Did you mean 'recipe.weight_decay'?",)),
    (("name: llm", "name: llm, lr: fast"), ("recipe.lr: 'fast' is not allowed; give a finite number above 0",)),
    (("name: llm", "name: llm, lr: -1.0, clip: -1.0"), ("2 problems:", "lr: -1.0", "clip: -1.0")),
    (("name: llm", "name: llm, lr: fast, optimizer: {class_path: torch.optim.SGD}"), ("2 problems:", "recipe.lr: 'fast'", "'SGD' in the setting 'llm'")),
    (("name: llm", "name: llm, betas: 0.9"), ("recipe.betas: 0.9 is not allowed; give two numbers in [0, 1)",)),
    (("name: llm", "name: llm, betas: [0.9, 0.95, 0.99]"), ("betas: [0.9, 0.95, 0.99]", "such as (0.9, 0.95).")),
    (("name: llm", "name: llm, optimizer: adamww"), ("optimizer: 'adamww' is unknown. Did you mean 'adamw'?",)),
    (("name: llm", "name: llm, optimizer: torch.optim.SGD"), ("no starting values are published for 'SGD'", "give lr= and weight_decay=")),
    (("name: llm", "name: llm, optimizer_kwargs: {ep: 1}"), ("adamw has no 'ep'. Did you mean 'eps'? It takes: eps.",)),
    (("name: llm", "name: llm, decay: cosin"), ("decay: 'cosin' is unknown. Did you mean 'cosine'?", "wsd")),
    (("name: llm", "name: llm, decay: {kind: cosine, finall: 0}"), ("'finall' is no field of DecaySpec. Did you mean 'final'?",)),
    (("name: llm", "name: llm, ema: 1.5"), ("ema: 1.5 is not allowed; give a decay per step in [0, 1)",)),
    (("name: llm", "name: llm, groups: [{mach: a, lr_scale: 1}]"), ("groups[0]: 'mach' is no field of GroupRule. Did you mean 'match'?",)),
    (("name: llm", "name: llm, groups: {match: a}"), ("recipe.groups: {'match': 'a'} is a dict; give a list of GroupRule",)),
    (("name: llm", "name: llm, groups: [{match: 'encoder.*', lr_scale: 0.1}]"), ("rule 'encoder.*' matches no parameter. Names are such as 'layer.weight'",)),
    (("name: llm", "name: llm, existing: keeep"), ("existing: 'keeep' is unknown. Did you mean 'keep'?", "'replace', 'keep', 'error'")),
    (("name: llm", "name: llm, parts: {projector: a}"), ("parts: the recipe 'llm' has one learning rate", "Recipe('vlm')")),
    (("name: llm", "name: llm/muon, fallback: {learning_rate: 1}"), ("fallback.learning_rate: unknown. Did you mean 'lr'?", "lr, betas, eps")),
    (("name: llm", "name: llm, transfer: {bse: x}"), ("'bse' is no field of Transfer. Did you mean 'base'?",)),
    (("trainer: {", "trianer: {"), ("trianer: unknown in the config. Did you mean 'trainer'?",)),
    (("max_steps", "max_step"), ("trainer.max_step: unknown in the config. Did you mean 'trainer.max_steps'?",)),
    (("max_steps: 2", "max_epochs: -1"), ("total_steps: the horizon of the run is unknown", "give Trainer(max_steps=...)")),
    (("accelerator: cpu", "devices: many, accelerator: cpu"), ("devices", "Give --trainer.devices=1, or auto.")),
    (("model: ", "lr: 0.1\nmodel: "), ("lr: unknown in the config. Did you mean 'recipe.lr'?",)),
    (("model: ", "scheduler: x\nmodel: "), ("scheduler: unknown in the config. Did you mean 'recipe.decay'?",)),
    (("model: ", "optimizer: torch.optim.AdamW\nmodel: "), ("optimizer: unknown in the config. Did you mean 'recipe.optimizer'?",)),
    ((MODEL, ""), ("model: a model is needed. Give --model=my_package.MyModel",)),
    (("BoringModel", "BoringModle"), ("has no 'BoringModle'. Did you mean 'BoringModel'?", "a LightningModule, such as")),
    ((MODEL, "model: mymodel.Mine"), ("there is no module 'mymodel'", "beside the config", "dotted path of a LightningModule")),
    ((MODEL, "model: torch.nn.Linear"), ("model: 'torch.nn.Linear' is no LightningModule.",)),
    ((MODEL, "model: {classpath: a.B}"), ("'classpath' is unknown. Did you mean 'class_path'?", "{class_path: my_package.MyClass")),
    ((MODEL, LANGUAGE + "{widht: 32}}"), ("has no argument 'widht'. Did you mean 'width'? Known: layers, width",)),
    ((MODEL, LANGUAGE + "{width: wide}}"), ("model.width: 'wide' is not allowed; give a whole number.",)),
    ((DATA, "boring_classes.BoringDataModul"), ("Did you mean 'BoringDataModule'?", "dotted path of a LightningDataModule")),
    ((CONFIG[CONFIG.index("model: ") :], "model: lit_opt.workloads.LanguageModel\n"), ("Give --data=my_package.MyData",)),
    (("max_steps: 2", "max_steps: 2, callbacks: [{class_path: ModelCheckpoin}]"), ("'ModelCheckpoin'", "dotted path of a Callback")),
    (("max_steps: 2", "max_steps: 2, callbacks: [{class_path: lightning.pytorch.callbacks.ModelCheckpoin}]"), ("Did you mean 'ModelCheckpoint'?", "dotted path of a Callback")),
    (("max_steps: 2", "max_steps: 2, callbacks: [{class_path: lit_opt.Recipe, init_args: {name: llm}}]"), ("two recipes want to set the optimizer (Recipe('llm'), Recipe('llm')). Keep one",)),
    (("recipe: {name: llm, batch_tokens: 8}", "recipe:\n\tname: llm"), ("line 2, column 1: this is no YAML", "Mind the indentation.")),
    ((CONFIG, "- a\n"), ("no sections in it; it has to hold `recipe:`, `trainer:`, `model:` and `data:`.",)),
]  # fmt: skip


@pytest.mark.parametrize(("change", "parts"), CONFIGS, ids=lambda x: " ".join(x[1][:60].split()) if len(x) == 2 else "")
def test_configs(folder, monkeypatch, capsys, change, parts):
    monkeypatch.chdir(folder)
    assert change[0] in CONFIG
    Path("mine.yaml").write_text(CONFIG.replace(*change))
    check(told(capsys, ["fit", "--config", "mine.yaml"]), parts)


def test_all_mistakes_of_a_config_at_once(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    wrong = CONFIG.replace(
        "name: llm", "name: llm, learning_rate: 1, lr: fast, betas: 0.9, existing: keeep, clip: yes please"
    )
    Path("mine.yaml").write_text(wrong.replace("max_steps", "max_step").replace("data:", "dta:"))
    text = told(capsys, ["fit", "--config", "mine.yaml", "--recipe.ema=2"])
    starts = ("recipe.learning_rate: ", "recipe.lr: ", "recipe.betas: ", "recipe.existing: ", "recipe.clip: ", "recipe.ema: ",
              "trainer.max_step: ", "dta: ")  # fmt: skip
    assert text.startswith(f"{len(starts)} problems:\n")
    check(text, tuple(f"  - {start}" for start in starts))


def test_a_mistake_is_said_once(folder, monkeypatch, capsys):
    """The parser sees it as well, and names the whole list."""
    monkeypatch.chdir(folder)
    Path("mine.yaml").write_text(CONFIG.replace("name: llm", "name: llm, groups: [{mach: a, lr_scale: 1}]"))
    text = told(capsys, ["fit", "--config", "mine.yaml"])
    assert text == "recipe.groups[0]: 'mach' is no field of GroupRule. Did you mean 'match'?"


class Net(LightningModule):
    """One layer, no optimizer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 2)

    def training_step(self, batch: Any, _: int) -> Any:
        return self.layer(batch).sum()

    def train_dataloader(self) -> Any:
        return BoringModel().train_dataloader()


class Frozen(Net):
    """Nothing to train."""

    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)


class Manual(BoringModel):
    """Manual optimization with an own optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class Diverges(Net):
    """A loss that is nan."""

    def training_step(self, batch: Any, _: int) -> Any:
        return self.layer(batch).sum() * float("nan")


def fit(recipe: Recipe, *callbacks: Any, model: Any = None, **arguments: Any) -> None:
    quiet: dict[str, Any] = {
        "logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
        "accelerator": "cpu", "max_steps": 2, "max_epochs": 1,
    }  # fmt: skip
    Trainer(callbacks=[recipe, *callbacks], **{**quiet, **arguments}).fit(model or Net())


def llm(**given: Any) -> Recipe:
    return Recipe("llm", batch_tokens=8, **given)


LINEAR = nn.Linear(4, 4)
# What is called -> parts of the message.
CALLS: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "no name": (lambda: Recipe(), ("name: a recipe is needed, such as Recipe('llm'). Known: cnn",)),  # type: ignore[call-arg]
    "unknown name": (lambda: Recipe("lmm"), ("recipe: 'lmm' is unknown. Did you mean 'llm'?",)),
    "lr without its name": (lambda: Recipe("llm", 1e-3), ("Write Recipe('llm', lr=...).",)),  # type: ignore[call-arg,arg-type]
    "another word": (lambda: Recipe("llm", learning_rate=1), ("learning_rate: Recipe has no such argument. Did you mean 'lr'?", "It has: optimizer, lr")),  # type: ignore[call-arg]
    "two other words": (lambda: Recipe("llm", wd=1, warmup_steps=3), ("2 problems:", "'weight_decay'", "'warmup'")),  # type: ignore[call-arg]
    "lr in quotes": (lambda: Recipe("llm", lr="3e-4"), ("lr: '3e-4' is not allowed", "leave the quotes away")),  # type: ignore[arg-type]
    "nan": (lambda: Recipe("llm", lr=float("nan")), ("lr: nan is not allowed; give a finite number above 0",)),
    "steps as a float": (lambda: Recipe("llm", total_steps=1e4), ("total_steps: 10000.0", "Type 10000.")),  # type: ignore[arg-type]
    "lr and base_lr": (lambda: Recipe("llm", lr=1e-3, base_lr=1e-3), ("lr, base_lr: both are given", "Keep one of them.")),
    "warmup of the run": (lambda: Recipe("llm", warmup=1.5), ("warmup: 1.5", "a fraction of the run in [0, 1)")),
    "clip as a word": (lambda: Recipe("llm", clip="norm"), ("clip: 'norm' is a str; give a ClipSpec(limit, kind).",)),  # type: ignore[arg-type]
    "ema as a word": (lambda: Recipe("llm", ema="yes"), ("ema: 'yes' is a str; give an EMASpec(decay", "True and False")),  # type: ignore[arg-type]
    "an optimizer that is made": (lambda: Recipe("llm", optimizer=torch.optim.SGD(LINEAR.parameters(), lr=1.0)), ("give the class SGD, with lr= and weight_decay=",)),  # type: ignore[arg-type]
    "a class that is none": (lambda: Recipe("llm", optimizer=nn.Linear), ("the class Linear is no torch.optim.Optimizer. Give one that is, or a name: ",)),
    "eps as a word": (lambda: Recipe("llm", optimizer_kwargs={"eps": "small"}), ("optimizer_kwargs.eps: 'small' is not a number. Give one, such as 1e-08.",)),
    "lr among the keywords": (lambda: Recipe("llm", optimizer_kwargs={"lr": 0.1}), ("write Recipe(..., lr=0.1)",)),
    "momentum of adamw": (lambda: Recipe("llm", momentum=0.9), ("momentum: adamw has no momentum. It has betas=.",)),
    "a rule that changes nothing": (lambda: Recipe("llm", groups=[GroupRule(match="a")]), ("groups[0]: the rule 'a' changes nothing; give lr_scale=",)),
    "a negative factor": (lambda: Recipe("llm", groups=[GroupRule(match="a", lr_scale=-2)]), ("groups[0].lr_scale: -2 is not allowed; give a number from 0 up.",)),
    "another algorithm": (lambda: Recipe("llm", groups=[GroupRule(match="a", algorithm="muon")]), ("adamw is one algorithm for all parameters.", "muon")),
    "a part that is none": (lambda: Recipe("vlm", parts={"projecter": "a"}), ("parts: 'projecter' is unknown. Did you mean 'projector'?",)),
    "muon for adapters": (lambda: Recipe("llm/lora", optimizer="muon"), ("low-rank matrices always go to AdamW", "Recipe('llm/finetune')")),
    "scale of muon": (lambda: Recipe("llm/muon", optimizer_kwargs={"scale": "orignal"}), ("'orignal' is unknown. Did you mean 'original'?",)),
    "what a check is for": (lambda: RecipeCheck("lmm"), ("'lmm' is unknown. Did you mean 'llm'?",)),
    "decay of averages": (lambda: EMA(2), ("decay=2 is not in [0, 1). Usual values are 0.999 to 0.9999.",)),
    "a folder of averages": (lambda: EMA.load(LINEAR, "nowhere.ckpt"), ("checkpoint: there is no file 'nowhere.ckpt'.",)),
    "two recipes": (lambda: fit(llm(), Recipe("cnn")), ("callbacks: two recipes", "Recipe('cnn'), Recipe('llm')", "Keep one")),
    "Lightning's clipping": (lambda: fit(llm(), gradient_clip_val=1.0), ("clip: both Trainer(gradient_clip_val=1.0)", "Recipe(..., clip=0)")),
    "Lightning's averages": (lambda: fit(llm(ema=0.9), EMAWeightAveraging()), ("EMAWeightAveraging averages the weights as well", "Recipe(..., ema=False)")),
    "averages twice": (lambda: fit(llm(ema=0.9), EMA(0.9)), ("EMA averages the weights as well", "Remove one")),
    "a frozen module": (lambda: fit(llm(), model=Frozen()), ("parameters: none of the module's 2 parameters is trainable. Set requires_grad=True",)),
    "manual optimization": (lambda: fit(llm(), model=Manual()), ("existing: Manual has its own configure_optimizers and optimizes manually", "existing='keep'")),
    "an own optimizer": (lambda: fit(llm(existing="error"), model=BoringModel()), ("existing: BoringModel has its own configure_optimizers", "existing='replace' or 'keep'")),
    "lr of an optimizer that is kept": (lambda: fit(llm(existing="keep", lr=1e-3), model=BoringModel()), ("lr: existing='keep' leaves the optimizer", "existing='replace'")),
    "a loss that is nan": (lambda: fit(llm(), model=Diverges()), ("on_nonfinite: at step 0", "on_nonfinite='skip'")),
    "no horizon": (lambda: fit(llm(), max_steps=-1, max_epochs=-1), ("total_steps: the horizon of the run is unknown", "Trainer(max_steps=...)")),
    "a warmup longer than the run": (lambda: fit(llm(warmup=500)), ("warmup: 500 steps are as long as the run or longer (2 steps)",)),
    "a rule without a match": (lambda: fit(llm(groups=[GroupRule(match="enc.*", lr_scale=0.1)])), ("groups: rule 'enc.*' matches no parameter.", "'layer.weight'")),
    "layers that are not there": (lambda: fit(llm(layer_decay=0.75)), ("layer_decay: 0.75 needs layers",)),
    "parts that are not there": (lambda: fit(Recipe("vlm")), ("parts: none of projector", "Recipe(..., parts={")),
    "no adapters": (lambda: fit(Recipe("llm/lora")), ("peft.get_peft_model", "Recipe('llm/finetune')")),
    "SAM and accumulation": (lambda: fit(Recipe("cnn/sam"), accumulate_grad_batches=2), ("optimizer: sam with accumulate_grad_batches=2",)),
    "attached to no LightningModule": (lambda: Recipe("llm").attach(LINEAR), ("module: Linear is no LightningModule.", "configure(module, total_steps=...)")),
    "no Trainer": (lambda: Recipe("llm").configure_optimizers(Net()), ("module: Net is not attached to a Trainer", "configure(module, total_steps=...)")),
    "no steps": (lambda: Recipe("llm").configure(LINEAR), ("total_steps: the horizon of the run is unknown",)),
    "no batch": (lambda: Recipe("cnn").configure(LINEAR, total_steps=9), ("batch_size: ", "Recipe(..., batch_size=...), or lr=")),
    "no module": (lambda: group_parameters(3, "llm"), ("module: 3 is an int; give a torch.nn.Module",)),  # type: ignore[arg-type]
    "nothing in the module": (lambda: group_parameters(nn.ReLU(), "llm"), ("none of the module's 0 parameters is trainable",)),
    "an unknown optimizer": (lambda: build("adamww", LINEAR.parameters()), ("optimizer: 'adamww' is unknown. Did you mean 'adamw'?",)),
    "an unknown keyword": (lambda: build("adamw", LINEAR.parameters(), lr=1.0, bettas=1), ("bettas: adamw has no such keyword. Did you mean 'betas'?",)),
    "no lr": (lambda: build("adamw", LINEAR.parameters()), ("lr: missing.", "Published starting values: llm 0.0003")),
    "betas of one": (lambda: build("adamw", LINEAR.parameters(), lr=1.0, betas=(0.9,)), ("betas: (0.9,) is not 2 numbers, such as (0.9, 0.999).",)),
    "a module for its parameters": (lambda: build("adamw", LINEAR, lr=1.0), ("Type params=module.parameters()",)),  # type: ignore[arg-type]
    "no parameters": (lambda: build("adamw", [], lr=1.0), ("params: empty.",)),
    "an unknown spec": (lambda: Recipe("llm", ema=EMASpec(decay=0.9, kind="sma")), ("ema.kind: 'sma' is unknown",)),
}  # fmt: skip


@pytest.mark.parametrize("mistake", CALLS)
def test_calls(mistake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call, parts = CALLS[mistake]
    with pytest.raises(RecipeError) as error:
        call()
    check(str(error.value), parts)


@pytest.mark.parametrize(
    ("package", "typed", "who"),
    [
        ("transformers", "fit --config llm", "LanguageModel"),
        ("diffusers", "plan --config diffusion", "DiffusionModel"),
        ("transformers", "check --config vlm", "VisionLanguageModel"),
    ],
)
def test_a_forgotten_extra(folder, monkeypatch, capsys, package, typed, who):
    monkeypatch.chdir(folder)
    monkeypatch.setitem(sys.modules, package, None)
    check(
        told(capsys, shlex.split(typed)),
        (f"{who}: needs {package}, which is not installed. Type: pip install 'lit-opt[workloads]'.",),
    )


def test_an_unknown_public_name():
    with pytest.raises(AttributeError, match=r"no attribute 'Recipes'.*Public names: .*Recipe"):
        _ = lit_opt.Recipes


def test_there_are_many():
    assert len(COMMANDS) + len(CONFIGS) + len(CALLS) >= 80
