"""GradientNoiseScale under accumulation; two processes are in test_curvature.py's launch."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_opt import GradientNoiseScale
from lit_opt.errors import RecipeError
from tests.callbacks.modules import Manual, Net, loader, trainer

MEAN, STD = torch.linspace(-0.3, 0.4, 20, dtype=torch.float64), torch.linspace(0.5, 1.5, 20, dtype=torch.float64)


class Linear(LightningModule):
    """Loss <w, x>: the gradient of a sample is the sample, whatever the weights are."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(20, dtype=torch.float64))
        self.unused = nn.Parameter(torch.zeros(3))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return (batch[0] @ self.w).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def samples(n: int) -> TensorDataset:
    noise = torch.randn(n, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return TensorDataset(MEAN + STD * noise)


def test_finds_the_known_noise_scale_with_accumulation(caplog: pytest.LogCaptureFixture) -> None:
    true = float(STD.square().sum() / MEAN.square().sum())
    callback, module = GradientNoiseScale(decay=0.995), Linear()
    data = DataLoader(samples(6400), batch_size=4)
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        run = trainer(callback, max_epochs=1, accumulate_grad_batches=4)
        run.fit(module, data)
    assert callback.noise.updates == 400
    assert callback.noise.value == pytest.approx(true, rel=0.15)
    assert float(run.callback_metrics["gradient_noise_scale"]) == pytest.approx(callback.noise.value, rel=1e-6)
    assert "is past" not in caplog.text  # 16 samples, and the noise scale is about 7.6 times as much
    assert f"about {callback.noise.value:.3g} samples after 400 measured steps; the global batch was 16" in caplog.text
    assert not module.w._backward_hooks


def test_equals_the_definition_step_by_step_and_skips_incomplete_steps() -> None:
    data = samples(44)  # eleven batches of 4: two whole steps of 4, and one of 3
    callback = GradientNoiseScale(decay=0.0, every=1)
    seen = []

    class Reads(Linear):
        def on_before_zero_grad(self, optimizer: Any) -> None:
            seen.append((callback.noise.squared_gradient, callback.noise.trace))

    trainer(callback, max_epochs=1, accumulate_grad_batches=4).fit(Reads(), DataLoader(data, batch_size=4))
    assert callback.noise.updates == 2
    parts = data.tensors[0][16:32].view(4, 4, 20).mean(dim=1)
    small, big = float(parts.square().sum(dim=1).mean()), float(parts.mean(dim=0).square().sum())
    assert callback.noise.squared_gradient == pytest.approx((16 * big - 4 * small) / 12, rel=1e-12)
    assert callback.noise.trace == pytest.approx((small - big) / (1 / 4 - 1 / 16), rel=1e-12)


def test_says_once_that_the_batch_is_past_it(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        callback = GradientNoiseScale(decay=0.9)
        trainer(callback, max_epochs=1, accumulate_grad_batches=2).fit(
            Linear(), DataLoader(samples(8000), batch_size=200)
        )
    assert caplog.text.count("the global batch of 400 samples is past the gradient noise scale of about") == 1


def test_every_measures_less_and_a_resume_continues(tmp_path: Path) -> None:
    data = DataLoader(samples(320), batch_size=4)
    callback = GradientNoiseScale(every=5)
    run = trainer(callback, max_epochs=1, accumulate_grad_batches=4)
    run.fit(Linear(), data)
    assert callback.noise.updates == 4
    run.save_checkpoint(tmp_path / "c.ckpt")
    again = GradientNoiseScale(every=5)
    trainer(again, max_epochs=2, accumulate_grad_batches=4).fit(Linear(), data, ckpt_path=tmp_path / "c.ckpt")
    assert again.noise.updates == 8
    copy.deepcopy(callback)


def test_refusals() -> None:
    with pytest.raises(RecipeError, match=r"every: 0 is not.*\n.*decay: 1 is not in"):
        GradientNoiseScale(every=0, decay=1)
    with pytest.raises(RecipeError, match=r"one process without accumulation.*accumulate_grad_batches=2"):
        trainer(GradientNoiseScale(), max_steps=1).fit(Linear(), DataLoader(samples(8), batch_size=4))
    with pytest.raises(RecipeError, match="under manual optimization"):
        trainer(GradientNoiseScale(batch_size=4), max_steps=1).fit(Manual1(), loader())
    module = Net()
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), 0.1)  # type: ignore[method-assign]
    run: Any = trainer(GradientNoiseScale(), max_steps=1, accumulate_grad_batches=2)
    with pytest.raises(RecipeError, match=r"cannot be read off the loader; give batch_size="):
        run.fit(module, [next(iter(loader()))] * 4)


class Manual1(Manual):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)
