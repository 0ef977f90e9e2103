"""Who keeps averaged weights in a run: callbacks, or the module itself."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from lit_opt.callbacks.ema import EMA
from lit_opt.preflight.evidence import Averaging
from lit_opt.preflight.source import Code

_CLASS = re.compile(r"EMA(?![a-z])|^Ema(?![a-z])|ModelEma|ExponentialMovingAverage|WeightAveraging|AveragedModel")
# A student's teacher is part of the method, not an average that is kept for evaluation.
_TEACHER = re.compile(r"teacher|target|momentum|_k$|key_enc|slow|tracker|loss", re.IGNORECASE)


def find_averages(callbacks: Sequence[Any], module: nn.Module, code: Code) -> tuple[Averaging, ...]:
    """All averages of a run.

    Args:
        callbacks: The Trainer's; a recipe's own average is among them through its attribute `ema`.
        module: May hold an averaged copy itself.
        code: Its own code, which says whether evaluation uses the copy.

    Example:
        >>> [average.what for average in find_averages([EMA(decay=0.99)], nn.Linear(1, 1), Code())]
        ['EMA(decay=0.99)']
    """
    found = []
    for callback in callbacks:
        ours = callback if isinstance(callback, EMA) else getattr(callback, "ema", None)
        if isinstance(ours, EMA):
            who = "EMA" if ours is callback else type(callback).__name__
            what = f"{who}({'decay' if ours is callback else 'ema'}={ours.decay:g})"
            found.append(
                Averaging(what=what, decay=ours.decay, warmup=ours.warmup, start=ours.start_step, evaluated=True)
            )
        elif any(_CLASS.search(cls.__name__) for cls in type(callback).__mro__[:-1]):
            found.append(_of_callback(callback))
    held = {**vars(module), **dict(module.named_children())}
    for name, thing in held.items():
        if not _is_average(thing) or _TEACHER.search(name):
            continue
        # A callback that averages may evaluate with the module's copy, without the module's code saying so.
        evaluated = True if found else code.evaluates_with(name) if code.known else None
        found.append(_of_copy(name, thing, evaluated))
    return tuple(found)


def _is_average(thing: Any) -> bool:
    return any(_CLASS.search(cls.__name__) for cls in type(thing).__mro__[:-1])


def _of_callback(callback: Any) -> Averaging:
    decay = _number(getattr(callback, "decay", None))
    if decay is None:
        decay = _in_closure(getattr(callback, "_kwargs", {}))
    evaluates = any(
        name in vars(cls)
        for cls in type(callback).__mro__
        if cls.__name__ != "Callback"
        for name in ("on_validation_start", "on_validation_epoch_start", "on_test_start", "on_train_end")
    )
    return Averaging(
        what=f"{type(callback).__name__}({f'decay={decay:g}' if decay is not None else ''})",
        decay=decay,
        every=int(_number(getattr(callback, "update_every_n_steps", None)) or 1),
        start=int(_number(getattr(callback, "update_starting_at_step", None)) or 0),
        evaluated=evaluates,
    )


def _of_copy(name: str, thing: Any, evaluated: bool | None) -> Averaging:
    decay = _number(getattr(thing, "decay", None))
    if decay is None:
        decay = _in_closure({"avg_fn": getattr(thing, "avg_fn", None), "multi": getattr(thing, "multi_avg_fn", None)})
    # timm's switch; diffusers and torch_ema's (1 + n) / (10 + n), which is on unless it is switched off.
    slow_start = bool(getattr(thing, "use_warmup", False) or getattr(thing, "use_ema_warmup", False))
    slow_start |= type(thing).__name__ == "EMAModel" or _number(getattr(thing, "num_updates", None)) is not None
    said = f", decay={decay:g}" if decay is not None else ""
    return Averaging(
        what=f"self.{name} ({type(thing).__name__}{said})", decay=decay, warmup=slow_start, evaluated=evaluated
    )


def _number(x: Any) -> float | None:
    if hasattr(x, "item"):
        try:
            x = x.item()
        except (RuntimeError, ValueError):
            return None
    return float(x) if isinstance(x, int | float) and not isinstance(x, bool) else None


def _in_closure(functions: dict[str, Any]) -> float | None:
    """The decay of torch's `get_ema_avg_fn(decay)`, which keeps it in a closure."""
    for function in functions.values():
        inner = getattr(function, "__wrapped__", function)  # torch.no_grad() is around it
        for cell in getattr(inner, "__closure__", None) or ():
            if isinstance(cell.cell_contents, float) and 0 < cell.cell_contents < 1:
                return cell.cell_contents
    return None
