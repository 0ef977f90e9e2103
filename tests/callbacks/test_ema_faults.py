"""One test for each fault that Lightning 2.6.6's EMAWeightAveraging was seen to have.

Its failure to copy unusual modules is in test_ema.py, that on sharded modules in test_ema_processes.py.
"""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint

from lit_opt import EMA
from tests.callbacks.ema_lib import SAFE, Net, Trace, averages, loader, read, same, trainer, weights


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["validation_step", "on_validation_epoch_end"])
def test_an_exception_in_validation_leaves_the_raw_weights(error, where, tmp_path):
    class Fails(Net):
        pass

    def fail(self, *args):
        assert not same(weights(self), trace.train[-1])  # the averages are in
        raise error("boom")

    setattr(Fails, where, fail)
    ema, trace, net = EMA(0.9), Trace(), Fails()
    crash = OnExceptionCheckpoint(tmp_path, filename="crash")
    fit = trainer(trace, ema, crash, max_steps=8, val_check_interval=4, enable_checkpointing=True)
    with pytest.raises((RuntimeError, SystemExit)):
        fit.fit(net, loader(), loader(1))
    assert same(weights(net), trace.train[-1])
    assert not vars(net).keys() & {"on_save_checkpoint", "on_load_checkpoint"}
    saved = read(tmp_path / "crash.ckpt")
    assert torch.equal(saved["state_dict"]["net.0.weight"], trace.train[-1]["net.0.weight"])
    assert torch.equal(saved["ema_state_dict"]["net.0.weight"], averages(ema)["net.0.weight"])


@pytest.mark.parametrize("run", ["validate", "test", "predict"])
def test_an_exception_in_an_evaluation_after_fit_leaves_the_raw_weights(run):
    class Fails(Net):
        def on_validation_batch_start(self, *args):
            raise RuntimeError("boom")

        on_test_batch_start = on_predict_batch_start = on_validation_batch_start

    ema, trace, net = EMA(0.9), Trace(), Fails()
    fit = trainer(trace, ema)
    fit.fit(net, loader())
    with pytest.raises(RuntimeError, match="boom"):
        getattr(fit, run)(net, loader(1))
    assert same(weights(net), trace.train[-1])


@pytest.mark.parametrize("checkpoint", ["raw", "ema"])
@pytest.mark.parametrize("weights_only", [False, True])
def test_save_weights_only_holds_the_same_as_a_full_checkpoint(weights_only, checkpoint, tmp_path):
    best = ModelCheckpoint(tmp_path, monitor="val", save_weights_only=weights_only)
    ema, trace = EMA(0.9, checkpoint=checkpoint), Trace()
    fit = trainer(trace, ema, best, max_steps=8, enable_checkpointing=True)
    fit.fit(Net(), loader(), loader(4, seed=3))
    saved = read(best.best_model_path)
    raw = saved["state_dict"] if checkpoint == "raw" else saved["raw_state_dict"]
    assert ("optimizer_states" in saved) is not weights_only
    assert ("raw_state_dict" in saved) is (checkpoint == "ema")
    assert list(saved["state_dict"]) == list(saved["ema_state_dict"]) == list(Net().state_dict())
    for name, value in averages(ema).items():
        assert torch.equal(saved["ema_state_dict"][name], value)
        assert torch.equal(raw[name], trace.train[-1][name])
        assert torch.equal(saved["state_dict"][name], value if checkpoint == "ema" else raw[name])


def test_the_monitored_score_is_that_of_the_averages_in_the_file(tmp_path):
    best = ModelCheckpoint(tmp_path, monitor="val")
    trainer(EMA(0.9), best, max_steps=8, enable_checkpointing=True).fit(Net(), loader(), loader(4, seed=3))
    net = Net()
    EMA.load(net, best.best_model_path)
    assert best.best_model_score is not None
    score = trainer().validate(net, loader(4, seed=3), verbose=False)[0]["val"]
    assert score == pytest.approx(float(best.best_model_score), rel=1e-6)


def test_save_last_at_train_end_holds_raw_weights_and_resumes_from_them(tmp_path):
    last = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=100)
    trace, after = Trace(), Trace()
    trainer(trace, EMA(0.99), last, max_steps=8, enable_checkpointing=True).fit(Net(), loader(), loader(1))
    files = list(tmp_path.glob("*.ckpt"))
    assert files
    saved = read(files[0])
    assert torch.equal(saved["state_dict"]["net.0.weight"], trace.train[-1]["net.0.weight"])
    assert not torch.equal(saved["ema_state_dict"]["net.0.weight"], saved["state_dict"]["net.0.weight"])
    trainer(EMA(0.99), after, max_steps=9).fit(Net(), loader(), ckpt_path=files[0], **SAFE)
    assert same(after.start, trace.train[-1])


def test_a_start_that_is_never_reached_does_not_throw_the_training_away(tmp_path):
    ema, trace, net = EMA(0.99, start_step=100), Trace(), Net()
    fit = trainer(trace, ema, max_steps=8)
    fit.fit(net, loader(), loader(1))
    assert same(trace.seen[-1], trace.train[-1]) and same(weights(net), trace.train[-1])
    fit.save_checkpoint(tmp_path / "c.ckpt")
    assert "ema_state_dict" not in read(tmp_path / "c.ckpt")


def test_a_short_run_is_not_held_at_the_starting_weights():
    ema, trace = EMA(0.9999), Trace()
    trainer(trace, ema, max_steps=50).fit(Net(), loader())
    start, end, average = (w["net.0.weight"] for w in (trace.start, trace.train[-1], averages(ema)))
    assert (average - start).norm() > 0.5 * (end - start).norm()


def test_integer_and_floating_buffers_are_exact(tmp_path):
    net = Net()
    fit = trainer(EMA(0.999), max_steps=20)
    fit.fit(net, loader())
    fit.save_checkpoint(tmp_path / "c.ckpt")
    other = Net()
    EMA.load(other, tmp_path / "c.ckpt")
    assert int(other.get_buffer("net.1.num_batches_tracked")) == 20
    for name, value in net.named_buffers():
        assert torch.equal(dict(other.named_buffers())[name], value)


def test_buffers_that_validation_changes_keep_the_change():
    class Counts(Net):
        validated: torch.Tensor

        def __init__(self):
            super().__init__()
            self.register_buffer("validated", torch.zeros((), dtype=torch.long))

        def validation_step(self, batch, batch_idx):
            self.validated += 1

    net = Counts()
    trainer(EMA(0.9), max_steps=8, val_check_interval=2).fit(net, loader(), loader(1))
    assert int(net.validated) == 4


def test_the_raw_weights_survive_the_end_of_fit(tmp_path):
    ema, trace, net = EMA(0.99), Trace(), Net()
    fit = trainer(trace, ema, max_steps=8)
    fit.fit(net, loader(), loader(1))
    assert same(weights(net), trace.train[-1])
    fit.save_checkpoint(tmp_path / "c.ckpt")
    saved = read(tmp_path / "c.ckpt")
    assert torch.equal(saved["state_dict"]["net.3.bias"], trace.train[-1]["net.3.bias"])
    assert torch.equal(saved["ema_state_dict"]["net.3.bias"], averages(ema)["net.3.bias"])


def test_a_checkpoint_loads_without_the_callback(tmp_path):
    trace, fit = Trace(), trainer()
    first = trainer(trace, EMA(0.99), max_steps=4)
    first.fit(Net(), loader(4))
    first.save_checkpoint(tmp_path / "c.ckpt")
    net = Net.load_from_checkpoint(tmp_path / "c.ckpt", **SAFE)
    assert same(weights(net), trace.train[-1])
    after = Trace()
    fit = trainer(after, max_steps=5)
    fit.fit(Net(), loader(4), ckpt_path=tmp_path / "c.ckpt", **SAFE)
    assert same(after.start, trace.train[-1])


def test_a_module_in_use_by_another_run_is_not_evaluated_with_foreign_averages(caplog):
    ema, fit = EMA(0.9), None
    fit = trainer(ema, max_steps=4)
    fit.fit(Net(), loader())
    other, trace = Net(), Trace()
    with torch.no_grad():
        other.get_parameter("net.0.weight").zero_()
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        trainer(ema, trace).validate(other, loader(1), verbose=False)
    assert same(trace.seen[-1], weights(other))
    assert "there are no averages of this model" in caplog.text


def test_saving_while_the_averages_are_in_holds_raw_weights(tmp_path):
    class Saves(pl.Callback):
        weights_only = False

        def on_validation_batch_end(self, trainer, pl_module, *args):
            trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt", weights_only=self.weights_only)

    for Saves.weights_only in (False, True):
        for checkpoint in ("raw", "ema"):
            ema, trace = EMA(0.9, checkpoint=checkpoint), Trace()
            fit = trainer(trace, ema, Saves(), max_steps=8, limit_val_batches=1)
            fit.fit(Net(), loader(), loader(1))
            assert same(trace.seen[-1], averages(ema))
            saved = read(tmp_path / "8.ckpt")
            raw = saved["raw_state_dict" if checkpoint == "ema" else "state_dict"]
            for name, value in averages(ema).items():
                assert torch.equal(raw[name], trace.train[-1][name])
                assert torch.equal(saved["ema_state_dict"][name], value)
