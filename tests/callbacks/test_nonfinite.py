"""Steps whose loss or gradient is not finite: raised, left out, or taken."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lit_opt import EMASpec, OptimizerMonitor, Recipe
from lit_opt.callbacks import nonfinite
from lit_opt.errors import RecipeError
from tests.callbacks.modules import Manual, ManualOwn, Net, StatefulLoader, fit, loader, trainer

NAN, INF = float("nan"), float("inf")


class _Poison(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, value: float) -> Tensor:
        ctx.value = value
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        grad = grads[0].clone()
        grad.view(-1)[0] = ctx.value
        return grad, None


class Poisoned(Net):
    """Has nan in one element of one gradient in the micro-batches `bad`; the loss is finite."""

    def __init__(self, bad: set[int], value: float = NAN, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.bad, self.value, self.calls = bad, value, 0
        self.offset = nn.Parameter(torch.zeros(4))

    def loss(self, batch: list[Tensor]) -> Tensor:
        bad = self.training and self._batch in self.bad
        offset = _Poison.apply(self.offset, self.value) if bad else self.offset
        return nn.functional.cross_entropy(self.net(batch[0]).float() + offset, batch[1])

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self._batch = batch_idx
        return super().training_step(batch, batch_idx)


class BadLoss(Net):
    """An infinite loss with finite gradients, at batch 2."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss + INF if batch_idx == 2 else loss


class _Batches(Dataset[Any]):
    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, i: int) -> Any:
        return self.batches[i]


def scaled() -> Any:
    """16-mixed with a scaler, which Lightning gives to GPUs alone."""
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))


def state_of(module: Any, recipe: Recipe) -> list[Tensor]:
    assert recipe.optimizer is not None
    state = [v for p in module.parameters() for v in recipe.optimizer.state[p].values() if isinstance(v, Tensor)]
    return [*module.parameters(), *state]


def assert_same(one: list[Tensor], other: list[Tensor]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_gradient_is_named_before_anything_moves(value: float) -> None:
    module = Poisoned({2}, value)
    with pytest.raises(RecipeError) as caught:
        fit(module, Recipe("llm", lr=1e-2), data=loader(), max_steps=6)
    clean = Poisoned(set())
    fit(clean, Recipe("llm", lr=1e-2, total_steps=6), data=loader(), max_steps=2)
    assert_same(list(module.parameters()), list(clean.parameters()))
    message = str(caught.value)
    assert message.startswith("on_nonfinite: at step 2 the gradients of 1 of 7 parameters are not finite (offset: ")
    assert "on_nonfinite='skip'" in message and "optimizer_step" not in vars(module.trainer.strategy)


def test_a_loss_is_named() -> None:
    with pytest.raises(RecipeError, match=r"at step 2 the loss is inf\."):
        fit(BadLoss(), Recipe("llm", lr=1e-2), data=loader(), max_steps=6)


@pytest.mark.parametrize("where", ["checkpoint", "log", "validation", "end"])
def test_read_later_but_never_after_a_checkpoint(where: str, tmp_path: Path, monkeypatch: Any) -> None:
    """As on an accelerator without events: nothing waits for the device but where something waits anyway."""
    monkeypatch.setattr(nonfinite, "_reads_at_once", lambda device: False)
    module = Poisoned({2})
    recipe = Recipe("llm", lr=1e-2)
    t = trainer(recipe, max_steps=6, log_every_n_steps=4 if where == "log" else 50)
    steps = {"checkpoint": 4, "log": 4, "validation": 4, "end": 6}[where]

    def batch_end(*args: Any) -> None:
        if where == "checkpoint" and t.global_step == 4:
            t.save_checkpoint(tmp_path / "never.ckpt")

    module.on_train_batch_end = batch_end  # type: ignore[method-assign,assignment]
    if where == "validation":
        t = trainer(recipe, max_steps=6, val_check_interval=4, num_sanity_val_steps=0)
    with pytest.raises(RecipeError, match=r"at step 2 .*\(offset: nan\).* The step was taken"):
        t.fit(module, loader(), loader(8) if where == "validation" else None)
    assert t.global_step == steps
    assert not (tmp_path / "never.ckpt").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        {"optimizer": "adamw"},
        {"optimizer": "adamw", "ema": EMASpec(decay=0.9)},
        {"optimizer": "adamw", "clip": 0},
        {"optimizer": "sgd", "momentum": 0.9},
        {"optimizer": "lion"},
        {"optimizer": "muon"},
        {"optimizer": "mars_m"},
        {"optimizer": "sam"},
        {"optimizer": "lookahead"},
        {"optimizer": "kfac"},
        {"optimizer": "adafactor"},
        {"optimizer": "schedule_free_adamw"},
    ],
    ids=lambda a: "-".join(map(str, a.values())),
)
def test_a_step_left_out_is_as_if_it_had_not_been(arguments: dict[str, Any]) -> None:
    """Weights, optimizer state and averages are those of a run without the batch; the schedule is not."""

    def recipe(**more: Any) -> Recipe:
        given = {"lr": 1e-2, "weight_decay": 0.1, "warmup": 4} | arguments | more
        return Recipe("llm", total_steps=6, on_nonfinite="skip", **given)

    module, ours = Poisoned({2, 3}), recipe()
    fit(module, ours, data=loader(), max_steps=6)
    assert ours.skipped_steps == 2

    plain, theirs = Poisoned(set()), recipe()
    batches = [(*batch,) for i, batch in enumerate(loader()) if i not in (2, 3)]

    def rates_of_the_batch(batch: Any, i: int) -> None:
        assert theirs.scheduler is not None
        theirs.scheduler.apply(i + 2 * (i > 1))

    plain.on_train_batch_start = rates_of_the_batch  # type: ignore[method-assign,assignment]
    fit(plain, theirs, data=DataLoader(_Batches(batches), batch_size=None), max_steps=4)
    assert_same(state_of(module, ours), state_of(plain, theirs))
    if ours.ema is not None and theirs.ema is not None:
        assert (ours.ema.steps, ours.ema.updates) == (theirs.ema.steps, theirs.ema.updates) == (4, 4)
    assert module.trainer.global_step == 6


def test_with_accumulation_the_whole_step_is_left_out() -> None:
    module, recipe = Poisoned({3}), Recipe("llm", lr=1e-2, on_nonfinite="skip")
    fit(module, recipe, data=loader(), max_steps=4, accumulate_grad_batches=2)
    assert recipe.skipped_steps == 1 and recipe.optimizer is not None
    assert int(recipe.optimizer.state[module.offset]["step"]) == 3
    assert all(p.isfinite().all() for p in module.parameters())


def test_counts_are_logged_saved_and_continued(tmp_path: Path, caplog: Any) -> None:
    path = tmp_path / "c.ckpt"
    logger, monitor = CSVLogger(tmp_path), OptimizerMonitor(every_n_steps=1)
    with caplog.at_level(logging.WARNING):
        t = fit(
            Poisoned({1, 2}),
            Recipe("llm", lr=1e-2, total_steps=8, on_nonfinite="skip"),
            monitor,
            data=StatefulLoader(),
            max_steps=3,
            logger=logger,
        )
    t.save_checkpoint(path)
    logger.save()
    assert torch.load(path, weights_only=True)["lit_opt"]["steps"] == {"skipped": 2, "in_a_row": 2}
    assert monitor.latest == {} or monitor.latest["optim/skipped_steps"] == 2
    assert "skipped_steps" in (Path(logger.log_dir) / "metrics.csv").read_text()
    again = Recipe("llm", lr=1e-2, total_steps=8, on_nonfinite="skip")
    fit(Poisoned({6}), again, data=StatefulLoader(), max_steps=8, ckpt_path=path)
    assert again.skipped_steps == 3


def test_never_more_than_so_many_in_a_row() -> None:
    module = Poisoned(set(range(2, 100)))
    recipe = Recipe("llm", lr=1e-2, on_nonfinite="skip")
    with pytest.raises(RecipeError, match=r"has left out 20 steps in a row, and this is the next"):
        fit(module, recipe, data=loader(400), max_steps=60)
    assert module.trainer.global_step == 22 and recipe.skipped_steps == 21


def test_ignore_takes_the_step() -> None:
    module = Poisoned({1})
    fit(module, Recipe("llm", lr=1e-2, on_nonfinite="ignore"), data=loader(), max_steps=4)
    assert module.offset.isnan().any()


class PoisonedManual(Manual):
    def loss(self, batch: list[Tensor]) -> Tensor:
        loss = super().loss(batch)
        return loss * NAN if self.trainer.global_step == 1 else loss

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("after", loss.detach())  # the name of the hook that logs is the right one
        return loss


@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_manual_optimization(policy: Any) -> None:
    module, recipe = PoisonedManual(), Recipe("llm", lr=1e-2, on_nonfinite=policy)
    if policy == "raise":
        with pytest.raises(RecipeError, match=r"at step 1 the gradients of 6 of 6 .* and the loss is nan"):
            fit(module, recipe, max_steps=4)
    else:
        fit(module, recipe, max_steps=4)
        assert recipe.skipped_steps == 1 and all(p.isfinite().all() for p in module.parameters())


def test_their_optimizer_is_watched_as_well() -> None:
    class Theirs(Poisoned):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module, recipe = Theirs({1}), Recipe("llm", existing="keep", on_nonfinite="skip")
    fit(module, recipe, max_steps=4)
    assert recipe.skipped_steps == 1 and module.offset.isfinite().all()
    assert isinstance(ManualOwn().configure_optimizers(), torch.optim.SGD)


@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_a_gradient_scaler_skips_by_itself_and_both_agree(policy: Any) -> None:
    """Lightning's scaler starts at 65536; the gradients of one batch overflow."""
    module, recipe = Poisoned({1, 2}, INF), Recipe("llm", lr=1e-2, ema=EMASpec(decay=0.9), on_nonfinite=policy)
    t = fit(module, recipe, max_steps=5, plugins=scaled())
    scaler = t.precision_plugin.scaler  # type: ignore[attr-defined]
    assert scaler.get_scale() == 65536 / 4
    assert recipe.skipped_steps == 2 and recipe.optimizer is not None and recipe.ema is not None
    assert int(recipe.optimizer.state[module.offset]["step"]) == recipe.ema.steps == 3


def test_a_scale_that_is_never_found_is_an_error() -> None:
    module = Poisoned(set(range(100)), INF)
    with pytest.raises(RecipeError, match="The GradScaler has left out 20 steps in a row"):
        fit(module, Recipe("llm", lr=1e-2), data=loader(400), max_steps=60, plugins=scaled())


@pytest.mark.parametrize("name", ["onebit_adam", torch.optim.LBFGS])
def test_what_cannot_be_left_out_is_refused(name: Any) -> None:
    ours = {"weight_decay": 0.1, "optimizer_kwargs": {"freeze_step": 2}}
    arguments: dict[str, Any] = {"lr": 1e-2, **(ours if isinstance(name, str) else {})}
    with pytest.raises(RecipeError, match="so that a step cannot be left out"):
        fit(Net(), Recipe("llm", optimizer=name, on_nonfinite="skip", **arguments))


def test_a_wrong_word() -> None:
    with pytest.raises(RecipeError, match=r"on_nonfinite: 'skp' is unknown. Did you mean 'skip'"):
        Recipe("llm", on_nonfinite="skp")  # type: ignore[arg-type]


def test_the_learning_rate_finder_may_diverge() -> None:
    from lightning.pytorch.tuner import Tuner

    module, recipe = Poisoned(set(range(5, 9))), Recipe("llm")
    module.__dict__["lr"] = 1e-2
    t = trainer(recipe, max_steps=4)
    found = Tuner(t).lr_find(module, loader(64), num_training=12, early_stop_threshold=None)
    assert found is not None


def test_a_recipe_inside_configure_optimizers_cannot_skip() -> None:
    recipe = Recipe("llm", clip=0, total_steps=4, on_nonfinite="skip")

    class Calls(Net):
        def configure_optimizers(self) -> Any:
            return recipe.configure_optimizers(self)

    with pytest.raises(RecipeError, match="cannot leave a step out from inside configure_optimizers"):
        fit(Calls(), None)


class _Event:
    """Stands for a CUDA event: notes when it was waited for."""

    waited = 0

    def synchronize(self) -> None:
        _Event.waited += 1


def test_read_one_step_late(monkeypatch: Any) -> None:
    """What happens on CUDA, with a tensor of the CPU: the step after the bad one raises, and only past steps are waited for."""
    monkeypatch.setattr(nonfinite, "_reads_at_once", lambda device: False)

    def read_later(self: Any, look: Any) -> None:
        look.ready = _Event()
        self._pending.append(look)
        self._read(but=1)

    monkeypatch.setattr(nonfinite.FiniteSteps, "_read_later", read_later)
    module = Poisoned({2})
    with pytest.raises(RecipeError, match=r"at step 2 .*\(offset: nan\).* The step was taken"):
        fit(module, Recipe("llm", lr=1e-2), data=loader(), max_steps=6)
    assert module.trainer.global_step == 3 and _Event.waited == 3
