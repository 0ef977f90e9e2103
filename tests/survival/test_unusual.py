"""Unusual modules and Trainers: each trains as a plain loop does, or is refused with our message."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch.utils.data import DataLoader

from lit_opt import ClipSpec, EMASpec, OptimizerMonitor, Recipe
from lit_opt.callbacks.ema import EMA
from lit_opt.errors import RecipeError
from tests.callbacks.modules import Endless, Net, StatefulLoader, fit, loader, snapshot, trainer
from tests.survival import unusual

STEPS = 5
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "adamw": ("llm", {"lr": 1e-2}),
    "sgd": ("cnn", {"lr": 0.05, "batch_size": 4, "weight_decay": 1e-4}),
    "muon": ("llm", {"optimizer": "muon", "lr": 0.02, "weight_decay": 0.1, "optimizer_kwargs": {"ns_dtype": "float32"}}),
    "schedule_free": ("llm", {"optimizer": "schedule_free_adamw", "lr": 1e-2, "weight_decay": 0.1, "warmup": 2}),
}  # fmt: skip
NOT: dict[tuple[type[Net], str], str] = {
    (unusual.Complex, "muon"): "muon takes real parameters, and these are complex: matrix, vector",
    (unusual.Complex, "schedule_free"): "schedule_free_adamw takes real parameters",
    (unusual.Sparse, "adamw"): "cannot take the sparse gradients of table",
    (unusual.Sparse, "muon"): "cannot take the sparse gradients of table",
    (unusual.Sparse, "schedule_free"): "cannot take the sparse gradients of table",
}


def recipe(name: str, **more: Any) -> Recipe:
    setting, given = RECIPES[name]
    averages = {} if name == "schedule_free" else {"ema": EMASpec(decay=0.8, warmup=False)}
    return Recipe(setting, **(given | averages | more))


def test_complex_parameters_are_not_clipped_by_value() -> None:
    """torch's clamp does not know them; found by the fuzz."""
    with pytest.raises(RecipeError, match="and these are: matrix, vector"):
        fit(unusual.Complex(), recipe("adamw", clip=ClipSpec(limit=0.5, kind="value")))


def plain_loop(kind: type[Net], name: str) -> tuple[Net, list[torch.Tensor]]:
    """The same without Lightning; also the averages, by the rule itself."""
    module, ours = kind(), recipe(name)
    module.train()
    optimizer, scheduler = ours.configure(module, total_steps=STEPS, global_batch=4)
    averages = [p.detach().clone() for p in module.parameters()]
    for batch in list(loader())[:STEPS]:
        optimizer.zero_grad()
        module.loss(batch).backward()
        ours.clip_gradients(module)
        optimizer.step()
        scheduler.step()
        averages = [torch.lerp(p.detach(), a, 0.8) for a, p in zip(averages, module.parameters(), strict=True)]
    return module, averages


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("kind", unusual.TRAINED, ids=lambda kind: kind.__name__)
def test_it_trains_as_a_plain_loop_does_or_is_refused(kind: type[Net], name: str) -> None:
    module, ours = kind(), recipe(name)
    before = snapshot(module)
    monitor = OptimizerMonitor(every_n_steps=2)
    if (kind, name) in NOT:
        with pytest.raises(RecipeError, match=NOT[kind, name]):
            fit(module, ours, monitor, max_steps=STEPS)
        assert snapshot(module) == before
        return
    fit(module, ours, monitor, max_steps=STEPS)
    plain, averages = plain_loop(kind, name)
    for a, b in zip(module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    if isinstance(ours.ema, EMA) and name != "schedule_free":
        assert ours.ema._averages is not None
        held = {id(e.parameter): n for n, e in ours.ema._averages.entries.items()}
        for p, average in zip(module.parameters(), averages, strict=True):
            torch.testing.assert_close(ours.ema._averages.whole(held[id(p)]).to(average.dtype), average)
    assert snapshot(module) == before
    assert monitor.latest["optim/skipped_steps"] == 0


@pytest.mark.parametrize("kind", unusual.REFUSED, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", ["adamw", "sgd", "muon"])
def test_what_would_silently_not_be_trained_is_refused(kind: type[Net], name: str) -> None:
    module = kind()
    before = snapshot(module)
    with pytest.raises(RecipeError, match=r"became trainable after the optimizer was made|is trainable"):
        fit(module, recipe(name))
    assert snapshot(module) == before


def test_an_embedding_with_sparse_gradients_and_clipping() -> None:
    with pytest.raises(RecipeError, match=r"sgd with clipping cannot take .* or take optimizer='sgd' with clip=0"):
        fit(unusual.Sparse(), recipe("sgd", clip=1.0))


def test_several_optimizers_by_hand() -> None:
    module, ours = unusual.TwoOptimizers(), Recipe("llm", existing="keep", ema=EMASpec(decay=0.8))
    fit(module, ours, max_steps=6)
    assert ours.ema is not None and ours.ema.steps == 3  # one for each batch
    with pytest.raises(RecipeError, match="optimizes manually, so it is not replaced silently"):
        fit(unusual.TwoOptimizers(), Recipe("llm"))
    with pytest.raises(RecipeError, match="makes 2 optimizers, and a recipe brings one"):
        fit(unusual.TwoOptimizers(), Recipe("llm", existing="replace"))


def test_a_step_without_a_loss() -> None:
    module, ours = unusual.SkipsBatches(), recipe("adamw")
    fit(module, ours, max_steps=STEPS)
    assert all(p.isfinite().all() for p in module.parameters())


UNKNOWN = "the horizon of the run is unknown"


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon"])
@pytest.mark.parametrize(
    ("how", "steps", "said"),
    [
        ({"data": "endless", "max_epochs": 1}, 8, UNKNOWN),
        ({"data": "endless", "max_epochs": 1, "total_steps": 8}, 8, ""),
        ({"data": "endless", "max_steps": 6}, 6, ""),
        ({"max_time": {"milliseconds": 1}}, None, UNKNOWN),
        ({"max_time": {"seconds": 0}, "total_steps": 100}, None, ""),
        ({"max_epochs": 3, "schedule": {0: 1, 1: 2}}, 16, ""),
        ({"max_epochs": 2, "reload_dataloaders_every_n_epochs": 1}, 16, ""),
        ({"fast_dev_run": 3}, 3, ""),
        ({"overfit_batches": 2, "max_epochs": 2}, 4, ""),
        ({"limit_train_batches": 0.5, "max_epochs": 1}, 4, ""),
        ({"barebones": True, "max_steps": 5}, 5, ""),
        ({"max_epochs": 0}, 0, ""),
    ],
    ids=lambda x: ",".join(map(str, x)) if isinstance(x, dict) else "",
)
def test_trainers(name: str, how: dict[str, Any], steps: int | None, said: str) -> None:
    how = dict(how)
    data = DataLoader(Endless(), 4) if how.pop("data", "") == "endless" else loader()
    more = {"total_steps": how.pop("total_steps")} if "total_steps" in how else {}
    more |= {"batch_size": 4} if name == "sgd" else {}
    ours, module = recipe(name, **more), Net()
    before = snapshot(module)
    callbacks = [GradientAccumulationScheduler(how.pop("schedule"))] if "schedule" in how else []
    if how.get("barebones"):
        t = Trainer(callbacks=[ours], accelerator="cpu", **how)
    else:
        t = trainer(ours, *callbacks, **how)
    if said:
        with pytest.raises(RecipeError, match=said):
            t.fit(module, data)
        assert snapshot(module) == before
        return
    t.fit(module, data)
    assert snapshot(module) == before
    assert steps is None or t.global_step == steps
    assert ours.resolved is not None and ours.resolved.schedule is not None and ours.scheduler is not None
    if steps:  # the decay has reached its end
        assert ours.resolved.schedule.total_steps == steps
        peak, final = ours.resolved.lr, ours.resolved.schedule.final
        assert ours.scheduler.get_last_lr()[0] == pytest.approx(peak * final, rel=1e-6, abs=1e-12)


def test_a_loader_that_is_made_anew_each_epoch_goes_on_after_a_resume(tmp_path: Any) -> None:
    how: dict[str, Any] = {"max_epochs": 3, "reload_dataloaders_every_n_epochs": 1}
    whole, rest, path = Net(), Net(), tmp_path / "c.ckpt"
    torch.manual_seed(0)
    fit(whole, recipe("adamw"), data=StatefulLoader(), **how)
    torch.manual_seed(0)
    fit(Net(), recipe("adamw", total_steps=24), data=StatefulLoader(), **(how | {"max_epochs": 2})).save_checkpoint(
        path
    )
    fit(rest, recipe("adamw"), data=StatefulLoader(), ckpt_path=path, **how)
    assert rest.seen == whole.seen[-len(rest.seen) :]
    for a, b in zip(whole.parameters(), rest.parameters(), strict=True):
        assert torch.equal(a, b)
