"""EMA and checkpoints: exact resume, loading, exporting."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from safetensors.torch import load_file
from torch import nn

from lit_opt import EMA
from lit_opt.callbacks.export import export_ema
from lit_opt.errors import RecipeError
from tests.callbacks.ema_lib import SAFE, Net, Trace, averages, loader, read, same, trainer, weights


class SaveAt(pl.Callback):
    """Listed before EMA, it saves when the step is taken and not yet averaged."""

    def __init__(self, path: Any, step: int) -> None:
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"checkpoint": "ema"},
        {"warmup": False},
        {"start_step": 4},
        {"start_step": 5},
        {"start_step": 9},
        {"offload": True},
        {"precision": "bf16-true"},
        {"precision": "bf16-true", "checkpoint": "ema"},
        {"precision": "bf16-mixed"},
        pytest.param(
            {"plugins": [MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))]}, id="16-mixed"
        ),
        {"precision": "64-true"},
    ],
    ids=lambda options: ",".join(f"{k}={v}" for k, v in options.items() if k != "plugins") or "default",
)
@pytest.mark.parametrize("early", [False, True])
def test_resume_is_bit_exact(options, early, tmp_path):
    extra = {key: options[key] for key in options.keys() & {"precision", "plugins"}}
    ours: Any = {key: value for key, value in options.items() if key not in extra}

    def fit(steps: int, ckpt_path: Any = None, save: int = 0) -> tuple[EMA, Trace]:
        ema, trace, saver = EMA(0.9, **ours), Trace(), SaveAt(tmp_path / "c.ckpt", save)
        callbacks = [saver, ema, trace] if early else [ema, saver, trace]
        run = trainer(*callbacks, max_steps=steps, val_check_interval=3, **extra)
        # Lightning 2.6.6 loads before it converts to float64, which rounds the weights to float32 on the way.
        net = Net().double() if extra.get("precision") == "64-true" else Net()
        run.fit(net, loader(equal=True), loader(1, seed=4), ckpt_path=ckpt_path, **SAFE)
        return ema, trace

    ema, trace = fit(12, save=5)
    resumed, tail = fit(12, ckpt_path=tmp_path / "c.ckpt")
    assert same(tail.start, trace.train[4])
    assert len(tail.train) == 7
    assert all(same(a, b) for a, b in zip(tail.train, trace.train[5:], strict=True))
    assert (resumed.updates, resumed.steps) == (ema.updates, ema.steps) and ema.steps == 12
    assert same(averages(resumed), averages(ema))
    assert same(tail.seen[-1], trace.seen[-1])


def test_resume_with_frozen_and_compiled_parts(tmp_path):
    class Partly(Net):
        def __init__(self):
            super().__init__()
            self.net[0].requires_grad_(False)
            self.net[3] = torch.compile(self.net[3], backend="eager")  # type: ignore[assignment]

    def fit(steps: int, **options: Any) -> EMA:
        ema = EMA(0.9)
        fit = trainer(ema, SaveAt(tmp_path / "c.ckpt", 5), max_steps=steps)
        fit.fit(Partly(), loader(equal=True), **options)
        return ema

    assert same(averages(fit(9)), averages(fit(9, ckpt_path=tmp_path / "c.ckpt", **SAFE)))
    saved = read(tmp_path / "c.ckpt")
    assert list(saved["ema_state_dict"]) == list(saved["state_dict"])
    # a compiled part was trained, a plain module loads
    plain = Net()
    EMA.load(plain, tmp_path / "c.ckpt")
    assert torch.equal(plain.get_parameter("net.3.weight"), saved["ema_state_dict"]["net.3._orig_mod.weight"])


def test_frozen_parameters_and_buffers_are_stored_once(tmp_path):
    class Partly(Net):
        def __init__(self):
            super().__init__()
            self.net[0].requires_grad_(False)

    for checkpoint in ("raw", "ema"):
        fit = trainer(EMA(0.9, checkpoint=checkpoint))
        fit.fit(Partly(), loader())
        fit.save_checkpoint(tmp_path / "c.ckpt")
        saved = read(tmp_path / "c.ckpt")
        state, ema = saved["state_dict"], saved["ema_state_dict"]
        shared = {key for key in state if state[key].data_ptr() == ema[key].data_ptr()}
        own = {"net.1.weight", "net.1.bias", "net.3.weight", "net.3.bias"}
        assert shared == (state.keys() if checkpoint == "ema" else state.keys() - own)
        assert all(torch.equal(state[key], ema[key]) for key in shared)


def test_a_checkpoint_without_averages_starts_from_its_weights_with_a_line(tmp_path, caplog):
    first = trainer(max_steps=5)
    first.fit(Net(), loader(equal=True))
    first.save_checkpoint(tmp_path / "c.ckpt")
    ema, trace = EMA(0.9, start_step=7), Trace()
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        fit = trainer(trace, ema, max_steps=9)
        fit.fit(Net(), loader(equal=True), ckpt_path=tmp_path / "c.ckpt", **SAFE)
    assert caplog.text.count("the checkpoint holds no averages; they start from the weights loaded") == 1
    assert (ema.steps, ema.updates) == (9, 2)


@pytest.mark.parametrize("checkpoint", ["raw", "ema"])
@pytest.mark.parametrize("weights_only", [False, True])
def test_evaluating_a_checkpoint_uses_its_averages(weights_only, checkpoint, tmp_path):
    class Save(pl.Callback):
        def on_train_end(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / "c.ckpt", weights_only=weights_only)

    ema, trace = EMA(0.9, checkpoint=checkpoint), Trace()
    trainer(ema, trace, Save(), max_steps=6).fit(Net(), loader())
    for run in ("validate", "test", "predict"):
        fresh, seen, net = EMA(0.9), Trace(), Net()
        getattr(trainer(fresh, seen), run)(net, loader(1), ckpt_path=tmp_path / "c.ckpt", **SAFE)
        assert same(seen.seen[-1], averages(ema))
        assert same(weights(net), trace.train[-1])


def test_evaluating_another_checkpoint_after_fit_uses_that_ones_averages(tmp_path):
    ema, trace, net = EMA(0.9), Trace(), Net()
    fit = trainer(SaveAt(tmp_path / "c.ckpt", 3), ema, trace, max_steps=6)
    fit.fit(net, loader())
    saved = read(tmp_path / "c.ckpt")["ema_state_dict"]
    fit.test(net, loader(1), ckpt_path=tmp_path / "c.ckpt", verbose=False, **SAFE)
    assert all(torch.equal(trace.seen[-1][name], saved[name]) for name in trace.seen[-1])
    assert same(weights(net), trace.train[2])


def test_evaluating_a_checkpoint_without_averages_says_so(tmp_path, caplog):
    first, trace = trainer(), Trace()
    first.fit(Net(), loader())
    first.save_checkpoint(tmp_path / "c.ckpt")
    net = Net()
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        trainer(EMA(0.9), trace).test(net, loader(1), ckpt_path=tmp_path / "c.ckpt", verbose=False, **SAFE)
    assert same(trace.seen[-1], weights(net))
    assert "there are no averages of this model; its weights are used as they are" in caplog.text


def test_the_modules_own_checkpoint_hooks_still_run(tmp_path):
    loaded = []

    class Own(Net):
        def on_save_checkpoint(self, checkpoint):
            checkpoint["mine"] = 1
            assert "ema_state_dict" not in checkpoint  # ours comes after

        def on_load_checkpoint(self, checkpoint):
            loaded.append((checkpoint["mine"], torch.equal(checkpoint["state_dict"]["net.3.bias"], raw)))

    ema, trace = EMA(0.9, checkpoint="ema"), Trace()
    trainer(SaveAt(tmp_path / "c.ckpt", 3), ema, trace, max_steps=4).fit(Own(), loader(equal=True))
    raw = trace.train[2]["net.3.bias"]
    assert read(tmp_path / "c.ckpt")["mine"] == 1
    fit = trainer(EMA(0.9), max_steps=4)
    fit.fit(Own(), loader(equal=True), ckpt_path=tmp_path / "c.ckpt", **SAFE)
    assert loaded == [(1, True)]


def test_a_module_that_renames_its_keys(tmp_path):
    class Renames(Net):
        def state_dict(self, *args, **kwargs):
            return {f"x.{k}": v for k, v in super().state_dict(*args, **kwargs).items()}

        def load_state_dict(self, state_dict, strict=True, assign=False):
            return super().load_state_dict({k.removeprefix("x."): v for k, v in state_dict.items()})

    ema = EMA(0.9)
    trainer(SaveAt(tmp_path / "c.ckpt", 3), ema, max_steps=5).fit(Renames(), loader(equal=True))
    resumed = EMA(0.9)
    fit = trainer(resumed, max_steps=5)
    fit.fit(Renames(), loader(equal=True), ckpt_path=tmp_path / "c.ckpt", **SAFE)
    assert same(averages(resumed), averages(ema))


@pytest.fixture
def trained(tmp_path):
    ema, fit = EMA(0.9), None
    fit = trainer(ema)
    fit.fit(Net(), loader())
    fit.save_checkpoint(tmp_path / "c.ckpt")
    return ema, tmp_path / "c.ckpt"


def test_load_is_strict(trained):
    ema, path = trained
    net = Net()
    EMA.load(net, path)
    assert same(weights(net), averages(ema))
    with pytest.raises(RecipeError, match="does not fit Linear"):
        EMA.load(nn.Linear(8, 16), path)


def test_files_that_hold_no_averages(trained, tmp_path):
    cases: dict[str, Any] = {
        "plain.ckpt": Net().state_dict(),
        "foreign.ckpt": {"state_dict": {}, "ema_state_dict": {}},
        "list.ckpt": [1],
        "pickle.ckpt": {"state_dict": {}, "hyper": Net},
    }
    for name, content in cases.items():
        torch.save(content, tmp_path / name)
    (tmp_path / "noise.ckpt").write_bytes(b"no checkpoint at all")
    (tmp_path / "empty.ckpt").touch()
    (tmp_path / "folder").mkdir()
    expected = {
        "plain.ckpt": "holds no averages of lit_opt.EMA",
        "foreign.ckpt": "holds no averages of lit_opt.EMA",
        "list.ckpt": "it holds list",
        "pickle.ckpt": "cannot be read",
        "noise.ckpt": "it is damaged or no checkpoint",
        "empty.ckpt": "it is empty",
        "folder": "is a folder without meta.pt",
        "nowhere.ckpt": "there is no file",
    }
    for name, message in expected.items():
        with pytest.raises(RecipeError, match=message):
            EMA.load(Net(), tmp_path / name)
    early = trainer(EMA(0.9, start_step=9), max_steps=2)
    early.fit(Net(), loader())
    early.save_checkpoint(tmp_path / "early.ckpt")
    with pytest.raises(RecipeError, match="written after 2 optimizer steps, before the first update"):
        EMA.load(Net(), tmp_path / "early.ckpt")


def test_a_shape_that_changed_is_refused(trained):
    class Wider(Net):
        def __init__(self):
            super().__init__()
            self.net[3] = nn.Linear(16, 5)
            self.strict_loading = False

        def load_state_dict(self, state_dict, strict=True, assign=False):
            own = self.state_dict()
            fitting = {k: v for k, v in state_dict.items() if v.shape == own[k].shape}
            return super().load_state_dict(fitting, strict=False)

    with pytest.raises(RecipeError, match=r"average of net\.3\.weight has shape \(4, 16\).* and \(5, 16\)"):
        trainer(EMA(0.9)).test(Wider(), loader(1), ckpt_path=trained[1], **SAFE)


@pytest.mark.parametrize("safetensors", [False, True])
def test_export(trained, safetensors, tmp_path):
    ema, path = trained
    out = tmp_path / ("out.safetensors" if safetensors else "out.pt")
    out.write_text("older")
    export_ema(path, out, safetensors=safetensors)
    state = load_file(out) if safetensors else read(out)
    net = Net()
    net.load_state_dict(state)
    assert same(weights(net), averages(ema))
    assert int(net.get_buffer("net.1.num_batches_tracked")) == 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.ckpt", out.name]


def test_export_of_tied_and_transposed_weights(tmp_path):
    class Tied(Net):
        def __init__(self):
            super().__init__()
            self.net[3] = nn.Linear(16, 16)
            self.again = self.net[3]
            self.net[0].weight = nn.Parameter(torch.randn(8, 16).T)

    ema, net = EMA(0.9), Tied()
    fit = trainer(ema)
    fit.fit(net, loader())
    fit.save_checkpoint(tmp_path / "c.ckpt")
    export_ema(tmp_path / "c.ckpt", tmp_path / "o.safetensors", safetensors=True)
    state = load_file(tmp_path / "o.safetensors")
    assert state.keys() == net.state_dict().keys()
    assert torch.equal(state["again.weight"], averages(ema)["net.3.weight"])
    assert torch.equal(state["net.0.weight"], averages(ema)["net.0.weight"])


def test_export_refuses_and_leaves_the_old_file(trained, tmp_path, monkeypatch):
    path = trained[1]
    before = path.read_bytes()
    for out, safetensors in ((path, False), (tmp_path, False), (tmp_path / "no" / "o.pt", False)):
        with pytest.raises(RecipeError, match="out: "):
            export_ema(path, out, safetensors=safetensors)
    for out, safetensors in ((tmp_path / "o.safetensors", False), (tmp_path / "o.pt", True)):
        with pytest.raises(RecipeError, match="do not fit"):
            export_ema(path, out, safetensors=safetensors)
    assert path.read_bytes() == before
    old = tmp_path / "old.pt"
    old.write_text("older")

    def broken(averages, file):
        file.write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr("torch.save", broken)
    with pytest.raises(OSError, match="disk full"):
        export_ema(path, old)
    assert old.read_text() == "older"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.ckpt", "old.pt"]
