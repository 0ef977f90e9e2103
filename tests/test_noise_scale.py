"""The noise scale of gradients that are drawn with a known one."""

import pytest
import torch

from lit_opt.scaling import NoiseScale


def test_is_unbiased_and_finds_the_true_value():
    """Gradients of samples from N(mean, diag(std^2)): tr(Sigma) = sum std^2 and |G|^2 = |mean|^2 are known."""
    generator = torch.Generator().manual_seed(0)
    mean = torch.linspace(-0.2, 0.3, 50, dtype=torch.float64)
    std = torch.linspace(0.5, 1.5, 50, dtype=torch.float64)
    noise = NoiseScale(decay=0.999)
    for _ in range(4000):
        samples = mean + std * torch.randn(32, 50, generator=generator, dtype=torch.float64)
        parts = samples.view(4, 8, 50).mean(dim=1)
        small, big = float(parts.square().sum(dim=1).mean()), float(parts.mean(dim=0).square().sum())
        noise.update(small=small, big=big, small_batch=8, big_batch=32)
    weight = 1 - 0.999**4000
    assert noise.trace / weight == pytest.approx(float(std.square().sum()), rel=0.02)
    assert noise.squared_gradient / weight == pytest.approx(float(mean.square().sum()), rel=0.05)
    assert noise.value == pytest.approx(float(std.square().sum() / mean.square().sum()), rel=0.05)


def test_equal_parts_have_no_noise_and_pure_noise_no_value():
    noise = NoiseScale()
    assert noise.value is None
    noise.update(small=2.0, big=2.0, small_batch=1, big_batch=2)
    assert noise.value == 0.0
    noise = NoiseScale()
    noise.update(small=4.0, big=1.0, small_batch=1, big_batch=4)  # all of |G_B|^2 is tr(Sigma) / B
    assert noise.squared_gradient == 0.0 and noise.value is None


def test_batches_have_to_differ():
    with pytest.raises(ValueError, match="small_batch: 4 has to lie between 0 and big_batch"):
        NoiseScale().update(small=1.0, big=1.0, small_batch=4, big_batch=4)
