"""Images with labels, or text, out of a Hugging Face dataset that the user has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from lit_opt.errors import RecipeError, nearest
from lit_opt.workloads.data_module import ResumableDataModule
from lit_opt.workloads.image_data import centre_crop, random_crop
from lit_opt.workloads.require import require, whole_number_problems
from lit_opt.workloads.text_data import ByteText


class HuggingFaceImages(ResumableDataModule):
    """A dataset of the `datasets` library with a column of images and one of labels.

    A batch is (images, labels), cropped, flipped and normalised as by `ImageFolder`.

    Args:
        path: A folder written with `DatasetDict.save_to_disk`, or what `datasets.load_dataset` takes, such as
            "uoft-cs/cifar10" (which that library downloads, unless it is in its cache) or a folder of parquet files.
        name: The dataset's configuration, where it has several.
        image: Column of images.
        label: Column of integer labels.
        train_split: Split to train on.
        val_split: Split to validate on.
        image_size: Height and width of the crops in pixels.
        batch_size: Images in a batch of one process.
        val_batch_size: Images in a validation batch; by default `batch_size`.
        seed: Decides the order and the augmentation.
        num_workers: Worker processes of each loader.

    Raises:
        RecipeError: An argument is out of range; on `setup`, the dataset, a split or a column is not there, or
            `datasets` is not installed (`pip install 'lit-opt[datasets]'`).
    """

    def __init__(
        self,
        path: str | Path,
        *,
        name: str | None = None,
        image: str = "image",
        label: str = "label",
        train_split: str = "train",
        val_split: str = "validation",
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
        self.path, self.name, self.image_size = str(path), name, image_size
        self.image, self.label, self.splits = image, label, (train_split, val_split)

    @property
    def num_classes(self) -> int:
        """Number of classes that the label's column declares, or else the largest label plus one."""
        table = self._loaded()[0].table
        declared = getattr(table.features[self.label], "num_classes", None)
        return int(declared) if declared else max(table[self.label]) + 1

    def datasets(self) -> tuple[Dataset[Any], Dataset[Any]]:
        """The two splits, decoded as they are read."""
        train, val = load_splits(self.path, self.name, self.splits, (self.image, self.label), type(self).__name__)
        size = self.image_size
        return (
            _Table(train, self.image, self.label, random_crop(size, type(self).__name__)),
            _Table(val, self.image, self.label, centre_crop(size, type(self).__name__)),
        )


class _Table(Dataset[tuple[Tensor, int]]):
    def __init__(self, table: Any, image: str, label: str, transform: Any) -> None:
        self.table, self.image, self.label, self.transform = table, image, label, transform

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        row = self.table[int(index)]
        return self.transform(row[self.image].convert("RGB")), row[self.label]


class HuggingFaceText(ByteText):
    """A dataset of the `datasets` library with a column of text, as windows of bytes; see `ByteText` for the batches.

    The texts stand one after the other with an empty line between; the last tenth is for validation.

    Args:
        path: As in `HuggingFaceImages`.
        name: The dataset's configuration, where it has several.
        column: The column of text.
        split: The split to read.
        seq_len: Bytes that are predicted in a window.
        batch_size: Windows in a batch of one process.
        max_bytes: The text is cut here.
        val_windows: Number of validation windows.
        val_batch_size: Windows in a validation batch; by default `batch_size`.
        seed: Decides the order of the training windows.
        num_workers: Worker processes.

    Raises:
        RecipeError: As `HuggingFaceImages` and `ByteText`.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        name: str | None = None,
        column: str = "text",
        split: str = "train",
        seq_len: int = 256,
        batch_size: int = 16,
        max_bytes: int = 2_300_000,
        val_windows: int = 256,
        val_batch_size: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            path,
            seq_len=seq_len,
            batch_size=batch_size,
            max_bytes=max_bytes,
            val_windows=val_windows,
            val_batch_size=val_batch_size,
            seed=seed,
            num_workers=num_workers,
        )
        self.source, self.name, self.column, self.split = str(path), name, column, split

    def read(self) -> bytes:
        """The texts up to `max_bytes`."""
        (table,) = load_splits(self.source, self.name, (self.split,), (self.column,), type(self).__name__)
        text = bytearray()
        for row in table:
            text += row[self.column].encode() + b"\n\n"
            if len(text) >= self.max_bytes:
                break
        return bytes(text[: self.max_bytes])


def load_splits(path: str, name: str | None, splits: tuple[str, ...], columns: tuple[str, ...], who: str) -> list[Any]:
    """The splits of a dataset, each with all the columns.

    Args:
        path: A folder from `save_to_disk`, or what `load_dataset` takes.
        name: The dataset's configuration.
        splits: Names of splits.
        columns: Names of columns.
        who: The class that needs it, for messages.

    Raises:
        RecipeError: The dataset, a split or a column is not there.
    """
    library = require("datasets", who)
    saved = Path(path)
    try:
        if (saved / "dataset_dict.json").is_file():
            found = library.load_from_disk(path)
        else:
            found = library.load_dataset(path, name)
    except (FileNotFoundError, ConnectionError, ValueError, OSError) as error:
        raise RecipeError(
            [
                f"path={path!r}: datasets cannot load it ({str(error).splitlines()[0]}). Give a folder written with "
                "DatasetDict.save_to_disk, a folder of parquet or image files, or a name on the hub."
            ]
        ) from error
    problems = [
        f"split {split!r} is not in {path!r}.{nearest(split, list(found))} It has {', '.join(map(repr, found))}."
        for split in splits
        if split not in found
    ]
    problems += [
        f"column {column!r} is not in the split {split!r} of {path!r}.{nearest(column, found[split].column_names)} "
        f"It has {', '.join(map(repr, found[split].column_names))}."
        for split in splits
        if split in found
        for column in columns
        if column not in found[split].column_names
    ]
    if problems:
        raise RecipeError(problems)
    return [found[split] for split in splits]
