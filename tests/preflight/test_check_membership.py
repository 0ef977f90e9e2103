"""Tensors that are missing, in twice, frozen, foreign, or in a group that does nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.preflight.setups import LM, by_role, ids, llm, run, schedule, the


def sgd(parameters: Any) -> torch.optim.SGD:
    return torch.optim.SGD(list(parameters), lr=0.1, momentum=0.9)


def test_parameters_in_no_optimizer():
    module = LM()
    found = the(run(module, sgd([p for n, p in module.named_parameters() if "lm_head" not in n])), "parameters-missing")
    share = 64 * 16 / sum(p.numel() for p in module.parameters())
    assert found.level == "warning"
    assert found.evidence == f"{100 * share:.0f} % of the trainable numbers, such as 'lm_head.weight'"
    assert "1 tensor" in found.message


def test_half_of_a_layer_in_no_optimizer():
    """A rule by names forgot the biases."""
    module = LM()
    found = the(run(module, sgd([p for n, p in module.named_parameters() if "bias" not in n])), "parameters-missing")
    assert found.level == "error"
    assert "13 tensors" in found.message
    assert "other tensors of 'blocks.0.norm' are in" in found.evidence


def test_a_teacher_in_no_optimizer_is_a_note():
    module = nn.ModuleDict({"student": nn.Linear(4, 4), "teacher": nn.Linear(4, 4)})
    assert the(run(module, sgd(module["student"].parameters())), "parameters-missing").level == "note"


def test_frozen_parameters_in_no_optimizer_are_silent():
    module = LM()
    module.wte.requires_grad_(False)
    assert run(module, sgd([p for p in module.parameters() if p.requires_grad])).findings == ()


def test_a_tied_weight_is_one_parameter():
    module = LM()
    module.lm_head.weight = module.wte.weight
    assert run(module, sgd(module.parameters())).findings == ()


def test_parameters_in_two_optimizers():
    module = LM()
    report = run(module, [sgd(module.parameters()), sgd(module.lm_head.parameters())])
    found = the(report, "parameters-twice")
    assert found.level == "warning" and found.evidence == "'lm_head.weight'"
    two = [sgd(module.wte.parameters()), sgd([p for n, p in module.named_parameters() if not n.startswith("wte")])]
    assert run(module, two).findings == ()


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
def test_a_parameter_twice_in_one_group():
    module = LM()
    found = the(run(module, sgd([*module.parameters(), module.wte.weight])), "parameters-twice")
    assert found.level == "error" and found.evidence == "'wte.weight'"


def test_frozen_parameters_in_an_optimizer():
    module = LM()
    module.wte.requires_grad_(False)
    report = run(module, sgd(module.parameters()))
    assert ids(report) == ["parameters-frozen"]
    assert report.findings[0].level == "note" and report.findings[0].evidence == "'wte.weight'"


def test_tensors_that_the_module_does_not_have():
    """The optimizer was made for another copy of the module."""
    module, other = LM(), LM()
    report = run(module, sgd(other.parameters()))
    found = the(report, "parameters-unknown")
    assert found.level == "error"
    count = len(list(module.parameters()))
    assert f"{count} tensors" in found.message and "64 x 16" in found.evidence
    criterion = nn.Linear(4, 4)
    beside = the(run(module, sgd([*module.parameters(), *criterion.parameters()])), "parameters-unknown")
    assert beside.level == "warning"


def test_flat_copies_are_not_judged_as_foreign():
    """DeepSpeed's optimizer holds flat partitions: what is in it cannot be told."""
    module = LM()
    flat = [nn.Parameter(torch.zeros(1000))]
    report = run(module, sgd(flat), trainer={"flat": "flat shards (ZeRO stage 2)"})
    assert not {"parameters-missing", "parameters-unknown"} & set(ids(report))
    assert any("copies or flat shards" in item.reason for item in report.unjudged)


def test_a_group_without_tensors():
    module = LM()
    groups = [*by_role(module, "llm"), {"params": [], "name": "adapters", "weight_decay": 0.1}]
    found = the(llm(module=module, groups=groups), "dead-group")
    assert found.level == "warning"
    assert found.message == "AdamW group 2 ('adapters') does nothing: it is empty."
    assert "0 tensors, peak lr 0.0003, weight_decay 0.1" in found.evidence


def test_an_empty_group_of_excluded_tensors_is_a_note():
    """A model without biases and norms has nothing to exclude."""
    module = nn.Linear(8, 8, bias=False)
    groups = [{"params": list(module.parameters()), "weight_decay": 0.1}, {"params": [], "weight_decay": 0.0}]
    found = the(run(module, torch.optim.AdamW(groups, lr=1e-3)), "dead-group")
    assert found.level == "note"


def test_a_group_at_rate_zero_and_a_frozen_group():
    module = LM()
    head: list[Any] = list(module.lm_head.parameters())
    rest: list[Any] = [p for n, p in module.named_parameters() if "lm_head" not in n]
    groups: list[Any] = [{"params": rest}, {"params": head, "lr": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    found = the(run(module, optimizer, schedule(optimizer, lambda step: 1.0)), "dead-group")
    assert "its learning rate is 0 throughout the run" in found.message and "peak lr 0," in found.evidence
    module.lm_head.requires_grad_(False)
    optimizer = torch.optim.SGD([groups[0], {"params": head}], lr=0.1, momentum=0.9)
    assert "all its tensors are frozen" in the(run(module, optimizer), "dead-group").message
    assert "parameters-frozen" not in ids(run(module, optimizer))
