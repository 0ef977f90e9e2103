"""The diffusion workload: what it computes, what it draws, and that it trains and resumes under its recipe."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torch import nn

from lit_opt import EMA, Recipe
from lit_opt.errors import RecipeError
from lit_opt.workloads import DiffusionModel, Digits, ResumableDataModule
from lit_opt.workloads.diffusion import OBJECTIVES, save_grid
from tests.workloads.test_text import quiet_trainer

TINY: dict[str, Any] = {"image_size": 8, "width": 8}
BOTH = pytest.mark.parametrize("objective", OBJECTIVES)


class Bars(ResumableDataModule):
    """Label 0: a white bar on top; label 1: one below."""

    def datasets(self):
        images = torch.full((2, 3, 8, 8), -0.812)
        images[0, :, :4], images[1, :, 4:] = 1.848, 1.848
        samples = [(images[i % 2], torch.tensor(i % 2)) for i in range(64)]
        return samples, samples[:9]


class Exact(nn.Module):
    """Knows the one image of the data, so its prediction is exact."""

    def __init__(self, model, image):
        super().__init__()
        self.owner, self.image = [model], image  # in a list, so that it is no part of this module

    def forward(self, x, level, **_):
        t = (level / 1000)[:, None, None, None]
        if self.owner[0].objective == "flow":
            exact = (self.image - x) / (1 - t)
        else:
            kept = self.owner[0].scheduler.alphas_cumprod[level.round().long()][:, None, None, None]
            exact = (x - kept.sqrt() * self.image) / (1 - kept).sqrt()
        return type("Output", (), {"sample": exact})


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def validated(model, **data):
    [row] = quiet_trainer().validate(model, Bars(**{"batch_size": 4, **data}), verbose=False)
    return row["val_loss"]


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@BOTH
def test_it_learns_under_the_diffusion_recipe(objective):
    model = DiffusionModel(objective=objective, grid_steps=0, num_classes=2, **TINY)
    before = validated(model)
    steps = 60 if objective == "flow" else 20
    trainer = quiet_trainer(max_steps=steps, limit_val_batches=0, callbacks=[Recipe("diffusion", lr=3e-3)])
    trainer.fit(model, Bars(batch_size=16))
    assert validated(model) < (0.3 if objective == "flow" else 0.6) * before
    if objective == "ddpm":
        return  # its labels take several times the steps to matter
    drawn = model.sample(4, steps=20, seed=0).mean(dim=(1, 3))  # by rows
    top, below = drawn[:, :4].mean(dim=1), drawn[:, 4:].mean(dim=1)
    assert (top > below).tolist() == [True, False, True, False]


@BOTH
def test_an_exact_prediction_has_no_loss_and_draws_the_image(objective):
    model = DiffusionModel(objective=objective, **TINY)
    image = torch.rand(1, 1, 8, 8) * 2 - 1
    model.model = Exact(model, image)
    noise, times = torch.randn(5, 1, 8, 8), torch.linspace(0.0, 0.99, 5)
    loss = model.loss(image.expand(5, -1, -1, -1), torch.zeros(5, dtype=torch.long), noise, times)
    assert loss.shape == (5,) and float(loss.max()) < 1e-6
    model.value_range = (10.0, 20.0)
    drawn = model.sample(3, steps=10)
    torch.testing.assert_close(drawn, (15 + 5 * image).expand(3, -1, -1, -1), rtol=0, atol=1e-2)


def test_the_velocity_is_image_minus_noise():
    model = DiffusionModel(objective="flow", **TINY)
    seen = []
    model.forward = lambda noisy, times, labels: seen.append((noisy, times)) or torch.zeros_like(noisy)  # type: ignore
    images, noise, times = torch.randn(2, 1, 8, 8), torch.randn(2, 1, 8, 8), torch.tensor([0.25, 1.0])
    loss = model.loss(images, torch.zeros(2), noise, times)
    torch.testing.assert_close(loss, (images - noise).square().mean(dim=(1, 2, 3)))
    torch.testing.assert_close(seen[0][0][0], 0.75 * noise[0] + 0.25 * images[0])
    torch.testing.assert_close(seen[0][0][1], images[1])


@BOTH
def test_samples_depend_on_their_seed_alone(objective):
    model = DiffusionModel(objective=objective, **TINY).train()
    state = torch.get_rng_state()
    a = model.sample(130, steps=2, seed=3)
    assert torch.equal(torch.get_rng_state(), state) and model.training
    assert a.shape == (130, 1, 8, 8) and a.isfinite().all()
    assert float(a.min()) >= -0.8121 and float(a.max()) <= 1.8481
    torch.manual_seed(99)
    assert torch.equal(model.sample(130, steps=2, seed=3), a)
    assert not torch.equal(model.sample(130, steps=2, seed=4), a)


@BOTH
def test_the_validation_loss_is_a_function_of_the_weights(objective):
    model = DiffusionModel(objective=objective, **TINY)
    first = validated(model)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert validated(model) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert validated(model, batch_size=9) == pytest.approx(first, rel=1e-5)
    assert validated(model, batch_size=2) == pytest.approx(first, rel=1e-5)
    with torch.no_grad():
        model.model.conv_out.bias += 0.1
    assert validated(model) != first


def test_two_processes_validate_what_one_does(monkeypatch):
    """Each process has every second image, and the noise of an image goes with it."""
    model = DiffusionModel(**TINY)
    data = Bars(batch_size=5)
    data.setup("validate")
    seen = []
    model.loss = lambda images, labels, noise, times: seen.append((noise, times)) or times  # type: ignore
    model.log = lambda *args, **kwargs: None  # type: ignore

    def all_of(world):
        seen.clear()
        for rank in range(world):
            model._trainer = type("T", (), {"world_size": world, "global_rank": rank})  # type: ignore
            monkeypatch.setattr(data, "_share", lambda rank=rank: {"rank": rank, "world_size": world})
            model.on_validation_epoch_start()
            for i, batch in enumerate(data.val_dataloader()):
                model.validation_step(batch, i)
        noise, times = (torch.cat(parts) for parts in zip(*seen, strict=True))
        return noise[times.argsort()], times.sort().values

    for one, two in zip(all_of(1), all_of(2), strict=True):
        assert len(one) == 9 and torch.equal(one, two)


def test_labels_are_left_out_on_request():
    model = DiffusionModel(num_classes=0, **TINY)
    x, times = torch.randn(2, 1, 8, 8), torch.rand(2)
    assert torch.equal(model(x, times, torch.tensor([0, 1])), model(x, times, torch.tensor([5, 5])))
    model = DiffusionModel(num_classes=10, **TINY)
    assert not torch.equal(model(x, times, torch.tensor([0, 1])), model(x, times, torch.tensor([5, 5])))


def test_a_picture_of_the_averages_after_each_validation(tmp_path):
    class Drawn(DiffusionModel):
        drawn: list[torch.Tensor]

        def sample(self, *args, **kwargs):
            self.drawn.append(weights(self))
            return super().sample(*args, **kwargs)

    model = Drawn(grid_steps=2, **TINY)
    model.drawn = []
    trainer = quiet_trainer(
        max_steps=6, val_check_interval=3, check_val_every_n_epoch=None, num_sanity_val_steps=1,
        default_root_dir=tmp_path, callbacks=[Recipe("diffusion", lr=1e-2)],
    )  # fmt: skip
    trainer.fit(model, Bars(batch_size=16))
    assert sorted(file.name for file in tmp_path.glob("*.png")) == ["samples-step000003.png", "samples-step000006.png"]
    assert (
        model.last_grid is not None and model.last_grid == tmp_path / "samples-step000006.png" and len(model.drawn) == 2
    )
    with Image.open(model.last_grid) as image:
        assert image.format == "PNG" and image.size == (8 * 36 + 4, 8 * 36 + 4)
    assert not torch.equal(model.drawn[1], weights(model))
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    averaged = DiffusionModel(grid_steps=2, **TINY)
    EMA.load(averaged, tmp_path / "end.ckpt")
    assert torch.equal(model.drawn[1], weights(averaged))
    again = save_grid(averaged.sample(64, 2), tmp_path / "again" / "grid.png", averaged.value_range)
    assert again.read_bytes() == model.last_grid.read_bytes()

    trainer.validate(model, Bars(batch_size=16), verbose=False)
    assert len(model.drawn) == 2, "a validation outside of a fit draws nothing"


@pytest.mark.parametrize("arguments", [{"fast_dev_run": 2}, {"max_steps": 2}], ids=str)
def test_when_there_is_no_picture(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    model = DiffusionModel(grid_steps=2 if "fast_dev_run" in arguments else 0, **TINY)
    quiet_trainer(callbacks=[Recipe("diffusion")], **arguments).fit(model, Bars(batch_size=16))
    assert model.last_grid is None and not list(tmp_path.rglob("*.png"))


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    model = DiffusionModel(grid_steps=1, **TINY)
    facts = {"sanity_checking": False, "log_dir": str(tmp_path), "global_step": 7, "is_global_zero": False}
    model._trainer = type("T", (), {**facts, "state": type("S", (), {"fn": "fit"})})  # type: ignore
    model.on_validation_epoch_end()
    assert model.last_grid == tmp_path / "samples-step000007.png" and not list(tmp_path.iterdir())


@BOTH
def test_a_resumed_run_is_bit_exact(tmp_path, objective):
    def run(max_steps, ckpt_path=None):
        seed_everything(0 if ckpt_path is None else 99, verbose=False)
        model = DiffusionModel(objective=objective, grid_steps=2, **TINY)
        saves = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=3, save_top_k=-1)
        trainer = quiet_trainer(
            max_steps=max_steps, default_root_dir=tmp_path, enable_checkpointing=True,
            callbacks=[Recipe("diffusion", lr=1e-2, warmup=2), saves],
        )  # fmt: skip
        trainer.fit(model, Bars(batch_size=16, seed=1), ckpt_path=ckpt_path)
        trainer.save_checkpoint(tmp_path / "end.ckpt")
        averaged = DiffusionModel(objective=objective, **TINY)
        EMA.load(averaged, tmp_path / "end.ckpt")
        return weights(model), weights(averaged), trainer.callback_metrics["train_loss"]

    whole = run(7)
    resumed = run(7, tmp_path / "step=3.ckpt")
    for a, b in zip(whole, resumed, strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(whole[0], whole[1])


def test_the_default_fits_the_digits():
    images, labels = next(iter(_train_loader(Digits(batch_size=64))))
    model = DiffusionModel()
    scaled = model._scaled(images)
    assert scaled.shape == (64, 1, 16, 16)
    assert float(scaled.min()) == pytest.approx(-1, abs=2e-3) and float(scaled.max()) == pytest.approx(1, abs=2e-3)
    assert 300_000 <= sum(p.numel() for p in model.parameters()) <= 1_000_000
    assert labels.shape == (64,)
    assert DiffusionModel.configure_optimizers is LightningModule.configure_optimizers


def _train_loader(data):
    data.setup("fit")
    return data.train_dataloader()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"objective": "flwo"}, "objective='flwo': 'ddpm' or 'flow' is needed. Did you mean 'flow'"),
        ({"image_size": 18}, "image_size=18: a multiple of 4"),
        ({"width": 12}, "width=12: a multiple of 8"),
        ({"width": True}, "width=True"),
        ({"num_classes": -1}, "num_classes=-1"),
        ({"grid_steps": 30}, "grid_steps=30: a divisor of 1000"),
        ({"value_range": (1.0, 1.0)}, r"value_range=\(1.0, 1.0\): two numbers are needed, black below white"),
    ],
    ids=str,
)
def test_arguments_are_checked_at_once(arguments, message):
    with pytest.raises(RecipeError, match=message):
        DiffusionModel(**arguments)


def test_all_problems_are_told_together():
    with pytest.raises(RecipeError, match="image_size=0") as caught:
        DiffusionModel(image_size=0, num_classes=-1, objective="x")
    assert "num_classes=-1" in str(caught.value) and "objective='x'" in str(caught.value)


def test_wrong_calls_are_refused():
    model = DiffusionModel(**TINY)
    with pytest.raises(RecipeError, match="n=0") as caught:
        model.sample(0, steps=3, seed=-1)
    assert "steps=3: a divisor of 1000" in str(caught.value) and "seed=-1" in str(caught.value)
    assert DiffusionModel(objective="flow", **TINY).sample(1, steps=3).shape == (1, 1, 8, 8)
    with pytest.raises(RecipeError, match="image_size=8: the images are 16x16"):
        quiet_trainer(max_steps=1, callbacks=[Recipe("diffusion")]).fit(model, Digits())
