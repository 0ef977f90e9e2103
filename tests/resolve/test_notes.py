"""What a large-batch recipe says of the batch of the run."""

from __future__ import annotations

import logging

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel, RandomDataset
from torch.utils.data import DataLoader

from lit_opt import Recipe
from lit_opt.recipes import get_recipe, list_recipes
from lit_opt.resolve import RunFacts, preview, resolve


def notes(name: str, batch: int, **overrides) -> str:
    facts = RunFacts(
        total_steps=1000, global_batch=batch, loader_batch=256, accumulation=batch // 512, data_parallel_size=2
    )
    return "\n".join(resolve(get_recipe(f"large_batch/{name}"), overrides, facts).notes)


def test_the_arithmetic():
    text = notes("lars", 16_384)
    assert "global batch 16,384 = loader 256 x accumulation 32 x data-parallel 2; lr: published by batch" in text
    text = notes("lamb", 8192)
    assert "= loader 256 x accumulation 16 x data-parallel 2; lr: 0.005 at 2,048 samples x 2 (sqrt) at 8,192" in text


def test_a_batch_that_is_given_is_not_called_the_loaders():
    text = notes("lamb", 4096, batch_size=65_536)
    assert (
        "global batch 65,536 as given with batch_size= (loader 256 x accumulation 8 x data-parallel 2 would be 4,096)"
        in text
    )


@pytest.mark.parametrize(
    ("name", "batch", "below", "moderate"),
    [
        ("lars", 2048, True, True),
        ("lars", 4096, False, True),
        ("lars", 8192, False, True),
        ("lars", 8704, False, False),
        ("lars", 65_536, False, False),
        ("lamb", 1024, True, True),
        ("lamb", 2048, False, True),
        ("lamb", 16_384, False, False),
    ],
)
def test_a_batch_is_called_what_it_is(name, batch, below, moderate):
    text = notes(name, batch)
    assert ("the least that" in text) == below
    assert ("is a moderate batch" in text and f"nothing is gained by {name}" in text) == moderate
    assert ("a tuned large_batch/control matched it at 32,768" in text) == (not moderate)


def test_the_control():
    assert "cnn has the same rate and a shorter warmup" in notes("control", 4096)
    assert "nothing is gained" not in notes("control", 4096) and "the least" not in notes("control", 512)
    assert "tune lr at 16,384" in notes("control", 16_384)


def test_another_optimizers_batches_are_not_lars():
    assert "the least that" not in notes("lars", 1024, optimizer="sgd", lr=0.1, weight_decay=1e-4)


def test_an_unknown_batch():
    [note] = preview(get_recipe("large_batch")).notes
    assert "the global batch is unknown; up to 8,192 images it is moderate" in note


def test_other_recipes_say_nothing():
    for name in list_recipes():
        if not name.startswith("large_batch"):
            assert preview(get_recipe(name), facts=RunFacts(global_batch=64)).notes == ()


def test_the_log_of_a_run_says_it(caplog):
    module = BoringModel()
    module.train_dataloader = lambda: DataLoader(RandomDataset(32, 64), batch_size=4)  # type: ignore[method-assign]
    trainer = Trainer(
        accelerator="cpu", max_steps=4, accumulate_grad_batches=2, limit_val_batches=0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[Recipe("large_batch/control")],
    )  # fmt: skip
    with caplog.at_level(logging.INFO):
        trainer.fit(module)
    text = " ".join(caplog.text.split())
    assert "global batch 8 = loader 4 x accumulation 2 x data-parallel 1; lr: 0.1 at 256 samples x 0.03125" in text
    assert "8 is a moderate batch (up to 8,192 images)" in text
