"""What a matrix optimizer leaves to AdamW, and the units that lr, decay and scale share."""

import pytest

from lit_opt.errors import RecipeError
from lit_opt.recipes import get_recipe
from lit_opt.recipes.schema import GroupRule
from lit_opt.resolve import RunFacts, preview, resolve
from lit_opt.resolve.overrides import find_problems

FACTS = RunFacts(total_steps=1000, parameter_count=1_000_000_000, global_batch=1024)
ADAMW_UNITS = {"scale": "match_rms_adamw"}


def run(name="llm/muon", **overrides):
    return resolve(get_recipe(name), overrides, FACTS)


def problem(name="llm/muon", **overrides):
    found = find_problems(get_recipe(name), overrides)
    assert len(found) == 1, found
    return found[0]


@pytest.mark.parametrize("name", ["llm/muon", "llm/normuon", "cnn/muon"])
def test_in_muons_units_adamw_has_its_own_numbers(name):
    resolved = run(name)
    assert (resolved.lr, resolved.weight_decay) == (0.02, 0.01)
    assert resolved.fallback == {"lr": 3e-4, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.01}
    # A rate of the matrices says nothing of AdamW's.
    assert run(name, lr=0.05, weight_decay=0.0).fallback == resolved.fallback


def test_in_adamws_units_there_is_one_rate_and_one_decay():
    resolved = run("llm/muon_rms")
    assert (resolved.lr, resolved.fallback["lr"]) == (3e-4, 3e-4)  # of 1 B parameters
    assert resolved.fallback["weight_decay"] == resolved.weight_decay == 0.1
    assert resolved.provenance["fallback.lr"].note == "the matrices' own (scale match_rms_adamw)"
    changed = run("llm/muon_rms", lr=1e-3, weight_decay=0.05)
    assert (changed.fallback["lr"], changed.fallback["weight_decay"]) == (1e-3, 0.05)
    vit = run("vit/muon")
    assert vit.lr == vit.fallback["lr"] == 1e-3 and vit.fallback["betas"] == (0.9, 0.999)


def test_an_override_takes_the_place_of_what_it_names():
    resolved = run(fallback={"lr": 1, "betas": [0.9, 0.99]})
    assert resolved.fallback == {"lr": 1.0, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.01}
    origins = {key: p.origin for key, p in resolved.provenance.items() if key.startswith("fallback")}
    assert origins == {
        "fallback.lr": "yours", "fallback.betas": "yours", "fallback.eps": "recipe", "fallback.weight_decay": "recipe",
    }  # fmt: skip
    assert run("llm/muon_rms", fallback={"lr": 1e-4}).fallback["lr"] == 1e-4


def test_a_matrix_optimizer_in_another_recipe_brings_its_registry_values():
    resolved = run("llm", optimizer="muon")
    own = run("llm/muon")
    assert (resolved.lr, resolved.weight_decay, resolved.fallback) == (own.lr, own.weight_decay, own.fallback)
    assert resolved.hyperparameters == own.hyperparameters
    mars = run("llm", optimizer="mars_m")
    assert mars.hyperparameters["scale"] == "match_rms_adamw" and mars.fallback["lr"] == mars.lr == 1e-3


def test_another_optimizer_in_a_muon_recipe_has_no_fallback():
    assert run("llm/muon", optimizer="adamw", lr=3e-4, weight_decay=0.1).fallback == {}
    assert "fallback: adamw is no matrix optimizer" in problem(
        "llm/muon", optimizer="adamw", lr=3e-4, weight_decay=0.1, fallback={"lr": 1e-3}
    )


@pytest.mark.parametrize(
    ("fallback", "words"),
    [
        (3e-4, "fallback: 0.0003 is a float; give a dictionary"),
        (
            {"beta": 0.9},
            "fallback.beta: unknown. Did you mean 'betas'? AdamW takes here: lr, betas, eps, weight_decay.",
        ),
        ({"lr": -1}, "fallback.lr: -1 is out of bounds"),
        ({"lr": "3e-4"}, "fallback.lr: '3e-4' is not a number."),
        ({"betas": 0.9}, "fallback.betas: 0.9 is not 2 numbers"),
        ({"weight_decay": float("nan")}, "fallback.weight_decay: nan is not a finite number"),
    ],
)
def test_bad_fallbacks(fallback, words):
    assert words in problem(fallback=fallback)


# ---- units


def test_a_scale_of_the_other_units_needs_its_rate_and_decay():
    text = problem(optimizer_kwargs=ADAMW_UNITS)
    assert text.startswith("optimizer_kwargs.scale: 'match_rms_adamw' takes AdamW's learning rates, but lr=0.02 and ")
    assert "lr * 0.2 sqrt(max(rows, cols)) * P(G) would have an RMS of 4.0e-03 a step" in text
    assert "against 6.3e-04 for lr * sqrt(max(1, rows / cols)) * P(G)" in text
    assert "weight_decay=0.01 belongs" in problem(optimizer_kwargs=ADAMW_UNITS, lr=3e-4)
    moved = run(optimizer_kwargs=ADAMW_UNITS, lr=3e-4, weight_decay=0.1)
    # The rest follows into the new units.
    assert (moved.fallback["lr"], moved.fallback["weight_decay"]) == (3e-4, 0.1)
    for scale in ("original", "unit", "spectral_unclamped"):
        assert "takes Muon's learning rates" in problem("llm/muon_rms", optimizer_kwargs={"scale": scale})
        assert find_problems(get_recipe("llm/muon"), {"optimizer_kwargs": {"scale": scale}}) == []
    back = run("llm/muon_rms", optimizer_kwargs={"scale": "original"}, lr=0.02, weight_decay=0.01)
    assert (back.fallback["lr"], back.fallback["weight_decay"]) == (3e-4, 0.01)


def test_units_of_the_registry_and_of_nobody():
    assert "takes AdamW's" in problem("llm", optimizer="muon", optimizer_kwargs=ADAMW_UNITS)
    text = problem("vit", optimizer="muon")
    assert (
        "give lr= and weight_decay=. They are Muon's (lr about 0.02, weight_decay 0.01) with scale 'original'; " in text
    )
    assert "for AdamW's give optimizer_kwargs={'scale': 'match_rms_adamw'}." in text
    assert "They are AdamW's" in problem("vit", optimizer="muon", optimizer_kwargs=ADAMW_UNITS)
    assert "'matched' is unknown" in problem(optimizer_kwargs={"scale": "matched"})


# ---- whose algorithm a rule may name


def test_rules_may_name_the_method_and_adamw():
    rules = [GroupRule(match="a", algorithm="adamw"), {"match": "b", "algorithm": "muon"}]
    assert find_problems(get_recipe("llm/muon"), {"groups": rules}) == []
    for name in ("sgd", "normuon", "adamwx", 3):
        text = problem(groups=[{"match": "a", "algorithm": name}])
        assert text.startswith(f"groups[0].algorithm: {name!r} for 'a' under muon.")
        assert text.endswith("Allowed: 'muon' and 'adamw', the two in one optimizer.")


@pytest.mark.parametrize("name", ["llm", "cnn", "large_batch/lamb"])
def test_elsewhere_no_algorithm_can_be_named(name):
    rules = [{"match": "a", "algorithm": "adamw"}, {"match": "b", "lr_scale": 2}, {"match": "c", "algorithm": "muon"}]
    text = problem(name, groups=rules)
    assert text.startswith("groups: 'adamw' for 'a', 'muon' for 'c', but ")
    assert "choose a matrix optimizer, which leaves a part to AdamW: aro, mars_m, muon, normuon, " in text
    with pytest.raises(RecipeError):
        preview(get_recipe(name), {"groups": rules})
