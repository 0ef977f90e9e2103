"""What `explain` says: every value with its reason, the arithmetic, the user's value beside the recipe's."""

import io
import json
import math

import pytest
import yaml
from rich.console import Console

from lit_opt.commands.explain import explain_name
from lit_opt.errors import RecipeError
from lit_opt.explain.formats import headline
from lit_opt.explain.values import Entry, explain, short, shrink_note
from lit_opt.optim.registry import ROWS, get_row
from lit_opt.recipes import all_names, get_recipe
from lit_opt.resolve import RunFacts, preview

NAMES = all_names()


def rendered(name, width=100, **overrides):
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(explain_name(name, overrides))
    return out.getvalue()


def joined(text):
    """Folded lines put together again."""
    return " ".join(text.split())


def entry(name, recipe, facts=None, **overrides):
    return next(e for e in explain(get_recipe(recipe), overrides, facts) if e.name == name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [80, 120])
def test_every_value_is_shown_whole(name, width):
    text = rendered(name, width)
    assert max(map(len, text.splitlines())) <= width
    flat = joined(text)
    for path, value in get_recipe(name).items():
        for part in (value.source, value.common_practice, value.unit):
            assert joined(part) in flat, path


@pytest.mark.parametrize("name", NAMES)
def test_formats_hold_the_same_values(name):
    spec = get_recipe(name)
    data = json.loads(str(explain_name(name, {}, form="json")))
    assert data["name"] == spec.name
    assert {v.source for v in spec.values()} <= {e["source"] for e in data["values"]}
    markdown = str(explain_name(name, {}, form="markdown"))
    assert all(v.source.replace("|", "\\|") in markdown for v in spec.values())
    section = yaml.safe_load(str(explain_name(name, {"clip": 0.5}, form="yaml")))
    assert section == {"recipe": {"name": spec.name, "clip": 0.5}}


def test_an_override_stands_beside_the_default():
    lr = entry("lr", "llm", lr=1e-3)
    assert headline(lr).startswith("3e-4 -> 1e-3 (yours), outside 1e-4 .. 6e-4")
    assert lr.notes == ("as given, never rescaled",)
    assert "3e-4 -> 1e-3 (yours), outside 1e-4 .. 6e-4" in rendered("llm", lr=1e-3)
    assert "source of 3e-4: torchtitan" in rendered("llm", lr=1e-3)
    assert entry("clip", "llm", clip=0).default == 1.0
    assert entry("decay", "llm", decay="linear").default == "cosine"
    assert entry("decay.final", "llm", decay={"final": 0.0}).default == 0.1
    assert entry("warmup", "llm", warmup=100).number == 100


def test_the_scaling_arithmetic_is_shown():
    cnn = entry("lr", "cnn", batch_size=1024)
    assert math.isclose(cnn.number, 0.4)
    assert cnn.judgement == "outside"
    assert "0.1 at 256 samples x 4 (linear) at 1,024" in cnn.notes
    llm = entry("lr", "llm", RunFacts(parameter_count=124_000_000), batch_tokens=2**20)
    assert math.isclose(llm.number, 6e-4 * math.sqrt(2))
    assert "sqrt" in llm.notes[0]


def test_warmup_in_steps_once_the_run_is_known():
    assert entry("warmup", "llm", total_steps=1000).notes == ("20 steps: 0.02 of 1,000 steps",)
    assert entry("warmup", "llm", total_steps=1_000_000).notes == (
        "2,000 steps: 0.02 of 1,000,000 steps, at most 2,000",
    )


@pytest.mark.parametrize(
    ("recipe", "overrides", "share"),
    [
        ("llm", {}, 3e-4 * 0.1),
        ("llm", {"lr": 1e-3, "weight_decay": 0.05}, 1e-3 * 0.05),
        ("cnn", {}, 0.1 * 1e-4 / (1 - 0.9)),
        ("cnn", {"momentum": 0.5}, 0.1 * 1e-4 / (1 - 0.5)),
        ("cnn", {"optimizer": "adamw"}, 1e-3 * 0.05),
    ],
)
def test_half_life_of_weight_decay(recipe, overrides, share):
    note = shrink_note(preview(get_recipe(recipe), overrides))
    assert f"= {short(share)} of a weight a step; half of it in {math.log(2) / share:,.0f} steps" in note


def test_half_life_agrees_with_torch():
    import torch

    for optimizer, lr, wd, share in (
        (torch.optim.AdamW, 1e-3, 0.1, 1e-4),
        (lambda p, **k: torch.optim.SGD(p, momentum=0.9, **k), 0.1, 1e-4, 1e-4),
    ):
        weight = torch.nn.Parameter(torch.ones((), dtype=torch.float64))
        opt = optimizer([weight], lr=lr, weight_decay=wd)
        steps = round(math.log(2) / share)
        for _ in range(steps):
            weight.grad = torch.zeros_like(weight)
            opt.step()
        assert math.isclose(weight.item(), 0.5, rel_tol=5e-3)


@pytest.mark.parametrize("recipe", ["large_batch/lars", "large_batch/lamb"])
def test_no_half_life_where_the_gradient_decides(recipe):
    assert shrink_note(preview(get_recipe(recipe))) == ""


def test_short_numbers():
    assert [short(x) for x in (0.1, 1e-3, 2.5e-4, 31.2, 2**19, 0.0, float("inf"), None, True)] == [
        "0.1", "1e-3", "2.5e-4", "31.2", "524,288", "0", "inf", "none", "on",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("number", "words"),
    [(0.05, "inside"), (0.2, "outside"), (True, ""), ("adamw", "")],
)
def test_judgement(number, words):
    assert Entry(section="", name="x", number=number, range=(0.01, 0.1)).judgement == words


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_an_optimizer_is_explained(row):
    text = joined(rendered(row.name, 80))
    for part in (row.summary, row.rule, row.provider, row.evidence, row.source, *row.hyperparameters):
        assert joined(part) in text
    data = json.loads(str(explain_name(row.name, {}, form="json")))
    assert list(data["settings"]) == list(get_row(row.name).settings)
    assert row.source in str(explain_name(row.name, {}, form="markdown"))


def test_the_other_optimizer_brings_its_own_values():
    entries = {e.name: e for e in explain(get_recipe("cnn"), {"optimizer": "adamw"})}
    assert entries["optimizer"].default == "sgd"
    assert entries["lr"].origin == "registry" and entries["lr"].number == 1e-3
    assert "momentum" not in entries
    assert not any(name.startswith("lr, ") for name in entries)


@pytest.mark.parametrize(
    ("name", "overrides", "kwargs", "said"),
    [
        ("lllm", {}, {}, "Did you mean 'llm'?"),
        ("adamv", {}, {}, "is neither a recipe nor an optimizer"),
        ("llm", {"lr": -1, "clip": -2}, {}, "2 problems"),
        ("llm", {}, {"parameters": 0}, "parameters: 0 is not allowed"),
        ("adamw", {"lr": 1e-3}, {}, "lit-opt explain RECIPE --optimizer adamw"),
        ("adamw", {}, {"form": "yaml"}, "Known: text, json, markdown"),
    ],
)
def test_what_is_wrong_is_said(name, overrides, kwargs, said):
    with pytest.raises(RecipeError) as error:
        explain_name(name, overrides, **kwargs)
    assert said in str(error.value)
