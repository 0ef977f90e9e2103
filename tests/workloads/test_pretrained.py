"""Starting from another run's weights, with and without adapters."""

from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything

from lit_opt import EMA, Recipe
from lit_opt.errors import RecipeError
from lit_opt.workloads import ByteText, DiffusionModel, ImageClassifier, LanguageModel

TINY: dict[str, Any] = {"layers": 1, "width": 32, "heads": 2, "mlp_width": 64, "context": 32}
SMALL: dict[str, Any] = {"seq_len": 32, "batch_size": 8, "max_bytes": 50_000, "val_windows": 32}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def trainer(**arguments):
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    quiet |= {"enable_checkpointing": False, "num_sanity_val_steps": 0, "limit_val_batches": 0}
    return Trainer(accelerator="cpu", **{**quiet, **arguments})


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A language model after 60 steps, with averages; the checkpoint and the averages."""
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("base") / "base.ckpt"
    seed_everything(0, verbose=False)
    model, run = LanguageModel(**TINY), trainer(max_steps=60, callbacks=[Recipe("llm", lr=1e-2, ema=EMA_DECAY)])
    run.fit(model, ByteText(**SMALL))
    run.save_checkpoint(path)
    return path


EMA_DECAY = 0.9


def test_the_averages_are_taken(base):
    averages = LanguageModel(**TINY)
    EMA.load(averages, base)
    started = LanguageModel(**TINY, weights=str(base))
    raw = LanguageModel.load_from_checkpoint(base)
    for (name, a), b in zip(started.named_parameters(), averages.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert any(not torch.equal(a, c) for a, c in zip(started.parameters(), raw.parameters(), strict=True))
    assert "weights" not in started.hparams


def test_adapters_train_and_nothing_else_does(base, tmp_path):
    seed_everything(0, verbose=False)
    model = LanguageModel(**TINY, weights=str(base), lora_rank=4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    windows = next(iter(loader()))
    first = float(model.loss(windows).detach())
    run = trainer(max_steps=30, callbacks=[Recipe("llm/lora", lr=1e-2)])
    run.fit(model, ByteText(**SMALL))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all("lora_" in name for name in changed)
    assert all(("lora_" in name) == value.requires_grad for name, value in model.named_parameters())
    assert {row.algorithm for row in run.callbacks[0].run.groups.rows()} == {"adamw"}
    assert float(model.loss(windows).detach()) < first
    run.save_checkpoint(tmp_path / "lora.ckpt")
    again = LanguageModel.load_from_checkpoint(tmp_path / "lora.ckpt")
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())


def loader():
    data = ByteText(**SMALL)
    data.setup("fit")
    return data.train_dataloader()


def test_full_fine_tuning_starts_where_the_base_ended(base):
    started, fresh = LanguageModel(**TINY, weights=str(base)), LanguageModel(**TINY)
    windows = next(iter(loader()))
    with torch.no_grad():
        assert float(started.loss(windows)) < float(fresh.loss(windows)) - 1


def test_adapters_on_random_weights_are_said(caplog):
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        LanguageModel(**TINY, lora_rank=2)
    assert "adapters on random weights" in caplog.text


def test_a_head_may_have_another_number_of_classes(tmp_path, caplog):
    old, file = ImageClassifier(width=0.125), tmp_path / "old.pt"
    torch.save(old.state_dict(), file)
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        new = ImageClassifier(width=0.125, num_classes=3, weights=str(file))
    state, started_from = new.state_dict(), old.state_dict()
    assert state["model.fc.weight"].shape[0] == 3
    assert "but for the head (model.fc.weight, model.fc.bias)" in caplog.text
    assert torch.equal(state["model.layer1.0.conv1.weight"], started_from["model.layer1.0.conv1.weight"])


def test_safetensors(tmp_path):
    from safetensors.torch import save_file

    old, file = DiffusionModel(width=8), tmp_path / "old.safetensors"
    save_file(old.state_dict(), file)
    new = DiffusionModel(width=8, weights=str(file))
    assert all(torch.equal(value, new.state_dict()[name]) for name, value in old.state_dict().items())


def test_what_does_not_fit_is_refused_and_nothing_is_changed(tmp_path):
    file = tmp_path / "old.pt"
    torch.save(ImageClassifier(width=0.125).state_dict(), file)
    with pytest.raises(
        RecipeError, match=r"does not fit ImageClassifier: \d+ tensors have another shape, such as model.layer1"
    ):
        ImageClassifier(width=0.25, weights=str(file))
    with pytest.raises(RecipeError, match=r"tensors are not in it.*tensors are not here"):
        LanguageModel(**TINY, weights=str(file))


def test_other_files_are_refused(tmp_path):
    with pytest.raises(RecipeError, match="there is no such file"):
        LanguageModel(**TINY, weights=str(tmp_path / "nothing.ckpt"))
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    with pytest.raises(RecipeError, match="cannot be read as plain tensors"):
        LanguageModel(**TINY, weights=str(tmp_path / "text.ckpt"))
    torch.save([1], tmp_path / "list.ckpt")
    with pytest.raises(RecipeError, match="holds a list"):
        LanguageModel(**TINY, weights=str(tmp_path / "list.ckpt"))


def test_code_in_a_file_does_not_run(tmp_path):
    torch.save({"state_dict": {"x": trainer}}, tmp_path / "code.ckpt")
    with pytest.raises(RecipeError, match="weights_only=True"):
        LanguageModel(**TINY, weights=str(tmp_path / "code.ckpt"))
