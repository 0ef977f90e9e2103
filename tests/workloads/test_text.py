from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything

from lit_opt.errors import RecipeError
from lit_opt.workloads import ByteText, LanguageModel
from lit_opt.workloads.text_data import read_bytes

TINY: dict[str, Any] = {"layers": 1, "width": 32, "heads": 2, "mlp_width": 64, "context": 32}


class Trained(LanguageModel):
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def quiet_trainer(**arguments):
    settings = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(**{**settings, "enable_checkpointing": False, "num_sanity_val_steps": 0, **arguments})


def test_it_learns_and_logs_bits_per_byte(tmp_path):
    seed_everything(0, verbose=False)
    data = ByteText(seq_len=32, batch_size=8, max_bytes=50_000, val_windows=32)
    trainer, model = quiet_trainer(max_steps=60, val_check_interval=60), Trained(**TINY)
    before = trainer.validate(model, data, verbose=False)[0]
    trainer.fit(model, data)
    after = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert before["val_bpb"] == pytest.approx(8, abs=0.2)
    assert after["val_bpb"] < 5.5
    assert after["val_bpb"] == pytest.approx(after["val_loss"] / math.log(2), rel=1e-5)
    assert math.isfinite(after["train_loss"])
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = Trained.load_from_checkpoint(tmp_path / "model.ckpt")
    assert loaded.sample("def ", 20) == model.sample("def ", 20)


def test_it_brings_no_optimizer():
    assert LanguageModel.configure_optimizers is LightningModule.configure_optimizers


def test_the_loss_is_that_of_the_next_byte():
    model = LanguageModel(**TINY)
    windows = torch.randint(256, (2, 9))
    log_p = model(windows[:, :-1]).log_softmax(-1)
    by_hand = -sum(log_p[b, i, windows[b, i + 1]] for b in range(2) for i in range(8)) / 16
    torch.testing.assert_close(model.loss(windows), by_hand)
    changed = windows.clone()
    changed[:, 5:] = 0  # what comes later does not change the predictions before it
    torch.testing.assert_close(model(changed)[:, :5], model(windows)[:, :5])


def test_default_size():
    assert sum(p.numel() for p in LanguageModel().parameters()) == 869_504


def test_samples_depend_on_the_seed_only():
    model = LanguageModel(**TINY).train()
    state = torch.get_rng_state()
    sample = model.sample("a = ", n_bytes=40, seed=1)
    assert torch.equal(torch.get_rng_state(), state) and model.training
    assert sample.startswith("a = ") and sample == model.sample("a = ", n_bytes=40, seed=1)
    assert sample != model.sample("a = ", n_bytes=40, seed=2)
    assert model.sample("a", 5, temperature=0, seed=1) == model.sample("a", 5, temperature=0, seed=2)
    assert len(model.sample("a" * 50, n_bytes=3).encode(errors="replace")) >= 53  # longer than the context


def test_the_standard_library_is_read_in_a_fixed_order():
    text = read_bytes(None, 300_000)
    assert len(text) == 300_000 and text == read_bytes(None, 300_000)
    assert read_bytes(None, 100_000) == text[:100_000]
    assert b"import " in text


def test_training_and_validation_share_no_byte(tmp_path):
    path = tmp_path / "numbers.txt"
    path.write_bytes(bytes(i % 251 for i in range(5_000)))
    data = ByteText(path, seq_len=10, val_windows=20)
    train, val = data.datasets()
    assert len(val) == 20
    assert train.text.data_ptr() + len(train.text) == val.text.data_ptr()
    assert int(train.starts.max()) + 11 <= 4_500 == len(train.text)
    assert int(val.starts.max()) + 11 <= 500 and len(set(val.starts.tolist())) == 20
    assert torch.equal(val[3][:-1] + 1, val[3][1:]) or 250 in val[3].tolist()


def test_a_folder_gives_its_text_files(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "a.txt").write_text("first file\n")
    (tmp_path / "inner" / "b.md").write_text("second file\n")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\0\0\0")
    (tmp_path / ".hidden").write_text("secret")
    assert sorted(read_bytes(tmp_path, 1_000).decode().splitlines()) == ["first file", "second file"]


@pytest.mark.parametrize("kind", ["missing", "empty file", "empty folder", "binary folder", "short file"])
def test_text_that_cannot_be_used(tmp_path, kind):
    path = tmp_path / "data"
    if kind == "empty file":
        path.touch()
    elif kind == "short file":
        path.write_text("too short")
    elif kind != "missing":
        path.mkdir()
        if kind == "binary folder":
            (path / "x.bin").write_bytes(b"\0" * 100)
    with pytest.raises(RecipeError) as error:
        ByteText(path).setup("fit")
    assert len(error.value.problems) == 1
    assert str(path) in str(error.value) and "Give" in str(error.value)


def test_an_unreadable_file(tmp_path, monkeypatch):
    path = tmp_path / "text.txt"
    path.write_text("content")
    # root may read everything, so the refusal of the operating system is played
    monkeypatch.setattr("pathlib.Path.open", lambda *_, **__: (_ for _ in ()).throw(PermissionError("denied")))
    with pytest.raises(RecipeError, match="cannot be read"):
        ByteText(path).setup("fit")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LanguageModel(layers=0), "layers=0"),
        (lambda: LanguageModel(width=100, heads=3), "multiple of 6"),
        (lambda: ByteText(seq_len=0), "seq_len=0"),
        (lambda: ByteText(batch_size=0), "batch_size=0"),
        (lambda: LanguageModel(**TINY).sample(temperature=-1.0), "temperature=-1.0"),
        (lambda: LanguageModel(**TINY).sample(n_bytes=-1), "n_bytes=-1"),
    ],
)
def test_arguments_are_checked(make, words):
    with pytest.raises(RecipeError, match=words):
        make()


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(RecipeError, match=r"needs transformers.*pip install 'lit-opt\[workloads\]'"):
        LanguageModel()
