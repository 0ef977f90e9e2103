"""Start from the weights of another run: what makes a fine-tuning recipe worth its name."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from lit_opt.averaging.shards import clean_name
from lit_opt.errors import RecipeError
from lit_opt.param_groups.ends import find_ends


def load_weights(module: nn.Module, path: str | Path) -> None:
    """Load the weights of a checkpoint into a module of the same architecture.

    The averages are taken where the checkpoint has them. A head (and it alone) may have another number of classes:
    it then keeps its new weights, and one line of log says so.

    Args:
        module: Gets the weights, in place.
        path: A checkpoint of Lightning, a state_dict written with torch.save, or a .safetensors file. Nothing but
            tensors and plain values is loaded (weights_only=True).

    Raises:
        RecipeError: No such file, not readable, or of another architecture; nothing is changed then.

    Example:
        >>> load_weights(nn.Linear(2, 2), "nowhere.ckpt")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        lit_opt.errors.RecipeError: weights='nowhere.ckpt': there is no such file. Give the checkpoint of a run...
    """
    given = {clean_name(key): value for key, value in _read(Path(path)).items() if isinstance(value, Tensor)}
    own = {clean_name(key): value for key, value in module.state_dict().items()}
    heads = find_ends({clean_name(name): part for name, part in module.named_modules()}).heads
    head_layers = {name.rpartition(".")[0] for name in heads}
    new = [
        key
        for key, value in own.items()
        if key in given and given[key].shape != value.shape and key.rpartition(".")[0] in head_layers
    ]
    problems = _differences(own, {key: value for key, value in given.items() if key not in new}, set(new))
    if problems:
        raise RecipeError([f"weights={str(path)!r}: does not fit {type(module).__name__}: {'; '.join(problems)}."])
    with torch.no_grad():
        for key, value in own.items():
            if key not in new:
                value.copy_(given[key])
    if new:
        rank_zero_info(f"weights={str(path)!r}: loaded, but for the head ({', '.join(new)}), which has another shape.")


def _differences(own: Mapping[str, Tensor], given: Mapping[str, Tensor], new: set[str]) -> list[str]:
    missing = [key for key in own if key not in given and key not in new]
    unknown = [key for key in given if key not in own]
    shapes = [
        f"{key} is {tuple(given[key].shape)} there and {tuple(value.shape)} here"
        for key, value in own.items()
        if key in given and given[key].shape != value.shape
    ]
    return [
        f"{len(found)} {what}, such as {found[0]}"
        for found, what in (
            (missing, "tensors are not in it"),
            (unknown, "tensors are not here"),
            (shapes, "tensors have another shape"),
        )
        if found
    ]


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise RecipeError(
            [
                f"weights={str(path)!r}: there is no such file. Give the checkpoint of a run of the same model, such as "
                "last.ckpt; a run that is resumed needs none (weights: null)."
            ]
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, OSError, RuntimeError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RecipeError(
            [f"weights={str(path)!r}: cannot be read as plain tensors and numbers (weights_only=True): {reason}"]
        ) from error
    for key in ("ema_state_dict", "state_dict"):
        if isinstance(content, Mapping) and key in content:
            return dict(content[key])
    if not isinstance(content, Mapping):
        raise RecipeError([f"weights={str(path)!r}: holds a {type(content).__name__}, not a state_dict."])
    return content
