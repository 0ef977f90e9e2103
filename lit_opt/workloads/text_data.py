"""Text as bytes: any file or folder, by default the source of Python's standard library."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lit_opt.errors import RecipeError
from lit_opt.workloads.data_module import ResumableDataModule
from lit_opt.workloads.require import whole_number_problems

# installed packages differ between machines, and some distributions ship Python without its tests
_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


class ByteText(ResumableDataModule):
    """Windows of `seq_len` bytes: the last tenth of the text is for validation, the rest for training.

    A batch is one tensor of integers 0..255, shape (batch_size, seq_len + 1): the model predicts each byte
    from those before it, so the input is all but the last and the target all but the first. Lightning
    validates at the end of an epoch only; for a shorter run pass the Trainer `val_check_interval=100` and
    `check_val_every_n_epoch=None`.

    Args:
        path: A text file, or a folder (all text files below it). Default: the standard library's .py files,
            without its tests.
        seq_len: Bytes that are predicted in a window.
        batch_size: Windows in a batch of one process; the default makes 4,096 bytes.
        max_bytes: The text is cut here, so that it is the same size on any machine; by default an epoch is
            then 505 steps. Files come in an order that looks random and depends on their relative names only.
        val_windows: Number of validation windows, evenly spread; fewer where the text is too short.
        val_batch_size: Windows in a validation batch; by default `batch_size`.
        seed: Decides the order of the training windows.
        num_workers: Worker processes; slicing bytes needs none.

    Raises:
        RecipeError: An argument is out of range; on `setup`, the text is missing, unreadable or too short.

    Example:
        >>> data = ByteText(seq_len=32, batch_size=4, max_bytes=20_000)
        >>> data.setup("fit")
        >>> next(iter(data.train_dataloader())).shape
        torch.Size([4, 33])
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        seq_len: int = 256,
        batch_size: int = 16,
        max_bytes: int = 2_300_000,
        val_windows: int = 256,
        val_batch_size: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        problems = whole_number_problems(1, seq_len=seq_len, max_bytes=max_bytes, val_windows=val_windows)
        if problems:
            raise RecipeError(problems)
        super().__init__(batch_size=batch_size, val_batch_size=val_batch_size, seed=seed, num_workers=num_workers)
        self.path = Path(path) if path is not None else None
        self.seq_len, self.max_bytes, self.val_windows = seq_len, max_bytes, val_windows

    def read(self) -> bytes:
        """The text, at most `max_bytes` of it."""
        return read_bytes(self.path, self.max_bytes)

    def datasets(self) -> tuple[ByteWindows, ByteWindows]:
        """Training windows one after the other; validation windows spread over the last tenth."""
        text = torch.frombuffer(bytearray(self.read()), dtype=torch.uint8)
        cut = len(text) - len(text) // 10
        train, val = text[:cut], text[cut:]
        windows = min(self.val_windows, (len(val) - 1) // self.seq_len)
        if windows < 1:
            raise RecipeError(
                [
                    f"{self.path or 'the standard library'}: {len(text):,} bytes of text (with max_bytes="
                    f"{self.max_bytes:,}) are too few for seq_len={self.seq_len}. Give at least"
                    f" {10 * (self.seq_len + 1):,} bytes, or a smaller seq_len."
                ]
            )
        return (
            ByteWindows(train, torch.arange(0, len(train) - self.seq_len, self.seq_len), self.seq_len),
            ByteWindows(val, torch.arange(windows) * (len(val) - 1) // windows, self.seq_len),
        )


class ByteWindows(Dataset[Tensor]):
    """Windows of `seq_len` + 1 bytes at the given places.

    Example:
        >>> ByteWindows(torch.arange(10, dtype=torch.uint8), torch.tensor([0, 4]), 3)[1]
        tensor([4, 5, 6, 7])
    """

    def __init__(self, text: Tensor, starts: Tensor, seq_len: int) -> None:
        self.text, self.starts, self.seq_len = text, starts, seq_len

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> Tensor:
        start = int(self.starts[index])
        return self.text[start : start + self.seq_len + 1].long()


def read_bytes(path: Path | None, max_bytes: int) -> bytes:
    """The first `max_bytes` of a file, or of all text files below a folder; None is the standard library.

    Raises:
        RecipeError: Nothing is there, or it cannot be read, or it holds no text.

    Example:
        >>> len(read_bytes(None, 1_000_000))
        1000000
    """
    root = path if path is not None else Path(sysconfig.get_paths()["stdlib"])
    what = str(path) if path is not None else f"Python's standard library at {root}"
    if not root.exists():
        raise RecipeError([f"{what}: there is no such file or folder. Give the path of a text file or a folder."])
    try:
        files = [root] if root.is_file() else _files(root, ".py" if path is None else "")
        text = bytearray()
        for file in files:
            with file.open("rb") as stream:
                part = stream.read(max_bytes - len(text))
            if file is root or not _is_binary(part):
                text += part
            if len(text) >= max_bytes:
                break
    except OSError as error:
        raise RecipeError([f"{what}: cannot be read ({error}). Give a text file or folder that can."]) from error
    if not text:
        raise RecipeError([f"{what}: holds no text. Give a text file, or a folder with some."])
    return bytes(text)


def _files(root: Path, suffix: str) -> list[Path]:
    """Files in an order that mixes the folders: the first megabytes and the last resemble each other."""
    found: dict[str, Path] = {}
    for folder, inner, names in os.walk(root):
        inner[:] = [name for name in inner if name not in _LEFT_OUT and not name.startswith(".")]
        files = [Path(folder, name) for name in names if name.endswith(suffix) and not name.startswith(".")]
        found |= {file.relative_to(root).as_posix(): file for file in files if file.is_file()}
    return [found[name] for name in sorted(found, key=lambda name: hashlib.blake2b(name.encode()).digest())]


def _is_binary(content: bytes) -> bool:
    return b"\0" in content[:8192]  # git's rule
