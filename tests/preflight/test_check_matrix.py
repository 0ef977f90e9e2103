"""Muon: units, ends, shards; by our class, torch's, timm's and a copy of KellerJordan's."""

from __future__ import annotations

import pytest
import torch
from timm.optim.muon import Muon as TimmMuon
from torch import nn

from lit_opt import Recipe
from lit_opt.optim import Muon
from lit_opt.recipes import list_recipes
from tests.preflight.setups import LM, ids, llm, run, stepped, the


def hidden(module):
    return [p for n, p in module.named_parameters() if p.ndim == 2 and "wte" not in n and "lm_head" not in n]


def rest(module):
    taken = {id(p) for p in hidden(module)}
    return [p for p in module.parameters() if id(p) not in taken]


def both(module, muon):
    return run(module, [muon, torch.optim.AdamW(rest(module), lr=3e-4, weight_decay=0.0)])


def test_torchs_defaults_mix_the_units():
    module = LM(32)
    found = the(both(module, torch.optim.Muon(hidden(module))), "muon-units")
    assert found.level == "warning"
    assert "lr 0.001, weight_decay 0.1, scale 'original' (sqrt(max(1, rows / cols)))" in found.evidence
    assert "20 times too short" in found.why


def test_timms_defaults_mix_the_units():
    module = LM(32)
    report = run(module, TimmMuon(module.parameters()))
    found = [f for f in report.findings if f.id == "muon-units"]
    assert [f.level for f in found] == ["error", "error"]
    assert "scale 'match_rms_adamw' (0.2 sqrt(max(rows, cols)))" in found[0].evidence
    assert "67 times too long" in found[0].why  # 0.02 / 3e-4
    assert "AdamW group" not in found[1].evidence and "its AdamW part: lr 0.02" in found[1].evidence


@pytest.mark.parametrize(
    ("options", "fine"),
    [
        ({"lr": 0.02, "weight_decay": 0.01}, True),
        ({"lr": 3e-4, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}, True),
        ({"lr": 0.02, "weight_decay": 0.01, "adjust_lr_fn": "match_rms_adamw"}, False),
        ({"lr": 3e-4, "weight_decay": 0.1, "adjust_lr_fn": "original"}, False),
    ],
)
def test_units_of_torchs_muon(options, fine):
    module = LM()
    assert ("muon-units" not in ids(both(module, torch.optim.Muon(hidden(module), **options)))) is fine


def test_groups_in_two_unit_systems():
    module = LM()
    first, *others = hidden(module)
    groups = [{"params": others, "lr": 0.02}, {"params": [first], "lr": 3e-4, "adjust_lr_fn": "match_rms_adamw"}]
    muon = torch.optim.Muon(groups, weight_decay=0.01)
    found = the(both(module, muon), "muon-units")
    assert found.message == "Groups of one optimizer are in different unit systems."


@pytest.mark.parametrize("make", [lambda p: TimmMuon(p, lr=0.02, adjust_lr_fn="original", fallback_lr_scale=0.015)])
def test_muon_on_embeddings_and_heads(make):
    module = LM()
    report = run(module, make(module.parameters()))
    found = the(report, "muon-on-ends")
    assert found.level == "warning"
    assert found.message == "Muon orthogonalises embeddings, heads."
    assert found.evidence == "2 tensors: 'wte.weight', 'lm_head.weight'"
    assert ids(report) == ["muon-on-ends"]


def test_muon_on_ends_with_torchs_class_and_an_adapter():
    module = LM()
    module.lora_A = nn.Linear(16, 4, bias=False)
    muon = torch.optim.Muon([*hidden(module), module.lm_head.weight], lr=0.02, weight_decay=0.01)
    report = run(
        module, [muon, torch.optim.AdamW([p for p in rest(module) if p is not module.lm_head.weight], lr=3e-4)]
    )
    assert the(report, "muon-on-ends").message == "Muon orthogonalises adapters, heads."


def test_a_routed_muon_is_silent():
    for recipe in ("llm/muon", "llm/muon_rms"):
        module = LM()
        optimizer, scheduler = Recipe(recipe).configure(module, total_steps=100_000, global_batch=8)
        found = ids(run(module, optimizer, stepped(scheduler)))
        assert not {"muon-units", "muon-on-ends", "muon-on-shards"} & set(found), found


class MuonWithAuxAdam(torch.optim.Optimizer):
    """KellerJordan/Muon's class, as far as its groups go."""

    def __init__(self, groups):
        super().__init__(groups, {})

    def step(self, closure=None):
        """Nothing."""


def test_kellerjordans_groups():
    module = LM()
    right = [
        {"params": hidden(module), "use_muon": True, "lr": 0.02, "momentum": 0.95, "weight_decay": 0.01},
        {"params": rest(module), "use_muon": False, "lr": 3e-4, "betas": (0.9, 0.95), "weight_decay": 0.0},
    ]
    assert run(module, MuonWithAuxAdam(right)).findings == ()
    wrong = [{**right[0], "params": list(module.parameters())}]
    assert "muon-on-ends" in ids(run(module, MuonWithAuxAdam(wrong)))


def test_muon_on_flat_shards():
    module = LM()
    muon = torch.optim.Muon(hidden(module), lr=0.02, weight_decay=0.01)
    optimizers = [muon, torch.optim.AdamW(rest(module), lr=3e-4, weight_decay=0.0)]
    found = the(run(module, optimizers, trainer={"flat": "flat shards (FSDP1)"}), "muon-on-shards")
    assert found.level == "error" and "flat shards (FSDP1)" in found.message
    assert "muon-on-shards" not in ids(run(module, optimizers))


def test_muon_on_a_flattened_module():
    module = LM()
    muon = torch.optim.Muon(hidden(module), lr=0.02, weight_decay=0.01)
    vars(module.lm_head.weight)["_fsdp_flattened"] = True
    assert "muon-on-shards" in ids(both(module, muon))


def test_vectors_of_our_muon_are_judged_as_adamws():
    """One group for everything: vectors go to AdamW at 3e-4, embeddings are orthogonalised."""
    module = LM()
    report = run(module, Muon(module.parameters(), lr=0.02))
    assert "muon-units" not in ids(report)
    assert "muon-on-ends" in ids(report)
    norms = the(report, "decay-on-norms")
    assert "weight_decay 0.01 on 17 tensors" in norms.evidence


def test_a_language_model_under_muon_needs_no_clipping():
    module = LM()
    optimizer, scheduler = Recipe("llm/muon").configure(module, total_steps=100_000, global_batch=8)
    report = llm(module=module, optimizer=optimizer, schedulers=stepped(scheduler), trainer={"clip": 0.0})
    assert not {"no-clipping", "lr-range"} & set(ids(report))
    assert "llm/muon" in list_recipes()
