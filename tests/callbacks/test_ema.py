"""EMA under one process: the rule, what counts as a step, evaluation, and modules of all kinds."""

from __future__ import annotations

import inspect
import pickle
import threading
from dataclasses import asdict
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lit_opt import EMA
from lit_opt.averaging import Averages, decay_at, ema_window
from lit_opt.errors import RecipeError
from lit_opt.recipes.schema import EMASpec
from tests.callbacks.ema_lib import Net, Trace, averages, loader, same, trainer, weights


@pytest.mark.parametrize(("warmup", "start_step"), [(True, 0), (False, 0), (True, 3), (False, 3)])
def test_equals_a_plain_loop_in_float64(warmup, start_step):
    ema, trace = EMA(0.6, warmup=warmup, start_step=start_step), Trace()
    trainer(trace, ema, max_steps=10, precision="64-true").fit(Net(), loader())
    path = [trace.start, *trace.train]
    expected = path[start_step]
    for n, now in enumerate(path[start_step + 1 :], 1):
        d = min(0.6, (1 + n) / (10 + n)) if warmup else 0.6
        expected = {name: d * expected[name] + (1 - d) * now[name] for name in now}
    assert (ema.updates, ema.steps) == (10 - start_step, 10)
    for name, value in averages(ema).items():
        assert value.dtype == torch.float64
        torch.testing.assert_close(value, expected[name], rtol=1e-13, atol=1e-15)


def test_equals_torch_averaged_model_without_warmup():
    class Reference(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            self.model = AveragedModel(pl_module.net, multi_avg_fn=get_ema_multi_avg_fn(0.9))
            self.model.update_parameters(pl_module.net)  # its first update copies

        def on_train_batch_end(self, trainer, pl_module, *args):
            self.model.update_parameters(pl_module.net)

    ema, reference = EMA(0.9, warmup=False), Reference()
    trainer(reference, ema, max_steps=9).fit(Net(), loader())
    assert same(averages(ema), {f"net.{n}": p.data for n, p in reference.model.module.named_parameters()})


def test_window_is_that_of_the_actual_sequence():
    for decay, warmup, steps in [(0.9, True, 40), (0.9, False, 40), (0.999, True, 500), (0.999, False, 500)]:
        weight = torch.zeros(steps + 1, dtype=torch.float64)  # of the starting weights, then of each step
        weight[0] = 1
        for n in range(1, steps + 1):
            d = decay_at(n, decay, warmup)
            weight *= d
            weight[n] = 1 - d
        held = weight[1:].flip(0).cumsum(0)
        reached = (held >= 0.5).nonzero()
        assert ema_window(decay, warmup, steps) == (int(reached[0]) + 1 if len(reached) else steps)
    # recipes.md: half of the weight in the last 7.4 % of runs of any length
    assert [round(ema_window(0.99999, True, n) / n, 3) for n in (2_000, 10_000, 50_000)] == [0.074] * 3
    assert ema_window(0.9, True, 0) == 0


def test_accumulation_counts_optimizer_steps():
    ema, trace = EMA(0.9), Trace()
    trainer(trace, ema, max_steps=4, accumulate_grad_batches=2).fit(Net(), loader())
    assert (ema.updates, ema.steps, len(trace.train)) == (4, 4, 8)


@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_the_gradient_scaler_skips_do_not_count(fused):
    class Overflows(Net):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * (float("inf") if batch_idx in (1, 2) else 1.0)

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 1e-3, fused=fused)

    # precision="16-mixed" turns into bf16-mixed on a CPU
    scaled = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))
    ema, trace = EMA(0.9), Trace()
    fit = trainer(trace, ema, max_steps=6, plugins=[scaled])
    fit.fit(Overflows(), loader())
    moved = [not same(a, b) for a, b in zip([trace.start, *trace.train], trace.train, strict=False)]
    assert moved.count(False) == 2
    assert (fit.global_step, ema.updates, ema.steps) == (6, 4, 4)


def test_several_optimizers_under_manual_optimization_count_one_step_a_batch():
    class Manual(Net):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            first, second = self.optimizers()  # type: ignore[attr-defined]
            for optimizer in (first, second) if batch_idx % 4 else (first,):
                loss = super().training_step(batch, batch_idx)
                optimizer.zero_grad()
                self.manual_backward(loss)
                if batch_idx != 2:
                    optimizer.step()

        def configure_optimizers(self):
            halves = (self.net[0], self.net[3])
            return [torch.optim.SGD(half.parameters(), 0.1) for half in halves]

    ema = EMA(0.9)
    trainer(ema, max_steps=-1, max_epochs=1).fit(Manual(), loader())
    assert (ema.updates, ema.steps) == (7, 7)


def test_a_step_announced_as_skipped_does_not_count():
    class Skip(pl.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            if trainer.global_step == 2:
                ema.skip_next()

    ema = EMA(0.9)
    trainer(Skip(), ema, max_steps=5).fit(Net(), loader())
    assert ema.updates == 4


def test_a_skip_announced_in_a_batch_without_a_step_does_not_swallow_a_later_one():
    class Skip(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx % 2 == 0:
                ema.skip_next()

    ema = EMA(0.9)
    trainer(Skip(), ema, max_steps=3, accumulate_grad_batches=2).fit(Net(), loader())
    assert ema.updates == 3


def test_validation_test_and_predict_use_the_averages_and_leave_raw_weights():
    ema, trace, net = EMA(0.9), Trace(), Net()
    fit = trainer(trace, ema, max_steps=6, val_check_interval=3, limit_val_batches=1)
    fit.fit(net, loader(), loader(1, seed=1))
    shadow, raw = averages(ema), trace.train[-1]
    assert len(trace.seen) == 2 and same(trace.seen[-1], shadow) and not same(shadow, raw)
    assert same(weights(net), raw)
    for run in (fit.validate, fit.test, fit.predict):
        run(net, loader(1))
        assert same(trace.seen.pop(), shadow)
        assert same(weights(net), raw)


def test_nothing_is_swapped_in_before_the_first_update():
    ema, trace = EMA(0.9, start_step=4), Trace()
    fit = trainer(trace, ema, max_steps=6, val_check_interval=2, limit_val_batches=1, num_sanity_val_steps=1)
    net = Net()
    fit.fit(net, loader(), loader(1))
    sanity, *validations = trace.seen
    assert same(sanity, trace.start)
    assert [same(v, trace.train[i]) for v, i in zip(validations, (1, 3, 5), strict=True)] == [
        True,
        True,
        False,
    ]
    assert same(validations[2], averages(ema))


def test_frozen_parameters_buffers_and_integers_are_the_models_own():
    class Partly(Net):
        def __init__(self):
            super().__init__()
            self.net[0].requires_grad_(False)

    ema, net = EMA(0.9), Partly()
    trainer(ema, max_steps=6).fit(net, loader())
    assert ema._averages is not None
    assert set(ema._averages.entries) == {"net.1.weight", "net.1.bias", "net.3.weight", "net.3.bias"}


def test_parameters_that_become_trainable_join_with_a_line(caplog):
    class Unfreeze(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                pl_module.net[0].requires_grad_(True)

    class Partly(Net):
        def __init__(self):
            super().__init__()
            self.net[0].requires_grad_(False)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    ema = EMA(0.9)
    with caplog.at_level("INFO"):
        trainer(ema, Unfreeze(), max_steps=12).fit(Partly(), loader())
    assert len(averages(ema)) == 6
    assert "2 parameters (net.0.weight, net.0.bias) became trainable and joined" in caplog.text


def test_lazy_parameters_join_at_the_first_update():
    class Lazy(Net):
        def __init__(self):
            super().__init__()
            self.net[3] = nn.LazyLinear(4)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    ema = EMA(0.9)
    trainer(ema, max_steps=3).fit(Lazy(), loader())
    assert len(averages(ema)) == 6 and averages(ema)["net.3.weight"].shape == (4, 16)


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed", "16-true"])
def test_half_precision_weights_have_float32_averages(precision, offload):
    class Slow(Net):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.5)

    ema, trace, net = EMA(0.999, warmup=False, offload=offload), Trace(), Slow()
    trainer(trace, ema, max_steps=30, precision=precision).fit(net, loader(), loader(1))
    expected = {name: value.double() for name, value in trace.start.items()}
    for now in trace.train:
        expected = {name: 0.999 * expected[name] + 0.001 * now[name].double() for name in now}
    for name, value in averages(ema).items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-7)
    assert same(weights(net), trace.train[-1])
    # a bfloat16 average stands still here
    moved = (averages(ema)["net.0.weight"].double() - trace.start["net.0.weight"].double()).norm()
    assert moved > 0.5 * (expected["net.0.weight"] - trace.start["net.0.weight"].double()).norm()


def test_offload_gives_the_same_averages():
    results = []
    for offload in (False, True):
        ema = EMA(0.9, offload=offload)
        trainer(ema, max_steps=5).fit(Net(), loader(), loader(1))
        results.append(averages(ema))
    assert same(*results)


@pytest.mark.parametrize("whole", [False, True])
def test_compiled_modules(whole):
    net: Any = Net()
    if whole:
        module = net
        run: Any = torch.compile(net, backend="eager")
    else:
        net.net[3] = torch.compile(net.net[3], backend="eager")
        module = run = net
    ema, trace = EMA(0.9), Trace()
    trainer(trace, ema, max_steps=5).fit(run, loader(), loader(1))
    reference = EMA(0.9)
    trainer(reference, max_steps=5).fit(Net(), loader(), loader(1))
    assert same(averages(ema), averages(reference))
    assert same(weights(module), trace.train[-1])


class _NonLeaf(Net):
    def __init__(self):
        super().__init__()
        self.cache = self.net[0](torch.randn(2, 8))


class _Lock(Net):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


class _OldWeightNorm(Net):
    def __init__(self):
        super().__init__()
        self.net[0] = torch.nn.utils.weight_norm(self.net[0])
        self.net(torch.randn(2, 8))


class _WeightNorm(Net):
    def __init__(self):
        super().__init__()
        torch.nn.utils.parametrizations.weight_norm(self.net[0])


class _Tied(Net):
    def __init__(self):
        super().__init__()
        self.net[3] = nn.Linear(16, 16)
        self.again = self.net[3]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
@pytest.mark.parametrize("kind", [_NonLeaf, _Lock, _OldWeightNorm, _WeightNorm, _Tied])
def test_modules_that_cannot_be_copied_or_are_unusual(kind, tmp_path):
    ema, trace, net = EMA(0.9), Trace(), kind()
    fit = trainer(trace, ema, max_steps=5)
    fit.fit(net, loader(), loader(1))
    fit.validate(net, loader(1), verbose=False)
    assert same(trace.seen[-1], averages(ema)) and same(weights(net), trace.train[-1])
    fit.save_checkpoint(tmp_path / "c.ckpt")
    other = kind()
    EMA.load(other, tmp_path / "c.ckpt")
    assert same(weights(other), averages(ema))


@pytest.mark.parametrize(("dtype", "offload"), [(torch.float32, False), (torch.float32, True), (torch.bfloat16, False)])
def test_an_update_allocates_nothing(dtype, offload):
    net = nn.Sequential(*[nn.Linear(32, 32) for _ in range(10)]).to(dtype)
    shadow = Averages(net, offload)
    shadow.update(0.9)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        for _ in range(3):
            shadow.update(0.9)
    allocated = [event for event in profile.events() if event.cpu_memory_usage > 0]
    assert any("_foreach_lerp_" in event.name for event in profile.events())
    assert not allocated, [(event.name, event.cpu_memory_usage) for event in allocated]


def test_scratch_memory_is_shared_by_buckets(monkeypatch):
    monkeypatch.setattr("lit_opt.averaging._SCRATCH", 1500)
    net = nn.Sequential(*[nn.Linear(32, 32) for _ in range(5)]).to(torch.bfloat16)
    shadow = Averages(net)
    assert len(shadow._staged) == 5
    assert len({views[0].data_ptr() for _, views, _ in shadow._staged}) == 1
    before = weights(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)
    shadow.update(0.75)
    for name, value in before.items():
        expected = 0.75 * value.float() + 0.25 * dict(net.named_parameters())[name].float()
        torch.testing.assert_close(shadow.whole(name), expected)


def test_channels_last_and_transposed_weights():
    net = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Linear(8, 5)).to(memory_format=torch.channels_last)
    net[1].weight = nn.Parameter(torch.randn(8, 5).T)
    for dtype in (torch.float32, torch.bfloat16):
        net.to(dtype)
        shadow = Averages(net)
        before = weights(net)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(2)
        shadow.update(0.5)
        for name, value in before.items():
            torch.testing.assert_close(shadow.whole(name), 1.5 * value.float())


def test_a_refresh_plans_anew_only_after_a_change():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).to(torch.bfloat16)
    shadow = Averages(net)
    staged = shadow._staged
    assert shadow.refresh() == ([], []) and shadow._staged is staged
    net.to(torch.float32)  # the Parameter objects stay
    assert shadow.refresh() == ([], []) and not shadow._staged and len(shadow._direct) == 1
    net[0] = nn.Linear(4, 6)
    net.append(nn.Linear(1, 1))
    del net[1]
    joined, left = shadow.refresh()
    assert (joined, left) == ([], []) and shadow.whole("0.weight").shape == (6, 4)
    net.append(nn.Linear(2, 2))
    assert shadow.refresh() == (["2.weight", "2.bias"], [])
    del net[2]
    assert shadow.refresh() == ([], ["2.bias", "2.weight"])


def test_end_of_fit_says_which_weights_are_where(caplog):
    with caplog.at_level("INFO"):
        trainer(EMA(0.9), max_steps=3, val_check_interval=1).fit(Net(), loader(), loader(1))
        trainer(EMA(0.9, checkpoint="ema"), max_steps=3).fit(Net(), loader())
        trainer(EMA(0.9, start_step=9), max_steps=3).fit(Net(), loader())
    raw, swapped, none = [r.getMessage() for r in caplog.records if r.getMessage().startswith("EMA:")]
    assert "state_dict holds the raw weights, ema_state_dict the averages" in raw
    assert "Validation metrics were of the averages" in raw and "Validation" not in swapped
    assert "state_dict holds the averages" in swapped and "raw_state_dict the raw weights" in swapped
    assert "no averages were formed: 3 optimizer steps, start_step=9" in none


def test_a_continued_fit_continues_and_a_new_run_starts_anew():
    ema, net = EMA(0.9), Net()
    fit = trainer(ema, max_steps=4)
    fit.fit(net, loader())
    fit.fit_loop.epoch_loop.max_steps = 6
    fit.fit(net, loader())
    assert ema.updates == 6
    trace = Trace()
    trainer(trace, ema, max_steps=2, num_sanity_val_steps=1).fit(net, loader(), loader(1))
    assert ema.updates == 2
    assert same(trace.seen[0], trace.start)


def test_the_module_is_left_as_it_was():
    net = Net()
    during: list[Any] = []

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            during.append(pl_module.on_save_checkpoint.__func__.__name__)

    fit = trainer(Look(), EMA(0.9), max_steps=2)
    fit.fit(net, loader())
    assert during == ["on_save_checkpoint"] * 2
    assert "on_save_checkpoint" not in vars(net) and "on_load_checkpoint" not in vars(net)
    assert not fit.optimizers[0]._optimizer_step_post_hooks
    net.trainer = None
    pickle.loads(pickle.dumps(net))


def test_an_owner_may_forward_the_hooks():
    """As Recipe does: EMA is not in trainer.callbacks."""

    class Owner(pl.Callback):
        def __init__(self):
            self.ema = EMA(0.9)

    hooks = (
        "setup teardown on_exception on_train_start on_train_epoch_start on_train_batch_end on_train_end "
        "on_validation_start on_validation_end on_test_start on_test_end on_save_checkpoint"
    )
    for hook in hooks.split(" "):

        def forward(self, *args, _hook=hook, **kwargs):
            getattr(self.ema, _hook)(*args, **kwargs)

        setattr(Owner, hook, forward)
    owner, trace = Owner(), Trace()
    fit = trainer(owner, trace, max_steps=5, limit_val_batches=1)
    net = Net()
    fit.fit(net, loader(5), loader(1))
    reference = EMA(0.9)
    trainer(reference, max_steps=5).fit(Net(), loader(5), loader(1))
    assert same(averages(owner.ema), averages(reference)) and same(trace.seen[-1], averages(reference))


def test_the_arguments_are_those_of_the_spec():
    spec = asdict(EMASpec(decay=0.5, warmup=False, start_step=3, checkpoint="ema", offload=True))
    ema = EMA(**spec)
    assert {name: getattr(ema, name) for name in spec} == spec
    defaults = {name: p.default for name, p in inspect.signature(EMA).parameters.items()}
    assert defaults == asdict(EMASpec())


def test_bad_arguments_are_refused_together():
    with pytest.raises(RecipeError) as error:
        EMA(1.0, start_step=-1, checkpoint="emma", warmup=1)  # type: ignore[arg-type]
    assert len(error.value.problems) == 4
    assert "decay=1.0 is not in [0, 1)" in str(error.value)
    assert "Did you mean 'ema'?" in str(error.value)
    for decay in (-0.1, float("nan"), "0.9", True, None):
        with pytest.raises(RecipeError, match="decay="):
            EMA(decay)  # type: ignore[arg-type]


def test_a_second_averaging_callback_is_refused():
    rivals: list[pl.Callback] = [EMA(0.9), StochasticWeightAveraging(1e-2)]
    if hasattr(pl.callbacks, "EMAWeightAveraging"):
        rivals.append(pl.callbacks.EMAWeightAveraging())
    for rival in rivals:
        with pytest.raises(RecipeError, match=f"{type(rival).__name__} averages the weights as well"):
            trainer(EMA(0.9), rival).fit(Net(), loader())


def test_an_optimizer_whose_steps_cannot_be_counted_is_refused():
    class Wrapper:
        def __init__(self, optimizer):
            self.optimizer = optimizer
            self.param_groups, self.state, self.defaults = optimizer.param_groups, optimizer.state, {}

        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            return None

        def zero_grad(self, set_to_none=True):
            self.optimizer.zero_grad()

        def step(self, closure=None):
            return self.optimizer.step(closure)

    class Wrapped(Net):
        def configure_optimizers(self):
            return Wrapper(super().configure_optimizers())

    with pytest.raises(RecipeError, match="steps of Wrapper cannot be counted"):
        trainer(EMA(0.9)).fit(Wrapped(), loader())
