"""Images with labels: handwritten digits out of scikit-learn, CIFAR-10 and any folder of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from lit_opt.errors import RecipeError
from lit_opt.workloads.data_module import ResumableDataModule
from lit_opt.workloads.require import require, whole_number_problems

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class Digits(ResumableDataModule):
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels: every fifth is for validation (359).

    A batch is (images, labels): float images (batch_size, 3, image_size, image_size), grey in three channels
    so that any published architecture takes them, and labels 0..9. Training images are shifted by up to an
    eighth of their size, anew at each draw.

    Args:
        image_size: Height and width to enlarge to, in pixels; at least 8.
        batch_size: Images in a batch of one process.
        val_batch_size: Images in a validation batch; by default `batch_size`.
        seed: Decides the order and the shifts.
        num_workers: Worker processes; none are needed.

    Raises:
        RecipeError: An argument is out of range; on `setup`, scikit-learn is not installed.

    Example:
        >>> data = Digits(batch_size=32)
        >>> data.setup("fit")
        >>> images, labels = next(iter(data.train_dataloader()))
        >>> images.shape, labels.shape, len(data.train_dataloader())
        (torch.Size([32, 3, 16, 16]), torch.Size([32]), 44)
    """

    num_classes = 10

    def __init__(
        self,
        *,
        image_size: int = 16,
        batch_size: int = 64,
        val_batch_size: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        problems = whole_number_problems(8, image_size=image_size)
        if problems:
            raise RecipeError(problems)
        super().__init__(batch_size=batch_size, val_batch_size=val_batch_size, seed=seed, num_workers=num_workers)
        self.image_size = image_size

    def datasets(self) -> tuple[Images, Images]:
        """All images enlarged once, in memory."""
        digits = require("sklearn.datasets", "Digits").load_digits()
        grey = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16  # (1797, 1, 8, 8) in 0..1
        size = (self.image_size, self.image_size)
        images = F.interpolate((grey - grey.mean()) / grey.std(), size=size, mode="bilinear").expand(-1, 3, -1, -1)
        labels = torch.tensor(digits.target)
        val = torch.arange(len(labels)) % 5 == 4
        return (
            Images(images[~val], labels[~val], max_shift=self.image_size // 8),
            Images(images[val], labels[val]),
        )


class Images(Dataset[tuple[Tensor, Tensor]]):
    """Images in memory, shifted at random by up to `max_shift` pixels; what comes in repeats the border.

    Example:
        >>> images = Images(torch.arange(9.0).reshape(1, 1, 3, 3), torch.tensor([7]))
        >>> images[0][0].shape, images[0][1]
        (torch.Size([1, 3, 3]), tensor(7))
    """

    def __init__(self, images: Tensor, labels: Tensor, *, max_shift: int = 0) -> None:
        self.images = F.pad(images, [max_shift] * 4, mode="replicate") if max_shift else images
        self.labels, self.max_shift, self.size = labels, max_shift, images.shape[-2:]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, label = self.images[index], self.labels[index]
        if self.max_shift:
            top, left = torch.randint(2 * self.max_shift + 1, (2,)).tolist()
            image = image[:, top : top + self.size[0], left : left + self.size[1]]
        return image, label


class CIFAR10(ResumableDataModule):
    """CIFAR-10 as torchvision stores it on disk; it is never downloaded.

    Training images are cropped out of a border of 4 pixels and flipped, as in the ResNet paper (1512.03385).

    Args:
        root: The folder that holds `cifar-10-batches-py`.
        batch_size: Images in a batch of one process.
        val_batch_size: Images in a validation batch; by default `batch_size`.
        seed: Decides the order and the augmentation.
        num_workers: Worker processes of each loader.

    Raises:
        RecipeError: An argument is out of range; on `setup`, the data or torchvision are missing.
    """

    num_classes = 10

    def __init__(
        self,
        root: str | Path,
        *,
        batch_size: int = 128,
        val_batch_size: int | None = None,
        seed: int = 0,
        num_workers: int = 2,
    ) -> None:
        super().__init__(batch_size=batch_size, val_batch_size=val_batch_size, seed=seed, num_workers=num_workers)
        self.root = Path(root)

    def datasets(self) -> tuple[Dataset[Any], Dataset[Any]]:
        """The dataset of torchvision, which checks the files."""
        torchvision_datasets = require("torchvision.datasets", "CIFAR10")
        v2 = require("torchvision.transforms.v2", "CIFAR10")
        to_tensor = [
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(CIFAR10_MEAN, CIFAR10_STD),
        ]
        augment = [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()]
        try:
            return (
                torchvision_datasets.CIFAR10(self.root, train=True, transform=v2.Compose([*augment, *to_tensor])),
                torchvision_datasets.CIFAR10(self.root, train=False, transform=v2.Compose(to_tensor)),
            )
        except RuntimeError as missing:
            raise RecipeError(
                [
                    f"root={str(self.root)!r}: the folder cifar-10-batches-py (CIFAR-10, Python version) is"
                    " not there or not complete, and lit-opt downloads nothing. Fetch it once, in Python:"
                    f" torchvision.datasets.CIFAR10({str(self.root)!r}, download=True)."
                ]
            ) from missing


class ImageFolder(ResumableDataModule):
    """A folder with `train/` and `val/`, each with one folder of images for each class.

    Training images are cropped at random and flipped; validation images are cropped at the centre, as
    torchvision's and timm's ImageNet training do.

    Args:
        root: The folder that holds `train` and `val`.
        image_size: Height and width of the crops in pixels.
        batch_size: Images in a batch of one process.
        val_batch_size: Images in a validation batch; by default `batch_size`.
        seed: Decides the order and the augmentation.
        num_workers: Worker processes of each loader.

    Raises:
        RecipeError: An argument is out of range; on `setup`, folders or images are missing, the classes of
            the two folders differ, or torchvision is not installed.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        image_size: int = 224,
        batch_size: int = 64,
        val_batch_size: int | None = None,
        seed: int = 0,
        num_workers: int = 2,
    ) -> None:
        problems = whole_number_problems(8, image_size=image_size)
        if problems:
            raise RecipeError(problems)
        super().__init__(batch_size=batch_size, val_batch_size=val_batch_size, seed=seed, num_workers=num_workers)
        self.root, self.image_size = Path(root), image_size

    @property
    def num_classes(self) -> int:
        """Number of class folders."""
        return len(self._loaded()[0].classes)

    def datasets(self) -> tuple[Any, Any]:
        """Two of torchvision's `ImageFolder`."""
        folder = require("torchvision.datasets", "ImageFolder").ImageFolder
        try:
            train = folder(self.root / "train", transform=random_crop(self.image_size, "ImageFolder"))
            val = folder(self.root / "val", transform=centre_crop(self.image_size, "ImageFolder"))
        except FileNotFoundError as missing:  # no such folder, no class in it, or a class without images
            raise RecipeError(
                [
                    f"root={str(self.root)!r}: {str(missing).strip()} Images are expected as"
                    " train/<class>/<image> and val/<class>/<image>."
                ]
            ) from missing
        if train.classes != val.classes:
            only = sorted(set(train.classes) ^ set(val.classes))
            raise RecipeError(
                [
                    f"root={str(self.root)!r}: train/ and val/ hold different classes; these are in one of"
                    f" them only: {', '.join(only[:10])}. Give both the same class folders."
                ]
            )
        return train, val


def random_crop(image_size: int, who: str) -> Any:
    """A picture to a normalised tensor (3, image_size, image_size), cropped and flipped at random, for training.

    Example:
        >>> from PIL import Image
        >>> random_crop(8, "ImageFolder")(Image.new("RGB", (20, 10))).shape
        torch.Size([3, 8, 8])
    """
    v2 = require("torchvision.transforms.v2", who)
    return v2.Compose([v2.RandomResizedCrop(image_size, antialias=True), v2.RandomHorizontalFlip(), *_normalised(v2)])


def centre_crop(image_size: int, who: str) -> Any:
    """A picture to a normalised tensor (3, image_size, image_size) of its centre, for validation.

    Example:
        >>> from PIL import Image
        >>> centre_crop(8, "ImageFolder")(Image.new("RGB", (20, 10))).shape
        torch.Size([3, 8, 8])
    """
    v2 = require("torchvision.transforms.v2", who)
    resize = v2.Resize(round(image_size / 0.875), antialias=True)
    return v2.Compose([resize, v2.CenterCrop(image_size), *_normalised(v2)])


def _normalised(v2: Any) -> list[Any]:
    return [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
