"""SOAP, SPlus and Shampoo: ten given gradients against the trajectories of the official code.

Deliberate differences: SOAP and SPlus started from nothing on rectangular weights, where the official basis of the null
space is LAPACK's choice (sizes below); one factor for the flattened kernel of a convolution; vectors go to AdamW.
Not covered, since not offered: SOAP's correct_bias=False, normalize_grads, merge_dims and precondition_1d; Shampoo's L2
decay, merged dimensions, trace scaling and its forms of SOAP and Muon.
"""

from typing import Any

import pytest
import torch
from torch.nn import Parameter
from torch.optim import Optimizer

from lit_opt.optim import build
from tests.optim.matrix.test_fixtures import DTYPES, assert_near, distances, read, start, word

both_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=word)
COLD, WARM = ("W3",), ("W1", "W2", "W3")

SOAP = [
    ("default", COLD),
    ("freq1", COLD),
    ("freq3_lr0.01_betas0.9_0.99", COLD),
    ("one_sided_max_precond_dim6", WARM),
    ("warm_freq1", WARM),
    ("warm_freq3_wd0.1", WARM),
]
SPLUS = [
    ("default", COLD),
    ("inverse_every3", COLD),
    ("inverse_every1_b2_0.95", COLD),
    ("one_sided_max_dim7", WARM),
    ("warm_inverse_every2", WARM),
    ("warm_inverse_every100", WARM),
]
GRAFTED: dict[str, Any] = {"grafting": "adam"}
SHAMPOO: list[tuple[str, dict[str, Any]]] = [
    ("default_adagrad_sum", {}),
    ("ema_0.9_0.99", {}),
    ("adam_graft_freq1_decoupled_wd", GRAFTED),
    ("adam_graft_freq3_start3", GRAFTED),
    ("adam_graft_blocked4", GRAFTED),
    ("conv_adam_graft", GRAFTED),
    ("inverse_exponent_half", {**GRAFTED, "exponent": 0.5}),
    ("eigendecomposed_freq2_graft", GRAFTED),
    ("kl_shampoo", {"kl": True}),
    ("wellcond_eps1e-2_ema_freq1", {}),
    ("wellcond_eps1e-2_graft_freq3_start3_wd0.1", GRAFTED),
    ("wellcond_eps1e-2_kl", {"kl": True}),
    ("wellcond_eps1e-2_kl_exponent_half", {"kl": True, "exponent": 0.5}),
]


def soap(case: str, params: dict[str, Parameter]) -> Optimizer:
    """With the bases of `initial_GG` where the case starts warm."""
    found = read("soap", case)[1]
    keys = ("lr", "eps", "weight_decay", "precondition_frequency")
    given = found["hyperparameters"]
    keywords = {key: given[key] for key in keys} | {"max_preconditioner_dim": given["max_precond_dim"]}
    optimizer = build("soap", list(params.items()), betas=tuple(given["betas"]), **keywords)
    for key, factors in found.get("initial_GG", {}).items():
        state, dtype = warm(optimizer, params[key], factors), params[key].dtype
        for side, factor in zip(("left", "right"), factors, strict=True):
            state[f"{side}_basis"] = torch.linalg.eigh(torch.tensor(factor, dtype=dtype))[1].flip(1)[None].clone()
        state["exp_avg_sq"] = torch.zeros_like(state["exp_avg"])
    return optimizer


def splus(case: str, params: dict[str, Parameter]) -> Optimizer:
    found = read("splus", case)[1]
    given = found["hyperparameters"]
    keywords = {key: given[key] for key in ("lr", "weight_decay", "ema_rate")} | {
        "betas": (given["b1"], given["b2"]),
        "precondition_frequency": given["inverse_every"],
        "max_preconditioner_dim": given["max_dim"],
    }
    optimizer = build("splus", list(params.items()), **keywords)
    for key, factors in found.get("initial_sides", {}).items():
        state = warm(optimizer, params[key], factors)
        for side in ("left", "right"):
            state[f"{side}_basis"] = torch.eye(state[f"{side}_factor"].size(-1), dtype=params[key].dtype)[None].clone()
    return optimizer


def warm(optimizer: Optimizer, param: Parameter, factors: list[Any]) -> dict[str, Any]:
    state = optimizer.state[param]
    state["step"] = torch.tensor(0.0)
    for side, factor in zip(("left", "right"), factors, strict=True):
        state[f"{side}_factor"] = torch.tensor(factor, dtype=param.dtype)[None].clone()
    state["exp_avg"] = torch.zeros(1, *param.shape, dtype=param.dtype)
    return state


def near(file: str, case: str, far: dict[str, float], dtype: torch.dtype, params: tuple[str, ...]) -> None:
    assert_near(file, case, {key: far[key] for key in params}, 0.0, dtype)


@both_dtypes
@pytest.mark.parametrize(("case", "same"), SOAP)
def test_soap(case: str, same: tuple[str, ...], dtype: torch.dtype):
    params = start("soap", case, dtype)
    far = distances("soap", case, params, soap(case, params))
    near("soap", case, far, dtype, same)
    # What the choice of the basis of the null space makes.
    assert all(1e-3 < far[key] < 2e-2 for key in far if key not in same)


@both_dtypes
@pytest.mark.parametrize(("case", "same"), SPLUS)
def test_splus(case: str, same: tuple[str, ...], dtype: torch.dtype):
    params = start("splus", case, dtype)
    optimizer = splus(case, params)
    far = distances("splus", case, params, optimizer)
    near("splus", case, far, dtype, same)
    assert all(5e-3 < far[key] < 9e-2 for key in far if key not in same)
    averages = read("splus", case)[1].get("eval_params_after_step10")
    if averages is None:
        return
    raw = {key: param.detach().clone() for key, param in params.items()}
    optimizer.eval()  # type: ignore[attr-defined]
    # Its float32 correction 1 - 0.999^10 has three digits less.
    limit = 1e-10 if dtype == torch.float64 else 4e-5
    for key in same:
        expected = torch.tensor(averages[word(dtype)][key], dtype=dtype).view_as(params[key])
        assert (params[key].detach() - expected).abs().max() < limit
    optimizer.train()  # type: ignore[attr-defined]
    assert all(torch.equal(params[key].detach(), raw[key]) for key in raw)


@both_dtypes
@pytest.mark.parametrize(("case", "more"), SHAMPOO)
def test_shampoo(case: str, more: dict[str, Any], dtype: torch.dtype):
    given, suggested = (read("distributed_shampoo", case)[1][key] for key in ("hyperparameters", "suggested_abs_tol"))
    same = ("lr", "weight_decay", "precondition_frequency", "start_preconditioning_step", "max_preconditioner_dim")
    keywords = {"weight_decay": 0.0} | {key: given[key] for key in same if key in given} | more
    params = {key: p for key, p in start("distributed_shampoo", case, dtype).items() if p.ndim > 1}
    betas = tuple(given["betas"])
    optimizer = build("shampoo", list(params.items()), betas=betas, eps=given["epsilon"], **keywords)
    far = distances("distributed_shampoo", case, params, optimizer)
    near("distributed_shampoo", case, far, dtype, tuple(key for key in far if suggested[key][word(dtype)] is not None))


@pytest.mark.parametrize(
    ("make", "file", "case", "low", "high"),
    [(soap, "soap", "conv_4d", 1e-2, 2e-2), (splus, "splus", "vector_and_conv", 0.1, 0.2)],
)
def test_convolutions_differ_by_one_factor_for_the_flattened_kernel(
    make: Any, file: str, case: str, low: float, high: float
):
    params = {key: param for key, param in start(file, case, torch.float64).items() if param.ndim > 1}
    assert low < max(distances(file, case, params, make(case, params)).values()) < high
