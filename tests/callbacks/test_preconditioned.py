"""SOAP, SPlus and Shampoo under Lightning: they train, SPlus validates its averages, and a resume is exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lit_opt import EMA, Recipe
from lit_opt.optim.matrix.preconditioned import PreconditionedOptimizer
from tests.callbacks.modules import Net, SaveAt, loader, trainer
from tests.callbacks.processes import Share

STEPS = 6


def recipe(method: str) -> Recipe:
    options: dict[str, Any] = {"precondition_frequency": 2}
    lr = {"soap": 3e-3, "splus": 0.1, "shampoo": 1e-2}[method]
    return Recipe("llm", optimizer=method, lr=lr, weight_decay=0.1, warmup=3, clip=0, optimizer_kwargs=options)


class Seen(Net):
    """Remembers the first weight that it was validated with."""

    def on_validation_epoch_start(self) -> None:
        self.validated = self.state_dict()["net.0.weight"].clone()


@pytest.mark.parametrize("method", ["soap", "splus", "shampoo"])
def test_a_resume_is_exact(method: str, tmp_path: Path):
    straight = Seen()
    ours = recipe(method)
    middle = SaveAt(tmp_path / "middle.ckpt", STEPS // 2)
    trainer(ours, middle, max_steps=STEPS, num_sanity_val_steps=0).fit(straight, Share(0, 1), loader())
    assert isinstance(ours.optimizer, PreconditionedOptimizer)
    resumed = Seen()
    t = trainer(recipe(method), max_steps=STEPS, num_sanity_val_steps=0)
    t.fit(resumed, Share(0, 1), loader(), ckpt_path=str(tmp_path / "middle.ckpt"))
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(straight.validated, resumed.validated)


def test_splus_is_validated_and_stored_with_its_averages(tmp_path: Path):
    module, ours = Seen(), recipe("splus")
    t = trainer(ours, SaveAt(tmp_path / "end.ckpt", STEPS), max_steps=STEPS, num_sanity_val_steps=0)
    t.fit(module, loader(), loader())
    optimizer: Any = ours.optimizer
    raw = [p.detach().clone() for p in module.parameters()]
    optimizer.eval()
    averages = [p.detach().clone() for p in module.parameters()]
    optimizer.train()
    assert all(torch.equal(p, old) for p, old in zip(module.parameters(), raw, strict=True))
    assert (averages[0] - raw[0]).abs().max() > 1e-4
    fresh = Net()
    EMA.load(fresh, tmp_path / "end.ckpt")
    for value, average in zip(fresh.state_dict().values(), averages, strict=True):
        assert (value - average).abs().max() < 1e-6
