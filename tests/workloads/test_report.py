from __future__ import annotations

import pytest
import torch
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

from lit_opt.errors import RecipeError
from lit_opt.workloads import ByteText, ImageClassifier, LanguageModel
from lit_opt.workloads.report import image_classifier_lines, language_model_lines, loss_plot
from tests.workloads.test_text import TINY, Trained, quiet_trainer


def test_picture_of_a_run(tmp_path):
    torch.set_num_threads(1)
    logger = CSVLogger(tmp_path)
    trainer = quiet_trainer(
        max_steps=12,
        val_check_interval=4,
        logger=logger,
        log_every_n_steps=2,
        callbacks=[LearningRateMonitor()],
    )
    model = Trained(**TINY)
    trainer.fit(model, ByteText(seq_len=16, batch_size=4, max_bytes=5_000, val_windows=4))
    picture = loss_plot(f"{logger.log_dir}/metrics.csv", tmp_path / "new" / "loss.png")
    with Image.open(picture) as image:
        assert image.format == "PNG" and min(image.size) > 600
    lines = language_model_lines(model, trainer.callback_metrics)
    assert lines[0].startswith("Validation: ") and lines[2].startswith("  | def ")


def test_rows_without_a_loss(tmp_path):
    with pytest.raises(RecipeError, match="train_loss among the columns lr, step"):
        loss_plot([{"step": 1, "lr": 0.1}], tmp_path / "x.png")
    with pytest.raises(RecipeError, match=r"metrics\.csv"):
        loss_plot(tmp_path / "none.csv", tmp_path / "x.png")


def test_blank_and_infinite_values_are_left_out(tmp_path):
    rows = [{"step": s, "train_loss": "" if s % 2 else 2.0 - s / 10, "val_acc": 0.5 + s / 20} for s in range(10)]
    rows.append({"step": 10, "train_loss": float("nan"), "lr-SGD": 0.1})
    assert loss_plot(rows, tmp_path / "x.png").stat().st_size > 10_000


def test_closing_lines_of_a_classifier():
    model = ImageClassifier(width=0.125, num_classes=4)
    assert image_classifier_lines(model, {"val_acc": torch.tensor(0.5)}) == [
        "Validation: 50.0 % correct (guessing: 25.0 %)."
    ]
    assert image_classifier_lines(model, {}) == []
    assert len(language_model_lines(LanguageModel(**TINY), {})) >= 2
