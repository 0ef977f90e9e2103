"""SAM in Lightning equals a two-pass loop by hand, and its second pass leaves no trace."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lit_opt import Recipe
from lit_opt.errors import RecipeError
from lit_opt.optim.sam import frozen_statistics
from tests.callbacks.modules import Manual, Net, SaveAt, loader, trainer
from tests.callbacks.processes import Share

STEPS = 20
RHO = 0.1


class Noisy(LightningModule):
    """Batch norm, dropout, a metric and a log: all that a second pass could spoil."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 4))
        self.mean = MeanMetric()
        self.shown: list[float] = []

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        torch.manual_seed(batch_idx)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self.net(batch[0]).float(), batch[1])
        self.mean(loss.detach())
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss


class Watch(Callback):
    def __init__(self) -> None:
        self.returned: list[float] = []
        self.logged: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.returned.append(float(outputs["loss"]))
        self.logged.append(float(trainer.callback_metrics["loss_step"]))


def recipe(**keywords: Any) -> Recipe:
    fixed: dict[str, Any] = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.0, "warmup": 0, "decay": "constant"}
    given = {"optimizer": "sam", "clip": 0, "optimizer_kwargs": {"rho": RHO}, **fixed, **keywords}
    return Recipe("cnn", **given)


def by_hand(clip: float = 0.0, autocast: bool = False) -> tuple[nn.Module, list[float]]:
    module = Noisy()
    net, optimizer = module.net, torch.optim.SGD(module.net.parameters(), lr=0.05, momentum=0.9)
    params, losses = list(net.parameters()), []

    def loss_of(batch: list[Tensor]) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
            logits = net(batch[0])
        return F.cross_entropy(logits.float(), batch[1])

    for step, batch in enumerate(loader(n=4 * STEPS)):
        torch.manual_seed(step)
        before = torch.get_rng_state()
        optimizer.zero_grad()
        loss = loss_of(batch)
        loss.backward()
        losses.append(float(loss.detach()))
        after = torch.get_rng_state()
        norm = torch.stack([p.grad.norm() for p in params if p.grad is not None]).norm()
        saved = [p.detach().clone() for p in params]
        with torch.no_grad():
            for p in params:
                assert p.grad is not None
                p.add_(p.grad * (RHO / (norm + 1e-12)))
        optimizer.zero_grad()
        torch.set_rng_state(before)
        with frozen_statistics(net):
            loss_of(batch).backward()
        torch.set_rng_state(after)
        with torch.no_grad():
            for p, old in zip(params, saved, strict=True):
                p.copy_(old)
        if clip:
            nn.utils.clip_grad_norm_(params, clip)
        optimizer.step()
    return net, losses


@pytest.mark.parametrize(
    ("clip", "precision"), [(0.0, "32-true"), (0.05, "32-true"), (0.0, "bf16-mixed"), (0.05, "bf16-mixed")]
)
def test_equals_a_loop_by_hand(clip: float, precision: str):
    module, watch = Noisy(), Watch()
    t = trainer(recipe(clip=clip), watch, max_steps=STEPS, precision=precision)
    t.fit(module, loader(n=4 * STEPS))
    net, losses = by_hand(clip, precision == "bf16-mixed")
    for (name, a), b in zip(module.net.state_dict().items(), net.state_dict().values(), strict=True):
        assert (a.double() - b.double()).abs().max() < 1e-6, name
    assert watch.returned == pytest.approx(losses, rel=1e-6)
    assert watch.logged == pytest.approx(losses, rel=1e-6)
    assert float(t.callback_metrics["loss_epoch"]) == pytest.approx(sum(losses) / STEPS, rel=1e-6)
    assert module.mean._update_count == STEPS
    assert float(module.mean.compute()) == pytest.approx(sum(losses) / STEPS, rel=1e-6)
    assert t.global_step == STEPS


def test_averages_follow_the_weights_and_not_the_worst_point():
    module, ours = Noisy(), recipe(ema=0.5)
    t = trainer(ours, max_steps=3)
    t.fit(module, loader())
    assert ours.ema is not None and ours.ema.updates == 3
    plain = Noisy()
    trainer(recipe(), max_steps=3).fit(plain, loader())
    for a, b in zip(module.net.parameters(), plain.net.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_first_loss_of_none_skips_the_step():
    class Skips(Noisy):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
            return None if batch_idx == 1 else super().training_step(batch, batch_idx)

    module = Skips()
    trainer(recipe(), max_epochs=1).fit(module, loader())
    assert all(torch.isfinite(p).all() for p in module.parameters())


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        (Net, {"precision": "16-mixed"}, "bf16-mixed"),
        (Net, {"accumulate_grad_batches": 2}, "accumulate_grad_batches=2"),
        (Manual, {}, "manual optimization"),
    ],
)
def test_what_cannot_be_right_is_refused(module: Any, arguments: dict[str, Any], message: str):
    if "precision" in arguments:  # the string turns into bf16-mixed on a CPU
        arguments = {"plugins": [MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))]}
    with pytest.raises(RecipeError, match=message):
        trainer(recipe(), max_steps=2, **arguments).fit(module(), loader())


def test_a_scheduled_accumulation_is_refused():
    with pytest.raises(RecipeError, match="accumulate_grad_batches"):
        trainer(recipe(), GradientAccumulationScheduler({1: 2}), max_epochs=2).fit(Net(), loader())


@pytest.mark.parametrize(("name", "base"), [("vit", "AdamW"), ("cnn", "SGD")])
def test_a_recipe_brings_the_base_of_its_setting(name: str, base: str):
    ours = Recipe(name, optimizer="sam", batch_size=256)
    trainer(ours, max_steps=2).fit(Net(), loader())
    assert ours.run is not None and type(ours.run.optimizer.base).__name__ == base  # type: ignore[attr-defined]
    assert ours.run.resolved.hyperparameters["rho"] == 0.05


def test_lookahead_resumes_as_the_uninterrupted_run(tmp_path: Any):
    def lookahead() -> Recipe:
        return Recipe("llm", optimizer="lookahead", optimizer_kwargs={"k": 4}, warmup=2)

    whole, resumed = Net(), Net()
    trainer(lookahead(), SaveAt(tmp_path / "mid.ckpt", 3), max_steps=6).fit(whole, Share(0, 1))
    trainer(lookahead(), max_steps=6).fit(resumed, Share(0, 1), ckpt_path=str(tmp_path / "mid.ckpt"))
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
