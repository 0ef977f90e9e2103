"""Ten given gradients against the trajectories of the official code (TEON: of the formula), in float64 and float32.

Deliberate differences, and their size over ten steps at lr 0.02 in float64: no epsilon is added to the norm before the
orthogonalisation (KellerJordan's 1e-7 up to 1e-7, dion's 1e-8 up to 2e-9, with gradients times 0.01 up to 2e-6); a
convolution's factor is that of its flattened matrix; Moonlight's AdamW has its epsilon elsewhere (3e-8).
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from lit_opt.optim import build

FOLDER = Path(__file__).parents[2] / "fixtures" / "matrix"
DTYPES = (torch.float64, torch.float32)
CLAMPED, ADDED_1E8, ADDED_1E7 = 1e-10, 5e-9, 2e-7  # float64: what the epsilon of the official code allows for

JORDAN = {"orthogonalize": "jordan"}
TORCH = {"lr": 0.02, "weight_decay": 0.1, **JORDAN}
DION = {"lr": 0.02, "weight_decay": 0.01, "nesterov": False, "scale": "spectral_unclamped"}
DION_NESTEROV = {**DION, "nesterov": True}
MOONLIGHT = {**TORCH, "scale": "match_rms_adamw"}
NORMUON_DION = {**DION, "scale": "match_rms_adamw", "eps": 1e-8}
SPLIT = {"split_sizes": [3, 2, 3]}
TEON = {"lr": 0.02, "weight_decay": 0.1, "nesterov": False, "scale": "spectral_unclamped"}
STACKS = {"stack": [["A1", "A2"], ["B1", "B2"]]}

# name, file, case, keywords, tolerance in float64
CASES: list[tuple[str, str, str, dict[str, Any], float]] = [
    ("muon", "muon_torch", "default", {**TORCH, "lr": 1e-3}, CLAMPED),
    ("muon", "muon_torch", "lr0.02_original", TORCH, CLAMPED),
    ("muon", "muon_torch", "match_rms_adamw", {**TORCH, "scale": "match_rms_adamw"}, CLAMPED),
    ("muon", "muon_torch", "spectral_unclamped", {**TORCH, "scale": "spectral_unclamped"}, CLAMPED),
    ("muon", "muon_torch", "no_nesterov", {**TORCH, "nesterov": False}, CLAMPED),
    ("muon", "muon_torch", "ns_steps3_eps", {**TORCH, "ns_steps": 3}, CLAMPED),
    ("muon", "muon_kellerjordan", "default", {**TORCH, "weight_decay": 0.0}, ADDED_1E7),
    ("muon", "muon_kellerjordan", "wd0.1", TORCH, ADDED_1E7),
    (
        "muon",
        "muon_kellerjordan",
        "momentum0.9_lr0.1",
        {**TORCH, "lr": 0.1, "weight_decay": 0.01, "momentum": 0.9},
        1e-6,
    ),
    ("muon", "muon_kellerjordan", "conv4d", TORCH, ADDED_1E7),
    # The official factor of a convolution is kernel height / kernel width, 1 here.
    ("muon", "muon_kellerjordan", "conv4d_tall", {**TORCH, "scale": "unit"}, ADDED_1E7),
    ("muon", "muon_moonlight", "default", {**MOONLIGHT, "lr": 1e-3}, ADDED_1E7),
    ("muon", "muon_moonlight", "lr0.02", MOONLIGHT, ADDED_1E7),
    ("muon", "muon_moonlight", "no_nesterov", {**MOONLIGHT, "nesterov": False}, ADDED_1E7),
    ("muon", "muon_moonlight", "wd0", {**MOONLIGHT, "weight_decay": 0.0}, ADDED_1E7),
    ("muon", "muon_dion", "default_polar_express", DION, ADDED_1E8),
    (
        "muon",
        "muon_dion",
        "nesterov_rms_norm_wd0.1",
        {**DION_NESTEROV, "weight_decay": 0.1, "scale": "match_rms_adamw"},
        ADDED_1E8,
    ),
    ("muon", "muon_dion", "no_adjust_leloykun_ns5", {**DION, "scale": "unit", "orthogonalize": "quintic"}, ADDED_1E8),
    ("muon", "muon_dion", "split_sizes_3_2_3_on_W1", {**DION_NESTEROV, **SPLIT}, ADDED_1E8),
    ("muon", "muon_dion", "num_heads_2_on_W1", {**DION_NESTEROV, "num_heads": 2}, ADDED_1E8),
    ("muon", "muon_dion", "conv_flatten", DION_NESTEROV, ADDED_1E8),
    ("muon", "muon_dion", "conv_flatten_tall", DION_NESTEROV, ADDED_1E8),
    ("normuon", "normuon_zichongli5", "default", {**TORCH, "weight_decay": 0.0}, ADDED_1E7),
    ("normuon", "normuon_zichongli5", "wd0.1", TORCH, ADDED_1E7),
    (
        "normuon",
        "normuon_zichongli5",
        "beta2_0.8",
        {**TORCH, "weight_decay": 0.01, "momentum": 0.9, "beta2": 0.8},
        ADDED_1E7,
    ),
    ("normuon", "normuon_dion", "rms_norm", NORMUON_DION, ADDED_1E8),
    (
        "normuon",
        "normuon_dion",
        "spectral_norm_nesterov",
        {**NORMUON_DION, "nesterov": True, "scale": "spectral_unclamped"},
        ADDED_1E8,
    ),
    ("normuon", "normuon_dion", "split_sizes_3_2_3_on_W1", {**NORMUON_DION, **SPLIT}, ADDED_1E8),
    ("mars_m", "mars_m", "default_approx", {**TORCH, "lr": 1e-3}, ADDED_1E7),
    ("mars_m", "mars_m", "lr0.02_approx", TORCH, ADDED_1E7),
    ("mars_m", "mars_m", "gamma0", {**TORCH, "gamma": 0.0}, ADDED_1E7),
    ("mars_m", "mars_m", "gamma0.1_mom0.9", {**TORCH, "gamma": 0.1, "momentum": 0.9}, ADDED_1E7),
    ("mars_m", "mars_m", "exact", {**TORCH, "variant": "exact"}, ADDED_1E7),
    ("mars_m", "mars_m", "approx_unclipped_grads_x0.01", TORCH, 3e-6),
    ("mars_m", "mars_m_efficient", "lr0.02", {**TORCH, "variant": "efficient"}, ADDED_1E7),
    ("teon", "teon_formula", "mode1_exact_polar", {**TEON, **STACKS, "orthogonalize": "svd"}, CLAMPED),
    (
        "teon",
        "teon_formula",
        "mode1_polar_express5",
        {**TEON, **STACKS, "orthogonalize": "polar_express_paper"},
        ADDED_1E7,
    ),
    ("teon", "teon_formula", "mode1_jordan_ns5", {**TEON, **STACKS, **JORDAN}, ADDED_1E7),
    ("teon", "teon_formula", "mode1_jordan_ns5_nesterov", {**TEON, **STACKS, **JORDAN, "nesterov": True}, ADDED_1E7),
    ("teon", "teon_formula", "layerwise_muon_exact_polar", {**TEON, "stack": [], "orthogonalize": "svd"}, CLAMPED),
    ("muon", "teon_formula", "layerwise_muon_exact_polar", {**TEON, "orthogonalize": "svd"}, CLAMPED),
]


def read(file: str, case: str) -> tuple[dict[str, Any], dict[str, Any]]:
    whole = json.loads((FOLDER / f"{file}.json").read_text())
    return whole, next(c for c in whole["cases"] if c["name"] == case)


def word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def start(file: str, case: str, dtype: torch.dtype) -> dict[str, Parameter]:
    whole, found = read(file, case)
    return {k: Parameter(torch.tensor(whole["init"][k], dtype=dtype).view(whole["shapes"][k])) for k in found["params"]}


def distances(file: str, case: str, params: dict[str, Parameter], optimizer: Optimizer) -> dict[str, float]:
    """Largest difference from the recorded steps for each parameter."""
    whole, found = read(file, case)
    dtype = next(iter(params.values())).dtype
    recorded = found["trajectories"][word(dtype)]
    factor = found["hyperparameters"].get("grad_multiplier", 1.0)
    far = dict.fromkeys(params, 0.0)

    def gradients(step: int, key: str = "grads") -> dict[str, Tensor]:
        return {k: torch.tensor(whole[key][k][step], dtype=dtype).view_as(p) * factor for k, p in params.items()}

    def set_gradients(values: dict[str, Tensor]) -> None:
        for key, param in params.items():
            param.grad = values[key]

    before = {k: p.detach().clone() for k, p in params.items()}
    for step in range(10):
        set_gradients(gradients(step))
        closure: Callable[[], float] | None = None
        if found["uses_prev_grads"]:
            now = {k: p.detach().clone() for k, p in params.items()}

            def closure(step: int = step, now: dict[str, Tensor] = now, before: dict[str, Tensor] = before) -> float:
                here = all(torch.equal(p, now[k]) for k, p in params.items())
                assert here or all(torch.equal(p, before[k]) for k, p in params.items())
                set_gradients(gradients(step, "grads" if here else "prev_grads"))
                return 0.0

            before = now
        optimizer.step(closure)
        for key, param in params.items() if str(step + 1) in recorded else ():
            expected = torch.tensor(recorded[str(step + 1)][key], dtype=dtype).view_as(param)
            far[key] = max(far[key], (param.detach() - expected).abs().max().item())
    return far


def assert_near(file: str, case: str, far: dict[str, float], tolerance: float, dtype: torch.dtype) -> None:
    suggested = read(file, case)[1]["suggested_abs_tol"]
    for key, distance in far.items():
        limit = suggested[key][word(dtype)]
        assert distance <= (max(limit, tolerance) if dtype == torch.float64 else limit), key


@pytest.mark.parametrize("dtype", DTYPES, ids=word)
@pytest.mark.parametrize(("name", "file", "case", "keywords", "tolerance"), CASES)
def test_follows_the_official_code(
    name: str, file: str, case: str, keywords: dict[str, Any], tolerance: float, dtype: torch.dtype
):
    params = start(file, case, dtype)
    optimizer = build(name, list(params.items()), ns_dtype=word(dtype), **keywords)
    assert_near(file, case, distances(file, case, params, optimizer), tolerance, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=word)
def test_adamw_in_the_same_optimizer(dtype: torch.dtype):
    file, case = "muon_kellerjordan", "with_aux_adam"
    hyper = read(file, case)[1]["hyperparameters"]
    params = start(file, case, dtype)
    groups = [
        {**hyper["muon"], "algorithm": "muon", "name": "hidden", "params": [params["W1"], params["W2"]]},
        {**hyper["adam"], "algorithm": "adamw", "name": "rest", "params": [params["W3"], params["b1"]]},
    ]
    optimizer = build("muon", groups, ns_dtype=word(dtype), **JORDAN)
    assert_near(file, case, distances(file, case, params, optimizer), ADDED_1E7, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=word)
def test_one_learning_rate_for_all_in_moonlights_units(dtype: torch.dtype):
    """Its AdamW adds epsilon to the root before the bias correction: up to 3e-8 off at its learning rate of 0.01."""
    file, case = "muon_moonlight", "with_adamw"
    params = start(file, case, dtype)
    groups = [
        {"params": [params["W1"], params["W2"]], "name": "hidden"},
        {"params": [params["W3"], params["b1"]], "name": "rest", "algorithm": "adamw"},
    ]
    keywords = {**MOONLIGHT, "lr": 0.01, "ns_dtype": word(dtype)}
    optimizer = build("muon", groups, **keywords)
    assert optimizer.param_groups[1]["lr"] == 0.01
    assert_near(file, case, distances(file, case, params, optimizer), ADDED_1E7, dtype)


@pytest.mark.parametrize(
    ("name", "file", "case", "low", "high"),
    [
        # Statistics over the kernel's width instead of the output channel.
        ("normuon", "normuon_zichongli5", "conv4d", 1e-3, 2e-2),
        ("normuon", "normuon_zichongli5", "conv4d_tall", 1e-2, 1e-1),
        # Not flattened at all: a batch of 2 x 2 kernels.
        ("mars_m", "mars_m", "conv4d_batched_quirk", 1e-2, 2e-1),
        # sqrt(12 / 8) for the flattened kernel, where the official factor is 1.
        ("muon", "muon_kellerjordan", "conv4d_tall", 1e-3, 5e-2),
    ],
)
def test_convolutions_differ_from_official_quirks(name: str, file: str, case: str, low: float, high: float):
    params = start(file, case, torch.float64)
    keywords = {**TORCH, "weight_decay": read(file, case)[1]["hyperparameters"].get("weight_decay", 0.1)}
    optimizer = build(name, list(params.items()), **keywords)
    assert low < max(distances(file, case, params, optimizer).values()) < high


def test_polar_express_of_the_paper_is_another_preset():
    file, case = "teon_formula", "mode1_polar_express5"
    params = start(file, case, torch.float64)
    optimizer = build("teon", list(params.items()), **TEON, **STACKS)
    assert 1e-3 < max(distances(file, case, params, optimizer).values()) < 2e-2


@pytest.mark.parametrize("case", ["lr0.02_unpatched_bf16"])
def test_bfloat16_is_near_to_torchs(case: str):
    params = start("muon_torch", case, torch.float32)
    optimizer = build("muon", list(params.items()), ns_dtype="bfloat16", **TORCH)
    assert_near("muon_torch", case, distances("muon_torch", case, params, optimizer), 0.0, torch.float32)
