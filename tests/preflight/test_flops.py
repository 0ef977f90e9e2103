"""What a matrix method's step takes and sends, by the plan; counted by hand."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from lit_opt.preflight.placement import Placement
from lit_opt.preflight.plan import make_plan
from lit_opt.recipes import get_recipe

# A matrix in float32. The last layer is the head, which AdamW takes.
SIDE, MATRICES = 32, 2
SIZE = SIDE * SIDE * 4


def plan(name: str, **where: Any) -> Any:
    model = nn.Sequential(*(nn.Linear(SIDE, SIDE, bias=False) for _ in range(MATRICES + 1)))
    return make_plan(get_recipe(name), {"batch_tokens": 4096}, model, None, Placement(**where), cuda=False)


@pytest.mark.parametrize(
    ("where", "sent", "words"),
    [
        ({}, None, "orthogonalisation"),
        # To its owner half of the matrix that the other has, and back half of the result of its own.
        ({"kind": "fsdp2", "strategy": "ModelParallelStrategy"}, SIZE, "divided among the 2 devices"),
        # The result of its own matrix.
        ({"kind": "ddp", "strategy": "ddp"}, SIZE, "divided among the 2 devices"),
        ({"kind": "ddp", "strategy": "xla"}, None, "all of them on each of the 2 devices"),
        ({"kind": "fsdp2", "tensor_parallel": 2}, None, "divided among the 2 devices"),
    ],
)
@pytest.mark.parametrize("name", ["llm/muon", "llm/scion", "llm/aro"])
def test_what_a_device_sends_for_matrices(name: str, where: dict[str, Any], sent: int | None, words: str) -> None:
    if where:
        where = {"devices": 2, "data_parallel": 2 // where.get("tensor_parallel", 1)} | where
    alone, flops = plan(name).flops, plan(name, **where).flops
    # Every process keeps the rotations of ARO, which are as large as the matrices here.
    assert flops.sent == (2 * sent if name == "llm/aro" and sent is not None else sent)
    if where:
        assert words in flops.how[0]
        assert flops.optimizer == alone.optimizer // (2 if "divided" in words else 1)
        assert flops.model == alone.model // 2


def test_the_share_is_of_one_device() -> None:
    alone = plan("llm/muon").flops
    divided = plan("llm/muon", kind="ddp", devices=2, data_parallel=2).flops
    assert divided.share == pytest.approx(alone.share) and 0 < alone.share < 1


def test_statistics_of_both_sides_are_everyones() -> None:
    alone = plan("llm/soap").flops
    for kind, words in (("fsdp2", "all of them on each of"), ("ddp", "before the decompositions are divided among")):
        flops = plan("llm/soap", kind=kind, devices=2, data_parallel=2).flops
        assert flops.sent is None and flops.optimizer == alone.optimizer and words in flops.how[0]


def test_the_line_is_shown() -> None:
    shown = plan("llm/muon", kind="ddp", devices=2, data_parallel=2)
    line = "for its matrices a device sends up to 4.1 kB to others in a step"
    assert line in shown.text() and line in shown.markdown() and shown.as_dict()["flops"]["sent"] == SIZE
    assert "to others" not in plan("llm/muon").text()
