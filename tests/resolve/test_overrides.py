"""What a user may type, and the one message for each thing that is wrong with it."""

import math
from typing import Any

import pytest
import torch

from lit_opt.errors import kind_of
from lit_opt.optim.registry import list_optimizers
from lit_opt.recipes import get_recipe, list_recipes
from lit_opt.recipes.schema import ClipSpec, DecaySpec, EMASpec, GroupRule
from lit_opt.resolve.overrides import FIELDS, clean, find_problems, parse_duration
from lit_opt.resolve.overrides_optimizer import class_keywords
from lit_opt.resolve.plain import build_spec, is_real, is_whole, plain

NAN, INF = float("nan"), float("inf")
NOT_NUMBERS: tuple[Any, ...] = (NAN, INF, -INF, True, False, "0.1", "word", [0.1], {}, (1, 2, 3), ...)


def problems(name="llm", **overrides):
    return find_problems(get_recipe(name), overrides)


def problem(name="llm", **overrides):
    found = problems(name, **overrides)
    assert len(found) == 1, found
    return found[0]


def test_nothing_given_nothing_wrong():
    for name in list_recipes():
        assert problems(name) == []
        assert find_problems(get_recipe(name), dict.fromkeys(FIELDS)) == []


# ---- numbers


@pytest.mark.parametrize("field", ["lr", "base_lr", "weight_decay", "momentum", "layer_decay"])
@pytest.mark.parametrize("value", [*NOT_NUMBERS, -1, -1e-9], ids=repr)
def test_numeric_fields_refuse_what_is_no_number(field, value):
    text = problem("cnn", **{field: value})
    assert text.startswith(f"{field}: ") and "is not allowed; give " in text and repr(value) in text


@pytest.mark.parametrize("field", ["base_batch_size", "batch_size", "batch_tokens", "total_steps"])
@pytest.mark.parametrize("value", [*NOT_NUMBERS, -1, 0, 0.5, 256.0], ids=repr)
def test_counts_refuse_what_is_no_count(field, value):
    base = {"base_lr": 0.1} if field == "base_batch_size" else {}
    hint = " It is a word here: leave the quotes away." if value == "0.1" else " Type 256." if value == 256.0 else ""
    text = problem("cnn", **{field: value}, **base)
    assert text == f"{field}: {value!r} is not allowed; give a whole number above 0.{hint}"


@pytest.mark.parametrize(
    "value", [*NOT_NUMBERS, 0.9, (0.9,), (0.9, 1.0), (0.9, -0.1), (0.9, NAN), ("a", "b"), (True, 0.9)]
)
def test_betas(value):
    assert problem(betas=value).startswith("betas: ")


@pytest.mark.parametrize("value", [(0.9, 0.95), [0.9, 0.95], (0, 0), [0, 0.999]])
def test_good_betas(value):
    assert problems(betas=value) == []


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("lr", (1e-12, 1, 1000.0), (0, 0.0, -0.0)),
        ("weight_decay", (0, 0.0, -0.0, 5), ()),
        ("momentum", (0, 0.0, 0.999), (1, 1.0)),
        ("layer_decay", (1, 1.0, 0.01), (0, 1.01)),
    ],
)
def test_bounds(field, good, bad):
    for value in good:
        assert problems("cnn", **{field: value}) == []
    for value in bad:
        assert repr(plain(value)) in problem("cnn", **{field: value})


def test_a_number_in_quotes_gets_a_hint():
    assert "leave the quotes away" in problem(lr="3e-4")
    assert "quotes" not in problem(lr="fast")
    assert "quotes" in problem(decay={"final": "0.1"})


def test_lr_and_base_lr():
    assert problem("cnn", lr=0.1, base_lr=0.2).startswith("lr, base_lr: both are given (0.1, 0.2)")
    assert "Add base_lr=" in problem("cnn", base_batch_size=256)
    assert problem("vlm", base_lr=0.1).startswith("base_lr: no rule")


# ---- optimizer


@pytest.mark.parametrize(("typed", "near"), [("AdamW", "adamw"), ("SGD", "sgd"), ("adamwx", "adamw"), ("LARS", "lars")])
def test_unknown_optimizers_get_the_nearest(typed, near):
    text = problem(optimizer=typed)
    assert text.startswith(f"optimizer: {typed!r} is unknown. Did you mean {near!r}?")
    assert all(name in text for name in list_optimizers()) and "torch.optim.Optimizer class" in text


@pytest.mark.parametrize("value", [3, 1.5, ["adamw"], ..., print])
def test_optimizers_of_another_type(value):
    assert problem(optimizer=value).startswith(f"optimizer: {kind_of(value)} is neither a name nor a class.")


def test_an_optimizer_object_is_no_class():
    made = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1)
    assert problem(optimizer=made).startswith(
        "optimizer: an SGD is neither a name nor a class. The recipe makes it: give the class SGD"
    )
    assert "the class dict is no torch.optim.Optimizer" in problem(optimizer=dict)


def test_keywords_that_the_optimizer_does_not_have():
    assert problem("cnn", betas=(0.9, 0.95)).startswith("betas: sgd has no betas. It has momentum=.")
    assert problem("llm", momentum=0.9).startswith("momentum: adamw has no momentum. It has betas=.")
    text = problem("llm", fallback={"lr": 1e-3})
    assert text.startswith("fallback: adamw is no matrix optimizer")


def test_optimizer_kwargs():
    assert problems(optimizer_kwargs={"eps": 1e-6}) == []
    assert "Did you mean 'eps'?" in problem(optimizer_kwargs={"epss": 1e-6})
    assert "It takes: eps." in problem(optimizer_kwargs={"zzz": 1})
    assert (
        problem(optimizer_kwargs={"lr": 1.0})
        == "optimizer_kwargs: 'lr' has its own argument; write Recipe(..., lr=1.0)."
    )
    assert problem(optimizer_kwargs=[1]).startswith("optimizer_kwargs: [1] is a list")
    for value in (NAN, -1, True, "1e-6"):
        assert problem(optimizer_kwargs={"eps": value}).startswith("optimizer_kwargs.eps: ")
    assert "True or False" in problem("cnn", optimizer_kwargs={"nesterov": 1})
    assert "always has nesterov=True" in problem("cnn", optimizer="nesterov", optimizer_kwargs={"nesterov": False})
    assert "Nesterov" in problem("cnn", momentum=0, optimizer_kwargs={"nesterov": True})
    assert "Nesterov" in problem("cnn", momentum=0, optimizer="nesterov")


def test_keywords_of_classes():

    class Sharp(torch.optim.SGD):
        def __init__(self, params, rho, *args, **kwargs):
            super().__init__(params, *args, **kwargs)

    class Silent(torch.optim.AdamW):
        pass

    assert class_keywords(dict) is None
    keywords = class_keywords(Sharp) or {}
    assert keywords["rho"] is True and keywords["nesterov"] is False
    assert not {"self", "params", "args", "kwargs"} & set(keywords)
    assert class_keywords(Silent) == class_keywords(torch.optim.AdamW)
    given = {"optimizer": Sharp, "lr": 0.1, "weight_decay": 0}
    assert "no default for rho" in problem("cnn", **given)
    assert problems("cnn", **given, optimizer_kwargs={"rho": 0.05, "nesterov": True}) == []
    assert "Did you mean 'rho'?" in problems("cnn", **given, optimizer_kwargs={"roh": 0.05})[0]


# ---- warmup


@pytest.mark.parametrize(
    "value", [0, 1, 10**9, 0.0, -0.0, 0.5, 0.999, "5 epochs", "1 epoch", "2.5 epochs", " 500 steps "]
)
def test_good_warmups(value):
    assert problems(warmup=value) == []


@pytest.mark.parametrize(
    "value",
    [1.0, 500.0, -1, -0.1, NAN, INF, True, False, "5", "5 weeks", "", "1.5 steps", "-1 epochs", [1], (0.1, 0.2), {}],
)
def test_bad_warmups(value):
    text = problem(warmup=value)
    assert text.startswith(f"warmup: {value!r} is not ") and "epochs" in text and "steps" in text


def test_durations():
    assert parse_duration("1 epoch") == (1.0, "epochs") and parse_duration("0 steps") == (0.0, "steps")
    assert parse_duration("epochs") is None and parse_duration("1 epoch 2") is None


# ---- decay


@pytest.mark.parametrize(
    "value",
    [
        "cosine",
        "wsd",
        {"kind": "step", "milestones": [0.3, 0.6], "gamma": 0.5},
        {"final": 0},
        {"kind": "wsd", "cooldown": 100},
        {"kind": "wsd", "cooldown": 0.3, "final": 0.01},
        {"kind": "polynomial", "power": 1},
        DecaySpec(),
        DecaySpec(kind="linear", final=0.2),
    ],
)
def test_good_decays(value):
    assert problems(decay=value) == []


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("cosin", "decay: 'cosin' is unknown. Did you mean 'cosine'?"),
        ("WSD", "Did you mean 'wsd'?"),
        ({"kind": 3}, "decay: 3 is unknown."),
        (0.1, "decay: 0.1 is a float; give a DecaySpec("),
        (True, "decay: True is a bool"),
        (["cosine"], "decay: ['cosine'] is a list"),
        ({"finl": 0.1}, "Did you mean 'final'?"),
        ({"final": -0.1}, "decay.final: -0.1"),
        ({"final": NAN}, "decay.final: nan"),
        ({"final": True}, "decay.final: True"),
        ({"kind": "polynomial", "power": 0}, "decay.power: 0"),
        ({"kind": "step", "gamma": 0}, "decay.gamma: 0"),
        ({"kind": "step", "gamma": 2}, "decay.gamma: 2"),
        ({"kind": "step", "milestones": 5}, "decay.milestones: 5"),
        ({"kind": "step", "milestones": []}, "decay.milestones: ()"),
        ({"kind": "step", "milestones": [0.6, 0.3]}, "rising"),
        ({"kind": "step", "milestones": [30, 60]}, "fractions of the run"),
        ({"kind": "step", "milestones": ["a"]}, "decay.milestones"),
        ({"kind": "wsd", "cooldown": 0}, "decay.cooldown: 0"),
        ({"kind": "wsd", "cooldown": 1.0}, "decay.cooldown: 1.0"),
        ({"kind": "wsd", "cooldown": 1.5}, "decay.cooldown: 1.5"),
        # A field that the kind does not use would be ignored.
        ({"kind": "cosine", "power": 2}, "decay.power: the kind 'cosine' does not use it. It uses: final."),
        ({"kind": "step", "final": 0.1}, "It uses: milestones, gamma."),
        ({"kind": "constant", "final": 0.1}, "It uses: none."),
        ({"cooldown": 0.1}, "decay.cooldown: the kind 'cosine' does not use it."),
    ],
)
def test_bad_decays(value, words):
    assert words in problem(decay=value)


def test_decay_fields_belong_to_the_recipes_kind():
    assert problems("large_batch/lars", decay={"power": 1}) == []


# ---- clip, ema, groups


@pytest.mark.parametrize("value", [0, 0.0, 1, 2.5, ClipSpec(limit=1), {"limit": 1, "kind": "value"}])
def test_good_clips(value):
    assert problems(clip=value) == []


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (-1, "clip: -1 is not allowed"),
        (NAN, "clip: nan is not allowed"),
        (INF, "clip: inf"),
        (True, "clip: True is a bool"),
        (False, "0 turns it off"),
        ("1.0", "clip: '1.0' is a str"),
        ({"kind": "norm"}, "ClipSpec needs 'limit'"),
        ({"limit": 1, "kind": "adaptive"}, "clip.kind: 'adaptive'"),
        ({"limt": 1}, "Did you mean 'limit'?"),
        ({"limit": "x"}, "clip: 'x'"),
    ],
)
def test_bad_clips(value, words):
    assert words in problem(clip=value)


@pytest.mark.parametrize("value", [True, False, 0, 0.0, 0.999, EMASpec(), {}, {"decay": 0.99, "checkpoint": "ema"}])
def test_good_emas(value):
    assert problems(ema=value) == []


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (1, "ema: 1 is not allowed"),
        (1.0, "ema: 1.0"),
        (-0.1, "ema: -0.1"),
        (NAN, "ema: nan"),
        ("0.9", "ema: '0.9' is a str"),
        ({"decay": "x"}, "ema: 'x'"),
        ({"start_step": -1}, "ema.start_step: -1"),
        ({"start_step": True}, "ema.start_step: True"),
        ({"start_step": 1.5}, "ema.start_step: 1.5"),
        ({"checkpoint": "both"}, "ema.checkpoint: 'both'"),
        ({"warmup": "yes"}, "ema.warmup: 'yes'"),
        ({"offload": 1}, "ema.offload: 1"),
        ({"dcay": 0.9}, "Did you mean 'decay'?"),
    ],
)
def test_bad_emas(value, words):
    assert words in problem(ema=value)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"match": "*", "lr_scale": 1}, "groups: {'match': '*', 'lr_scale': 1} is a dict; give a list"),
        ("backbone.*", "groups: 'backbone.*' is a str"),
        (["backbone.*"], "groups[0]: 'backbone.*' is a str; give a GroupRule("),
        ([{"lr_scale": 1}], "groups[0]: GroupRule needs 'match'"),
        ([{"match": "", "lr_scale": 1}], "groups[0].match: ''"),
        ([{"match": 3, "lr_scale": 1}], "groups[0].match: 3"),
        ([{"match": "*"}], "groups[0]: the rule '*' changes nothing"),
        ([{"match": "*", "lr": 1}], "'lr' is no field of GroupRule. Did you mean 'lr_scale'?"),
        ([{"match": "*", "lr_scale": -1}], "groups[0].lr_scale: -1"),
        ([{"match": "*", "lr_scale": True}], "groups[0].lr_scale: True"),
        ([{"match": "*", "weight_decay": NAN}], "groups[0].weight_decay: nan"),
        ([{"match": "*", "weight_decay": "0.1"}], "groups[0].weight_decay: '0.1'"),
        ([GroupRule(match="a", lr_scale=1), GroupRule(match="b", lr_scale=INF)], "groups[1].lr_scale: inf"),
        ([{"match": "*.qkv.*", "split_sizes": "qkv"}], "(for '*.qkv.*') split what a matrix optimizer"),
    ],
)
def test_bad_groups(value, words):
    assert words in problem(groups=value)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"split_sizes": "qk"}, "groups[0].split_sizes: 'qk' is unknown; 'qkv'"),
        ({"split_sizes": [768]}, "groups[0].split_sizes: (768,) is not allowed"),
        ({"split_sizes": 768}, "groups[0].split_sizes: (768,) is not allowed"),
        ({"split_sizes": [768, -1]}, "groups[0].split_sizes: (768, -1)"),
        ({"split_sizes": [768, 256.0]}, "groups[0].split_sizes: (768, 256.0)"),
        ({"num_heads": 1}, "groups[0].num_heads: 1 is not allowed"),
        ({"num_heads": "12"}, "groups[0].num_heads: '12'"),
        ({"num_heads": 2, "split_sizes": "qkv"}, "are both given for '*.qkv.*'"),
        ({"num_heads": 2, "algorithm": "adamw"}, "'*.qkv.*' goes to adamw, which splits nothing"),
    ],
)
def test_bad_splits(value, words):
    found = find_problems(get_recipe("llm/muon"), {"groups": [{"match": "*.qkv.*", **value}]})
    assert len(found) == 1 and words in found[0]


def test_good_splits():
    rules = [
        {"match": "a", "split_sizes": [6, 2, 2]},
        {"match": "b", "split_sizes": "qkv"},
        {"match": "c", "num_heads": 2},
    ]
    assert find_problems(get_recipe("llm/muon"), {"groups": rules}) == []


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        ("llm/muon", {"lr": 3e-4}, "RMS of 9.4e-06 a step at 1024 x 1024, against 6.3e-04 at 0.02"),
        ("llm/muon", {"base_lr": 3e-4}, "lr: 0.0003 is AdamW's kind of rate"),
        ("llm/muon_rms", {"lr": 0.02}, "lr: 0.02 is Muon's kind of rate, and scale 'match_rms_adamw' takes AdamW's"),
        ("llm", {"optimizer": "normuon", "lr": 3e-4, "weight_decay": 0.1}, "scale 'original' takes Muon's"),
        (
            "cnn",
            {"optimizer": "mars_m", "lr": 0.02, "weight_decay": 0.1},
            "optimizer_kwargs={'scale': 'original'} with lr=",
        ),
    ],
)
def test_a_rate_of_the_other_unit_system_is_refused_unless_the_scale_is_named(name, overrides, words):
    found = find_problems(get_recipe(name), overrides)
    assert any(words in problem for problem in found)
    scale = "match_rms_adamw" if "mars_m" in overrides.values() or "rms" in name else "original"
    meant = find_problems(get_recipe(name), overrides | {"optimizer_kwargs": {"scale": scale}})
    assert not any("kind of rate" in problem for problem in meant)


def test_rates_within_an_order_of_magnitude_are_only_labelled():
    for name, lr in (("llm/muon", 1e-3), ("llm/muon", 0.24), ("llm/muon_rms", 6e-3), ("llm/muon_rms", 1e-6)):
        assert find_problems(get_recipe(name), {"lr": lr}) == []


def test_good_groups():
    rules = [
        {"match": "*.bias", "weight_decay": 0},
        GroupRule(match="*", lr_scale=0),
        {"match": "*", "lr_scale": 2, "weight_decay": 0.1},
    ]
    assert problems(groups=rules) == problems(groups=tuple(rules)) == problems(groups=[]) == []


# ---- all at once


def test_unknown_fields():
    assert problem(weight_decy=0.1) == "weight_decy: unknown field. Did you mean 'weight_decay'?"


def test_all_problems_at_once():
    found = problems(
        lr=-1,
        base_lr=0,
        weight_decay="x",
        betas=0.9,
        momentum=2,
        warmup=1.0,
        decay="cosin",
        clip=-1,
        ema=2,
        batch_size=0,
        total_steps=1.5,
        optimizer_kwargs={"epss": 1},
        groups=[{}],
        layer_decay=2,
        nonsense=1,
    )
    names = {text.partition(":")[0].partition("[")[0] for text in found}
    assert names == {
        "lr", "base_lr", "lr, base_lr", "weight_decay", "betas", "momentum", "warmup", "decay", "clip", "ema",
        "batch_size", "total_steps", "optimizer_kwargs", "groups", "layer_decay", "nonsense",
    }  # fmt: skip
    assert len(found) == len(set(found)) == 17  # momentum is out of bounds, and adamw has none


def test_every_message_says_what_is_allowed():
    for text in problems(lr=-1, warmup=1.0, decay="x", clip=-1, ema=2, optimizer="adamv", layer_decay=2, groups=3):
        assert text.endswith(".") and ("give" in text or "Known:" in text), text


# ---- small helpers


def test_plain():
    numpy = pytest.importorskip("numpy")
    found = plain({"a": [numpy.float32(0.5), numpy.int64(3)], "b": (True, None, "x"), "c": -0.0})
    assert found == {"a": [0.5, 3], "b": (True, None, "x"), "c": 0.0}
    assert type(found["a"][0]) is float and type(found["a"][1]) is int and math.copysign(1, found["c"]) == 1
    assert found["b"][0] is True


def test_clean_drops_none_only():
    assert clean({"a": None, "b": 0, "c": False, "d": ""}) == {"b": 0, "c": False, "d": ""}


def test_is_real_and_is_whole():
    assert is_real(1) and is_real(0.5) and not is_real(True) and not is_real(NAN) and not is_real("1")
    assert is_whole(1) and not is_whole(0) and is_whole(0, 0) and not is_whole(True) and not is_whole(1.0)


def test_build_spec_brings_lists_to_tuples():
    spec = build_spec(DecaySpec, {"milestones": [0.1, 0.2]})
    assert spec.milestones == (0.1, 0.2) and hash(spec)
    assert build_spec(ClipSpec, ClipSpec(limit=2)) == ClipSpec(limit=2)
    with pytest.raises(ValueError, match="is a NoneType"):
        build_spec(ClipSpec, None)
