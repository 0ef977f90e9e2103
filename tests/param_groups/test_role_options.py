"""A matrix method that takes heads and embeddings too, in a norm of their own."""

import pytest
import torch
from torch import nn

from lit_opt import Recipe
from lit_opt.param_groups import group_parameters
from lit_opt.recipes.schema import GroupRule
from lit_opt.workloads import LanguageModel


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return LanguageModel()


def test_head_and_embedding_go_to_scion_in_their_norm_and_the_rest_to_adamw(model: nn.Module):
    groups = group_parameters(model, "llm/scion")
    rows = {row.name: row for row in groups.rows()}
    ends = {row.group for name, row in rows.items() if "embed" in name or "lm_head" in name}
    assert all(group.endswith("/last") for group in ends) and ends
    assert all(row.algorithm == "adamw" for name, row in rows.items() if "norm" in name)
    assert any("last=True" in row.reason for row in rows.values())
    made = {group["name"]: group for group in groups.for_optimizer(model.named_parameters())}
    assert all(made[name]["last"] is True and made[name]["weight_decay"] == 1.0 for name in ends)
    assert not any(group.get("last") for name, group in made.items() if name not in ends)


def test_the_optimizer_gives_them_the_sign_and_the_large_radius(model: nn.Module):
    optimizer, _ = Recipe("llm/scion").configure(model, total_steps=10)
    kinds = {group["name"]: (group.get("norm"), group.get("scale")) for group in optimizer.param_groups}
    assert {kind for name, kind in kinds.items() if name.endswith("/last")} == {("Sign", 3000.0)}
    assert kinds["decay"] == ("Spectral", 50.0)


def test_a_rule_of_the_users_wins(model: nn.Module):
    recipe = Recipe("llm/scion", groups=[GroupRule(match="*embed*", algorithm="adamw")])
    optimizer, _ = recipe.configure(model, total_steps=10)
    embedding = next(p for name, p in model.named_parameters() if "embed" in name)
    [group] = [group for group in optimizer.param_groups if any(p is embedding for p in group["params"])]
    assert group["algorithm"] == "adamw" and "last" not in group


def test_other_matrix_methods_leave_them_as_before(model: nn.Module):
    names = {row.algorithm for row in group_parameters(model, "llm/muon").rows() if "embed" in row.name}
    assert names == {"adamw"}


def test_a_few_steps_descend(model: nn.Module):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(16, 8), nn.Flatten(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 16))
    optimizer, _ = Recipe("llm/scion", lr=2**-9, optimizer_kwargs={"scale": 5.0, "last_scale": 50.0}).configure(
        net, total_steps=80
    )
    ids = torch.randint(16, (64, 4))
    losses = []
    for _ in range(80):
        loss = nn.functional.cross_entropy(net(ids), ids[:, 0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
