"""The plane, the surface on it, and the callback that draws them: exact where they say so, and nothing is left changed."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from PIL import Image
from torch import nn

from lit_opt import Recipe, TrajectoryCallback
from lit_opt.callbacks.plane import Plane, Sketch, kept, pca_plane, put_weights, surface, take_weights
from lit_opt.errors import RecipeError
from tests.callbacks.modules import Net, loader, trainer


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- the plane


def test_the_plane_is_numpys_svd():
    cloud = random(12, 40) * torch.linspace(3, 0.1, 40)
    plane = pca_plane(cloud)
    moved = (cloud - cloud.mean(0)).double().numpy()
    _, values, axes = np.linalg.svd(moved, full_matrices=False)
    for own, other in zip(plane.axes.numpy(), axes[:2], strict=True):
        assert abs(own @ other) == pytest.approx(1, abs=1e-5)
    assert plane.explained == pytest.approx((values[:2] ** 2).sum() / (values**2).sum(), rel=1e-5)
    assert torch.allclose(plane.axes @ plane.axes.T, torch.eye(2), atol=1e-5)
    assert bool((plane.coordinates(cloud)[-1] >= 0).all())  # the end decides the signs


def test_a_straight_path_has_a_plane():
    plane = pca_plane(torch.outer(torch.arange(5.0), torch.tensor([1.0, 2.0, 2.0])))
    assert plane.explained == pytest.approx(1)
    assert torch.allclose(plane.axes @ plane.axes.T, torch.eye(2), atol=1e-5)
    assert abs(float(plane.coordinates(torch.tensor([[4.0, 8.0, 8.0]]))[0, 0])) == pytest.approx(6, rel=1e-5)


def model_and_loss():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    x, y = random(10, 3), random(10, 1, seed=1)
    return model, list(model.parameters()), lambda: float((model(x) - y).square().mean().detach())


def test_the_surface_at_a_point_of_the_path_is_the_loss_there():
    _, parameters, loss = model_and_loss()
    start = take_weights(parameters)
    u, v = random(2, len(start), seed=3)
    path = torch.stack([start + math.sin(t) * u + t * v for t in np.linspace(0, 0.8, 7)])  # it lies in a plane
    plane = pca_plane(path)
    for weights in path:
        x, y = plane.coordinates(weights[None])[0].tolist()
        height = surface(loss, parameters, plane, torch.tensor([x]), torch.tensor([y]))
        with kept(parameters):
            put_weights(parameters, weights)
            assert float(height) == pytest.approx(loss(), rel=1e-4)
    xs, ys = torch.tensor([-0.5, 0.5]), torch.tensor([-0.3, 0.0, 0.3])
    heights = surface(loss, parameters, plane, xs, ys)
    with kept(parameters):
        put_weights(parameters, plane.weights(0.5, -0.3))
        assert float(heights[0, 1]) == pytest.approx(loss(), rel=1e-6)


def test_weights_are_left_as_found_also_after_an_exception():
    _, parameters, loss = model_and_loss()
    before = [p.detach().clone() for p in parameters]
    plane = Plane(torch.zeros(21), torch.eye(2, 21), 1.0)
    surface(loss, parameters, plane, torch.zeros(2), torch.zeros(2))
    calls = iter(range(3))

    def failing():
        if next(calls) == 2:
            raise RuntimeError("third")
        return loss()

    with pytest.raises(RuntimeError, match="third"):
        surface(failing, parameters, plane, torch.zeros(2), torch.zeros(2))
    assert all(torch.equal(p, value) for p, value in zip(parameters, before, strict=True))
    assert loss() > 0


def test_the_sketch_keeps_inner_products():
    sketch = Sketch(256)
    a, b = random(2**20 + 1000), random(2**20 + 1000, seed=1)  # two chunks
    b = b + 0.5 * a
    assert float(sketch(a) @ sketch(b)) == pytest.approx(float(a @ b), abs=4 * float(a.norm() * b.norm()) / 16)
    assert torch.allclose(sketch(a) + 2 * sketch(b), sketch(a + 2 * b), rtol=1e-4, atol=1e-2)
    assert torch.equal(Sketch(256)(a), sketch(a)) and not torch.equal(Sketch(256, seed=1)(a), sketch(a))


# ---- the callback


class Trains(Net):
    """Net with dropout, a buffer that training moves, and logging: what an evaluation may not disturb."""

    def __init__(self):
        super().__init__(dropout=0.2)
        self.moving = nn.BatchNorm1d(8)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = super().training_step([self.moving(x), y], batch_idx)
        self.log("loss_seen", loss)
        return loss


def fit(*callbacks, module=None, steps=24, **kwargs):
    torch.manual_seed(0)
    module = module or Trains()
    runner = trainer(*callbacks, Recipe("llm", lr=1e-2), max_steps=steps, **kwargs)
    runner.fit(module, loader())
    return module, runner


def test_training_is_the_same_with_it(tmp_path):
    plain, _ = fit()
    after_plain = torch.rand(3)
    watched, runner = fit(TrajectoryCallback(tmp_path, size=3, animation=False))
    assert torch.equal(torch.rand(3), after_plain)
    for (name, a), b in zip(plain.state_dict().items(), watched.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert "log" not in vars(watched) and "log_dict" not in vars(watched)
    assert runner.callback_metrics["loss_seen"] > 0


def test_it_draws(tmp_path):
    fit(TrajectoryCallback(tmp_path / "new", size=5))
    with Image.open(tmp_path / "new" / "trajectory.png") as picture:
        assert picture.size[0] > 800 and len(picture.convert("RGB").getcolors(2**24) or []) > 50
    with Image.open(tmp_path / "new" / "trajectory.gif") as picture:
        frames = getattr(picture, "n_frames", 1)
        assert frames > 10
        first = picture.convert("RGB").tobytes()
        picture.seek(frames - 1)
        assert picture.convert("RGB").tobytes() != first


class Watched(TrajectoryCallback):
    """Keeps the scene and the true weights of every step."""

    def on_train_start(self, trainer, pl_module):
        super().on_train_start(trainer, pl_module)
        self.true = {0: take_weights(list(pl_module.parameters()))}

    def on_train_batch_end(self, trainer, pl_module, *args):
        super().on_train_batch_end(trainer, pl_module, *args)
        self.true[trainer.global_step] = take_weights(list(pl_module.parameters()))

    def scene(self, pl_module):
        self.copies = dict(self._copies)
        self.kept_scene = super().scene(pl_module)
        return self.kept_scene


def test_places_of_copies_are_exact_and_the_others_near(tmp_path):
    callback = Watched(tmp_path, size=3, snapshots=6, animation=False)
    fit(callback, steps=40)
    scene, way = callback.kept_scene, callback.kept_scene.ways[0]
    assert way.steps.tolist() == list(range(41))
    assert len(callback.copies) <= 6 and max(callback.copies) == 40 and min(callback.copies) == 0
    exact = scene.plane.coordinates(torch.stack([callback.true[step] for step in range(41)]))
    own = [step in callback.copies for step in range(41)]
    assert torch.allclose(way.places[own], exact[own], atol=1e-6)
    off = torch.stack([callback.true[s] for s in range(41)]) - scene.plane.centre
    distance = (off.square().sum(1) - exact.square().sum(1)).clamp(min=0).sqrt()
    error = (way.places - exact).norm(dim=1)
    assert bool((error <= 6 * distance / math.sqrt(256) + 1e-5).all())


def test_memory_stays_bounded(tmp_path):
    callback = Watched(tmp_path, size=3, snapshots=5, animation=False)
    most = 0

    class Counts(Net):
        def on_train_batch_start(self, *args):
            nonlocal most
            most = max(most, len(callback._copies))

    fit(callback, module=Counts(), steps=100)
    assert most <= 5 and sorted(callback.copies) == [0, 32, 64, 96, 100]


def test_the_users_loss_is_used(tmp_path):
    seen = []

    def loss(module, batch):
        assert not module.training
        seen.append(batch[0].shape)
        return sum(p.square().sum() for p in module.parameters())

    callback = Watched(tmp_path, size=3, loss=loss, animation=False)
    module, _ = fit(callback)
    assert len(seen) == 9 + len(callback.copies) and set(seen) == {torch.Size([4, 8])}
    way = callback.kept_scene.ways[0]
    assert float(way.losses[-1]) == pytest.approx(float(sum(p.detach().square().sum() for p in module.parameters())))


def test_an_exception_leaves_the_module_as_it_was(tmp_path):
    calls = []

    def loss(module, batch):
        calls.append(1)
        if len(calls) == 20:
            raise RuntimeError("twentieth")
        return next(module.parameters()).sum()

    module = Trains()
    callback = Watched(tmp_path, size=5, loss=loss, animation=False)
    with pytest.raises(RuntimeError, match="twentieth"):
        fit(callback, module=module)
    assert torch.equal(take_weights(list(module.parameters())), callback.true[24])
    assert module.training and all(part.training for part in module.modules())
    assert "log" not in vars(module)


def test_a_resumed_run_is_refused(tmp_path):
    _, runner = fit(TrajectoryCallback(tmp_path, size=3, animation=False), steps=8)
    runner.save_checkpoint(tmp_path / "last.ckpt")
    again = trainer(TrajectoryCallback(tmp_path, size=3), Recipe("llm", lr=1e-2), max_steps=8 + 8)
    with pytest.raises(RecipeError, match="resumes at step 8"):
        again.fit(Trains(), loader(), ckpt_path=tmp_path / "last.ckpt", weights_only=False)


def test_bad_arguments_are_refused_together():
    with pytest.raises(RecipeError) as error:
        TrajectoryCallback(snapshots=1, dimensions=2.5, every=0, size=True, loss="loss")  # type: ignore[arg-type]
    assert len(error.value.problems) == 5


def test_a_training_step_without_loss_is_refused(tmp_path):
    class Silent(LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 1)
            self.automatic_optimization = False

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

        def training_step(self, batch, batch_idx):
            optimizer: Any = self.optimizers()
            if torch.is_grad_enabled():
                self.layer(batch[0]).square().mean().backward()
                optimizer.step()

    with pytest.raises(RecipeError, match="Give loss="):
        trainer(TrajectoryCallback(tmp_path, size=3), max_steps=4).fit(Silent(), loader())
