"""Checkpoint files: whether one is whole, which is the last whole one, and writing them so that none is ever half there.

A file of `torch.save` is a zip archive: its table of contents comes last, and every record has a checksum. Lightning writes
into a temporary file and moves it; where $TMPDIR is on another disk the move is a copy, and a process that is killed
during it leaves half a file under the final name (lightning.fabric.utilities.cloud_io, fsspec's LocalFileOpener.commit).
torch.load does not look at the checksums.
"""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from lit_opt.callbacks.moments_by_name import moments_by_name
from lit_opt.callbacks.patches import Patches
from lit_opt.errors import RecipeError

# Where Lightning's sharded strategies put everything but the shards, and what torch writes after the last shard.
_SHARDED = ("meta.pt", ".metadata")
_ZIP = b"PK\x03\x04"
# The bit for a folder in a record's attributes; torch.save writes none.
_FOLDER = 0x10
# What torch.save wrote before version 1.6: a pickle, in which nothing can be checked but by reading it.
_BEFORE_ZIP = b"\x80\x02\x8a\nl\xfc\x9cF\xf9"


_OTHER_MODEL = (
    "Give the model that it was trained with. To start a new run from those weights that fit: "
    "module.load_state_dict(torch.load(path)['state_dict'], strict=False), and fit without ckpt_path; rename keys before "
    "where a parameter was renamed."
)


def damage(path: str | Path) -> str:
    """What is wrong with a checkpoint on this disk, in words; "" where its table and all checksums are right.

    Args:
        path: A file, or the folder of a sharded checkpoint, whose shards themselves are not read.

    Example:
        >>> import tempfile, torch
        >>> file = Path(tempfile.mkdtemp(), "x.ckpt")
        >>> torch.save({"a": torch.ones(9)}, file)
        >>> damage(file)
        ''
        >>> _ = file.write_bytes(file.read_bytes()[:-1])
        >>> damage(file)
        'it is cut short'
    """
    path = Path(path)
    if path.is_dir():
        missing = [name for name in _SHARDED if not (path / name).is_file()]
        if missing:
            return f"it has no {missing[0]}, so it was not written to its end"
        path = path / _SHARDED[0]
    try:
        status = path.stat()
        return _damage(path.resolve(), status.st_size, status.st_mtime_ns)
    except OSError as error:
        return f"it cannot be read ({error.strerror or error})"


@lru_cache(maxsize=64)
def _damage(path: Path, size: int, changed: int) -> str:
    if size == 0:
        return "it is empty"
    with path.open("rb") as file:
        first = file.read(len(_BEFORE_ZIP))
    if first == _BEFORE_ZIP:
        return ""
    if not first.startswith(_ZIP):
        return "it is damaged or no checkpoint (no archive of torch.save)"
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
            folders = [record.filename for record in archive.infolist() if record.external_attr & _FOLDER]
    except zipfile.BadZipFile as error:
        return "it is cut short" if "not a zip file" in str(error) else f"it is damaged ({error})"
    except Exception as error:  # a damaged archive makes the reader fail in any way
        return f"it is damaged ({type(error).__name__}: {error})"
    if broken:
        return f"it is damaged (checksum of {broken})"
    if folders:  # torch's reader takes such a record for empty, and leaves the tensor's memory as it was
        return f"it is damaged ({folders[0]} is marked as a folder)"
    try:  # its reader of archives is stricter; with mmap it does not read the tensors
        torch.load(path, weights_only=True, map_location="meta", mmap=True)
    except RuntimeError as error:
        return f"it is damaged ({str(error).splitlines()[0][:160]})"
    except Exception:  # whole, and what is in it is for `contents` to refuse
        return ""
    return ""


def last_whole(folders: Iterable[str | Path], but: Path | None = None) -> tuple[Path | None, list[tuple[Path, str]]]:
    """The newest whole checkpoint under some folders, and the newer ones that are damaged, with what is wrong.

    Args:
        folders: Searched with what is below them.
        but: One that is left out.

    Example:
        >>> last_whole(["nowhere"])
        (None, [])
    """
    found = {path for folder in folders if Path(folder).is_dir() for path in Path(folder).rglob("*.ckpt")}
    damaged: list[tuple[Path, str]] = []
    for path in sorted(found - {but}, key=_written, reverse=True):
        reason = damage(path)
        if not reason:
            return path, damaged
        damaged.append((path, reason))
    return None, damaged


def _written(path: Path) -> tuple[int, bool]:
    try:  # of two that were written in the same instant last.ckpt is the later
        return path.stat().st_mtime_ns, path.name.startswith("last")
    except OSError:  # a link to nothing
        return 0, False


def refuse_damaged(path: Any, *, argument: str = "ckpt_path") -> None:
    """Refuse a damaged checkpoint on this disk, and name the newest whole one beside it.

    Args:
        path: Of a file or a folder.
        argument: What the user gave it as.

    Raises:
        RecipeError: With what is wrong, and what to type.
    """
    if "://" in str(path) or not Path(path).exists():
        return
    reason = damage(path)
    if reason:
        raise RecipeError([f"{argument}: {path}: {reason}. {_offer(Path(path), argument)}"])


def _offer(path: Path, argument: str = "ckpt_path") -> str:
    other, _ = last_whole([path.parent], but=path)
    if other is None:
        return "There is no other checkpoint beside it. Give another one, or start anew."
    return f"The newest whole checkpoint beside it is {other}. To go on from there give {argument}={str(other)!r}."


def guard_files(patches: Patches, strategy: Any, owner: object) -> None:
    """For the length of a run: damaged checkpoints are refused, and files appear whole or not at all.

    Args:
        patches: Takes them off again.
        strategy: The Trainer's.
        owner: The recipe.
    """
    before_load = strategy.load_checkpoint

    def load_checkpoint(self: Any, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Any:
        def load() -> Any:
            with moments_by_name(strategy, checkpoint_path):
                return before_load(checkpoint_path, *args, **kwargs)

        return _loaded(load, checkpoint_path)

    before_weights = strategy.load_model_state_dict

    def load_model_state_dict(self: Any, *args: Any, **kwargs: Any) -> None:
        if type(strategy.precision_plugin).__name__ == "DoublePrecision":
            # Lightning converts the module after it has loaded the weights, and rounds them to float32 in between.
            strategy.precision_plugin.convert_module(strategy.lightning_module)
        try:
            before_weights(*args, **kwargs)
        except RuntimeError as error:
            if not str(error).startswith("Error(s) in loading state_dict"):
                raise
            raise RecipeError([f"ckpt_path: the checkpoint is of another model. {error}\n  {_OTHER_MODEL}"]) from error

    patches.install(strategy, "load_checkpoint", load_checkpoint, owner=owner)
    patches.install(strategy, "load_model_state_dict", load_model_state_dict, owner=owner)
    try:
        writer = strategy.checkpoint_io
    except NotImplementedError:
        return
    if type(writer).__name__ not in ("TorchCheckpointIO", "XLACheckpointIO"):
        return  # one that writes in its own way, or later
    before_save = writer.save_checkpoint

    def save_checkpoint(self: Any, checkpoint: Any, path: Any, *args: Any, **kwargs: Any) -> None:
        if "://" in str(path):
            before_save(checkpoint, path, *args, **kwargs)
            return
        partial = Path(path).with_name(f".{Path(path).name}.partial")
        try:
            before_save(checkpoint, partial, *args, **kwargs)
            os.replace(partial, path)  # noqa: PTH105
        finally:
            partial.unlink(missing_ok=True)

    patches.install(writer, "save_checkpoint", save_checkpoint, owner=owner)


def _loaded(load: Callable[[], Any], path: Any) -> Any:
    refuse_damaged(path)
    try:
        found = load()
    except Exception:
        if "://" not in str(path) and Path(path).is_file():
            contents(path)  # says what is wrong, if it is the file
        raise
    if not isinstance(found, Mapping) or "pytorch-lightning_version" not in found:
        held = repr(sorted(map(str, found))[:8]) if isinstance(found, Mapping) else type(found).__name__
        raise RecipeError(
            [
                f"ckpt_path: {path}: is no checkpoint of Lightning (it holds {held}). Give one that `fit` has written, or "
                "load weights in your own model."
            ]
        )
    return found


def contents(path: str | Path) -> Any:
    """What a file of `torch.save` holds, without the tensors' numbers; nothing in it is run.

    Raises:
        RecipeError: It cannot be read, or holds more than tensors and plain data.
    """
    try:
        return torch.load(path, weights_only=True, map_location="meta")
    except Exception as error:  # a damaged file can make the reader fail in any way
        raise RecipeError([f"ckpt_path: {path}: {unreadable(error)} {_offer(Path(path))}"]) from error


def unreadable(error: BaseException) -> str:
    """Why a file that looks whole could not be loaded, in a sentence or two.

    Args:
        error: Of `torch.load`.

    Example:
        >>> unreadable(EOFError("Ran out of input"))
        'it is damaged or no checkpoint (EOFError: Ran out of input).'
    """
    text = str(error)
    if isinstance(error, pickle.UnpicklingError) and "Weights only load failed" in text:
        lines = [line.strip() for line in text.splitlines() if "nsupported" in line or "WeightsUnpickler error" in line]
        return (
            f"it holds more than tensors and plain data, and loading it could run code ({(lines or [text])[0][:200]}). If you "
            "trust who wrote it, resume in a script with Trainer.fit(..., weights_only=False)."
        )
    return f"it is damaged or no checkpoint ({f'{type(error).__name__}: {text}'.splitlines()[0][:160]})."
