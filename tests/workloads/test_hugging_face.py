"""Datasets of Hugging Face, made here and read from disk: no network."""

from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything

from lit_opt import Recipe
from lit_opt.errors import RecipeError
from lit_opt.workloads import ByteText, HuggingFaceImages, HuggingFaceText, ImageClassifier

datasets = pytest.importorskip("datasets", reason="the extra 'datasets' is not installed")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    from PIL import Image

    def split(n):
        pictures = [Image.new("L" if i % 2 else "RGB", (20 + i, 24), color=i * 9 % 256) for i in range(n)]
        rows = {"img": pictures, "label": [i % 3 for i in range(n)]}
        features = {"img": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])}
        return datasets.Dataset.from_dict(rows, features=datasets.Features(features))

    folder = tmp_path_factory.mktemp("images")
    datasets.DatasetDict({"train": split(24), "test": split(6)}).save_to_disk(folder)
    return str(folder)


def made(path, **arguments):
    return HuggingFaceImages(
        path, **{"image": "img", "val_split": "test", "image_size": 16, "batch_size": 8, "num_workers": 0, **arguments}
    )


def test_images_train(images):
    torch.set_num_threads(1)
    seed_everything(0, verbose=False)
    data = made(images)
    data.setup("fit")
    pictures, labels = next(iter(data.train_dataloader()))
    assert pictures.shape == (8, 3, 16, 16) and pictures.dtype == torch.float32 and labels.dtype == torch.int64
    assert data.num_classes == 3
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(max_steps=3, accelerator="cpu", callbacks=[Recipe("cnn")], enable_checkpointing=False, **quiet)
    trainer.fit(ImageClassifier(width=0.125, num_classes=3), made(images))
    assert trainer.global_step == 3 and "val_acc" in trainer.callback_metrics


def test_the_stream_is_the_same_for_a_seed(images):
    def first():
        data = made(images, seed=3)
        data.setup("fit")
        return next(iter(data.train_dataloader()))

    (a, la), (b, lb) = first(), first()
    assert torch.equal(a, b) and torch.equal(la, lb)


def test_wrong_names_are_all_said_at_once(images):
    with pytest.raises(RecipeError) as caught:
        made(images, val_split="validation", label="labels").setup("fit")
    text = str(caught.value)
    assert "split 'validation' is not in" in text and "It has 'train', 'test'" in text
    assert "column 'labels' is not in the split 'train'" in text and "label" in text


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="datasets cannot load it"):
        made(str(tmp_path / "nothing")).setup("fit")


def test_text_is_read_as_bytes(tmp_path):
    texts = [f"Line {i} of a text: ä." for i in range(400)]
    datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": texts})}).save_to_disk(tmp_path / "text")
    data = HuggingFaceText(tmp_path / "text", seq_len=16, batch_size=4, max_bytes=5_000)
    assert isinstance(data, ByteText)
    assert data.read() == "".join(text + "\n\n" for text in texts).encode()[:5_000]
    data.setup("fit")
    assert next(iter(data.train_dataloader())).shape == (4, 17)
