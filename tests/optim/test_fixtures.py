"""Trajectories of ten given gradients against float64 references written from the papers' formulas."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

from lit_opt.optim import build

FOLDER = Path(__file__).parents[1] / "fixtures" / "classic"
FILES = (
    *("torch_baselines", "lars", "lamb", "lion", "radam", "adabelief", "adabound", "adafactor", "adam_equal_betas"),
    "schedule_free_adamw",
)
FIXTURES = {name: json.loads((FOLDER / f"{name}.json").read_text()) for name in FILES}

# Registry name -> (file, case). Cases of forms that we do not build are in the tests below.
CASES = [
    ("sgd", "torch_baselines", "sgd_polyak"),
    ("nesterov", "torch_baselines", "sgd_nesterov_wd"),
    ("sgd", "torch_baselines", "sgd_nesterov_wd"),
    ("adam", "torch_baselines", "adam"),
    ("amsgrad", "torch_baselines", "amsgrad_torch"),
    ("adamw", "torch_baselines", "adamw"),
    ("adagrad", "torch_baselines", "adagrad"),
    ("rmsprop", "torch_baselines", "rmsprop"),
    ("adadelta", "torch_baselines", "adadelta"),
    ("radam", "radam", "torch_thr5"),
    ("radam", "radam", "torch_decoupled"),
    ("lion", "lion", "default"),
    ("lion", "lion", "bias_no_wd"),
    ("adabelief", "adabelief", "paper"),
    ("adabelief", "adabelief", "eps_1e-16"),
    ("adabound", "adabound", "official"),
    ("adabound", "adabound", "gamma_0.05_bounds_active"),
    ("adabound", "adabound", "amsbound"),
    ("adabound", "adabound", "decoupled_wd"),
    ("adabound", "adabound", "lr_schedule"),
    ("adafactor", "adafactor", "paper"),
    ("adafactor", "adafactor", "torch_wd"),
    ("adafactor", "adafactor", "no_scale_parameter_external_lr"),
    ("adam_equal_betas", "adam_equal_betas", "adamw_b095_b095"),
    ("signum", "adam_equal_betas", "signum_b095"),
    ("lars", "lars", "wd_all_adapt"),
    ("lars", "lars", "bias_excluded"),
    ("lars", "lars", "blog_no_wd"),
    ("lars", "lars", "nesterov_zero_bias"),
    ("lars", "lars", "schedule_torch_form"),
    ("lars", "lars", "larc_clip"),
    ("lamb", "lamb", "paper"),
    ("lamb", "lamb", "grad_clip_1"),
    ("lamb", "lamb", "bias_excluded"),
    ("lamb", "lamb", "no_wd_always_adapt_zero_bias"),
    # The limit of 10 on |w| is not reached on this problem, so only the missing bias correction shows.
    ("lamb", "lamb", "no_bias_correction_phi_clip_10"),
]
IMPLEMENTATIONS = {
    "as_built": {},
    "loop": {"foreach": False, "fused": False},
    "foreach": {"foreach": True, "fused": False},
}
# What the fixtures call differently, or what the name of the optimizer says already.
NOT_KEYWORDS = {
    *("thr", "decoupled", "rectify", "degenerated_to_sgd", "base_lr", "form", "ema"),
    "always_adapt",
    "no_adapt",
    "amsgrad",
    "phi_clip",
    "lr_in_momentum",
}


def case_of(file: str, case: str) -> dict[str, Any]:
    return next(c for c in FIXTURES[file]["cases"] if c["name"] == case)


def start(file: str, case: str, dtype: torch.dtype) -> dict[str, torch.nn.Parameter]:
    problem = FIXTURES[file]["problem"]
    params = {k: torch.nn.Parameter(torch.tensor(v, dtype=dtype)) for k, v in problem["params"].items()}
    if case_of(file, case).get("zero_bias"):
        params["b1"].data.zero_()
    return params


def make(name: str, params: dict[str, torch.nn.Parameter], hyper: dict[str, Any]) -> Optimizer:
    keywords = {k: v for k, v in hyper.items() if k not in NOT_KEYWORDS}
    if name == "nesterov":
        del keywords["nesterov"]
    if name == "amsgrad":
        keywords.pop("bias_correction", None)
    if name == "adafactor":  # torch's form has its own smallest second moment in place of None
        keywords["eps"] = [keywords["eps"][0] or 1e-30, keywords["eps"][1]]
    if isinstance(keywords["lr"], list):
        keywords["lr"] = keywords["lr"][0]
    decay = keywords.get("weight_decay")
    if not isinstance(decay, dict):
        return build(name, params.values(), **keywords)
    del keywords["weight_decay"]
    groups = [{"params": [p], "name": k, "weight_decay": decay[k]} for k, p in params.items()]
    return build(name, groups, **keywords)


def trajectory(
    name: str, file: str, case: str, dtype: torch.dtype, implementation: dict[str, bool]
) -> dict[int, dict[str, Tensor]]:
    params, hyper = start(file, case, dtype), case_of(file, case)["hyper"]
    optimizer = make(name, params, hyper)
    for group in optimizer.param_groups:
        group.update({k: v for k, v in implementation.items() if k in group})
    after = {}
    for step, grads in enumerate(FIXTURES[file]["problem"]["grads"], start=1):
        for key, param in params.items():
            param.grad = torch.tensor(grads[key], dtype=dtype)
        for group in optimizer.param_groups:
            group["lr"] = hyper["lr"][step - 1] if isinstance(hyper["lr"], list) else hyper["lr"]
        optimizer.step()
        after[step] = {k: p.detach().clone() for k, p in params.items()}
    return after


def distance(after: dict[int, dict[str, Tensor]], file: str, case: str) -> float:
    expected = case_of(file, case)["params_after"]
    return max(
        (after[int(step)][key] - torch.tensor(value, dtype=after[int(step)][key].dtype)).abs().max().item()
        for step, tensors in expected.items()
        for key, value in tensors.items()
    )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS.keys())
@pytest.mark.parametrize(("name", "file", "case"), CASES)
def test_equals_the_formula_in_float64(name: str, file: str, case: str, implementation: dict[str, bool]):
    after = trajectory(name, file, case, torch.float64, implementation)
    # pytorch_optimizer adds 1e-15 under the root
    assert distance(after, file, case) < (1e-10 if name == "adabound" else 1e-13)


@pytest.mark.parametrize(("name", "file", "case"), CASES)
def test_is_close_to_the_formula_in_float32(name: str, file: str, case: str):
    assert distance(trajectory(name, file, case, torch.float32, {}), file, case) < 2e-5


@pytest.mark.parametrize("case", ["const", "warmup4"])
def test_schedule_free_has_both_weights(case: str):
    file = "schedule_free_adamw"
    params, expected = start(file, case, torch.float64), case_of(file, case)["params_after"]
    optimizer: Any = build("schedule_free_adamw", params.values(), **case_of(file, case)["hyper"])
    for step, grads in enumerate(FIXTURES[file]["problem"]["grads"], start=1):
        for key, param in params.items():
            param.grad = torch.tensor(grads[key], dtype=torch.float64)
        optimizer.step()
        for mode, switch in (("y", None), ("x", optimizer.eval)):
            if switch is not None:
                switch()
            for key, value in expected.get(str(step), {}).get(mode, {}).items():
                assert (params[key] - torch.tensor(value, dtype=torch.float64)).abs().max() < 1e-13
        optimizer.train()


def test_amsbound_and_adabound_differ_from_the_papers_form():
    after = trajectory("adabound", "adabound", "paper_form", torch.float64, {})
    assert distance(after, "adabound", "paper_form") > 0.05  # 1 / sqrt(t) and no bias correction in the paper


def test_radam_has_torchs_threshold_of_five_and_the_paper_four():
    after = trajectory("radam", "radam", "paper_thr4", torch.float64, {})
    assert distance(after, "radam", "paper_thr4") > 1e-4


def test_adabelief_is_not_rectified():
    after = trajectory("adabelief", "adabelief", "rectify", torch.float64, {})
    assert distance(after, "adabelief", "rectify") > 1e-2


def test_lars_is_the_form_with_lr_outside_the_momentum():
    after = trajectory("lars", "lars", "schedule_paper_form", torch.float64, {})
    assert 1e-3 < distance(after, "lars", "schedule_paper_form") < 1e-2


def test_amsgrad_is_torchs_form_and_not_the_papers():
    file, case = "torch_baselines", "amsgrad_reddi_no_bias_correction"
    assert distance(trajectory("amsgrad", file, case, torch.float64, {}), file, case) > 0.1


@pytest.mark.parametrize("name", ["lars", "lamb"])
def test_without_decay_every_layer_still_adapts(name: str):
    """The trap of timm's classes: without always_adapt LARS would be plain SGD, LAMB plain Adam."""
    step = {"lars": 1.0 * 0.001, "lamb": 0.01}[name]
    weight = torch.nn.Parameter(torch.tensor([[3.0, 4.0]], dtype=torch.float64))
    optimizer = build(name, [weight], lr={"lars": 1.0, "lamb": 0.01}[name], weight_decay=0)
    weight.grad = torch.tensor([[30.0, 40.0]], dtype=torch.float64)
    before = weight.detach().clone()
    optimizer.step()
    # |update| = lr (eta) |w| whatever the gradient's length.
    assert (weight.detach() - before).norm().item() == pytest.approx(step * 5.0, rel=1e-6)
