"""The plan and the checks on litgpt's own GPT."""

from __future__ import annotations

import pytest

from lit_opt import Recipe
from lit_opt.recipes.schema import GroupRule
from tests.preflight.litgpt_models import HERE, INSTALL, MODELS, build, checked_as_litgpt_trains, checked_with_recipe

pytestmark = pytest.mark.skipif(
    not HERE, reason=f"litgpt is not importable, and its pins shut out transformers 5 ({INSTALL})"
)


def loud(report):
    return [finding.id for finding in report.findings if finding.level != "note"]


@pytest.mark.parametrize("name", MODELS)
def test_the_plan(name):
    recipe, millions, lines = MODELS[name]
    plan = Recipe(recipe).plan(build(name), batch_size=1024, total_steps=100_000)
    assert plan.parameters["trainable"] / 1e6 == pytest.approx(millions, rel=1e-3)
    assert len(plan.folded) == lines
    rows = {row.name: row for row in plan.rows}
    matrix = "muon" if recipe == "llm/muon" else "adamw"
    for part in ("attn.qkv", "attn.proj"):
        row = rows[f"transformer.h.0.{part}.weight"]
        assert row.algorithm == matrix and row.weight_decay > 0
    experts = [row for name, row in rows.items() if ".experts." in name]
    assert all(row.algorithm == "muon" and row.weight_decay > 0 for row in experts)
    assert bool(experts) == ("transformer.h.0.mlp.gate.weight" in rows) == ("Mixtral" in name)
    assert rows["lm_head.weight"].algorithm == rows["transformer.wte.weight"].algorithm == "adamw"
    assert rows["lm_head.weight"].weight_decay > 0 == rows["transformer.wte.weight"].weight_decay
    vectors = [row for row in rows.values() if len(row.shape) == 1]
    assert vectors and all(row.algorithm == "adamw" and row.weight_decay == 0 for row in vectors)


def test_fused_queries_keys_and_values_can_be_split():
    """litgpt puts 3584 outputs of queries, 512 of keys and 512 of values of Qwen2.5 into one weight."""
    rules = [GroupRule(match="*.attn.qkv.weight", split_sizes=(3584, 512, 512))]
    plan = Recipe("llm/muon", groups=rules).plan(build("Qwen2.5-7B"), batch_size=1024, total_steps=1000)
    row = next(row for row in plan.rows if row.name == "transformer.h.0.attn.qkv.weight")
    assert row.algorithm == "muon" and "split_3584_512_512" in row.group


@pytest.mark.parametrize("name", MODELS)
def test_no_false_alarm(name):
    assert loud(checked_with_recipe(name)) == []


def test_litgpts_own_setup_has_notes_only():
    report = checked_as_litgpt_trains("Llama-2-7b-hf")
    assert loud(report) == []
    assert "decay-on-norms" in {finding.id for finding in report.findings}
