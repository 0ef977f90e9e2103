"""How averages lie in a checkpoint, and reading them back. Everything loads with `weights_only=True`.

    lit_opt_ema      {"updates", "steps", "decay", "warmup"}: written from the first checkpoint on
    ema_state_dict   the averages, with the keys of state_dict; absent before the first update
    raw_state_dict   the raw weights, only where state_dict holds the averages (checkpoint="ema")

Frozen parameters and buffers are the same tensors in all of them, which torch.save stores once.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor

from lit_opt.averaging import Averages
from lit_opt.averaging.flat import flat_parts
from lit_opt.averaging.shards import clean_name, gathered, is_sharded, like, own_part, reshard, write_into
from lit_opt.callbacks.checkpoint_file import refuse_damaged
from lit_opt.errors import RecipeError, nearest

META = "lit_opt_ema"
# Where Lightning's ModelParallelStrategy puts everything but the shards (lightning.fabric,
# _METADATA_FILENAME).
_SHARDED_META = "meta.pt"


@dataclass(frozen=True, slots=True)
class AveragesInFile:
    """What a checkpoint holds; `averages` by clean key."""

    updates: int
    steps: int
    averages: dict[str, Tensor]


def write_averages(checkpoint: dict[str, Any], averages: Averages, module: nn.Module, layout: str, keep: bool) -> None:
    """Put the averages into a checkpoint whose `state_dict` is already filled.

    Args:
        checkpoint: Lightning's dictionary; if the averages are swapped in at the moment, its `state_dict`
            holds them and gets the raw weights.
        averages: Sharded ones are gathered, so every process must call this.
        module: The module whose state_dict it is.
        layout: "raw" or "ema".
        keep: Whether this process writes the file; others gather and drop.
    """
    reshard(averages.root)
    by_key = _names_by_key(averages, module)
    # In one order on all processes, whether or not they have a state_dict (FSDP2: rank 0 alone, or shards on
    # all).
    state: dict[str, Any] = checkpoint["state_dict"]
    whole: dict[str, Tensor] = {}
    whole_raw: dict[str, Tensor] = {}
    for name in averages.entries:
        for target, raw in ((whole, False), (whole_raw, True)):
            if raw and not averages.swapped and layout == "raw":
                continue  # state_dict has them
            tensor = averages.whole(name, raw)
            entry = averages.entries[name]
            # Of flat shards nothing but whole tensors can be cut anew, into the shards of a checkpoint.
            if keep or (entry.flat is None and not is_sharded(entry.parameter)) or (entry.flat is not None and state):
                target[name] = tensor
    ema_state: dict[str, Any] = {}
    raw_state: dict[str, Any] = {}
    for key, value in list(state.items()):
        averaged = by_key.get(clean_name(key))
        if averaged is None:
            ema_state[key] = raw_state[key] = _whole_of(value)
            continue
        if averages.swapped and layout == "raw":
            state[key] = _as_saved(value, averages, averaged, whole_raw, raw=True)
        elif layout == "ema":
            state[key] = _as_saved(value, averages, averaged, whole, raw=False)
        ema_state[key] = whole.get(averaged)
        raw_state[key] = whole_raw.get(averaged)
    if not keep:
        return
    checkpoint["ema_state_dict"] = ema_state
    if layout == "ema":
        checkpoint["raw_state_dict"] = raw_state


def _as_saved(value: Any, averages: Averages, name: str, whole: dict[str, Tensor], raw: bool) -> Any:
    """What takes the place of a weight in `state_dict`, in shards where it is in shards there."""
    if isinstance(value, ShardedTensor):
        for shard in value.local_shards():
            at = zip(shard.metadata.shard_offsets, shard.metadata.shard_sizes, strict=True)
            shard.tensor.copy_(whole[name][tuple(slice(start, start + size) for start, size in at)])
        return value
    if not is_sharded(value):
        return whole.get(name)
    return (
        averages.part(name, raw) if averages.entries[name].flat is None else like(own_part(whole[name], value), value)
    )


def _whole_of(value: Any) -> Any:
    """A buffer or a frozen weight of `state_dict`, whole."""
    if isinstance(value, ShardedTensor):
        out = torch.empty(value.size(), dtype=value.dtype) if torch.distributed.get_rank() == 0 else None
        value.gather(dst=0, out=out)
        return out
    return gathered(value) if isinstance(value, Tensor) else value


def named_averages(found: AveragesInFile, averages: Averages, module: nn.Module) -> dict[str, Tensor]:
    """The averages of a file under the names of `averages.entries`; a state_dict may have other keys."""
    names = _names_by_key(averages, module)
    return {name: found.averages[key] for key, name in names.items() if name and key in found.averages}


def _live_state(module: nn.Module) -> dict[str, Any]:
    """Key of the state_dict -> the live parameter or buffer."""
    if any(getattr(parameter, "_fsdp_flattened", False) for parameter in module.parameters()):
        # FSDP1 would gather them; it has no keys of its own.
        return dict([*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)])
    try:
        return module.state_dict(keep_vars=True)
    except TypeError:  # overridden without the keyword
        return nn.Module.state_dict(module, keep_vars=True)


def _names_by_key(averages: Averages, module: nn.Module) -> dict[str, str | None]:
    """Key of the state_dict (clean) -> name of the average. By identity, so tied weights have both keys."""
    names = {id(entry.parameter): name for name, entry in averages.entries.items()}
    return {clean_name(key): names.get(id(live)) for key, live in _live_state(module).items()}


def averages_in(checkpoint: dict[str, Any], module: nn.Module, root: nn.Module | None = None) -> AveragesInFile | None:
    """Read a loaded checkpoint, and see to it that the module gets the raw weights.

    FSDP has loaded `state_dict` into the module, and removed it, before any hook; then they are written
    here. Other strategies load `state_dict` after this.

    Args:
        checkpoint: What Lightning has read.
        module: The module that is loaded.
        root: What FSDP1 has wrapped it in.
    """
    meta = checkpoint.get(META)
    if meta is None:
        return None
    raw = checkpoint.pop("raw_state_dict", None)
    if raw and "state_dict" in checkpoint:
        checkpoint["state_dict"] = raw
    elif raw:
        reshard(root or module)
        flat = flat_parts(root or module)
        values = {clean_name(key): value for key, value in raw.items()}
        for key, live in _live_state(module).items():
            if isinstance(live, Tensor) and clean_name(key) in values:
                value = values[clean_name(key)]
                write_into(live, flat[id(live)].cut(value) if id(live) in flat else value)
    averages = {clean_name(key): tensor for key, tensor in checkpoint.get("ema_state_dict", {}).items()}
    return AveragesInFile(updates=meta["updates"], steps=meta["steps"], averages=averages)


def read_averages(path: str | Path) -> dict[str, Any]:
    """The `ema_state_dict` of a checkpoint file (or of the folder of a sharded one), on the CPU.

    Raises:
        RecipeError: If there is no such file, if it is no checkpoint written with `lit_opt.EMA`, or if it was
            written before the first update.
    """
    file = Path(path) / _SHARDED_META if Path(path).is_dir() else Path(path)
    if Path(path).is_dir() and not file.is_file():
        raise RecipeError(
            [
                f"checkpoint: '{path}' is a folder without {_SHARDED_META}. Give a file, or the folder of a sharded checkpoint."
            ]
        )
    if not file.is_file():
        near = nearest(file.name, [other.name for other in file.parent.glob("*.ckpt")])
        raise RecipeError(
            [f"checkpoint: there is no file {str(file)!r}.{near} Give the path of a Lightning checkpoint."]
        )
    refuse_damaged(file, argument="checkpoint")
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RecipeError(
            [
                f"checkpoint: {str(file)!r} cannot be read as a PyTorch checkpoint of plain tensors and "
                f"numbers (weights_only=True): {reason} Give one of a run with lit_opt.EMA or Recipe(..., ema=...)."
            ]
        ) from error
    if not isinstance(checkpoint, Mapping) or META not in checkpoint:
        held: object = type(checkpoint).__name__
        if isinstance(checkpoint, Mapping):
            held = sorted(map(str, checkpoint))[:8]
        raise RecipeError(
            [
                f"checkpoint: {str(file)!r} holds no averages of lit_opt.EMA (it holds {held}). "
                "Train with callbacks=[EMA(...)] or Recipe(..., ema=...), or load its state_dict as usual."
            ]
        )
    if "ema_state_dict" not in checkpoint:
        raise RecipeError(
            [
                f"checkpoint: {str(file)!r} was written after {checkpoint[META]['steps']} optimizer steps, "
                "before the first update of the averages. Use a later checkpoint, or load its state_dict."
            ]
        )
    return dict(checkpoint["ema_state_dict"])


def load_averages(module: nn.Module, path: str | Path) -> None:
    """Load the averages of a checkpoint into a module; see `lit_opt.EMA.load`."""
    averages = read_averages(path)
    # A compiled part puts "_orig_mod." into the keys, and the module that loads need not be compiled.
    keys = {clean_name(key): key for key in module.state_dict()}
    try:
        module.load_state_dict({keys.get(clean_name(key), key): value for key, value in averages.items()})
    except RuntimeError as error:
        raise RecipeError([f"EMA.load: {str(path)!r} does not fit {type(module).__name__}. {error}"]) from error
