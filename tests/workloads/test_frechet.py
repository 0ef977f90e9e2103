"""The Frechet distance against closed forms, and the features of the digit classifier."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lit_opt.errors import RecipeError
from lit_opt.workloads import Digits, digit_features, frechet, frechet_distance
from lit_opt.workloads.frechet import digit_classifier


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def standard(n, d):
    """Rows with mean 0 and covariance exactly the unit matrix."""
    x = torch.randn(n, d, dtype=torch.float64)
    x = x - x.mean(0)
    return x @ torch.linalg.inv(torch.linalg.cholesky(x.mT @ x / (n - 1))).mT


def test_equal_sets_have_distance_zero():
    x = torch.randn(50, 8)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-8)
    assert frechet_distance(x, x.flip(0)) == pytest.approx(0, abs=1e-8)
    few = torch.randn(5, 8)  # a covariance of rank 4
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-5)


def test_gaussians_with_a_common_basis():
    """Commuting covariances: the sum of the squared differences of the standard deviations and of the means."""
    x, y = standard(40, 4), standard(60, 4)
    basis = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0]
    sigma, tau = torch.tensor([1.0, 2.0, 0.5, 3.0]).double(), torch.tensor([2.0, 2.0, 0.1, 0.0]).double()
    mean = torch.tensor([1.0, -1.0, 0.0, 2.0]).double()
    expected = float((sigma - tau).square().sum() + mean.square().sum())
    assert frechet_distance((x * sigma) @ basis, (y * tau) @ basis + mean) == pytest.approx(expected, rel=1e-9)


def test_gaussians_without_one():
    """In two dimensions the trace of a root has a closed form: sqrt(trace + 2 sqrt(det))."""
    a, b = (standard(30, 2) @ torch.randn(2, 2, dtype=torch.float64) for _ in range(2))
    cov_a, cov_b = torch.cov(a.mT), torch.cov(b.mT)
    product = cov_a @ cov_b
    root = (product.trace() + 2 * torch.linalg.det(product).sqrt()).sqrt()
    expected = float(cov_a.trace() + cov_b.trace() - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(a.float(), b.float()) == pytest.approx(expected, rel=1e-5)


def test_it_is_symmetric_and_blind_to_order():
    a, b = torch.randn(20, 5), 2 * torch.randn(30, 5) + 1
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b.flip(0), a), rel=1e-9)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.zeros(3), torch.zeros(3, 2), r"a: features \(n, d\).*\(3,\)"),
        (torch.zeros(3, 2), torch.zeros(1, 2), r"b: features .*\(1, 2\)"),
        (torch.zeros(3, 2), torch.zeros(3, 4), "not 2 and 4"),
        (torch.zeros(3, 2), torch.full((3, 2), float("nan")), "b: finite"),
    ],
)
def test_what_it_refuses(a, b, message):
    with pytest.raises(RecipeError, match=message):
        frechet_distance(a, b)


def test_features_are_of_one_classifier_and_leave_the_generator_alone(monkeypatch):
    monkeypatch.setattr(frechet, "Digits", lambda: Digits(image_size=8))  # a quarter of the time
    state = torch.get_rng_state()
    images = torch.randn(5, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    features = digit_features(images, epochs=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert digit_classifier(1) is digit_classifier(1) is not digit_classifier(0)
    assert not digit_classifier(1).training and not features.requires_grad
    assert torch.equal(features, digit_features(images.expand(-1, 3, -1, -1), epochs=1))
    network: Any = digit_classifier(1).model
    logits = network.get_classifier()(features)
    torch.testing.assert_close(logits, digit_classifier(1)(images.expand(-1, 3, -1, -1)))
