"""Schedule-free optimizers under Lightning: the averages are validated and stored, and the run is left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lit_opt import EMA, Recipe
from lit_opt.errors import RecipeError
from lit_opt.optim import build
from tests.callbacks.modules import Net, SaveAt, loader, trainer
from tests.callbacks.processes import Share

STEPS = 12


def recipe(**keywords: Any) -> Recipe:
    given = {"lr": 0.02, "weight_decay": 0.1, "warmup": 3, "clip": 0} | keywords
    return Recipe("llm", optimizer="schedule_free_adamw", **given)


class Seen(Net):
    """Remembers the first weight that it was validated and tested with."""

    def __init__(self) -> None:
        super().__init__()
        self.validated: list[torch.Tensor] = []

    def on_validation_epoch_start(self) -> None:
        self.validated.append(self.state_dict()["net.0.weight"].clone())

    def on_test_epoch_start(self) -> None:
        self.validated.append(self.state_dict()["net.0.weight"].clone())


def by_hand(rates: list[float]) -> tuple[Net, Any]:
    module = Net()
    decayed = [p for p in module.parameters() if p.ndim > 1]
    rest = [p for p in module.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = build("schedule_free_adamw", groups, lr=0.02, betas=(0.9, 0.999))
    batches = [batch for _ in range(2) for batch in loader()]
    for rate, batch in zip(rates, batches, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        module.loss(batch).backward()
        optimizer.step()
    return module, optimizer


def test_equals_the_library_by_hand_and_validates_its_averages(tmp_path: Path):
    module = Seen()
    ours = recipe()
    t = trainer(ours, SaveAt(tmp_path / "end.ckpt", STEPS), max_steps=STEPS, val_check_interval=4,
                num_sanity_val_steps=0)  # fmt: skip
    t.fit(module, loader(), loader())
    assert len(module.lrs) == STEPS and module.lrs[-1] == 0.02
    other, optimizer = by_hand(module.lrs)
    for a, b in zip(module.parameters(), other.parameters(), strict=True):
        assert (a - b).abs().max() < 1e-6
    assert ours.run is not None and ours.run.resolved.schedule is not None
    assert ours.run.resolved.schedule.kind == "constant"
    optimizer.eval()
    averages = [p.detach().clone() for p in other.parameters()]
    assert (module.validated[-1] - averages[0]).abs().max() < 1e-6
    assert (module.validated[-1] - module.state_dict()["net.0.weight"]).abs().max() > 1e-4
    fresh = Net()
    EMA.load(fresh, tmp_path / "end.ckpt")
    for value, average in zip(fresh.state_dict().values(), averages, strict=True):
        assert (value - average).abs().max() < 1e-6
    # another process, which has the checkpoint alone
    tested = Seen()
    trainer(recipe()).test(tested, loader(), ckpt_path=str(tmp_path / "end.ckpt"), verbose=False)
    assert (tested.validated[-1] - averages[0]).abs().max() < 1e-6


def test_validating_and_saving_change_nothing(tmp_path: Path):
    plain, watched = Net(), Net()
    trainer(recipe(), max_steps=STEPS).fit(plain, loader())
    saves = [SaveAt(tmp_path / f"{step}.ckpt", step) for step in (2, 5, 7)]
    trainer(recipe(), *saves, max_steps=STEPS, val_check_interval=2).fit(watched, loader(), loader())
    for a, b in zip(plain.parameters(), watched.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("step", [2, 5])
def test_a_resume_is_the_uninterrupted_run(step: int, tmp_path: Path):
    whole, resumed = Net(), Net()
    trainer(recipe(), SaveAt(tmp_path / "mid.ckpt", step), max_steps=6).fit(whole, Share(0, 1), loader())
    trainer(recipe(), max_steps=6).fit(resumed, Share(0, 1), loader(), ckpt_path=str(tmp_path / "mid.ckpt"))
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("keywords", "message"), [({"decay": "cosine"}, "decay"), ({"ema": 0.999}, "ema")])
def test_what_would_average_or_decay_twice_is_refused(keywords: dict[str, Any], message: str):
    with pytest.raises(RecipeError, match=f"{message}: .*schedule_free_adamw"):
        recipe(**keywords)


def test_a_recipe_with_averages_leaves_them_to_the_optimizer():
    ours = Recipe("diffusion", optimizer="schedule_free_adamw", lr=1e-3, weight_decay=0.0, batch_size=4)
    trainer(ours, max_steps=2).fit(Net(), loader())
    assert ours.run is not None and ours.run.resolved.ema is None
    assert "averages its weights itself" in ours.run.resolved.provenance["ema"].note
