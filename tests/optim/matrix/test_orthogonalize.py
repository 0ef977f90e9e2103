"""The orthogonalisation against the exact polar factor, on every path."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lit_opt.errors import RecipeError
from lit_opt.optim.matrix import orthogonalize as module
from lit_opt.optim.matrix.coefficients import SAFETY, coefficients, largest_singular_value
from lit_opt.optim.matrix.orthogonalize import orthogonalize
from tests.optim.matrix.spectra import KINDS, matrix, polar

FIXTURES = Path(__file__).parents[2] / "fixtures"

# preset, steps -> largest relative distance |O - P| / |P| from the polar factor of a Gaussian 48 x 48 matrix.
DISTANCES = {
    ("polar_express", 5): 0.15,
    ("polar_express", 8): 0.05,
    ("polar_express_paper", 5): 0.15,
    ("polar_express_paper", 8): 0.01,
    ("jordan", 5): 0.25,
    ("quintic", 5): 0.15,
    ("svd", 5): 1e-12,
}
ALLOWED = [
    (preset, steps)
    for preset in SAFETY
    for steps in (1, 2, 3, 4, 5, 6, 8, 11)
    if largest_singular_value(preset, steps) <= 1.22
]
SHAPES = ((2, 5), (5, 2), (6, 6), (4, 16), (24, 80), (80, 24), (40, 50))


def naive(x: Tensor, preset: str, steps: int) -> Tensor:
    """One matrix, the formula as it stands."""
    y = x.mT if x.size(0) > x.size(1) else x
    y = y / (SAFETY[preset] * y.norm())
    for a, b, c in coefficients(preset, steps):
        gram = y @ y.mT
        y = a * y + (b * gram + c * gram @ gram) @ y
    return y.mT if x.size(0) > x.size(1) else y


@pytest.mark.parametrize(("preset", "steps"), DISTANCES)
def test_distance_from_the_polar_factor(preset: str, steps: int):
    x = matrix(48, 48, "gauss")
    exact = polar(x)
    assert (orthogonalize(x, preset, steps) - exact).norm() / exact.norm() < DISTANCES[preset, steps]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("preset", "steps"), [(p, s) for p, s in ALLOWED if s in (5, 8)])
def test_every_path_equals_the_formula(preset: str, steps: int, shape: tuple[int, int]):
    x = torch.stack([matrix(*shape, "gauss", seed) for seed in range(3)])
    expected = torch.stack([naive(one, preset, steps) for one in x])
    assert (orthogonalize(x, preset, steps, "float64") - expected).abs().max() < 1e-11
    assert (orthogonalize(x.float(), preset, steps, "float32") - expected).abs().max() < 1e-4


@pytest.mark.parametrize("shape", [(40, 40), (33, 70), (30, 90)])
def test_blocked_products_equal_plain_ones(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch):
    """With odd halves and two levels, at a size that a test can afford."""
    x = torch.stack([matrix(*shape, kind) for kind in ("gauss", "power")])
    plain = orthogonalize(x)
    monkeypatch.setattr(module, "_BLOCKED_FROM", 10)
    assert (orthogonalize(x) - plain).abs().max() < 1e-12


def test_blocked_products_at_their_real_size():
    x = matrix(300, 640, "gauss").float()
    assert (orthogonalize(x, ns_dtype="float32") - naive(x.double(), "polar_express", 5)).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("preset", "steps"), ALLOWED)
def test_no_singular_value_passes_the_limit(preset: str, steps: int, dtype: str):
    for shape in SHAPES:
        x = torch.stack([matrix(*shape, kind, seed) for kind in KINDS for seed in range(4)])
        values = torch.linalg.svdvals(orthogonalize(x.float(), preset, steps, dtype).double())
        assert values.max() <= 1.25, shape


@pytest.mark.parametrize("shape", ["small", "sparse", "tall"])
@pytest.mark.parametrize(("preset", "steps"), [*((p, 5) for p in SAFETY), ("jordan", 8)])
def test_many_small_and_sparse_matrices_stay_within_the_limit_in_bfloat16(preset: str, steps: int, shape: str):
    tiny = torch.stack([matrix(4, 16, kind, seed) for seed in range(150) for kind in KINDS]).float()
    if shape != "small":
        tiny = torch.nn.functional.pad(tiny, (0, 64, 0, 28))
    x = tiny.mT.contiguous() if shape == "tall" else tiny
    assert torch.linalg.matrix_norm(orthogonalize(x, preset, steps, "bfloat16"), 2).max() <= 1.25


def test_more_steps_of_jordan_are_not_taken_on_the_gram_matrix_in_bfloat16(monkeypatch: pytest.MonkeyPatch):
    """Where 14 of 50,000 small matrices had a singular value above 1.25."""
    x = torch.stack([matrix(3, 9, "rank_1", seed) for seed in range(200)]).float()
    assert torch.linalg.matrix_norm(orthogonalize(x, "jordan", 8, "bfloat16"), 2).max() <= 1.25
    monkeypatch.setattr(module, "_GRAM_STEPS_BFLOAT16", {})
    assert torch.linalg.matrix_norm(orthogonalize(x, "jordan", 8, "bfloat16"), 2).max() > 1.25


def test_the_margin_holds_for_one_matrix_in_half_a_million(monkeypatch: pytest.MonkeyPatch):
    x = torch.tensor(json.loads((FIXTURES / "gram_overshoot.json").read_text())["rows"])
    for steps in (5, 6, 8):
        assert torch.linalg.matrix_norm(orthogonalize(x, ns_steps=steps, ns_dtype="bfloat16"), 2) <= 1.25
    monkeypatch.setattr(module, "_MARGIN", 1.12)
    assert torch.linalg.matrix_norm(orthogonalize(x, ns_steps=8, ns_dtype="bfloat16"), 2) > 1e6


def test_float32_needs_its_restart(monkeypatch: pytest.MonkeyPatch):
    x = matrix(64, 256, "steep")
    exact = naive(x, "polar_express", 5)
    assert (orthogonalize(x.float(), ns_dtype="float32") - exact).abs().max() < 3e-5
    monkeypatch.setattr(module, "_RESTARTS", (99, 99))
    assert (orthogonalize(x.float(), ns_dtype="float32") - exact).abs().max() > 1e-4


def test_without_the_margin_they_would_not(monkeypatch: pytest.MonkeyPatch):
    x = torch.stack([matrix(4, 16, kind, seed) for seed in range(150) for kind in KINDS]).float()
    monkeypatch.setattr(module, "_MARGIN", 1.0)
    assert torch.linalg.matrix_norm(orthogonalize(x, ns_dtype="bfloat16"), 2).max() > 2
    monkeypatch.setattr(module, "_MARGIN", 1.2)
    monkeypatch.setitem(module._RESTARTS_BFLOAT16, "polar_express", (99, 99))
    assert torch.linalg.matrix_norm(orthogonalize(x, ns_dtype="bfloat16"), 2).max() > 2
    monkeypatch.setitem(module._RESTARTS_BFLOAT16, "polar_express_paper", (1, 2))
    assert torch.linalg.matrix_norm(orthogonalize(x, "polar_express_paper", 5, "bfloat16"), 2).max() > 1.25


@pytest.mark.parametrize(
    ("preset", "steps", "dtype", "words"),
    [
        ("polar_express", 4, "auto", "ns_steps: 4 .*1.58.*Allowed: 5, 6"),
        ("quintic", 1, "auto", "ns_steps: 1"),
        ("jordan", 0, "auto", "ns_steps: 0 is out of bounds"),
        ("jordan", 21, "auto", "ns_steps: 21 is out of bounds"),
        ("svd", 5, "bfloat16", "ns_dtype: 'bfloat16' with orthogonalize='svd'"),
        ("polar", 5, "auto", "orthogonalize: 'polar' is unknown. Did you mean 'polar_express'"),
        ("jordan", 5, "float16", "ns_dtype: 'float16' is unknown"),
    ],
)
def test_unsafe_and_unknown_combinations_are_refused(preset: str, steps: int, dtype: str, words: str):
    with pytest.raises(RecipeError, match=words):
        orthogonalize(torch.eye(3), preset, steps, dtype)


@pytest.mark.parametrize("preset", [*SAFETY, "svd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_scale_of_the_input_does_not_matter(preset: str, dtype: torch.dtype):
    x = matrix(12, 30, "gauss").to(dtype)
    expected = orthogonalize(x, preset)
    for factor in (1e-30, 1e30, 1e37):
        assert torch.allclose(
            orthogonalize(x * factor, preset), expected, atol=2e-5 if dtype == torch.float32 else 1e-12
        )


@pytest.mark.parametrize("preset", [*SAFETY, "svd"])
def test_zero_nan_and_infinite_matrices_leave_the_others_alone(preset: str):
    x = torch.stack([matrix(6, 9, "gauss") for _ in range(4)])
    alone = orthogonalize(x[:1], preset)
    x[1], x[2, 0, 0], x[3, 5, 8] = 0.0, torch.nan, torch.inf
    kept = x.clone()
    result = orthogonalize(x, preset)
    assert torch.equal(result[0], alone[0])
    assert torch.equal(result[1], torch.zeros(6, 9, dtype=torch.float64))
    assert result[2].isnan().any() and result[3].isnan().any()
    assert torch.equal(x.nan_to_num(), kept.nan_to_num())


def test_rank_one_is_a_partial_isometry_with_svd():
    x = matrix(5, 7, "rank_1")
    assert torch.allclose(orthogonalize(x, "svd"), x, atol=1e-12)


@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 0, 4), (3, 4, 0)])
def test_empty(shape: tuple[int, ...]):
    assert orthogonalize(torch.empty(shape)).shape == shape


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (64, 64)])
def test_a_batch_equals_one_by_one(shape: tuple[int, int]):
    x = torch.stack([matrix(*shape, "power", seed) for seed in range(5)]).float()
    single = torch.stack([orthogonalize(one) for one in x])
    assert (orthogonalize(x) - single).abs().max() <= 1e-6


def test_auto_takes_the_dtype_of_the_matrices_unless_bfloat16_is_native(monkeypatch: pytest.MonkeyPatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(module, "_native_bfloat16", lambda: True)
    assert module.compute_dtype("jordan", "auto", torch.float32, cpu, 64) == torch.bfloat16
    assert module.compute_dtype("jordan", "auto", torch.float32, cpu, 63) == torch.float32
    assert module.compute_dtype("svd", "auto", torch.float32, cpu, 512) == torch.float32
    assert module.compute_dtype("jordan", "auto", torch.float64, cpu, 512) == torch.float64
    monkeypatch.setattr(module, "_native_bfloat16", lambda: False)
    assert module.compute_dtype("jordan", "auto", torch.float32, cpu, 512) == torch.float32
