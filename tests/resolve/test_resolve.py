"""From a recipe, overrides and facts to the numbers of a run, with the provenance of each."""

import json
import math
import random

import pytest
import torch

import lit_opt.recipes as recipes_package
from lit_opt.errors import RecipeError
from lit_opt.explain.show import as_text, number, recipe_table
from lit_opt.optim.registry import ROWS, get_row
from lit_opt.recipes import get_recipe, list_recipes
from lit_opt.recipes.schema import ClipSpec, DecaySpec, EMASpec, GroupRule
from lit_opt.resolve import RunFacts, preview, resolve
from lit_opt.schedules import factor

ALL = sorted(recipes_package._all_recipes())
FACTS = RunFacts(
    total_steps=1000,
    global_batch=256,
    tokens_per_batch=2**19,
    data_parallel_size=2,
    parameter_count=124_000_000,
    steps_per_epoch=100.0,
)


def run(name, facts=FACTS, **overrides):
    return resolve(get_recipe(name), overrides, facts)


def refused(name, facts=FACTS, **overrides):
    with pytest.raises(RecipeError) as caught:
        run(name, facts, **overrides)
    return caught.value.problems


# ---- learning rate by batch


@pytest.mark.parametrize(
    ("name", "batch", "lr"),
    [
        # vit: linear to 1024, sqrt above, never scaled down.
        ("vit", 256, 2.5e-4),
        ("vit", 512, 5e-4),
        ("vit", 1024, 1e-3),
        ("vit", 4096, 2e-3),
        ("vit", 64, 2.5e-4),
        # cnn: linear to 8192, down to the low end of the guide's range.
        ("cnn", 256, 0.1),
        ("cnn", 1024, 0.4),
        ("cnn", 8192, 3.2),
        ("cnn", 16384, 3.2),
        ("cnn", 128, 0.05),
        ("cnn", 26, 0.1 * 26 / 256),
        ("cnn", 25, 0.01),
        ("cnn", 1, 0.01),
        # diffusion: sqrt.
        ("diffusion", 256, 1e-4),
        ("diffusion", 1024, 2e-4),
        ("diffusion", 16, 1e-4),
        # lars: a table, each row from its batch on.
        ("large_batch/lars", 4096, 10.0),
        ("large_batch/lars", 16383, 10.0),
        ("large_batch/lars", 16384, 25.0),
        ("large_batch/lars", 32767, 25.0),
        ("large_batch/lars", 32768, 31.2),
        ("large_batch/lars", 10**6, 31.2),
        ("large_batch/lars", 64, 10.0),
        # lamb: sqrt.
        ("large_batch/lamb", 2048, 5e-3),
        ("large_batch/lamb", 8192, 1e-2),
        ("large_batch/lamb", 512, 5e-3),
        # the control goes on linearly.
        ("large_batch/control", 32768, 12.8),
        # vlm: no rule.
        ("vlm", 4096, 1e-4),
    ],
)
def test_lr_by_batch(name, batch, lr):
    assert run(name, RunFacts(total_steps=1000, global_batch=batch)).lr == pytest.approx(lr, rel=1e-12)


@pytest.mark.parametrize(
    ("count", "lr"),
    [
        (0, 6e-4),
        (124_000_000, 6e-4),
        (350_000_000, 6e-4),
        (350_000_001, 3e-4),
        (13_000_000_000, 3e-4),
        (13_000_000_001, 1.5e-4),
        (70_000_000_000, 1.5e-4),
        (70_000_000_001, 9e-5),
        (10**13, 9e-5),
    ],
)
def test_lr_by_model_size(count, lr):
    resolved = run("llm", RunFacts(total_steps=1000, parameter_count=count))
    assert resolved.lr == lr
    assert f"{count:,} trainable non-embedding parameters" in resolved.provenance["lr"].note
    assert "batch in tokens unknown, not scaled" in resolved.provenance["lr"].note


@pytest.mark.parametrize(("tokens", "times"), [(2**10, 1), (2**19, 1), (2**20, math.sqrt(2)), (2**21, 2), (2**26, 2)])
def test_llm_is_raised_at_most_twofold(tokens, times):
    resolved = run("llm", RunFacts(total_steps=1000, parameter_count=10**9), batch_tokens=tokens)
    assert resolved.lr == pytest.approx(3e-4 * times)
    assert resolved.facts.tokens_per_batch == tokens


def test_what_the_user_says_of_the_run_wins():
    resolved = run("cnn", batch_size=1024, total_steps=77)
    assert resolved.lr == pytest.approx(0.4)
    assert resolved.facts.global_batch == 1024 and resolved.schedule.total_steps == 77


@pytest.mark.parametrize("name", ALL)
def test_lr_turns_scaling_off(name):
    resolved = run(name, RunFacts(total_steps=1000), lr=0.007)
    assert resolved.lr == 0.007
    assert resolved.provenance["lr"].origin == "yours"
    assert "never rescaled" in resolved.provenance["lr"].note


def test_base_lr():
    assert run("cnn", batch_size=1024, base_lr=0.2).lr == pytest.approx(0.8)
    assert run("cnn", batch_size=1024, base_lr=0.2, base_batch_size=512).lr == pytest.approx(0.4)
    assert run("vit", batch_size=8192, base_lr=2e-3, base_batch_size=4096).lr == pytest.approx(2e-3 * math.sqrt(2))
    assert run("llm", base_lr=1e-3, base_batch_size=2**17).lr == pytest.approx(2e-3)
    why = run("cnn", batch_size=1024, base_lr=0.2, base_batch_size=512).provenance["lr"]
    assert why.origin == "yours" and why.note == "0.2 at 512 samples x 2 (linear) at 1,024"


def test_base_lr_needs_the_batch_and_a_rule():
    assert "batch_size" in refused("cnn", RunFacts(total_steps=10), base_lr=0.1)[0]
    assert "batch_tokens" in refused("llm", RunFacts(total_steps=10, parameter_count=1), base_lr=0.1)[0]
    for name in ("vlm", "large_batch/lars"):
        [problem] = refused(name, base_lr=0.1)
        assert problem.startswith("base_lr: no rule is published") and "lr=" in problem


def test_base_lr_of_another_optimizer_follows_its_own_rule():
    # adamw in the setting cnn belongs to 1024 images and is not scaled down.
    assert run("cnn", optimizer="adamw", base_lr=1e-3, batch_size=2048).lr == pytest.approx(2e-3)
    assert run("cnn", optimizer="adamw", base_lr=1e-3, batch_size=64).lr == 1e-3
    [problem] = refused("vit", optimizer="adam", base_lr=1e-3, weight_decay=0.1)
    assert problem.startswith("base_lr")


# ---- another optimizer


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("optimizer", [row.name for row in ROWS])
def test_another_optimizer_brings_its_own_values_or_asks(name, optimizer):
    spec = get_recipe(name)
    row = get_row(optimizer, setting=spec.registry_key)
    if optimizer == spec.optimizer.number:
        assert run(name, optimizer=optimizer).weight_decay == spec.weight_decay.number
        return
    if spec.trains == "adapters" and not optimizer.startswith("adamw_"):
        [problem] = refused(name, optimizer=optimizer)
        assert "AdamW" in problem
        return
    if spec.registry_key not in row.settings:
        [problem, *required] = refused(name, optimizer=optimizer)
        assert repr(optimizer) in problem and "lr= and weight_decay=" in problem
        keywords = {"freeze_step": 100} if optimizer == "onebit_adam" else {}
        assert all(key in text for key, text in zip(keywords, required, strict=True))
        lr = 0.005 if row.matrix else 0.5  # a rate of both unit systems
        resolved = run(name, optimizer=optimizer, lr=lr, weight_decay=0.25, optimizer_kwargs=keywords)
        assert (resolved.lr, resolved.weight_decay) == (lr, 0.25)
        # Nor is the recipe's range the range of this optimizer's rate.
        assert resolved.provenance["lr"].value is None and resolved.provenance["weight_decay"].value is None
        for key in spec.hyperparameters:
            if key in resolved.hyperparameters:
                assert resolved.provenance[key].origin == "default"
        return
    own = row.settings[spec.registry_key]
    batch = own.reference_batch or 256
    facts = RunFacts(total_steps=1000, global_batch=batch, tokens_per_batch=batch, parameter_count=10)
    resolved = run(name, facts, optimizer=optimizer)
    assert resolved.lr == own.lr.number and resolved.weight_decay == own.weight_decay.number
    for key in ("lr", "weight_decay"):
        assert resolved.provenance[key].origin == "registry"
        assert resolved.provenance[key].value.source == getattr(own, key).source
    assert set(resolved.hyperparameters) == set(row.hyperparameters) - {"lr", "weight_decay"}
    for key, value in own.hyperparameters.items():
        assert resolved.hyperparameters[key] == value.number


def test_nesterov_ends_where_the_cnn_rule_ends():
    assert run("cnn", optimizer="nesterov", batch_size=16384).lr == pytest.approx(3.2)
    assert run("cnn", optimizer="nesterov", batch_size=1).lr == 0.01
    assert run("cnn", optimizer="adamw", batch_size=1).lr == 1e-3


def test_only_what_is_missing_is_asked_for():
    assert "give weight_decay=." in refused("vit", optimizer="sgd", lr=0.1)[0]
    assert "give lr=." in refused("vit", optimizer="sgd", weight_decay=0.1)[0]


def test_optimizer_classes():
    [problem] = refused("llm", optimizer=torch.optim.RMSprop)
    assert "'RMSprop'" in problem and "lr= and weight_decay=" in problem
    resolved = run("llm", optimizer=torch.optim.RMSprop, lr=1e-3, weight_decay=0, optimizer_kwargs={"alpha": 0.9})
    assert resolved.optimizer is torch.optim.RMSprop
    assert resolved.optimizer_name.endswith("RMSprop")
    assert resolved.hyperparameters == {"alpha": 0.9} and resolved.weight_decay == 0.0
    assert resolved.provenance["lr"].value is None and resolved.provenance["weight_decay"].value is None
    # LBFGS has no weight decay: it is not asked for, and giving it is an error.
    resolved = run("llm", optimizer=torch.optim.LBFGS, lr=1.0)
    assert resolved.weight_decay == 0.0 and "none" in resolved.provenance["weight_decay"].note
    assert "LBFGS has no weight_decay" in refused("llm", optimizer=torch.optim.LBFGS, lr=1.0, weight_decay=0.1)[0]
    betas = run("llm", optimizer=torch.optim.Adam, lr=1.0, weight_decay=0, betas=[0, 0.5]).hyperparameters["betas"]
    assert betas == (0.0, 0.5) and isinstance(betas[0], float)


def test_hyperparameters():
    assert run("llm").hyperparameters == {"betas": (0.9, 0.95), "eps": 1e-8}
    assert run("llm", betas=[0.8, 0.9]).hyperparameters["betas"] == (0.8, 0.9)
    resolved = run("llm", optimizer_kwargs={"eps": 1e-5})
    assert resolved.hyperparameters == {"betas": (0.9, 0.95), "eps": 1e-5}
    assert resolved.provenance["eps"].origin == "yours" and resolved.provenance["betas"].origin == "recipe"
    resolved = run("cnn", momentum=0, optimizer_kwargs={"nesterov": False})
    assert resolved.hyperparameters["momentum"] == 0.0 and isinstance(resolved.hyperparameters["momentum"], float)
    lamb = run("large_batch/lamb").hyperparameters
    assert lamb["max_grad_norm"] is None and lamb["eps"] == 1e-6


# ---- schedule


def test_warmup():
    assert run("llm").schedule.warmup_steps == 20
    long = RunFacts(total_steps=1_000_000, parameter_count=1)
    assert run("llm", long).schedule.warmup_steps == 2000
    assert run("llm", long).provenance["warmup"].note == "0.02 of 1,000,000 steps, at most 2,000"
    # The cap is the recipe's; what a user asks for is not clamped.
    resolved = run("llm", long, warmup=0.02)
    assert resolved.schedule.warmup_steps == 20_000
    assert run("llm", warmup=7).schedule.warmup_steps == 7
    assert run("llm", warmup="70 steps").schedule.warmup_steps == 70
    assert run("cnn", warmup="5 epochs").schedule.warmup_steps == 500
    assert run("cnn", warmup="2.5 epochs").provenance["warmup"].note == "2.5 epochs of 100 steps"
    for nothing in (0, 0.0, -0.0, "0 steps"):
        assert run("cnn", warmup=nothing).schedule.warmup_steps == 0
    assert run("cnn").schedule.warmup_start == 0.01
    assert run("llm").provenance["warmup"].origin == "recipe"
    assert run("llm", warmup=7).provenance["warmup"].origin == "yours"


def test_warmup_that_is_too_long():
    for warmup in (1000, 2000, "10 epochs"):
        [problem] = refused("cnn", warmup=warmup)
        assert problem.startswith("warmup: ") and "1,000 steps" in problem


def test_unknown_facts_are_asked_for_by_name_and_together():
    problems = refused("llm", RunFacts())
    assert len(problems) == 2
    assert problems[0].startswith("parameter_count:") and "RunFacts(parameter_count=" in problems[0]
    assert problems[1].startswith("total_steps:") and "Recipe(total_steps=...)" in problems[1]
    assert "the decay 'cosine' and the warmup (0.02 of the run) need it" in problems[1]
    assert "decay='constant' with warmup= in steps" in problems[1]
    names = [problem.partition(":")[0] for problem in refused("cnn", RunFacts(), warmup="5 epochs")]
    assert names == ["batch_size", "warmup", "total_steps"]
    assert refused("large_batch/lars", RunFacts(total_steps=5))[0].startswith("batch_size:")


def test_constant_without_a_horizon():
    facts = RunFacts(global_batch=256)
    [problem] = refused("cnn", facts, decay="constant")
    assert "warmup= in steps" in problem and "decay='constant'" not in problem
    schedule = run("cnn", facts, decay="constant", warmup=10).schedule
    assert schedule.total_steps is None and schedule.warmup_steps == 10
    assert factor(schedule, 10**9) == 1.0 and factor(schedule, 0) == pytest.approx(0.01 + 0.99 / 11)
    assert run("cnn", RunFacts(global_batch=256, steps_per_epoch=3), decay="constant", warmup="2 epochs").schedule


def test_decays():
    assert run("llm").schedule.final == 0.1 and run("llm", decay="cosine").schedule.final == 0.1
    # Another kind brings its own defaults, not the recipe's final value.
    assert run("llm", decay="linear").schedule.final == 0.0
    resolved = run("llm", decay={"final": 0.0})
    assert resolved.schedule.kind == "cosine" and resolved.schedule.final == 0.0
    assert resolved.provenance["decay"].origin == "recipe" and resolved.provenance["decay.final"].origin == "yours"
    assert run("diffusion").schedule.kind == "constant" and run("diffusion", decay="cosine").schedule.final == 0.0
    lars = run("large_batch/lars").schedule
    assert (lars.kind, lars.power, lars.final) == ("polynomial", 2.0, 1e-5)
    assert run("cnn", decay="polynomial").schedule.power == 2.0
    step = run("cnn", RunFacts(total_steps=90, global_batch=256), decay="step").schedule
    assert step.milestones == (30, 60, 80) and step.gamma == 0.1 and factor(step, 89) == pytest.approx(1e-3)
    step = run("cnn", decay={"kind": "step", "milestones": [0.5, 0.75], "gamma": 1})
    assert step.schedule.milestones == (500, 750) and step.provenance["decay.milestones"].note == "steps 500, 750"
    assert run("cnn", decay="step").provenance["decay.gamma"].origin == "default"


def test_wsd():
    resolved = run("llm", decay="wsd")
    assert (
        resolved.schedule.cooldown_steps == 200 and resolved.provenance["decay.cooldown"].note == "the last 200 steps"
    )
    assert run("llm", decay=DecaySpec(kind="wsd", cooldown=300)).schedule.cooldown_steps == 300
    assert run("llm", decay={"kind": "wsd", "cooldown": 0.11}).schedule.cooldown_steps == 110
    assert factor(resolved.schedule, 800) == 1.0 and factor(resolved.schedule, 900) == pytest.approx(0.5)
    # A shorter cooldown than asked for would be a silent change.
    [problem] = refused("llm", decay={"kind": "wsd", "cooldown": 990})
    assert problem.startswith("decay.cooldown: 990 steps after a warmup of 20")


# ---- the rest


def test_clip():
    assert run("llm").clip == ClipSpec(limit=1.0, kind="norm")
    assert run("cnn").clip is None
    for off in (0, 0.0, {"limit": 0}, ClipSpec(limit=0)):
        resolved = run("llm", clip=off)
        assert resolved.clip is None and resolved.provenance["clip"].number == 0.0
    assert run("llm", clip=2).clip == ClipSpec(limit=2.0)
    assert run("llm", clip={"limit": 0.5, "kind": "value"}).clip == ClipSpec(limit=0.5, kind="value")


def test_ema():
    assert run("llm").ema is None
    assert run("llm", ema=True).ema == EMASpec(decay=0.9999)
    assert run("llm", ema=0.999).ema == EMASpec(decay=0.999)
    assert run("diffusion").ema == EMASpec(decay=0.9999)
    for off in (False, 0, 0.0, {"decay": 0.0}):
        assert run("diffusion", ema=off).ema is None
    spec = run("llm", ema={"decay": 0.99, "start_step": 10, "checkpoint": "ema"}).ema
    assert spec == EMASpec(decay=0.99, start_step=10, checkpoint="ema")


def test_groups_as_data_and_as_objects():
    rule = GroupRule(match="backbone.*", lr_scale=0.1)
    assert run("llm", groups=[rule]).groups == (rule,)
    assert run("llm", groups=[{"match": "backbone.*", "lr_scale": 0.1}]).groups == (rule,)
    assert run("llm", groups=()).groups == ()


def test_layer_decay():
    assert run("vit").layer_decay is None and "layer_decay" not in run("vit").provenance
    resolved = run("vit", layer_decay=1)
    assert resolved.layer_decay == 1 and resolved.provenance["layer_decay"].origin == "yours"


def test_preview_leaves_open_what_is_unknown():
    for name in ALL:
        open_recipe = preview(get_recipe(name))
        assert open_recipe.lr == get_recipe(name).lr.base.number
        assert open_recipe.schedule is None
        assert preview(get_recipe(name), None, FACTS) == run(name)
    with pytest.raises(RecipeError, match="lr: -1"):
        preview(get_recipe("llm"), {"lr": -1})
    assert preview(get_recipe("cnn"), {"base_lr": 0.2}).lr == 0.2


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        ({"total_steps": 0}, "total_steps"),
        ({"total_steps": True}, "total_steps"),
        ({"total_steps": 10.5}, "total_steps"),
        ({"global_batch": -1}, "global_batch"),
        ({"tokens_per_batch": float("nan")}, "tokens_per_batch"),
        ({"parameter_count": -1}, "parameter_count"),
        ({"parameter_count": float("inf")}, "parameter_count"),
        ({"steps_per_epoch": 0.0}, "steps_per_epoch"),
        ({"steps_per_epoch": "3"}, "steps_per_epoch"),
    ],
)
def test_impossible_facts(facts, name):
    [problem] = refused("llm", RunFacts(**facts))
    assert problem.startswith(f"{name}: ")


def test_wrong_overrides_and_wrong_facts_come_together():
    problems = refused("llm", RunFacts(total_steps=-5), lr=-1, clip="x", optimizer="AdamV", warmup=1.0)
    assert [p.partition(":")[0] for p in problems] == ["lr", "optimizer", "warmup", "clip", "total_steps"]


# ---- provenance and data


def numbers_of(resolved):
    yield from (("lr", resolved.lr), ("weight_decay", resolved.weight_decay))
    yield from resolved.hyperparameters.items()
    yield "clip", resolved.clip.limit if resolved.clip else 0.0
    yield "ema", resolved.ema.decay if resolved.ema else 0.0
    if resolved.layer_decay is not None:
        yield "layer_decay", resolved.layer_decay
    yield "no_decay", resolved.no_decay
    yield from ((f"fallback.{k}", v) for k, v in resolved.fallback.items())
    yield from ((f"parts.{k}", v) for k, v in resolved.parts.items())
    yield from ((f"hints.{k}", v) for k, v in resolved.hints.items())
    s = resolved.schedule
    yield from (("decay", s.kind), ("warmup", s.warmup_steps), ("warmup_start", s.warmup_start))
    if s.kind not in ("constant", "step"):
        yield "decay.final", s.final
    if s.kind == "polynomial":
        yield "decay.power", s.power
    if s.kind == "wsd":
        yield "decay.cooldown", resolved.provenance["decay.cooldown"].number


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("overrides", [{}, {"lr": 1, "weight_decay": 0, "ema": True, "decay": "linear", "warmup": 3}])
def test_provenance_is_complete(name, overrides):
    if overrides and get_row(str(get_recipe(name).optimizer.number)).matrix:
        overrides = overrides | {"lr": 0.005}  # 1 is of another unit system
    if get_row(str(get_recipe(name).optimizer.number)).averages_itself:
        overrides = {k: v for k, v in overrides.items() if k not in ("decay", "ema")}  # it has its own
    resolved = run(name, **overrides)
    found = dict(numbers_of(resolved))
    for key, value in found.items():
        why = resolved.provenance[key]
        assert why.number == value, key
        assert why.origin in ("recipe", "yours", "registry", "default"), key
        if why.origin in ("recipe", "registry"):
            assert why.value is not None and why.value.source, key
    assert set(resolved.provenance) == {"optimizer", *found}
    yours = {key for key, why in resolved.provenance.items() if why.origin == "yours"}
    assert yours == set(overrides)


@pytest.mark.parametrize("name", ALL)
def test_as_dict_is_json(name):
    averages = get_row(str(get_recipe(name).optimizer.number)).averages_itself
    resolved = run(name, groups=[{"match": "*", "lr_scale": 1}], **({} if averages else {"ema": 0.9}))
    data = json.loads(json.dumps(resolved.as_dict(), allow_nan=False))
    assert data == resolved.as_dict()
    assert data["name"] == name and data["lr"] == resolved.lr and data["groups"][0]["match"] == "*"
    assert data["facts"]["total_steps"] == 1000 and data["schedule"]["warmup_steps"] == resolved.schedule.warmup_steps


def test_as_dict_of_a_users_class_is_json():
    resolved = run("llm", optimizer=torch.optim.Rprop, lr=1, optimizer_kwargs={"etas": (0.5, 1.2), "foreach": None})
    data = json.loads(json.dumps(resolved.as_dict()))
    assert data["hyperparameters"] == {"etas": [0.5, 1.2], "foreach": None}
    resolved = run("llm", optimizer=torch.optim.LBFGS, lr=1, optimizer_kwargs={"line_search_fn": math.sqrt})
    assert "sqrt" in json.dumps(resolved.as_dict())


def test_numpy_numbers_become_plain():
    numpy = pytest.importorskip("numpy")
    resolved = run(
        "llm",
        RunFacts(total_steps=numpy.int64(500), parameter_count=numpy.int64(10)),
        lr=numpy.float32(0.5),
        weight_decay=numpy.float64(0.25),
        betas=numpy.array([0.5, 0.75]).tolist(),
        warmup=numpy.float32(0.125),
        clip=numpy.float32(2),
        ema=numpy.float32(0.5),
        optimizer_kwargs={"eps": numpy.float32(0.5)},
        decay=DecaySpec(final=numpy.float32(0.5)),
        groups=[GroupRule(match="*", lr_scale=numpy.float32(0.5))],
    )
    assert (resolved.lr, resolved.weight_decay, resolved.schedule.warmup_steps) == (0.5, 0.25, 62)

    def walk(x):
        if isinstance(x, dict):
            for item in x.values():
                walk(item)
        elif isinstance(x, list):
            for item in x:
                walk(item)
        else:
            assert type(x) in (int, float, str, bool, type(None)), x

    walk(resolved.as_dict())
    assert type(resolved.hyperparameters["eps"]) is float and type(resolved.groups[0].lr_scale) is float
    assert type(run("llm", weight_decay=-0.0).weight_decay) is float
    assert math.copysign(1, run("llm", weight_decay=-0.0).weight_decay) == 1


def test_nothing_is_clamped_and_what_is_outside_is_labelled():
    text = as_text(recipe_table(run("llm", lr=1, weight_decay=0.5, warmup=0.25, clip=1e6, ema=0.5)), width=200)
    rows = {line.split()[0]: line for line in text.splitlines()[2:]}
    assert "outside 0.0001 .. 0.0006" in rows["lr"] and "instead of 0.0006 (peak, per step" in rows["lr"]
    assert "outside 0.01 .. 0.1" in rows["weight_decay"] and "instead of 0.1 (" in rows["weight_decay"]
    assert "outside 0.01 .. 0.05 of the run" in rows["warmup"] and "250" in rows["warmup"]
    assert "1e+06" in rows["clip"]
    huge = run("llm", RunFacts(total_steps=10, parameter_count=10**12))
    assert "outside 0.0001 .. 0.0006" in as_text(recipe_table(huge), width=200)
    assert "outside" not in as_text(recipe_table(run("llm")), width=200)
    # Scaling may leave the range as well, and says so with its arithmetic.
    text = as_text(recipe_table(run("vit", batch_size=1024)), width=200)
    assert "0.00025 at 256 samples x 4 (linear then sqrt) at 1,024; outside 0.0001 .. 0.0003" in text


def test_random_overrides_resolve_to_themselves():
    rng = random.Random(0)
    names = [n for n in list_recipes() if not get_row(str(get_recipe(n).optimizer.number)).averages_itself]
    # A cooldown and any warmup do not always fit into the run.
    names = [n for n in names if get_recipe(n).decay.kind.number != "wsd"]
    for _ in range(200):
        name = rng.choice(names)
        betas = "betas" in get_recipe(name).hyperparameters
        asked = {
            "lr": 10 ** rng.uniform(-8, 3),
            "weight_decay": rng.choice([0, 10 ** rng.uniform(-8, 3)]),
            "clip": 10 ** rng.uniform(-8, 3),
            "ema": rng.uniform(0.001, 0.99999),
            "warmup": rng.randint(0, 999),
            ("betas" if betas else "momentum"): (rng.random(), rng.random()) if betas else rng.random(),
            "layer_decay": rng.uniform(0.01, 1),
        }
        kwargs = None
        if "scale" in get_recipe(name).hyperparameters:
            # Whoever names the scale may have any rate.
            kwargs = {"scale": get_recipe(name).hyperparameters["scale"].number}
        resolved = run(name, **asked, optimizer_kwargs=kwargs)
        assert (resolved.lr, resolved.weight_decay) == (asked["lr"], asked["weight_decay"])
        assert (resolved.clip.limit, resolved.ema.decay) == (asked["clip"], asked["ema"])
        assert resolved.schedule.warmup_steps == asked["warmup"] and resolved.layer_decay == asked["layer_decay"]
        key = "betas" if betas else "momentum"
        assert resolved.hyperparameters[key] == asked[key]


def test_numbers_as_people_write_them():
    assert [number(x) for x in (0.0003, 6e-05, 10.0, 0.0, 1500000, True, False, (0.9, 0.95), "cosine", None)] == [
        "0.0003", "6e-05", "10", "0", "1,500,000", "on", "off", "(0.9, 0.95)", "cosine", "None",
    ]  # fmt: skip
