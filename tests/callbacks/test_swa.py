"""EMA(kind="swa"): the mean of weights, as torch.optim.swa_utils has it; buffers; resume; the Recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.optim.swa_utils import AveragedModel, update_bn

from lit_opt import EMA, EMASpec, Recipe
from lit_opt.errors import RecipeError
from lit_opt.recipes import get_recipe
from lit_opt.resolve import preview
from tests.callbacks.ema_lib import SAFE, Net, Trace, averages, loader, read, same, trainer, weights
from tests.callbacks.modules import SaveAt


class Reference(pl.Callback):
    """torch's averaged model, fed at the same steps."""

    def __init__(self, start: int, every: int, buffers: bool) -> None:
        self.start, self.every, self.buffers = start, every, buffers

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        step = trainer.global_step
        if step == self.start:
            self.model = AveragedModel(pl_module.net, use_buffers=self.buffers)
        if step >= self.start and (step - self.start) % self.every == 0:
            self.model.update_parameters(pl_module.net)


@pytest.mark.parametrize(("start", "every", "buffers"), [(3, 1, False), (2, 3, True), (1, 4, True)])
def test_equals_torchs_averaged_model(start: int, every: int, buffers: bool) -> None:
    ema, reference = EMA(kind="swa", start_step=start, every=every, buffers=buffers), Reference(start, every, buffers)
    trainer(reference, ema, max_steps=10, precision="64-true").fit(Net(), loader())
    assert ema.updates == (10 - start) // every
    ours = averages(ema)
    expected = {f"net.{n}": p.data for n, p in reference.model.module.named_parameters()}
    if buffers:
        expected |= {f"net.1.{n}": reference.model.module.get_buffer(f"1.{n}") for n in ("running_mean", "running_var")}
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value.to(ours[name].dtype), rtol=1e-12, atol=1e-14)


def test_the_initial_weights_do_not_count() -> None:
    ema, trace = EMA(kind="swa"), Trace()
    trainer(trace, ema, max_steps=3, precision="64-true").fit(Net(), loader())
    for name, value in averages(ema).items():
        torch.testing.assert_close(value, sum(now[name] for now in trace.train) / 3, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("step", [2, 3, 4, 6])
def test_a_resume_is_exact_also_before_the_second_model(step: int, tmp_path: Path) -> None:
    """Models of the mean: after steps 3, 6 and 9; the first is nowhere else between 3 and 6."""
    path = tmp_path / "c.ckpt"
    options: dict[str, Any] = {"kind": "swa", "start_step": 3, "every": 3, "buffers": True}
    ema, net = EMA(**options), Net()
    trainer(SaveAt(path, step), ema, max_steps=10).fit(net, loader(16, equal=True))
    again, rest = EMA(**options), Net()
    trainer(again, max_steps=10).fit(rest, loader(16, equal=True), ckpt_path=path, **SAFE)
    assert (again.updates, again.steps) == (ema.updates, ema.steps) == (2, 10)
    assert same(averages(again), averages(ema)) and same(weights(rest), weights(net))


def test_evaluation_swaps_the_buffers_as_well_and_gives_them_back(tmp_path: Path) -> None:
    class Looks(Net):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.inside = self.net[1].running_mean.clone()  # type: ignore[operator]
            self.trainer.save_checkpoint(tmp_path / "c.ckpt")

    net, ema = Looks(), EMA(kind="swa", buffers=True)
    trainer(ema, max_steps=6, val_check_interval=6, limit_val_batches=1).fit(net, loader(), loader(2))
    assert torch.equal(net.inside, averages(ema)["net.1.running_mean"])
    assert not torch.equal(net.inside, net.net[1].running_mean)  # type: ignore[arg-type]
    saved = read(tmp_path / "c.ckpt")
    assert torch.equal(saved["ema_state_dict"]["net.1.running_mean"], net.inside)
    assert torch.equal(saved["state_dict"]["net.1.running_mean"], net.net[1].running_mean)  # type: ignore[arg-type]
    assert int(saved["ema_state_dict"]["net.1.num_batches_tracked"]) == 6


def test_an_update_pass_gives_exact_statistics(tmp_path: Path) -> None:
    net = Net()
    run = trainer(EMA(kind="swa", start_step=2), max_steps=8)
    run.fit(net, loader())
    run.save_checkpoint(tmp_path / "c.ckpt")
    averaged = Net()
    EMA.load(averaged, tmp_path / "c.ckpt")
    assert torch.equal(averaged.net[1].running_mean, net.net[1].running_mean)  # type: ignore[arg-type]
    update_bn(loader(), averaged.net)
    inputs = torch.cat([batch[0] for batch in loader()])
    with torch.no_grad():
        expected = averaged.net[0](inputs).mean(dim=0)
    torch.testing.assert_close(averaged.net[1].running_mean, expected, rtol=1e-4, atol=1e-5)


def test_as_an_option_of_a_recipe() -> None:
    recipe = Recipe("cnn", lr=0.05, ema=EMASpec(kind="swa", start_step=3, every=2, buffers=True))
    assert isinstance(recipe.ema, EMA)
    assert (recipe.ema.kind, recipe.ema.start_step, recipe.ema.every, recipe.ema.buffers) == ("swa", 3, 2, True)
    shown = preview(get_recipe("cnn"), {"lr": 0.05, "ema": {"kind": "swa"}})
    assert shown.provenance["ema"].number == "swa"
    trainer(recipe, max_steps=8).fit(Net(), loader())
    assert recipe.ema.updates == 2


def test_refusals() -> None:
    with pytest.raises(RecipeError, match=r"kind='sw' is neither 'ema' nor 'swa'. Did you mean 'swa'\?\n.*every=0"):
        EMA(kind="sw", every=0)
    with pytest.raises(RecipeError, match="every=5 is for kind='swa'"):
        EMA(every=5)
    with pytest.raises(RecipeError, match=r"ema.kind: 'mean' is unknown; 'swa' or 'ema'"):
        Recipe("cnn", ema=EMASpec(kind="mean"))
    with pytest.raises(RecipeError, match=r"ema.every: 5 is not allowed"):
        Recipe("cnn", ema=EMASpec(every=5))
    with pytest.raises(RecipeError, match=r"ema.buffers: 1 is not allowed; give True or False"):
        Recipe("cnn", ema={"buffers": 1})  # type: ignore[arg-type]
