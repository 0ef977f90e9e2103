"""The recipe for adapters: what it trains, what it says, what it refuses. peft's names, written out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lit_opt import Recipe
from lit_opt.errors import RecipeError
from lit_opt.param_groups import group_parameters


class LoraLinear(nn.Module):
    """A layer as peft 0.17 names it: base_layer, and a dictionary entry for each adapter."""

    def __init__(self, base: nn.Linear, rank: int = 2, dora: bool = False) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, base.out_features, bias=False)})
        self.lora_embedding_A = nn.ParameterDict()
        self.lora_magnitude_vector = nn.ModuleDict()
        if dora:
            magnitude = nn.Module()
            magnitude.weight = nn.Parameter(torch.ones(base.out_features))
            self.lora_magnitude_vector["default"] = magnitude

    def forward(self, x):
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


def llama(**kwargs) -> Any:
    """A small Llama of transformers with LoRA on q_proj and v_proj, everything else frozen."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2
    )
    model = transformers.LlamaForCausalLM(config).requires_grad_(False)
    for layer in model.model.layers:
        for name in ("q_proj", "v_proj"):
            setattr(layer.self_attn, name, LoraLinear(getattr(layer.self_attn, name), **kwargs))
    return model


def test_adapters_alone():
    groups = group_parameters(llama(), "llm/lora")
    assert {row.group for row in groups.rows()} == {"decay"}
    assert all(row.algorithm == "adamw" and row.lr == 3e-4 and row.weight_decay == 0.01 for row in groups.rows())
    assert all("adapter (LoRA) matrix: decayed" in row.reason for row in groups.rows())
    assert len(groups.rows()) == 8
    [note] = groups.notes
    assert note.startswith("llm/lora trains 128 numbers in 8 tensors of adapters; ") and note.endswith("are frozen.")


def test_what_peft_trains_beside_them_is_said():
    model = llama(dora=True)
    model.model.norm.weight.requires_grad_(True)
    head = nn.Module()
    head.original_module, head.modules_to_save = model.lm_head, nn.ModuleDict({"default": nn.Linear(8, 32, bias=False)})
    model.lm_head = head
    groups = group_parameters(model, "llm/lora")
    assert "lm_head.modules_to_save.default.weight" in {row.name for row in groups.rows()}
    assert "6 tensors beside them (" in groups.notes[0]


def test_a_module_without_adapters_names_peft():
    with pytest.raises(
        RecipeError, match=r"has none \(lora_A, lora_B\).*peft.get_peft_model.*Recipe\('llm/finetune'\)"
    ):
        group_parameters(nn.Linear(2, 2), "llm/lora")


def test_frozen_adapters_are_refused():
    model = llama().requires_grad_(False)
    model.model.norm.weight.requires_grad_(True)
    with pytest.raises(RecipeError, match=r"all 8 adapter tensors are frozen.*is_trainable=True"):
        group_parameters(model, "llm/lora")


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.base_layer.weight"])
def test_other_trainable_matrices_are_refused(name):
    model = llama()
    model.get_parameter(name).requires_grad_(True)
    with pytest.raises(RecipeError, match=f"1 other matrices are trainable as well, such as '{name}'"):
        group_parameters(model, "llm/lora")


def test_always_adamw():
    with pytest.raises(RecipeError, match="low-rank matrices always go to AdamW"):
        Recipe("llm/lora", optimizer="sgd", lr=0.1, weight_decay=0.0)
    with pytest.raises(RecipeError, match="low-rank matrices always go to AdamW"):
        Recipe("llm/lora", optimizer=torch.optim.Adagrad, lr=0.1, weight_decay=0.0)
    assert Recipe("llm/lora", optimizer=torch.optim.AdamW, lr=1e-4, weight_decay=0.0)


def test_the_recipe_trains_them():
    torch.manual_seed(0)
    model = llama()
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer, scheduler = Recipe("llm/lora").configure(model, total_steps=10)
    for _ in range(3):
        tokens = torch.randint(32, (2, 5))
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert len(changed) == 8 and all("lora_" in name for name in changed)
    assert len(optimizer.param_groups) == 1 and len(optimizer.param_groups[0]["params"]) == 8


def test_another_optimizer_does_not_bring_rates_for_training_from_scratch():
    with pytest.raises(RecipeError, match="no starting values are published for 'sgd' in the setting 'llm/finetune'"):
        Recipe("llm/finetune", optimizer="sgd")
