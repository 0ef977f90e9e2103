"""A config of `lit-opt fit` becomes a model, data and a recipe without a Trainer, and what is wrong is one message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel
from torch import nn

from lit_opt.cli import main
from lit_opt.commands.from_config import load_project
from lit_opt.errors import RecipeError
from lit_opt.preflight.facts import foresee

torch.set_num_threads(1)

MODEL = "--model=lightning.pytorch.demos.boring_classes.BoringModel"
DATA = "--data=lightning.pytorch.demos.boring_classes.BoringDataModule"
HERE = "tests.commands.test_from_config"


class Deferred(BoringModel):
    """Its layers are made in `configure_model`."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.width = width
        self.layer: Any = None

    def configure_model(self) -> None:
        if self.layer is None:
            self.layer = nn.Linear(self.width, 2)


class NeedsNumbers(BoringModel):
    """It looks at its own weights, which the meta device cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = float(self.layer.weight.abs().max())


class Refuses(BoringModel):
    """It refuses its argument."""

    def __init__(self, width: int = 0) -> None:
        raise RecipeError([f"width: {width} is not allowed."])


class Slow(LightningModule):
    """It must not be built before the recipe is checked."""

    def __init__(self) -> None:
        raise AssertionError("built")


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(*args: str, **kwargs: Any) -> Any:
    return load_project(list(args), verb="plan", **kwargs)


def test_a_shipped_config() -> None:
    project = load("--config", "llm", "--recipe.lr=1e-3", "--trainer.max_steps=77", meta=True)
    assert type(project.model).__name__ == "LanguageModel"
    assert {p.device.type for p in project.model.parameters()} == {"meta"} and project.on_meta
    assert type(project.datamodule).__name__ == "ByteText"
    assert project.recipe.overrides["lr"] == 1e-3
    assert project.trainer["max_steps"] == 77
    assert project.trainer["callbacks"][1]["class_path"] == "lightning.pytorch.callbacks.ModelCheckpoint"
    assert project.notes == ()


def test_eight_gpus_on_a_laptop() -> None:
    """A Trainer would refuse; the facts can be read."""
    project = load(
        "--config=large_batch/lars",
        "--trainer.accelerator=gpu",
        "--trainer.devices=8",
        "--trainer.num_nodes=2",
        "--trainer.precision=bf16-mixed",
        "--trainer.strategy=ddp",
    )
    foreseen = foresee(project.trainer, project.model, project.datamodule)
    assert foreseen.run.global_batch == 256 * 16 * 16
    assert (foreseen.placement.kind, foreseen.placement.precision) == ("ddp", "bf16-mixed")


def test_strategies_with_arguments(empty_folder: Path) -> None:
    strategy = {
        "class_path": "ModelParallelStrategy",
        "init_args": {"data_parallel_size": 4, "tensor_parallel_size": 2},
    }
    config = {"trainer": {"devices": 8, "accelerator": "gpu", "strategy": strategy}, "recipe": {"name": "cnn"}}
    (empty_folder / "mine.yaml").write_text(yaml.safe_dump(config))
    project = load("--config", "mine.yaml", MODEL, DATA)
    assert isinstance(project.datamodule, BoringDataModule)
    foreseen = foresee(project.trainer, project.model, project.datamodule)
    assert (foreseen.placement.kind, foreseen.run.data_parallel_size) == ("fsdp2", 4)


def test_what_fit_has_saved_is_a_config(empty_folder: Path) -> None:
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    argv = ["fit", MODEL, "--recipe.name=llm", "--recipe.warmup=1", "--trainer.max_steps=2", *quiet]
    assert main([*argv, "--trainer.accelerator=cpu"]) == 0
    project = load("--config=lightning_logs/version_0/config.yaml")
    assert isinstance(project.model, BoringModel)
    assert project.recipe.overrides["warmup"] == 1 and project.trainer["max_steps"] == 2


@pytest.mark.parametrize("meta", [True, False])
def test_layers_that_are_made_in_configure_model(meta: bool) -> None:
    project = load(f"--model={HERE}.Deferred", "--model.width=7", "--recipe.name=cnn", meta=meta)
    assert project.model.layer.weight.shape == (2, 7)
    assert project.model.layer.weight.is_meta == meta == project.on_meta


def test_a_model_that_cannot_be_on_meta() -> None:
    project = load(f"--model={HERE}.NeedsNumbers", "--recipe.name=cnn", meta=True)
    assert not project.on_meta and project.model.layer.weight.device.type == "cpu"
    assert project.notes[0].startswith("model: it cannot be built on the meta device (")


def test_a_recipe_is_optional_for_some_verbs(empty_folder: Path) -> None:
    assert load(MODEL, recipe="optional").recipe is None
    assert load(MODEL, "--recipe.name=vit", recipe="optional").recipe.spec.name == "vit"
    with pytest.raises(RecipeError, match=r"recipe\.name: a recipe is needed"):
        load(MODEL)


@pytest.mark.parametrize("recipe", ["optional", "required"])
def test_a_recipe_among_the_callbacks(empty_folder: Path, recipe: Any) -> None:
    entry = {"class_path": "lit_opt.Recipe", "init_args": {"name": "cnn", "lr": 0.3}}
    (empty_folder / "mine.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [entry]}}))
    project = load("--config", "mine.yaml", MODEL, recipe=recipe)
    assert (project.recipe.spec.name, project.recipe.overrides["lr"]) == ("cnn", 0.3)


@pytest.mark.parametrize(
    "args, words",
    [
        (["--config", "llmm"], "Did you mean 'llm'"),
        (["--config", "llm", "--recipe.lrr=1"], "Did you mean '--recipe.lr'? See `lit-opt plan --help`."),
        (["--config", "llm", "--trainer.max_step=1"], "Did you mean '--trainer.max_steps'?"),
        (["--config", "llm", "--recipe.lr=-1"], "lr: -1.0 is not allowed"),
        ([MODEL + "l", "--recipe.name=llm"], "is no class that can be imported"),
        (["--recipe.name=llm"], "model: a model is needed"),
        (["--config", "llm", "--data.batch_size=0"], "batch_size=0"),
        ([f"--model={HERE}.Refuses", "--model.width=3", "--recipe.name=llm"], "width: 3 is not allowed."),
        ([f"--model={HERE}.Slow", "--recipe.name=llm", "--recipe.lr=-1"], "lr: -1.0 is not allowed"),
    ],
)
@pytest.mark.parametrize("meta", [True, False])
def test_one_message(args: list[str], words: str, meta: bool) -> None:
    with pytest.raises(RecipeError) as caught:
        load(*args, meta=meta)
    assert words in str(caught.value)
