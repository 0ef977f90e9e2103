"""Every optimizer of the registry, and those of other libraries, are known for what they are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lit_opt.optim import build, get_row
from lit_opt.preflight.methods import is_sam, method_of, scale_of, unwrap
from tests.preflight.setups import LM, ids, run
from tests.rows import ALONE

# One class serves several rows; the name is the class's then.
SAME = {"nesterov": "sgd", "amsgrad": "adam", "adam_equal_betas": "adamw", "signum": "lion"}
# Rows whose decay is said to be in the gradient.
L2 = {"sgd", "nesterov", "adam", "amsgrad", "nadam", "radam", "rmsprop", "adagrad", "adadelta"}


def made(name):
    module = nn.Linear(8, 8)
    row = get_row(name)
    options = {"lr": 1e-3} | ({"base": "sgd"} if row.wraps else {})
    return build(name, list(module.parameters()), **options)


@pytest.mark.parametrize("name", ALONE)
def test_every_row_is_known(name):
    row = get_row(name)
    optimizer = made(name)
    method = method_of(optimizer, optimizer.param_groups[0])
    if name in ("sam", "asam", "lookahead"):
        assert type(unwrap(optimizer)) is torch.optim.SGD and method.name == "sgd"
        assert is_sam(optimizer) is (name != "lookahead")
        return
    assert method.name == SAME.get(name, name)
    assert (method.kind == "matrix") is row.matrix
    assert bool(method.clips) is row.clips_itself or name == "lars"
    assert not is_sam(optimizer)
    if name in L2:
        decoupled = optimizer.param_groups[0].get("decoupled_weight_decay", False)
        assert method.decay == "l2" or decoupled, "the row says L2"
    elif name not in ("lars", "lamb"):
        assert method.decay == "decoupled"


def test_sam_of_the_package_is_refused_with_accumulation():
    module = LM()
    optimizer = build("sam", list(module.parameters()), base="sgd", lr=0.1)
    report = run(module, optimizer, trainer={"accumulation": 2, "precision": "16-mixed"})
    assert {"sam-accumulation", "sam-precision"} <= set(ids(report))
    assert not {"parameters-missing", "parameters-unknown"} & set(ids(report))


def test_schedule_free_needs_no_schedule_and_no_average():
    module = LM()
    optimizer = build("schedule_free_adamw", list(module.parameters()), lr=3e-4)
    assert not {"no-schedule", "no-warmup"} & set(ids(run(module, optimizer, setting="llm", trainer={"clip": 1.0})))
    assert "ema-missing" not in ids(run(module, optimizer, setting="diffusion"))


def test_classes_of_other_libraries():
    from timm.optim import create_optimizer_v2

    module = nn.Linear(8, 8)
    kinds = {"adamw": "adam", "lamb": "layerwise", "lars": "layerwise", "lion": "other", "adafactor": "factored"}
    for name, kind in (kinds | {"muon": "matrix", "sgd": "sgd", "nadamw": "adam", "adopt": "adam"}).items():
        optimizer = create_optimizer_v2(module, opt=name, lr=1e-3)
        assert method_of(optimizer, optimizer.param_groups[0]).kind == kind, name
    looking = create_optimizer_v2(module, opt="lookahead_adamw", lr=1e-3)
    assert method_of(looking, looking.param_groups[0]).name == "adamw"


def test_unknown_classes_claim_nothing():
    class Mine(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {"lr": 0.1, "weight_decay": 0.3})

        def step(self, closure=None):
            """Nothing."""

    module = LM()
    optimizer = Mine(module.parameters())
    method = method_of(optimizer, optimizer.param_groups[0])
    assert (method.name, method.kind, method.decay, method.clips) == ("mine", "other", "unknown", "")
    assert scale_of(optimizer, optimizer.param_groups[0]) == ""
    found = ids(run(module, optimizer, setting="llm", trainer={"clip": 1.0}))
    assert set(found) <= {"decay-on-norms", "decay-on-embeddings", "no-schedule"}
