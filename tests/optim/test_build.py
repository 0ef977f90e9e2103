import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lit_opt.errors import RecipeError
from lit_opt.optim import build, get_row, list_optimizers
from lit_opt.optim.schema import REQUIRED
from tests.rows import ALONE, EXACT


def matrix(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.ones(*shape or (2, 3)))


def problems_of(name: str, params: Any, **hyperparameters: Any) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        build(name, params, **hyperparameters)
    return caught.value.problems


def needed_by(name: str, weight: nn.Parameter) -> dict[str, Any]:
    """What has no default, beside lr: the module that has the weight, a number of steps."""
    layer = nn.Linear(1, 1, bias=False)
    layer.weight = weight
    needed: dict[str, Any] = {"module": layer} if get_row(name).needs_module else {}
    return needed | ({"freeze_step": 9} if name == "onebit_adam" else {})


def test_unknown_keyword_has_the_nearest_and_the_list():
    assert problems_of("adamw", [matrix()], lr=0.1, weight_decya=0.1) == [
        "weight_decya: adamw has no such keyword. Did you mean 'weight_decay'? Allowed: lr, betas, eps, weight_decay."
    ]


def test_a_keyword_that_the_row_fixes_cannot_be_set():
    (problem,) = problems_of("nesterov", [matrix()], lr=0.1, nesterov=False)
    assert problem.startswith("nesterov: False cannot be set, nesterov always has nesterov=True.")


def test_unknown_optimizer():
    with pytest.raises(RecipeError, match=r"'adamwx' is unknown\. Did you mean 'adamw'"):
        build("adamwx", [matrix()], lr=0.1)


@pytest.mark.parametrize(
    ("name", "keyword", "value", "part"),
    [
        ("adamw", "lr", -1e-3, "lr: -0.001 is out of bounds. Allowed: 0 or more."),
        ("adamw", "lr", float("nan"), "lr: nan is not a finite number."),
        ("adamw", "lr", float("inf"), "lr: inf is not a finite number."),
        ("adamw", "lr", "3e-4", "lr: '3e-4' is not a number. Without quotes; in YAML write 3.0e-4."),
        ("adamw", "lr", "0.1", "lr: '0.1' is not a number. Write 0.1 without quotes."),
        ("adamw", "lr", None, "lr: None is not a number."),
        ("adamw", "lr", True, "lr: True is not a number."),
        ("adamw", "lr", torch.tensor(0.1), "A tensor: write float(...)."),
        ("adamw", "weight_decay", -0.1, "weight_decay: -0.1 is out of bounds. Allowed: 0 or more."),
        ("adamw", "eps", -1e-8, "eps: -1e-08 is out of bounds."),
        ("adamw", "betas", 0.9, "betas: 0.9 is not 2 numbers, such as (0.9, 0.999)."),
        ("adamw", "betas", (0.9,), "betas: (0.9,) is not 2 numbers"),
        ("adamw", "betas", (0.9, 1.0), "betas: 1 is out of bounds. Allowed: 0 or more and below 1."),
        ("adamw", "betas", (-0.1, 0.9), "betas: -0.1 is out of bounds."),
        ("adamw", "betas", (float("nan"), 0.9), "betas: nan is not a finite number."),
        ("sgd", "momentum", 1.0, "momentum: 1 is out of bounds. Allowed: 0 or more and below 1."),
        ("sgd", "momentum", -0.9, "momentum: -0.9 is out of bounds."),
        ("sgd", "nesterov", 1, "nesterov: 1 is not True or False."),
        ("lars", "trust_coeff", -1, "trust_coeff: -1 is out of bounds."),
        ("lamb", "max_grad_norm", 0, "max_grad_norm: 0 would stop all training."),
        ("lamb", "bias_correction", "yes", "bias_correction: 'yes' is not True or False."),
    ],
)
def test_values_are_checked_in_the_call_and_in_a_group(name: str, keyword: str, value: Any, part: str):
    (problem,) = problems_of(name, [matrix()], **{"lr": 0.1, keyword: value})
    assert part in problem
    if keyword != "max_grad_norm":
        group = {"params": [matrix()], "name": "head", keyword: value}
        (problem,) = problems_of(name, [group], lr=0.1)
        assert problem.startswith(f"groups[0] ('head'): {keyword}: ")
        assert part in problem


@pytest.mark.parametrize("name", list_optimizers())
def test_missing_lr_names_the_published_values(name: str):
    weight = matrix()
    (problem,) = problems_of(name, [weight], **needed_by(name, weight))
    assert problem.startswith(f"lr: missing. {name} has no default")
    for published in get_row(name).settings.values():
        assert f"{published.lr.number:g} ({published.lr.unit})" in problem


def test_missing_lr_in_one_of_two_groups():
    groups: list[dict[str, Any]] = [{"params": [matrix()], "lr": 0.1}, {"params": [matrix()]}]
    assert problems_of("adamw", groups)[0].startswith("lr: missing.")
    groups[1]["lr"] = 0.2
    assert [g["lr"] for g in build("adamw", groups).param_groups] == [0.1, 0.2]


@pytest.mark.parametrize(
    ("name", "keywords", "group"),
    [
        ("nesterov", {"momentum": 0}, {}),
        ("nesterov", {}, {"momentum": 0.0}),
        ("sgd", {"momentum": 0.0, "nesterov": True}, {}),
        ("sgd", {"nesterov": True}, {"momentum": 0.0}),
        ("sgd", {"momentum": 0.0}, {"nesterov": True}),
        ("lars", {"momentum": 0.0, "nesterov": True}, {}),
    ],
)
def test_nesterov_needs_momentum(name: str, keywords: dict[str, Any], group: dict[str, Any]):
    (problem,) = problems_of(name, [{"params": [matrix()], **group}], lr=0.1, **keywords)
    assert "momentum: 0.0 with Nesterov momentum" in problem
    assert problem.startswith("groups[0]") == bool(group)


def test_all_problems_at_once():
    weight = matrix()
    groups: list[dict[str, Any]] = [
        {"params": [weight], "name": "a", "weight_decay": -1, "algorithm": "muon"},
        {"params": [weight, weight * 2], "name": "a", "lrr": 3},
    ]
    problems = problems_of("adamw", groups, betsa=1, eps=-1.0)
    assert len(problems) == 9
    for part in (
        "betsa: adamw has no such keyword",
        "eps: -1 is out of bounds",
        "groups[0] ('a'): algorithm: 'muon' in an optimizer 'adamw'",
        "groups[1] ('a'): name: 'a' is used twice",
        "groups[1] ('a'): parameter 0 of shape (2, 3) is there twice",
        "groups[1] ('a'): parameter 1 of shape (2, 3) is not a leaf",
        "groups[0] ('a'): weight_decay: -1 is out of bounds",
        "groups[1] ('a'): lrr: not an option of a group. Did you mean 'lr'?",
        "lr: missing",
    ):
        assert any(part in problem for problem in problems), part


@pytest.mark.parametrize(
    ("params", "part"),
    [
        ([], "params: empty"),
        (iter([]), "params: empty"),
        (nn.Linear(2, 2), "Type params=module.parameters()"),
        (torch.ones(2), "params: Tensor is not a list"),
        ({"params": [matrix()]}, "params: dict is not a list"),
        ({matrix()}, "params: set is not a list"),
        (3, "params: int is not a list"),
        ([3], "params: int is not a tensor"),
        ([matrix(), {"params": [matrix()]}], "group dicts and tensors are mixed"),
        ([matrix(), ("weight", matrix())], "named and unnamed tensors are mixed"),
        ([{"name": "decay"}], "groups[0] ('decay'): has no 'params'."),
        ([{"params": []}], "groups[0]: params: empty."),
        ([{"params": 3}], "groups[0]: params: int is not a list of tensors."),
        ([{"params": [matrix(), 3]}], "groups[0]: int is not a tensor"),
        ([matrix() * 2], "parameter 0 of shape (2, 3) is not a leaf"),
    ],
)
def test_params_are_checked(params: Any, part: str):
    (problem,) = problems_of("adamw", params, lr=0.1)
    assert part in problem


def test_a_parameter_twice_in_one_list():
    weight = matrix()
    assert "is there twice" in problems_of("adamw", [weight, matrix(), weight], lr=0.1)[0]
    assert "is there twice" in problems_of("adamw", [("a", weight), ("b", weight)], lr=0.1)[0]


def test_an_option_for_all_groups_cannot_be_in_one():
    (problem,) = problems_of("lamb", [{"params": [matrix()], "max_grad_norm": 1.0}], lr=0.1)
    assert problem == "groups[0]: max_grad_norm: lamb has one for all groups. Pass it to build as max_grad_norm=..."


def test_the_ways_to_pass_parameters_are_equal():
    def trained(way: str) -> torch.Tensor:
        torch.manual_seed(0)
        module = nn.Linear(3, 2)
        params: Any = {
            "tensors": module.parameters(),
            "pairs": module.named_parameters(),
            "list": list(module.parameters()),
            "groups": [{"params": module.parameters()}],
            "groups of pairs": [{"params": list(module.named_parameters())}],
            "group of a tensor": [{"params": module.weight}, {"params": module.bias}],
        }[way]
        optimizer = build("adamw", params, lr=0.1)
        module(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        return module.weight.detach().clone()

    ways = ("tensors", "pairs", "list", "groups", "groups of pairs", "group of a tensor")
    assert all(torch.equal(trained(way), trained("tensors")) for way in ways)


def test_names_are_kept():
    module = nn.Linear(3, 2)
    assert build("adamw", module.named_parameters(), lr=0.1).param_groups[0]["param_names"] == ["weight", "bias"]
    groups: list[dict[str, Any]] = [
        {"params": [module.weight], "name": "decay", "algorithm": "adamw"},
        {"params": [module.bias], "name": None},
    ]
    built = build("adamw", groups, lr=0.1).param_groups
    assert [(g.get("name"), g["algorithm"]) for g in built] == [("decay", "adamw"), (None, "adamw")]


def test_the_users_groups_are_not_changed():
    group = {"params": [matrix()], "weight_decay": 0}
    before = dict(group)
    build("lars", [group], lr=1)
    assert group == before


def test_values_become_plain_python():
    optimizer = build("adamw", [{"params": [matrix()], "lr": np.float32(0.5)}], betas=[np.float64(0.5), 0], lr=1)
    group = optimizer.param_groups[0]
    assert type(group["lr"]) is float
    assert group["betas"] == (0.5, 0.0)
    assert [type(beta) for beta in group["betas"]] == [float, float]
    assert type(optimizer.defaults["lr"]) is float


def test_no_hyperparameter_of_the_provider_slips_in():
    """What a row does not list keeps the provider's default; for timm's LAMB that would be a clip at 1."""
    assert build("lamb", [matrix()], lr=0.1).defaults["max_grad_norm"] is None
    assert build("lamb", [matrix()], lr=0.1, max_grad_norm=1.0).defaults["max_grad_norm"] == 1.0
    assert build("lars", [matrix()], lr=0.1).defaults["eps"] == 0.0
    for name in EXACT:
        weight = matrix()
        built = build(name, [weight], lr=0.1, **needed_by(name, weight)).param_groups[0]
        row = get_row(name)
        own = row.global_only if row.wraps else ()  # the wrapper's, kept by itself
        defaults = {k: v for k, v in row.hyperparameters.items() if v is not REQUIRED and k not in own}
        # Read once and kept in no group, as pytorch_optimizer has it for amsbound.
        assert set(defaults) - set(built) <= set(get_row(name).global_only)
        assert {k: v for k, v in built.items() if k in defaults} == {k: v for k, v in defaults.items() if k in built}


@pytest.mark.parametrize("name", ["lars", "lamb"])
def test_who_adapts(name: str):
    assert build(name, [matrix()], lr=1.0, weight_decay=0).param_groups[0]["always_adapt"] is True
    groups: list[dict[str, Any]] = [
        {"params": [matrix()], "name": "decay"},
        {"params": [matrix()], "name": "no_decay", "weight_decay": 0},
        {"params": [matrix()], "name": "own", "weight_decay": 0, "always_adapt": True},
        {"params": [matrix()], "name": "decayed, own", "weight_decay": 0.1, "always_adapt": False},
    ]
    for decay in (0.0, 0.1):
        built = build(name, groups, lr=1.0, weight_decay=decay).param_groups
        assert [g["always_adapt"] for g in built] == [True, False, True, False]


def test_always_adapt_is_not_an_option_of_others():
    assert "always_adapt" in problems_of("adamw", [{"params": [matrix()], "always_adapt": True}], lr=0.1)[0]


def test_tensors_may_be_frozen():
    frozen = matrix().requires_grad_(False)
    assert len(build("adamw", [frozen, matrix(3)], lr=0.1).param_groups[0]["params"]) == 2


@pytest.mark.parametrize("name", ALONE)
def test_no_provider_refuses_what_the_row_allows(name: str):
    """At the ends of what a keyword may be an optimizer is built, or the refusal is ours."""
    row = get_row(name)
    needed = {key: 0.5 for key, default in row.hyperparameters.items() if default is REQUIRED}
    for key, default in row.hyperparameters.items():
        if isinstance(default, bool | str | Mapping) or key in row.choices:
            continue
        for value in (0, 1e-9, 0.999, 1, 1e6):
            given = (value,) * len(default) if isinstance(default, tuple) else value
            with contextlib.suppress(RecipeError):
                build(name, [matrix()], **{**needed, key: given})
