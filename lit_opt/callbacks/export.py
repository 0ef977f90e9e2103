"""`export_ema`: the averages of a checkpoint as a file of their own."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_opt.callbacks.ema_file import read_averages
from lit_opt.errors import RecipeError


def export_ema(checkpoint_path: str | Path, out_path: str | Path, safetensors: bool = False) -> None:
    """Write the averages of a checkpoint as a plain state_dict.

    The file appears whole or not at all. In a .safetensors file tied weights are written once for each name.

    Args:
        checkpoint_path: A checkpoint written with `lit_opt.EMA`.
        out_path: The file to write; an existing one is replaced.
        safetensors: Write the safetensors format instead of PyTorch's.

    Raises:
        RecipeError: If the checkpoint holds no averages, if the paths do not fit, or if something that is not
            a tensor would have to go into a .safetensors file.

    Example:
        >>> export_ema("nowhere.ckpt", "weights.pt")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        lit_opt.errors.RecipeError: checkpoint: there is no file 'nowhere.ckpt'. Give the path of ...
    """
    out = Path(out_path)
    problems = []
    if (out.suffix == ".safetensors") != safetensors:
        problems.append(
            f"out: {str(out)!r} and safetensors={safetensors} do not fit. A .safetensors file needs "
            "--safetensors (safetensors=True), any other name goes without it."
        )
    if out.is_dir() or not out.parent.is_dir():
        problems.append(f"out: {str(out)!r} is a folder or lies in a folder that does not exist.")
    if out.resolve() == Path(checkpoint_path).resolve():
        problems.append(f"out: {str(out)!r} is the checkpoint itself. Give another name.")
    if problems:
        raise RecipeError(problems)
    averages = read_averages(checkpoint_path)
    handle, name = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.")
    os.close(handle)
    try:
        _save(averages, Path(name), safetensors)
        Path(name).chmod(0o644)  # mkstemp makes files that only the owner can read
        os.replace(name, out)  # noqa: PTH105
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _save(averages: dict[str, Any], path: Path, safetensors: bool) -> None:
    if not safetensors:
        torch.save(averages, path)
        return
    from safetensors.torch import save_file

    others = [key for key, value in averages.items() if not isinstance(value, Tensor)]
    if others:
        raise RecipeError([f"out: safetensors holds tensors only, not {', '.join(others)}. Write a .pt file."])
    # The format refuses tensors that share memory or are not contiguous.
    save_file({key: value.clone(memory_format=torch.contiguous_format) for key, value in averages.items()}, path)
