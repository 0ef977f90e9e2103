"""Each recipe's numbers, typed in once more from the notes they were read from, and the shape of the data."""

import dataclasses
import importlib
import operator
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import lit_opt.recipes as package
from lit_opt.errors import RecipeError
from lit_opt.optim.registry import list_optimizers
from lit_opt.recipes import ALIASES, get_recipe, list_recipes
from lit_opt.recipes.common import DECAYS
from lit_opt.recipes.schema import GroupRule, RecipeSpec, Value, _walk
from lit_opt.schedules import KINDS

ALL = sorted(package._all_recipes())
INF = float("inf")

# Path -> number. A path that a recipe has and this table has not fails the test, so no number goes unread.
ROLES = ("bias", "norm", "embedding", "position", "token", "scale", "ssm", "vector")
LLM = {
    "optimizer": "adamw",
    "lr.base": 3e-4,
    "lr.scaling.rule": "sqrt",
    "lr.scaling.reference_batch": 524_288,
    "lr.scaling.limit": 2_097_152,
    "lr.by_parameters.up_to_3.5e+08": 6e-4,
    "lr.by_parameters.up_to_1.3e+10": 3e-4,
    "lr.by_parameters.up_to_7e+10": 1.5e-4,
    "lr.by_parameters.up_to_inf": 9e-5,
    "weight_decay": 0.1,
    "hyperparameters.betas": (0.9, 0.95),
    "hyperparameters.eps": 1e-8,
    "no_decay": ROLES,
    "warmup.length": 0.02,
    "warmup.start": 0.0,
    "warmup.max_steps": 2000,
    "decay.kind": "cosine",
    "decay.final": 0.1,
    "clip": 1.0,
    "ema": 0.0,
    "hints.precision": "bf16-mixed",
}
FINETUNE = {
    "optimizer": "adamw",
    "lr.base": 2e-5,
    "lr.scaling.rule": "none",
    "lr.scaling.reference_batch": 128,
    "weight_decay": 0.01,
    "hyperparameters.betas": (0.9, 0.999),
    "hyperparameters.eps": 1e-8,
    "no_decay": ROLES,
    "warmup.length": 0.03,
    "warmup.start": 0.0,
    "decay.kind": "cosine",
    "decay.final": 0.0,
    "clip": 1.0,
    "ema": 0.0,
    "hints.precision": "bf16-mixed",
}
BY_SIZE = {key: number for key, number in LLM.items() if "by_parameters" in key or key == "lr.scaling.limit"}
MUON = {
    "optimizer": "muon",
    "lr.base": 0.02,
    "lr.scaling.rule": "none",
    "lr.scaling.reference_batch": 2**20,
    "weight_decay": 0.01,
    "hyperparameters.momentum": 0.9,
    "hyperparameters.nesterov": True,
    "hyperparameters.scale": "original",
    "hyperparameters.ns_steps": 5,
    "fallback.lr": 3e-4,
    "fallback.betas": (0.9, 0.95),
    "fallback.eps": 1e-8,
    "fallback.weight_decay": 0.01,
}
MUON_RMS = {
    "optimizer": "muon",
    "hyperparameters.momentum": 0.95,
    "hyperparameters.nesterov": True,
    "hyperparameters.scale": "match_rms_adamw",
    "hyperparameters.ns_steps": 5,
}


def without(recipe, *names):
    return {key: number for key, number in recipe.items() if key not in names}


CNN = {
    "optimizer": "sgd",
    "lr.base": 0.1,
    "lr.scaling.rule": "linear",
    "lr.scaling.reference_batch": 256,
    "lr.scaling.limit": 8192,
    "weight_decay": 1e-4,
    "hyperparameters.momentum": 0.9,
    "no_decay": ROLES,
    "warmup.length": 0.05,
    "warmup.start": 0.01,
    "decay.kind": "cosine",
    "decay.final": 0.0,
    "clip": 0.0,
    "ema": 0.0,
    "hints.precision": "bf16-mixed",
    "hints.channels_last": True,
    "hints.label_smoothing": 0.1,
}
EXPECTED = {
    "llm": LLM,
    "llm/muon": without(LLM, *BY_SIZE, "hyperparameters.betas", "hyperparameters.eps") | MUON,
    "llm/muon_rms": without(LLM, "hyperparameters.betas", "hyperparameters.eps")
    | MUON_RMS
    | {"fallback.betas": (0.9, 0.95), "fallback.eps": 1e-8},
    "llm/normuon": without(LLM, *BY_SIZE, "hyperparameters.betas", "hyperparameters.eps")
    | MUON
    | {"optimizer": "normuon", "hyperparameters.beta2": 0.95},
    "llm/scion": without(LLM, *BY_SIZE, "hyperparameters.betas", "hyperparameters.eps", "warmup.max_steps")
    | {key: number for key, number in MUON.items() if key.startswith("fallback.")}
    | {
        "optimizer": "scion",
        "lr.base": 2**-12,
        "lr.scaling.rule": "none",
        "weight_decay": 1.0,
        "hyperparameters.momentum": 0.1,
        "hyperparameters.norm": "Spectral",
        "hyperparameters.scale": 50.0,
        "hyperparameters.last_scale": 3000.0,
        "no_decay": tuple(role for role in ROLES if role != "embedding"),
        "warmup.length": 0.0,
        "decay.kind": "wsd",
        "decay.final": 0.0,
        "decay.cooldown": 0.28,
        "clip": 0.0,
    },
    "llm/aro": without(LLM, "hyperparameters.betas", "hyperparameters.eps")
    | {
        "optimizer": "aro",
        "hyperparameters.momentum": 0.95,
        "hyperparameters.update_rms": 0.2,
        "fallback.betas": (0.9, 0.95),
        "fallback.eps": 1e-8,
    },
    "cnn/muon": without(CNN, "lr.scaling.limit") | MUON | {"lr.scaling.reference_batch": 2000},
    "vlm": {
        **{key: number for key, number in LLM.items() if "by_parameters" not in key and key != "lr.scaling.limit"},
        "lr.base": 1e-4,
        "lr.scaling.rule": "none",
        "lr.scaling.reference_batch": 256,
        "warmup.length": 0.03,
        "parts.projector": 10.0,
        "parts.language_model": 0.5,
        "parts.vision_tower": 0.5,
    },
    "vit": {
        "optimizer": "adamw",
        "lr.base": 2.5e-4,
        "lr.scaling.rule": "linear_then_sqrt",
        "lr.scaling.reference_batch": 256,
        "lr.scaling.limit": 1024,
        "weight_decay": 0.05,
        "hyperparameters.betas": (0.9, 0.999),
        "hyperparameters.eps": 1e-8,
        "no_decay": ROLES,
        "warmup.length": 0.05,
        "warmup.start": 0.0,
        "decay.kind": "cosine",
        "decay.final": 0.01,
        "clip": 1.0,
        "ema": 0.0,
        "hints.precision": "bf16-mixed",
        "hints.label_smoothing": 0.1,
    },
    "vit/muon": {
        **MUON_RMS,
        "lr.base": 2.5e-4,
        "lr.scaling.rule": "linear_then_sqrt",
        "lr.scaling.reference_batch": 256,
        "lr.scaling.limit": 1024,
        "weight_decay": 0.05,
        "fallback.betas": (0.9, 0.999),
        "fallback.eps": 1e-8,
        "no_decay": ROLES,
        "warmup.length": 0.05,
        "warmup.start": 0.0,
        "decay.kind": "cosine",
        "decay.final": 0.01,
        "clip": 1.0,
        "ema": 0.0,
        "hints.precision": "bf16-mixed",
        "hints.label_smoothing": 0.1,
    },
    "vit/finetune": {
        "optimizer": "adamw",
        "lr.base": 5e-4,
        "lr.scaling.rule": "linear_then_sqrt",
        "lr.scaling.reference_batch": 256,
        "lr.scaling.limit": 1024,
        "weight_decay": 0.05,
        "hyperparameters.betas": (0.9, 0.999),
        "hyperparameters.eps": 1e-8,
        "no_decay": ROLES,
        "warmup.length": 0.05,
        "warmup.start": 0.0,
        "decay.kind": "cosine",
        "decay.final": 0.0,
        "clip": 1.0,
        "ema": 0.0,
        "layer_decay": 0.75,
        "hints.precision": "bf16-mixed",
        "hints.label_smoothing": 0.1,
    },
    "llm/finetune": FINETUNE,
    "llm/lora": FINETUNE | {"lr.base": 3e-4},
    "cnn": CNN,
    "diffusion/finetune": {
        "optimizer": "adamw",
        "lr.base": 1e-5,
        "lr.scaling.rule": "none",
        "lr.scaling.reference_batch": 64,
        "weight_decay": 1e-2,
        "hyperparameters.betas": (0.9, 0.999),
        "hyperparameters.eps": 1e-8,
        "no_decay": ROLES,
        "warmup.length": 0.1,
        "warmup.start": 0.0,
        "warmup.max_steps": 500,
        "decay.kind": "constant",
        "clip": 1.0,
        "ema": 0.9999,
        "hints.precision": "bf16-mixed",
    },
    "diffusion": {
        "optimizer": "adamw",
        "lr.base": 1e-4,
        "lr.scaling.rule": "sqrt",
        "lr.scaling.reference_batch": 256,
        "weight_decay": 0.0,
        "hyperparameters.betas": (0.9, 0.999),
        "hyperparameters.eps": 1e-8,
        "no_decay": ROLES,
        "warmup.length": 0.01,
        "warmup.start": 0.0,
        "warmup.max_steps": 3000,
        "decay.kind": "constant",
        "clip": 1.0,
        "ema": 0.9999,
        "hints.precision": "bf16-mixed",
    },
    "large_batch/lars": {
        **{key: number for key, number in CNN.items() if key != "lr.scaling.limit"},
        "optimizer": "lars",
        "lr.base": 10.0,
        "lr.by_batch.up_to_16383": 10.0,
        "lr.by_batch.up_to_32767": 25.0,
        "lr.by_batch.up_to_inf": 31.2,
        "lr.scaling.rule": "none",
        "lr.scaling.reference_batch": 4096,
        "weight_decay": 2e-4,
        "hyperparameters.trust_coeff": 0.001,
        "hyperparameters.eps": 0.0,
        "warmup.length": 0.08,
        "warmup.start": 0.0,
        "decay.kind": "polynomial",
        "decay.final": 1e-5,
        "decay.power": 2.0,
        "moderate_batch": 8192,
    },
    "large_batch/lamb": {
        **{key: number for key, number in CNN.items() if key not in ("lr.scaling.limit", "hyperparameters.momentum")},
        "optimizer": "lamb",
        "lr.base": 5e-3,
        "lr.scaling.rule": "sqrt",
        "lr.scaling.reference_batch": 2048,
        "weight_decay": 0.02,
        "hyperparameters.betas": (0.9, 0.999),
        "hyperparameters.eps": 1e-6,
        "clip": 1.0,
        "moderate_batch": 8192,
    },
    "large_batch/control": {
        **{key: number for key, number in CNN.items() if key != "lr.scaling.limit"},
        "warmup.length": 0.15,
        "moderate_batch": 8192,
    },
}

ADAFACTOR = {"optimizer": "adafactor_bv", "hyperparameters.momentum": 0.9}
LAMB = {
    **{"optimizer": "lamb", "lr.base": 3e-3, "lr.scaling.rule": "sqrt", "lr.scaling.reference_batch": 2048},
    "hyperparameters.eps": 1e-6,
}
EXPECTED |= {
    "llm/adafactor": without(LLM, "hyperparameters.betas", "hyperparameters.eps") | ADAFACTOR,
    "llm/adamw_8bit": LLM | {"optimizer": "adamw_8bit"},
    "vit/sam": EXPECTED["vit"] | {"optimizer": "sam", "hyperparameters.base": "adamw", "hyperparameters.rho": 0.05},
    "vit/lamb": without(EXPECTED["vit"], "lr.scaling.limit") | LAMB,
    "cnn/sam": CNN | {"optimizer": "sam", "hyperparameters.base": "sgd", "hyperparameters.rho": 0.05},
    "cnn/adamw": without(CNN, "hyperparameters.momentum")
    | {
        **{"optimizer": "adamw", "lr.base": 1e-3, "lr.scaling.reference_batch": 1024, "lr.scaling.limit": 4096},
        **{"weight_decay": 0.05, "hyperparameters.betas": (0.9, 0.999), "hyperparameters.eps": 1e-8},
    },
    "diffusion/adafactor": without(EXPECTED["diffusion"], "hyperparameters.betas", "hyperparameters.eps") | ADAFACTOR,
    "diffusion/adamw_8bit": EXPECTED["diffusion"] | {"optimizer": "adamw_8bit"},
}
EXPECTED |= {
    "llm/soap": without(LLM, *BY_SIZE, "hyperparameters.eps")
    | {
        **{"optimizer": "soap", "lr.base": 3e-3, "lr.scaling.rule": "none", "lr.scaling.reference_batch": 2**19},
        **{"weight_decay": 0.01, "hyperparameters.betas": (0.95, 0.95), "hyperparameters.precondition_frequency": 10},
        **{"fallback.betas": (0.95, 0.95), "fallback.eps": 1e-8},
    },
    "llm/shampoo": LLM
    | {
        **{"optimizer": "shampoo", "hyperparameters.eps": 1e-12, "hyperparameters.grafting": "adam"},
        **{"hyperparameters.precondition_frequency": 100, "hyperparameters.max_preconditioner_dim": 8192},
        **{"fallback.betas": (0.9, 0.95), "fallback.eps": 1e-8},
    },
    "llm/splus": without(LLM, *BY_SIZE, "hyperparameters.eps", "decay.final")
    | {key: number for key, number in MUON.items() if key.startswith("fallback")}
    | {
        **{"optimizer": "splus", "lr.base": 0.2, "lr.scaling.rule": "none", "lr.scaling.reference_batch": 2**18},
        **{"weight_decay": 0.1, "hyperparameters.betas": (0.9, 0.999), "hyperparameters.ema_rate": 0.999},
        **{"hyperparameters.precondition_frequency": 100, "decay.kind": "constant"},
    },
}

# The field guide, section 2.
GUIDE = {
    "llm": {"lr.base": (1e-4, 6e-4), "weight_decay": (0.01, 0.1), "warmup.length": (0.01, 0.05)},
    "llm/muon": {"lr.base": (0.01, 0.05), "weight_decay": (0.0, 0.01), "warmup.length": (0.01, 0.05)},
    # In AdamW's units: AdamW's ranges.
    "llm/muon_rms": {"lr.base": (1e-4, 6e-4), "weight_decay": (0.01, 0.1), "warmup.length": (0.01, 0.05)},
    "llm/normuon": {"lr.base": (0.01, 0.05), "weight_decay": (0.0, 0.01), "warmup.length": (0.01, 0.05)},
    # In AdamW's units as well.
    "llm/aro": {"lr.base": (1e-4, 6e-4), "weight_decay": (0.01, 0.1), "warmup.length": (0.01, 0.05)},
    "llm/scion": {},
    "vit/muon": {"lr.base": (1e-4, 3e-4), "weight_decay": (0.01, 0.3)},
    "cnn/muon": {"lr.base": (0.01, 0.05), "weight_decay": (0.0, 0.01)},
    "vlm": {"lr.base": (1e-4, 6e-4), "weight_decay": (0.01, 0.1), "warmup.length": (0.01, 0.05)},
    "vit": {"lr.base": (1e-4, 3e-4), "weight_decay": (0.01, 0.3)},
    "cnn": {"lr.base": (0.01, 0.1), "weight_decay": (1e-4, 5e-4)},
    "large_batch/control": {"lr.base": (0.01, 0.1), "weight_decay": (1e-4, 5e-4)},
    "diffusion": {},
    "llm/finetune": {},
    "llm/lora": {},
    "vit/finetune": {},
    "diffusion/finetune": {},
    "large_batch/lars": {},
    "large_batch/lamb": {},
    "llm/adafactor": {"lr.base": (1e-4, 6e-4), "weight_decay": (0.01, 0.1), "warmup.length": (0.01, 0.05)},
    "llm/adamw_8bit": {"lr.base": (1e-4, 6e-4), "weight_decay": (0.01, 0.1), "warmup.length": (0.01, 0.05)},
    "vit/sam": {"lr.base": (1e-4, 3e-4), "weight_decay": (0.01, 0.3)},
    "vit/lamb": {},
    "cnn/sam": {"lr.base": (0.01, 0.1), "weight_decay": (1e-4, 5e-4)},
    "cnn/adamw": {},
    "diffusion/adafactor": {},
    "diffusion/adamw_8bit": {},
    "llm/soap": {"warmup.length": (0.01, 0.05)},
    # At AdamW's length: AdamW's ranges.
    "llm/shampoo": {"lr.base": (1e-4, 6e-4), "weight_decay": (0.01, 0.1), "warmup.length": (0.01, 0.05)},
    "llm/splus": {"warmup.length": (0.01, 0.05)},
}


def test_every_recipe_is_read():
    assert set(EXPECTED) == set(GUIDE) == set(ALL)


@pytest.mark.parametrize("name", ALL)
def test_numbers(name):
    assert {path: value.number for path, value in get_recipe(name).items()} == EXPECTED[name]


@pytest.mark.parametrize("name", ALL)
def test_ranges_are_the_guides(name):
    ranges = {path: value.range for path, value in get_recipe(name).items() if value.range is not None}
    table = {path: bounds for path, bounds in ranges.items() if not path.startswith("lr.by_parameters")}
    assert table == GUIDE[name]
    by_size = [bounds for path, bounds in ranges.items() if path.startswith("lr.by_parameters")]
    assert all(bounds == (1e-4, 6e-4) for bounds in by_size)


@pytest.mark.parametrize("name", ALL)
def test_numbers_start_inside_their_range(name):
    outside = [path for path, value in get_recipe(name).items() if value.judge().startswith("outside")]
    # 9e-5 at 175 B is published, and below the guide's range: labelled, not hidden.
    assert outside == (["lr.by_parameters.up_to_inf"] if "lr.by_parameters.up_to_inf" in EXPECTED[name] else [])


@pytest.mark.parametrize("name", ALL)
def test_every_value_can_be_judged(name):
    for path, value in get_recipe(name).items():
        for word in ("unit", "common_practice", "source"):
            text = getattr(value, word)
            assert isinstance(text, str) and text.strip() == text and text, f"{path}.{word}"


@pytest.mark.parametrize("name", ALL)
def test_names_hold(name):
    spec = get_recipe(name)
    assert spec.name == name and name.partition("/")[0] == spec.setting
    assert spec.optimizer.number in list_optimizers()
    assert spec.decay.kind.number in KINDS
    assert spec.lr.scaling.batch_unit in ("samples", "tokens")
    assert spec.summary and spec.deviate


def test_the_guides_betas_and_momentum():
    assert get_recipe("llm").hyperparameters["betas"].number == (0.9, 0.95)
    assert get_recipe("vit").hyperparameters["betas"].number == (0.9, 0.999)
    assert get_recipe("cnn").hyperparameters["momentum"].number == 0.9


MUONS = ("llm/muon", "llm/muon_rms", "llm/normuon", "vit/muon", "cnn/muon")


def test_unpublished_recipes_say_so():
    for name in ("llm/normuon", "vit/muon", "cnn/muon"):
        spec = get_recipe(name)
        assert "unverified" in spec.summary
        for value in (spec.lr.base, spec.weight_decay, spec.hyperparameters["momentum"]):
            assert "transferred from" in value.source and "unverified" in value.source
    for name in ("llm/muon", "llm/muon_rms"):
        assert not any("unverified" in value.source for value in get_recipe(name).values())


@pytest.mark.parametrize("name", MUONS)
def test_a_muon_recipe_is_its_setting_but_for_the_optimizer(name):
    muon, setting = get_recipe(name), get_recipe(name.partition("/")[0])
    for field in ("no_decay", "warmup", "decay", "clip", "ema", "hints", "parts", "layer_decay"):
        assert getattr(muon, field) == getattr(setting, field), field


def test_size_table_is_total():
    limits = [limit for limit, _ in get_recipe("llm").lr.by_parameters]
    assert limits == [350e6, 13e9, 70e9, INF]


def test_only_sgd_is_scaled_down():
    assert {name for name in ALL if get_recipe(name).lr.scaling.down} == {"cnn", "cnn/sam", "large_batch/control"}


def test_decays_are_complete():
    assert set(DECAYS) == set(KINDS)
    for kind, decay in DECAYS.items():
        assert decay.kind.number == kind
    numbers = {f"{kind}.{path}": value.number for kind, decay in DECAYS.items() for path, value in _walk("", decay)}
    assert {path: number for path, number in numbers.items() if not path.endswith(".kind")} == {
        "cosine.final": 0.0,
        "linear.final": 0.0,
        "polynomial.final": 0.0,
        "polynomial.power": 2.0,
        "step.milestones": (1 / 3, 2 / 3, 8 / 9),
        "step.gamma": 0.1,
        "wsd.final": 0.0,
        "wsd.cooldown": 0.2,
    }


# ---- names


def test_list_is_sorted_and_holds_what_works():
    names = list_recipes()
    assert names == sorted(names)
    assert set(names) == set(ALL)
    assert {"llm", "vit", "cnn", "large_batch/lars", "large_batch/lamb", "large_batch/control"} <= set(names)


def test_aliases():
    assert get_recipe("large_batch") is get_recipe("large_batch/lars")
    for alias, name in ALIASES.items():
        assert alias not in ALL and name in ALL


@pytest.mark.parametrize(("name", "near"), [("llmm", "llm"), ("LLM", "llm"), ("large_batch/lar", "large_batch/lars")])
def test_unknown_names_get_the_nearest(name, near):
    with pytest.raises(RecipeError, match=f"Did you mean '{near}'") as caught:
        get_recipe(name)
    assert repr(name) in str(caught.value) and "cnn" in str(caught.value) and "lit-opt list" in str(caught.value)


@pytest.mark.parametrize("name", [None, 3, ["llm"], ""])
def test_names_of_another_type(name):
    with pytest.raises(RecipeError, match="recipe: "):
        get_recipe(name)


# ---- the data


@pytest.mark.parametrize("name", ALL)
def test_a_recipe_is_frozen(name):
    spec = get_recipe(name)
    for frozen, field in ((spec, "name"), (spec.lr, "base"), (spec.weight_decay, "number"), (spec.decay, "kind")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(frozen, field, "other")
    for mapping in (spec.hyperparameters, spec.parts, spec.hints):
        with pytest.raises(TypeError):
            operator.setitem(mapping, "betas", spec.weight_decay)  # type: ignore[call-overload]


@pytest.mark.parametrize("name", ALL)
def test_a_recipe_can_be_pickled_hashed_and_compared(name):
    spec = get_recipe(name)
    copy = pickle.loads(pickle.dumps(spec))
    assert copy == spec and copy is not spec
    assert hash(copy) == hash(spec)
    assert spec != dataclasses.replace(spec, name="other")
    assert len({get_recipe(other) for other in ALL}) == len(ALL)


def test_small_specs_are_hashable():
    assert len({GroupRule(match="*"), GroupRule(match="*"), GroupRule(match="a")}) == 2


def test_items_and_values_walk_the_same():
    spec = get_recipe("llm")
    paths = [path for path, _ in spec.items()]
    assert len(paths) == len(set(paths))
    assert [value for _, value in spec.items()] == list(spec.values())
    assert all(isinstance(value, Value) for value in spec.values())


def test_judging():
    value = Value(0.1, unit="u", range=(0.01, 0.1), common_practice="p", source="s")
    assert value.judge() == "inside 0.01 .. 0.1"
    assert value.judge(0.2) == "outside 0.01 .. 0.1"
    assert value.judge(0.01).startswith("inside")
    assert value.judge(True) == value.judge("word") == ""
    assert Value(1, unit="u", common_practice="p", source="s").judge() == ""


# ---- discovery


def test_recipes_are_found_by_folder(tmp_path, monkeypatch):
    """Adding a recipe touches one file."""
    (tmp_path / "extra.py").write_text(
        "from dataclasses import replace\n"
        "from lit_opt.recipes.cnn import RECIPES as CNN\n"
        "RECIPES = (replace(CNN[0], name='extra', setting='extra'),)\n"
    )
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    package._all_recipes.cache_clear()
    try:
        assert "extra" in list_recipes()
        assert isinstance(get_recipe("extra"), RecipeSpec)
    finally:
        sys.modules.pop("lit_opt.recipes.extra", None)
        package._all_recipes.cache_clear()
    monkeypatch.undo()
    assert "extra" not in list_recipes()


def test_two_recipes_of_one_name_are_refused(tmp_path, monkeypatch):
    (tmp_path / "again.py").write_text("from lit_opt.recipes.cnn import RECIPES\n")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    package._all_recipes.cache_clear()
    try:
        with pytest.raises(ValueError, match="'cnn'"):
            list_recipes()
    finally:
        sys.modules.pop("lit_opt.recipes.again", None)
        package._all_recipes.cache_clear()


def test_every_file_of_the_folder_is_used():
    folder = Path(package.__file__).parent
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__", "schema", "frozen", "common", "muon"}
    settings = {get_recipe(name).setting for name in ALL}
    assert settings <= modules
    for module in modules:
        specs = importlib.import_module(f"{package.__name__}.{module}").RECIPES
        assert len({spec.setting for spec in specs}) == 1, "one setting a module"
        assert module == specs[0].setting or module.startswith(f"{specs[0].setting}_")


def test_no_torch_no_lightning():
    code = (
        "import sys; from lit_opt.recipes import get_recipe, list_recipes; [get_recipe(n) for n in list_recipes()]; "
        "print([m for m in ('torch', 'lightning', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
