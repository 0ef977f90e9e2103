"""Numbers beside what is published, multipliers that do nothing, batches."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as lrs

from tests.preflight.setups import CNN, LM, TOTAL, ViT, by_role, cnn, cosine, ids, llm, run, schedule, stepped, the, vit


@pytest.mark.parametrize(
    ("lr", "level", "times"),
    [(1e-3, "note", "1.7 times"), (1e-2, "warning", "16.7 times"), (5e-6, "warning", "20.0 times")],
)
def test_a_rate_outside_its_range(lr, level, times):
    found = the(llm(lr=lr), "lr-range")
    assert found.level == level
    assert f"lr {lr:.3g}; range 0.0001 .. 0.0006, {times} beside it" in found.evidence


def test_a_rate_is_judged_at_its_reference_batch():
    """DeiT's 1e-3 at 1,024 is 2.5e-4 at 256; 4e-3 there is 1e-3."""
    assert "lr-range" not in ids(vit(lr=1e-3, batch=1024))
    found = the(vit(lr=4e-3, batch=1024), "lr-range")
    assert found.level == "note"
    assert "lr 0.004, which is 0.001 at 256 (linear then sqrt; the batch is 1,024)" in found.evidence
    assert "lr-range" not in ids(vit(lr=4e-3, batch=None))


def test_the_rate_of_a_head_is_the_one_of_layer_decay():
    """With a rate for each layer the largest one is the recipe's."""
    module = ViT()
    groups = [
        {"params": list(block.parameters()), "lr": 1e-3 * 0.75**i, "weight_decay": 0.0}
        for i, block in enumerate(module.blocks)
    ]
    groups.append({"params": [p for n, p in module.named_parameters() if "blocks" not in n], "weight_decay": 0.0})
    assert "lr-range" not in ids(vit(module=module, groups=groups, lr=1e-3))


def test_a_rate_of_sgd_given_to_adam():
    module = LM()
    found = the(run(module, torch.optim.Adam(module.parameters(), lr=0.1)), "lr-of-sgd")
    assert found.level == "warning" and "lr 0.1" in found.evidence
    assert run(module, torch.optim.Adam(module.parameters(), lr=1e-3)).findings == ()


def test_a_decay_outside_its_range():
    module = LM()
    found = the(llm(module=module, groups=by_role(module, "llm", 1e-4)), "decay-range")
    assert found.level == "warning"
    assert "weight_decay 0.0001; range 0.01 .. 0.1, 100.0 times beside it" in found.evidence
    assert "units that are not multiplied by AdamW's lr" in found.why
    of_adamw = the(cnn(groups=by_role(net := CNN(), "cnn", 0.05), module=net), "decay-range")
    assert of_adamw.level == "warning" and "Decays of 0.01 and more are AdamW's" in of_adamw.why
    none = the(llm(module=(module := LM()), groups=by_role(module, "llm", 0.0)), "decay-range")
    assert none.level == "note" and "no decay at all" in none.evidence


def test_beta2_of_a_language_model():
    found = the(llm(betas=(0.9, 0.999)), "beta2-llm")
    assert found.level == "warning"
    assert "betas (0.9, 0.999); the second moment averages over 1,000 steps" in found.evidence
    assert ids(llm(betas=(0.9, 0.98))) == []
    assert "beta2-llm" not in ids(llm(betas=(0.9, 0.999), setting="llm/finetune"))


def test_sgd_without_momentum():
    found = the(cnn(momentum=0.0), "momentum-missing")
    assert found.level == "warning" and "momentum 0, lr 0.1" in found.evidence


# ---- multipliers


def timm_layers(module):
    """What timm's layer decay gives: `lr_scale` in each group, one lr for all."""
    blocks = [
        {"params": list(block.parameters()), "lr_scale": 0.75 ** (4 - i), "weight_decay": 0.0}
        for i, block in enumerate(module.blocks)
    ]
    rest = [p for n, p in module.named_parameters() if "blocks" not in n]
    return [*blocks, {"params": rest, "lr_scale": 1.0, "weight_decay": 0.0}]


def test_multipliers_that_the_scheduler_ignores():
    module = ViT()
    found = the(vit(module=module, groups=timm_layers(module)), "lr-scale-ignored")
    assert found.level == "error"
    assert "lr_scale from 0.316 to 1, rates 0.001 and 0.001 under LambdaLR" in found.evidence


def test_multipliers_that_are_applied_are_silent():
    from timm.scheduler import CosineLRScheduler

    module = ViT()
    optimizer = torch.optim.AdamW(timm_layers(module), lr=1e-3)
    theirs = CosineLRScheduler(optimizer, t_initial=95, warmup_t=5, warmup_prefix=True)
    report = vit(module=module, optimizer=optimizer, schedulers=stepped(theirs, "epoch"))
    assert "lr-scale-ignored" not in ids(report)
    folded = [g | {"lr": 1e-3 * g["lr_scale"]} for g in timm_layers(module)]
    assert "lr-scale-ignored" not in ids(vit(module=module, groups=folded))


def test_multipliers_of_timms_own_groups():
    import timm
    from timm.optim import param_groups_layer_decay

    module = timm.create_model("vit_tiny_patch16_224", num_classes=10, depth=2)
    groups = param_groups_layer_decay(module, weight_decay=0.05, layer_decay=0.75)
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    cosine_lr = stepped(lrs.CosineAnnealingLR(optimizer, T_max=TOTAL))
    assert "lr-scale-ignored" in ids(vit(module=module, optimizer=optimizer, schedulers=cosine_lr))


def test_rates_that_one_cycle_makes_equal():
    module = LM()

    def groups():
        body = [p for n, p in module.named_parameters() if "lm_head" not in n and p.ndim > 1]
        return [{"params": body, "lr": 1e-4}, {"params": list(module.lm_head.parameters()), "lr": 1e-3}]

    optimizer = torch.optim.AdamW(groups(), weight_decay=0.02)
    found = the(run(module, optimizer, stepped(lrs.OneCycleLR(optimizer, 1e-3, total_steps=TOTAL))), "equal-rates")
    assert found.level == "warning"
    assert "both lr 0.001 and weight_decay 0.02; 10 and 1 tensors" in found.evidence
    optimizer = torch.optim.AdamW(groups(), weight_decay=0.02)
    both = lrs.OneCycleLR(optimizer, [1e-4, 1e-3], total_steps=TOTAL)
    assert "equal-rates" not in ids(run(module, optimizer, stepped(both)))


def test_two_groups_without_decay_are_no_twins():
    """A recipe with decay 0 still has two groups: matrices, and the rest."""
    module = CNN()
    optimizer = torch.optim.AdamW(by_role(module, "cnn", 0.0), lr=1e-4)
    assert "equal-rates" not in ids(run(module, optimizer))


def test_one_rate_for_the_parts_of_a_vision_language_model():
    module = nn.ModuleDict(
        {"vision_tower": nn.Linear(8, 8), "multi_modal_projector": nn.Linear(8, 8), "language_model": nn.Linear(8, 8)}
    )
    optimizer = torch.optim.AdamW(by_role(module, "vlm"), lr=2e-5)
    found = the(run(module, optimizer, setting="vlm"), "equal-rates")
    assert found.level == "note" and "language_model 2e-05, projector 2e-05, vision_tower 2e-05" in found.evidence


def test_finetuning_without_layer_decay():
    module = ViT()
    optimizer = torch.optim.AdamW(by_role(module, "vit"), lr=1e-3)
    report = vit(module=module, optimizer=optimizer, setting="vit/finetune")
    found = the(report, "equal-rates")
    assert found.level == "note" and "lr 0.001 in 6 layers; with 0.75 the first layer would get 0.24" in found.evidence


# ---- the batch


def test_a_rate_that_was_not_scaled():
    found = the(vit(lr=2.5e-4, batch=2048), "lr-not-scaled")
    assert found.level == "warning"
    assert "lr 0.00025; 0.00025 at 256 is 0.00141 at 2,048 (linear then sqrt)" in found.evidence
    assert the(cnn(lr=0.1, batch=4096), "lr-not-scaled").evidence.endswith("0.1 at 256 is 1.6 at 4,096 (linear)")
    # big_vision's 1e-3 at 4,096 is a rate of its own.
    assert "lr-not-scaled" not in ids(vit(lr=1e-3, batch=4096))
    assert "lr-not-scaled" not in ids(cnn(lr=0.1, batch=512))


@pytest.mark.parametrize(("batch", "level"), [(256, "warning"), (2048, "note"), (16_384, None)])
def test_a_large_batch_optimizer_at_a_moderate_batch(batch, level):
    from timm.optim import Lars

    module = CNN()
    optimizer = Lars(by_role(module, "cnn"), lr=4.8, momentum=0.9)
    report = run(module, optimizer, schedule(optimizer, cosine(TOTAL, 5000)), batch=batch)
    if level is None:
        assert "large-batch-optimizer" not in ids(report)
    else:
        found = the(report, "large-batch-optimizer")
        assert found.level == level and f"global batch {batch:,}" in found.evidence


def test_ranges_at_the_edge_are_silent():
    for report in (llm(lr=6e-4), llm(lr=1e-4), cnn(lr=0.01)):
        assert "lr-range" not in ids(report)
