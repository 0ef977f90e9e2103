import inspect
import subprocess
import sys
from typing import Any

import pytest
import torch

from lit_opt.errors import RecipeError
from lit_opt.optim import get_row, list_optimizers
from lit_opt.optim.factory import _load
from lit_opt.optim.registry import REQUIRED, ROWS, OptimizerRow, Published
from lit_opt.recipes.schema import Value

SETTINGS = {"llm", "vlm", "vit", "cnn", "diffusion", "large_batch"}
# Rows for which no codebase or paper that we read publishes a starting value. The resolver asks for lr= there.
NONE_PUBLISHED = {
    *(
        "amsgrad",
        "teon",
        "adagrad",
        "rmsprop",
        "adadelta",
        "radam",
        "nadam",
        "signum",
        "adabelief",
        "adabound",
        "shampoo",
    ),
    *("lion", "adafactor", "schedule_free_adamw", "schedule_free_sgd", "kfac", "natural_gradient", "onebit_adam"),
    *("adamw_fp8", "adamw_4bit", "aro"),
}

each_row = pytest.mark.parametrize("row", [get_row(row.name) for row in ROWS], ids=lambda row: row.name)


def published_values(published: Published) -> dict[str, Value]:
    return {"lr": published.lr, "weight_decay": published.weight_decay, **published.hyperparameters}


def test_the_rows_of_this_issue_are_there_and_names_are_unique():
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)
    assert {"sgd", "nesterov", "adam", "amsgrad", "adamw", "lars", "lamb"} <= set(names)
    assert list_optimizers() == sorted(names)


@each_row
def test_row_is_complete(row: OptimizerRow):
    for text in (row.name, row.factory, row.provider, row.summary, row.rule, row.source, row.evidence):
        assert text.strip()
    assert row.hyperparameters["lr"] == REQUIRED
    assert "weight_decay" in row.hyperparameters
    assert not set(row.fixed) & set(row.hyperparameters)
    assert set(row.decayed_group) == set(row.excluded_group)
    assert set(row.global_only) <= set(row.hyperparameters)


@each_row
def test_factory_accepts_what_the_row_lists(row: OptimizerRow):
    if row.compiles:
        pytest.importorskip("torchao", reason="the extra lowbit is not installed")
    factory: Any = _load(row)
    assert not isinstance(factory, type) or issubclass(factory, torch.optim.Optimizer)
    accepted = {"self", *inspect.signature(factory).parameters}
    if row.wraps:  # what is its base's goes to the base
        inside = get_row(row.hyperparameters["base"])
        assert set(row.hyperparameters) - set(inside.hyperparameters) == accepted - {"self"}
        return
    assert {*row.hyperparameters, *row.fixed, *row.decayed_group} <= accepted
    assert not row.fused or "fused" in accepted


@each_row
def test_published_values_have_unit_practice_and_source(row: OptimizerRow):
    assert bool(row.settings) == (row.name not in NONE_PUBLISHED)
    assert set(row.settings) <= SETTINGS
    for setting, published in row.settings.items():
        for key, value in published_values(published).items():
            assert key in row.hyperparameters, (setting, key)
            for text in (value.unit, value.common_practice, value.source):
                assert text.strip(), (setting, key)
        assert "per step" in published.lr.unit
        assert published.rule in ("linear", "sqrt", "none")
        assert published.rule == "none" or published.reference_batch
        assert published.batch_unit == ("tokens" if setting == "llm" else "samples")


@each_row
def test_published_values_can_be_built(row: OptimizerRow):
    for published in row.settings.values():
        values = {key: value.number for key, value in published_values(published).items()}
        from lit_opt.optim import build

        optimizer = build(row.name, [torch.nn.Parameter(torch.ones(2, 2))], **values)
        for key, number in values.items():
            if key not in row.own_values and key != "base":
                assert optimizer.param_groups[0][key] == number


def test_a_learning_rate_says_the_batch_that_it_belongs_to():
    for row in ROWS:
        for published in row.settings.values():
            batch, unit = published.reference_batch, published.lr.unit
            if published.batch_unit == "samples" and batch is not None:
                assert f"at {batch} " in unit, (row.name, unit)


def test_the_starting_values_that_recipes_rely_on():
    assert get_row("adamw").settings["llm"].lr.number == 3e-4
    assert get_row("adamw").settings["llm"].hyperparameters["betas"].number == (0.9, 0.95)
    assert get_row("adamw").settings["vit"].weight_decay.number == 0.05
    assert get_row("adamw").settings["diffusion"].weight_decay.number == 0.0
    assert get_row("sgd").settings["cnn"].lr.number == 0.1
    assert get_row("lars").settings["large_batch"].hyperparameters["eps"].number == 0.0
    assert get_row("lamb").settings["vit"].lr.number == 3e-3
    assert get_row("lamb").settings["cnn"].weight_decay.number == 0.02


def test_unknown_name_has_the_nearest_and_the_list():
    with pytest.raises(RecipeError, match=r"'adamv' is unknown\. Did you mean 'adam\w*'\? Known: adabelief, adabound"):
        get_row("adamv")


def test_importing_the_registry_imports_no_torch():
    code = (
        "import sys, lit_opt.optim as optim; optim.list_optimizers(); optim.get_row('lamb');"
        "import lit_opt.optim.check;"
        "print([m for m in ('torch', 'timm', 'lightning', 'numpy') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_public_names_survive_the_import_of_every_module():
    # A submodule called `build` would replace the function of that name.
    code = (
        "import importlib, pkgutil, lit_opt.optim as optim;"
        "[importlib.import_module(m.name) for m in pkgutil.walk_packages(optim.__path__, 'lit_opt.optim.')"
        " if 'torchao' not in m.name];"  # the extra lowbit need not be there
        "print(all(callable(getattr(optim, name)) for name in optim.__all__))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "True"


def test_unknown_attribute_names_what_there_is():
    import lit_opt.optim

    with pytest.raises(AttributeError, match=r"build.*get_row, list_optimizers"):
        lit_opt.optim.biuld  # noqa: B018
