from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from PIL import Image
from torch.nn import functional as F

from lit_opt.errors import RecipeError
from lit_opt.workloads import CIFAR10, Digits, ImageClassifier, ImageFolder
from tests.workloads.test_text import quiet_trainer

VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2}


class Trained(ImageClassifier):
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def test_it_learns_digits(tmp_path):
    torch.manual_seed(0)
    trainer, model = quiet_trainer(max_epochs=3), Trained(width=0.125)
    trainer.fit(model, Digits(image_size=8))
    assert float(trainer.callback_metrics["val_acc"]) > 0.6
    assert set(trainer.callback_metrics) == {"train_loss", "val_loss", "val_acc"}
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = Trained.load_from_checkpoint(tmp_path / "model.ckpt").eval()
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(loaded(images), model.eval()(images))


def test_it_brings_no_optimizer():
    assert ImageClassifier.configure_optimizers is LightningModule.configure_optimizers


def test_the_stem_for_small_images_keeps_the_resolution():
    small, published = ImageClassifier(width=0.125), ImageClassifier(width=0.125, small_images=False)
    image = torch.randn(1, 3, 16, 16)
    assert small.model.get_submodule("conv1")(image).shape[-2:] == (16, 16)
    stem = torch.nn.Sequential(*(published.model.get_submodule(name) for name in ("conv1", "maxpool")))
    assert stem(image).shape[-2:] == (4, 4)


@pytest.mark.parametrize(
    "arguments",
    [
        {"model": "resnet18", "width": 1.0},
        {"model": "resnet26", "width": 1.0, "small_images": False},
        {"model": "vit_tiny_patch16_224", "width": 1.0, "small_images": False, "model_kwargs": VIT},
        {"model": "shufflenet_v2_x0_5", "width": 1.0, "small_images": False},  # torchvision only
    ],
    ids=lambda arguments: arguments["model"],
)
def test_models_by_name(arguments):
    model = ImageClassifier(**arguments, num_classes=7).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 16, 16)).shape == (1, 7)


def test_label_smoothing_is_for_training_only(monkeypatch):
    torch.manual_seed(0)
    model = ImageClassifier(width=0.125, label_smoothing=0.1).eval()
    logged: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(model, "log", lambda name, value, **_: logged.update({name: value}))
    images, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    logits = model(images)
    torch.testing.assert_close(
        model.training_step((images, labels), 0), F.cross_entropy(logits, labels, label_smoothing=0.1)
    )
    model.validation_step((images, labels), 0)
    torch.testing.assert_close(logged["val_loss"], F.cross_entropy(logits, labels))
    assert float(logged["val_acc"]) == float((logits.argmax(1) == labels).float().mean())


def test_channels_last_changes_the_layout_not_the_result():
    torch.manual_seed(0)
    plain, last = ImageClassifier(width=0.125), ImageClassifier(width=0.125, channels_last=True)
    last.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(plain(images), last(images), rtol=1e-4, atol=1e-4)
    weight = last.model.get_parameter("layer1.0.conv1.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"model": "resnet81"}, "neither timm nor torchvision.*Did you mean 'resnet"),
        ({"model": "vit_tiny_patch16_224", "width": 1.0}, "no ResNet stem"),
        ({"model": "vit_tiny_patch16_224"}, "width=1.0"),
        ({"model": "shufflenet_v2_x0_5"}, "width=1.0"),
        ({"model": "resnet18", "model_kwargs": {"heads": 3}}, "heads"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"width": 0.0}, "width=0.0"),
    ],
)
def test_arguments_are_checked(arguments, words):
    with pytest.raises(RecipeError, match=words):
        ImageClassifier(**arguments)


def test_digits_are_split_and_shifted():
    train, val = Digits().datasets()
    assert (len(train), len(val)) == (1438, 359)
    assert sorted(set(val.labels.tolist())) == list(range(10))
    torch.manual_seed(0)
    draws = [train[0][0] for _ in range(10)]
    assert {tuple(draw.shape) for draw in draws} == {(3, 16, 16)}
    assert any(not torch.equal(draws[0], draw) for draw in draws)
    torch.testing.assert_close(val[0][0], val[0][0])
    assert abs(float(val.images.mean())) < 0.1 and abs(float(train.images.std()) - 1) < 0.3


def write_image(path, colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 24), colour).save(path)


def test_image_folder(tmp_path):
    for part in ("train", "val"):
        for number, name in enumerate(("cat", "dog")):
            for i in range(3):
                write_image(tmp_path / part / name / f"{i}.png", (80 * number, 40 * i, 100))
    data = ImageFolder(tmp_path, image_size=16, batch_size=2, num_workers=0)
    data.setup("fit")
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (2, 3, 16, 16) and images.dtype == torch.float32 and labels.shape == (2,)
    assert data.num_classes == 2
    assert sorted(label for _, labels in data.val_dataloader() for label in labels.tolist()) == [
        0,
        0,
        0,
        1,
        1,
        1,
    ]
    again = ImageFolder(tmp_path, image_size=16, batch_size=2, num_workers=2)
    again.setup("fit")
    torch.testing.assert_close(next(iter(again.train_dataloader()))[0], images, rtol=0, atol=0)

    write_image(tmp_path / "val" / "bird" / "0.png", (0, 0, 0))
    with pytest.raises(RecipeError, match=r"different classes.*bird"):
        ImageFolder(tmp_path).setup("fit")


def test_image_folder_that_is_missing(tmp_path):
    with pytest.raises(RecipeError, match="train/<class>/<image>"):
        ImageFolder(tmp_path).setup("fit")


def test_cifar10_is_read_from_disk_and_never_downloaded(tmp_path, monkeypatch):
    from torchvision import datasets

    with pytest.raises(RecipeError, match="downloads nothing"):
        CIFAR10(tmp_path).setup("fit")

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.arange(4 * 3072, dtype=np.int64).reshape(4, 3072).astype(np.uint8)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": [0, 1, 2, 3]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    # torchvision compares checksums with the true files
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    data = CIFAR10(tmp_path, batch_size=5, num_workers=0)
    data.setup("fit")
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (5, 3, 32, 32) and labels.shape == (5,)
    assert len(data.train_dataloader()) == 4 and len(data.val_dataloader()) == 1
