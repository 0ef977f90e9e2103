"""Moments of a plain checkpoint find their parameters by name where the weights are sharded.

An optimizer numbers its parameters in the order of its groups. Lightning's ModelParallelStrategy and FSDPStrategy need names
for these numbers, and take them in the order of the module (2.6.6, fabric/strategies/model_parallel.py;
FullyShardedDataParallel.rekey_optim_state_dict): with groups by decay that is another one. Moments of unlike shapes then
fail deep inside torch, and those of like shapes change places in silence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lit_opt.callbacks.resume import KEY


@contextmanager
def moments_by_name(strategy: Any, path: Any) -> Iterator[None]:
    """While a checkpoint is loaded: numbers become the names that the checkpoint's groups have.

    Args:
        strategy: The Trainer's.
        path: Of the checkpoint; a folder has names already.

    Example:
        >>> with moments_by_name(None, "last.ckpt"):
        ...     pass
    """
    sharded = type(strategy).__name__ in ("ModelParallelStrategy", "FSDPStrategy")
    if not sharded or "://" in str(path) or not Path(path).is_file():
        yield
        return
    try:
        saved = torch.load(path, weights_only=True, map_location="meta")
    except Exception:  # for the strategy to refuse, or to load as the user asked
        saved = None
    groups = saved.get(KEY, {}).get("groups") if isinstance(saved, Mapping) else None
    if not groups or len(saved.get("optimizer_states", ())) != 1:
        yield
        return
    from torch.distributed.fsdp import FullyShardedDataParallel

    names = [name for group in groups for name in group["params"]]
    before = FullyShardedDataParallel.rekey_optim_state_dict

    def rekey(state: dict[str, Any], key_type: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        named = with_names(state, names)
        return before(state, key_type, *args, **kwargs) if named is None else named

    FullyShardedDataParallel.rekey_optim_state_dict = staticmethod(rekey)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        FullyShardedDataParallel.rekey_optim_state_dict = staticmethod(before)  # type: ignore[method-assign]


def with_names(state: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any] | None:
    """An optimizer's state dict with names in place of numbers.

    Args:
        state: Of an optimizer of plain tensors, whose parameters are numbered in the order of its groups.
        names: Of the parameters, in that order.

    Returns:
        None where the numbers are not in that order, as in files of FSDPStrategy.

    Example:
        >>> state = {"state": {1: {"step": 3}}, "param_groups": [{"lr": 0.1, "params": [0]}, {"lr": 0.2, "params": [1]}]}
        >>> with_names(state, ["weight", "bias"])["state"]
        {'bias': {'step': 3}}
    """
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    if numbers != list(range(len(names))):
        return None
    return {
        **state,
        "state": {names[number]: kept for number, kept in state["state"].items()},
        "param_groups": [{**group, "params": [names[i] for i in group["params"]]} for group in state["param_groups"]],
    }
