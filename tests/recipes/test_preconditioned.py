"""The numbers of llm/soap, llm/shampoo and llm/splus, and that they are the setting's but for the optimizer."""

import pytest

from lit_opt.optim import get_row
from lit_opt.recipes import get_recipe
from lit_opt.resolve import RunFacts, resolve

FACTS = RunFacts(total_steps=1000, global_batch=256, tokens_per_batch=2**19, parameter_count=124_000_000)
NUMBERS = {
    "llm/soap": {
        "lr": 3e-3,
        "weight_decay": 0.01,
        "betas": (0.95, 0.95),
        "precondition_frequency": 10,
        "fallback": {"lr": 3e-3, "betas": (0.95, 0.95), "eps": 1e-8, "weight_decay": 0.01},
    },
    "llm/shampoo": {
        "lr": 6e-4,
        "weight_decay": 0.1,
        "betas": (0.9, 0.95),
        "grafting": "adam",
        "eps": 1e-12,
        "precondition_frequency": 100,
        "max_preconditioner_dim": 8192,
        "fallback": {"lr": 6e-4, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1},
    },
    "llm/splus": {
        "lr": 0.2,
        "weight_decay": 0.1,
        "betas": (0.9, 0.999),
        "ema_rate": 0.999,
        "precondition_frequency": 100,
        "fallback": {"lr": 3e-4, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.01},
    },
}


@pytest.mark.parametrize("name", NUMBERS)
def test_the_numbers_of_a_run(name: str):
    resolved = resolve(get_recipe(name), facts=FACTS)
    found = {"lr": resolved.lr, "weight_decay": resolved.weight_decay, "fallback": resolved.fallback}
    found |= resolved.hyperparameters
    assert {key: found[key] for key in NUMBERS[name]} == NUMBERS[name]


@pytest.mark.parametrize("name", NUMBERS)
def test_a_recipe_is_its_setting_but_for_the_optimizer(name: str):
    mine, setting = get_recipe(name), get_recipe("llm")
    fields = ["no_decay", "warmup", "clip", "ema", "hints", "parts", "layer_decay"]
    if name != "llm/splus":
        fields.append("decay")
    for field in fields:
        assert getattr(mine, field) == getattr(setting, field), field


@pytest.mark.parametrize("name", ["llm/soap", "llm/splus"])
def test_the_registry_has_the_same_numbers(name: str):
    spec = get_recipe(name)
    published = get_row(str(spec.optimizer.number)).settings["llm"]
    assert published.lr.number == spec.lr.base.number
    assert published.weight_decay.number == spec.weight_decay.number
    for key, value in published.hyperparameters.items():
        assert value.number == spec.hyperparameters[key].number


def test_splus_has_a_constant_rate_and_no_average_beside_its_own():
    resolved = resolve(get_recipe("llm/splus"), facts=FACTS)
    assert resolved.schedule is not None and resolved.schedule.kind == "constant"
    assert resolved.ema is None or not resolved.ema.decay
