from __future__ import annotations

import copy
import pickle
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from rich.console import Console
from torch import nn

from lit_opt.errors import RecipeError
from lit_opt.optim.registry import get_row, list_optimizers
from lit_opt.param_groups import ParamGroups, group_parameters, snapshot_parameters
from lit_opt.recipes import get_recipe
from lit_opt.recipes.schema import GroupRule
from lit_opt.resolve import preview
from lit_opt.resolve.resolved import ResolvedRecipe, RunFacts


def recipe(**changes) -> ResolvedRecipe:
    return replace(preview(get_recipe("llm")), **changes)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.backbone = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight

    def no_weight_decay(self):
        return {"backbone.0.weight"}


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))


def test_name_spec_and_resolved_recipe_agree():
    spec = get_recipe("llm")
    rows = group_parameters(mlp(), "llm").rows()
    assert rows == group_parameters(mlp(), spec).rows()
    facts = RunFacts(parameter_count=snapshot_parameters(mlp()).parameter_count)
    assert rows == group_parameters(snapshot_parameters(mlp()), preview(spec, facts=facts)).rows()


def test_the_learning_rate_follows_the_model_size():
    with torch.device("meta"):
        large = nn.Sequential(*(nn.Linear(10_000, 10_000, bias=False) for _ in range(5)))
    small = group_parameters(mlp(), "llm").rows()[0].lr
    assert small == pytest.approx(6e-4)
    assert group_parameters(large, "llm").rows()[0].lr == pytest.approx(3e-4)


def test_rows_are_frozen_and_in_the_modules_order():
    rows = group_parameters(mlp(), "llm").rows()
    assert [r.name for r in rows] == [n for n, _ in mlp().named_parameters()]
    with pytest.raises(FrozenInstanceError):
        rows[0].lr = 1.0  # type: ignore[misc]
    assert (rows[0].shape, rows[0].algorithm, rows[0].weight_decay) == ((8, 4), "adamw", 0.1)


def test_reasons_are_sentences():
    reasons = {r.name: r.reason for r in group_parameters(Net(), "llm").rows()}
    assert reasons == {
        "embed.weight": "embedding table (Embedding), tied with head.weight: not decayed",
        "backbone.0.weight": "listed in Net.no_weight_decay(): not decayed",
        "backbone.0.bias": "bias of Linear: not decayed",
        "backbone.1.weight": "norm gain (LayerNorm): not decayed",
        "backbone.1.bias": "bias of LayerNorm: not decayed",
    }


def test_no_decay_of_the_recipe_decides_and_the_models_list_stays():
    rows = {r.name: r.group for r in group_parameters(Net(), recipe(no_decay=("bias",))).rows()}
    assert rows == {
        "embed.weight": "decay",
        "backbone.0.weight": "no_decay",
        "backbone.0.bias": "no_decay",
        "backbone.1.weight": "decay",
        "backbone.1.bias": "no_decay",
    }


def test_an_unknown_role_is_refused():
    with pytest.raises(RecipeError, match=r"no_decay: 'norms' is not a role\. Did you mean 'norm'\?"):
        group_parameters(mlp(), recipe(no_decay=("norms",)))


def test_groups_carry_what_an_optimizer_needs():
    module = mlp()
    groups = group_parameters(module, "llm").for_optimizer(module.named_parameters())
    assert [(g["name"], g["algorithm"], g["weight_decay"]) for g in groups] == [
        ("decay", "adamw", 0.1),
        ("no_decay", "adamw", 0.0),
    ]
    assert [id(p) for p in groups[0]["params"]] == [id(module[0].weight), id(module[2].weight)]
    assert set(groups[0]) == {"params", "name", "algorithm", "lr", "weight_decay"}
    torch.optim.AdamW(groups)


@pytest.mark.parametrize("name", list_optimizers())
def test_options_of_the_registry_row_go_into_the_groups(name):
    module, row = mlp(), get_row(name)
    if row.matrix:
        assert not row.decayed_group and not row.excluded_group  # tests/param_groups/test_routing.py
        return
    decay, no_decay = group_parameters(module, recipe(optimizer=name)).for_optimizer(module.named_parameters())
    assert {k: decay[k] for k in row.decayed_group} == dict(row.decayed_group)
    assert {k: no_decay[k] for k in row.excluded_group} == dict(row.excluded_group)
    assert decay["algorithm"] == name


def test_some_row_has_such_options():
    assert any(get_row(name).excluded_group for name in list_optimizers())


def test_an_optimizer_class_gives_its_name():
    module = mlp()
    groups = group_parameters(module, recipe(optimizer=torch.optim.Adamax)).for_optimizer(module.named_parameters())
    assert {g["algorithm"] for g in groups} == {"Adamax"}


def test_groups_without_members_are_left_out():
    module = nn.Linear(2, 2, bias=False)
    groups = group_parameters(module, "llm").for_optimizer(module.named_parameters())
    assert [g["name"] for g in groups] == ["decay"]


# --- the user's rules ---------------------------------------------------------------------------------------------


def test_first_rule_wins_and_its_values_are_final():
    rules = (
        GroupRule(match="0.bias", weight_decay=0.2),
        GroupRule(match="0.*", lr_scale=0.1),
        GroupRule(match="*.weight", weight_decay=0.0, lr_scale=2.0),
    )
    rows = {r.name: r for r in group_parameters(mlp(), recipe(groups=rules, lr=1e-3)).rows()}
    assert (rows["0.bias"].group, rows["0.bias"].weight_decay, rows["0.bias"].lr) == ("decay/0.bias", 0.2, 1e-3)
    assert (rows["0.weight"].group, rows["0.weight"].weight_decay) == ("decay/0", 0.1)
    assert rows["0.weight"].lr == pytest.approx(1e-4)
    assert rows["2.weight"].group == "no_decay/weight"
    assert rows["2.weight"].lr == pytest.approx(2e-3)
    assert rows["2.bias"].group == "no_decay"
    assert rows["0.weight"].reason == "weight of Linear: decayed; your rule '0.*': lr x 0.1"
    assert rows["2.weight"].reason.endswith("your rule '*.weight': lr x 2, weight decay 0")


def test_a_rule_finds_a_tied_weight_under_each_of_its_names():
    groups = group_parameters(Net(), recipe(groups=(GroupRule(match="head.weight", lr_scale=0.5),)))
    assert {r.name: r.group for r in groups.rows()}["embed.weight"] == "no_decay/head.weight"


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            (GroupRule(match="backbon.0.weight", lr_scale=1.0),),
            r"matches no parameter\. Did you mean 'backbone.0.weight'",
        ),
        ((GroupRule(match="zzz", lr_scale=1.0),), r"matches no parameter\. Names are such as 'embed.weight'"),
        (
            (GroupRule(match="backbone.*", lr_scale=1.0), GroupRule(match="backbone.1.*", lr_scale=0.1)),
            r"'backbone\.1\.\*' never applies: 'backbone\.\*' comes first",
        ),
    ],
)
def test_rules_without_effect_are_refused(rules, message):
    with pytest.raises(RecipeError, match=message):
        group_parameters(Net(), recipe(groups=rules))


def test_a_rule_for_frozen_parameters_says_so():
    module = mlp()
    module[0].requires_grad_(False)
    with pytest.raises(RecipeError, match=r"only frozen parameters, such as '0\.weight'"):
        group_parameters(module, recipe(groups=(GroupRule(match="0.*", lr_scale=0.1),)))


def test_all_problems_come_at_once():
    rules = (GroupRule(match="a", lr_scale=1.0), GroupRule(match="b", lr_scale=1.0))
    with pytest.raises(RecipeError) as caught:
        group_parameters(mlp(), recipe(groups=rules, layer_decay=0.5, no_decay=("x",)))
    assert len(caught.value.problems) == 4


def test_names_are_unique_whatever_the_globs_look_like():
    rules = (
        GroupRule(match="0.*", lr_scale=0.1),
        GroupRule(match="1.*", lr_scale=0.2),
        GroupRule(match="*2*", lr_scale=0.3),
    )
    module = mlp()
    names = [s.name for s in group_parameters(module, recipe(groups=rules)).summary()]
    assert names == ["decay/0", "no_decay/0", "no_decay/1", "decay/2", "no_decay/2"]
    module.add_module("10", nn.Linear(2, 2))
    two = (GroupRule(match="*0.weight", lr_scale=0.1), GroupRule(match="*0.weigh?", lr_scale=0.1))
    with pytest.raises(RecipeError, match="never applies"):
        group_parameters(module, recipe(groups=two))
    clash = (GroupRule(match="0.weight", lr_scale=0.1), GroupRule(match="*0.weight", lr_scale=0.2))
    names = [s.name for s in group_parameters(module, recipe(groups=clash)).summary()]
    assert len(names) == len(set(names)) == 4


# --- frozen, live and sharded -------------------------------------------------------------------------------------


def test_frozen_parameters_have_no_row():
    module = mlp()
    module[0].requires_grad_(False)
    groups = group_parameters(module, "llm")
    assert [r.name for r in groups.rows()] == ["1.weight", "1.bias", "2.weight", "2.bias"]
    assert sum(len(g["params"]) for g in groups.for_optimizer(module.named_parameters())) == 4


def test_nothing_trainable_is_refused():
    with pytest.raises(RecipeError, match="none of the module's 6 parameters is trainable"):
        group_parameters(mlp().requires_grad_(False), "llm")
    with pytest.raises(RecipeError, match="0 parameters"):
        group_parameters(nn.ReLU(), "llm")
    module = mlp()
    groups = group_parameters(module, "llm")
    with pytest.raises(RecipeError, match="all are frozen now"):
        groups.for_optimizer(module.requires_grad_(False).named_parameters())


def test_frozen_after_the_snapshot_is_left_out():
    module = mlp()
    groups = group_parameters(module, "llm")
    module[0].requires_grad_(False)
    assert sum(len(g["params"]) for g in groups.for_optimizer(module.named_parameters())) == 4


def test_live_parameters_that_do_not_fit_are_named_all_at_once():
    module = mlp()
    module[2].requires_grad_(False)
    groups = group_parameters(module, "llm")
    module[2].bias.requires_grad_(True)
    live = [(n, p) for n, p in module.named_parameters() if n != "0.weight"]
    with pytest.raises(RecipeError) as caught:
        groups.for_optimizer([*live, ("0.weigth", nn.Parameter(torch.zeros(1)))])
    text = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 3
    assert "'2.bias' was frozen when" in text
    assert "'0.weigth' is trainable and was not in the module" in text and "Did you mean '0.weight'?" in text
    assert "'0.weight' has a group and is no longer in the module" in text


def test_broken_ties_are_refused_and_all_names_of_a_tie_are_one():
    module = Net()
    groups = group_parameters(module, "llm")
    both = groups.for_optimizer(module.named_parameters(remove_duplicate=False))
    assert sum(len(g["params"]) for g in both) == 5
    module.head.weight = nn.Parameter(module.head.weight.detach().clone())
    with pytest.raises(RecipeError, match=r"'head.weight' was tied with 'embed.weight'.*Tie the weights again"):
        groups.for_optimizer(module.named_parameters())


def test_wrapper_parts_in_live_names():
    module = mlp()
    groups = group_parameters(module, "llm")
    named = [(f"_fsdp_wrapped_module.{n}", p) for n, p in module.named_parameters()]
    assert groups.for_optimizer(named) == groups.for_optimizer(module.named_parameters())


def test_plain_tensors_and_tensors_of_two_meshes_never_share_a_group():
    module = mlp()
    groups = group_parameters(module, "llm")
    named = list(module.named_parameters())
    for (_, tensor), mesh in zip(named, ["a", "a", "b", "b", None, None], strict=True):
        if mesh is not None:
            tensor.device_mesh = mesh  # type: ignore[attr-defined]
    live = groups.for_optimizer(named)
    assert [(g["name"], len(g["params"])) for g in live] == [
        ("decay/mesh_1", 1),
        ("decay/plain", 1),
        ("no_decay/mesh_1", 1),
        ("no_decay/mesh_2", 2),
        ("no_decay/plain", 1),
    ]


# --- shape of the result ------------------------------------------------------------------------------------------


def test_groups_pickle_and_copy():
    groups = group_parameters(mlp(), "llm")
    for other in (pickle.loads(pickle.dumps(groups)), copy.deepcopy(groups)):
        assert isinstance(other, ParamGroups)
        assert other.rows() == groups.rows()


def test_summary_and_tables():
    groups = group_parameters(mlp(), "llm")
    first, second = groups.summary()
    assert (first.name, first.tensors, first.parameters) == ("decay", 2, 48)
    assert (second.name, second.tensors, second.parameters) == ("no_decay", 4, 26)
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(groups.table())
    console.print(groups.table(rows=True))
    text = console.export_text()
    assert "no_decay" in text and "norm gain (LayerNorm): not decayed" in text and "8 x 4" in text


def test_layer_decay_without_layers_is_refused():
    with pytest.raises(RecipeError, match=r"layer_decay: 0\.75 needs layers"):
        group_parameters(mlp(), recipe(layer_decay=0.75))
    assert len(group_parameters(mlp(), recipe(layer_decay=1.0)).summary()) == 2


def test_lora_matrices_are_decayed_and_the_frozen_base_is_out():
    module = nn.ModuleDict({"base": nn.Linear(4, 4), "lora_A": nn.Linear(4, 1, bias=False)})
    module["base"].requires_grad_(False)
    (row,) = group_parameters(module, "llm").rows()
    assert (row.name, row.group, row.reason) == ("lora_A.weight", "decay", "adapter (LoRA) matrix: decayed")
