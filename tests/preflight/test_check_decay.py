"""Each fault of weight decay planted, and silence on the correct module."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lit_opt.preflight.check import judge
from lit_opt.preflight.collect import collect
from lit_opt.preflight.evidence import TrainerSettings
from lit_opt.resolve.resolved import RunFacts
from tests.preflight.setups import CNN, LM, ViT, by_dimension, by_role, cnn, ids, llm, run, stepped, the, vit


@pytest.mark.parametrize("correct", [llm, vit, cnn])
def test_correct_setups_are_silent(correct):
    report = correct()
    assert report.findings == ()
    assert report.unjudged == ()
    assert report.judged >= 28


def test_decay_on_norms_in_one_group():
    module = ViT()
    found = the(
        vit(module=module, groups=[{"params": list(module.parameters()), "weight_decay": 0.1}]), "decay-on-norms"
    )
    assert found.level == "warning"
    # 5 LayerNorms: 5 gains, 5 biases; 4 blocks with 3 linear biases each; those of patch embedding and head.
    assert "5 norm gains" in found.message and "19 biases" in found.message
    assert "weight_decay 0.1 on 24 tensors" in found.evidence
    assert "'patch_embed.bias', 'blocks.0.norm.weight'" in found.evidence


def test_decay_on_norms_that_escape_an_exclusion():
    """The exclusion by name misses a norm that is not called so."""
    module = nn.ModuleDict({"fc": nn.Linear(8, 8), "ln": nn.LayerNorm(8)})
    groups = [
        {"params": [p for n, p in module.named_parameters() if "bias" not in n], "weight_decay": 0.05},
        {"params": [p for n, p in module.named_parameters() if "bias" in n], "weight_decay": 0.0},
    ]
    for setting in (None, "llm"):
        found = the(run(module, torch.optim.AdamW(groups, lr=1e-3), setting=setting), "decay-on-norms")
        assert found.level == "warning"
        assert (
            found.message == "Weight decay acts on 1 norm gain, although 2 tensors of these kinds are excluded from it."
        )
        assert "weight_decay 0.05 on 1 tensor, such as 'ln.weight'" in found.evidence


@pytest.mark.parametrize(("setting", "decay"), [("llm", 0.1), ("llm/finetune", 0.01), ("diffusion", 0.01)])
def test_decay_on_norms_is_a_note_where_practice_is_divided(setting, decay):
    """litgpt, torchtitan, OLMo, SmolLM3 and Moonlight decay the norms of language models."""
    module = LM()
    groups = [{"params": list(module.parameters()), "weight_decay": decay}]
    found = the(llm(module=module, groups=groups, setting=setting), "decay-on-norms")
    assert found.level == "note" and "Practice is divided" in found.why
    assert "4 norm gains, 13 biases" in found.message


def test_decay_on_norms_is_a_note_in_small_l2_units():
    module = CNN()
    groups = [{"params": list(module.parameters()), "weight_decay": 1e-4}]
    found = the(cnn(module=module, groups=groups), "decay-on-norms")
    assert found.level == "note" and "torchvision" in found.why


def test_decay_on_embeddings():
    module = LM()
    report = llm(module=module, groups=by_dimension(module, 0.1))
    assert ids(report) == ["decay-on-embeddings"]
    found = report.findings[0]
    total = sum(p.numel() for p in module.parameters() if p.ndim >= 2)
    assert found.level == "note" and "'wte.weight'" in found.evidence
    assert f"{100 * 64 * 16 / total:.0f} %" in found.evidence


def test_decay_on_what_the_model_lists():
    module = ViT()
    report = vit(module=module, groups=by_dimension(module, 0.05))
    assert ids(report) == ["decay-on-listed"]
    found = report.findings[0]
    assert found.level == "warning"
    assert found.evidence == "2 tensors: 'cls_token', 'pos_embed'"
    assert "ViT.no_weight_decay()" in found.message


@pytest.mark.parametrize(("decay", "level"), [(0.01, "warning"), (5e-4, "note")])
def test_adam_with_l2(decay, level):
    module = LM()
    found = the(run(module, torch.optim.Adam(module.parameters(), lr=1e-3, weight_decay=decay)), "adam-l2")
    assert found.level == level and f"weight_decay={decay:g}" in found.evidence


def test_adam_without_decay_or_with_decoupled_decay_is_silent():
    module = LM()
    decoupled = torch.optim.Adam(by_role(module, "llm"), lr=3e-4, betas=(0.9, 0.95), decoupled_weight_decay=True)
    assert llm(module=module, optimizer=decoupled).findings == ()
    none = torch.optim.Adam(module.parameters(), lr=3e-4)
    assert "adam-l2" not in ids(run(module, none))


class Unset(nn.Module):
    """Its code names AdamW, and nothing else of it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def configure_optimizers(self) -> object:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class Chosen(Unset):
    """The same number, chosen."""

    def configure_optimizers(self) -> object:
        return torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=0.01)


def test_decay_left_at_torchs_default():
    module = Unset()
    found = the(run(module, module.configure_optimizers(), setting="vit"), "decay-unset")
    assert found.level == "warning"
    assert "weight_decay=0.01 in 1 group, and the module's code never names weight_decay" in found.evidence
    assert "weight_decay=0.05" in found.fix
    assert the(run(module, module.configure_optimizers()), "decay-unset").level == "note"


def test_a_chosen_decay_is_silent():
    module = Chosen()
    assert "decay-unset" not in ids(run(module, module.configure_optimizers(), setting="vit"))
    torch_module = LM()
    other = torch.optim.AdamW(torch_module.parameters(), lr=1e-3, weight_decay=0.02)
    assert "decay-unset" not in ids(run(torch_module, other))


def test_decay_that_reaches_no_matrix():
    """The two groups are swapped."""
    module = LM()
    decayed, plain = by_dimension(module, 0.1)
    swapped = [decayed | {"weight_decay": 0.0}, plain | {"weight_decay": 0.1}]
    found = the(llm(module=module, groups=swapped), "decay-on-nothing")
    assert found.level == "error"
    assert "weight_decay 0.1 acts on 'blocks.0.norm.weight'" in found.evidence
    matrices = 3 * 3 + 1
    assert f"{matrices} tensors with dimensions" in found.evidence


def test_a_rule_by_dimensions_after_fsdp1_has_flattened_everything():
    """What FSDP1 with original parameters gives: flat tensors whose full shapes it has recorded."""
    module = LM()
    snapshot = collect(module, []).snapshot
    for p in module.parameters():
        p.data = p.data.flatten()
    groups = by_dimension(module, 0.1)
    assert groups[0]["params"] == []
    optimizer = torch.optim.AdamW(groups, lr=3e-4)
    evidence = collect(
        module,
        [optimizer],
        facts=RunFacts(total_steps=1000),
        trainer=TrainerSettings(flat="flat shards (FSDP1)"),
        snapshot=snapshot,
    )
    found = the(judge(evidence), "decay-on-nothing")
    assert "no tensor at all" in found.evidence and "FSDP1" in found.why


def test_a_decay_whose_half_life_is_longer_than_the_run():
    module = LM()
    optimizer = torch.optim.AdamW(by_role(module, "llm"), lr=3e-4, betas=(0.9, 0.95))
    flat = stepped(torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0))
    found = the(llm(module=module, optimizer=optimizer, schedulers=flat, total=2000), "decay-too-weak")
    assert found.level == "note"
    assert "lr x weight_decay = 3e-05 a step: half of a weight in 23,105 steps, the run has 2,000" in found.evidence
    assert "5.8 % in all" in found.evidence  # 1 - exp(-2000 x 3e-5)


def test_l2_in_a_momentum_buffer_is_ten_times_as_strong():
    """0.1 x 1e-4 / (1 - 0.9) = 1e-4 a step: 6,931 steps, while 0.1 x 1e-4 alone would take 69,315."""
    assert "decay-too-weak" not in ids(cnn(total=10_000))
    found = the(cnn(total=5_000), "decay-too-weak")
    assert "lr x weight_decay / (1 - momentum) = 0.0001 a step: half of a weight in 6,931 steps" in found.evidence
