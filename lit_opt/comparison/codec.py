"""Protocol and runs as plain JSON and back, and the hashes that name them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lit_opt.comparison.records import Arm, Protocol, Reading, Run


def canonical(data: object) -> str:
    """JSON with sorted keys and no blanks: the same data, the same text.

    Example:
        >>> canonical({"b": 1, "a": [1.5, float("nan")]})
        '{"a":[1.5,null],"b":1}'
    """
    return json.dumps(plain(data), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(data: object, length: int = 16) -> str:
    """The first hexadecimal digits of the SHA-256 of `canonical(data)`.

    Example:
        >>> digest({"a": 1}) == digest({"a": 1}), len(digest([]))
        (True, 16)
    """
    return hashlib.sha256(canonical(data).encode()).hexdigest()[:length]


def plain(value: Any) -> Any:
    """What JSON can hold: nan becomes null, infinities the texts "inf" and "-inf", anything unknown its repr.

    Example:
        >>> plain({"x": (1, float("inf"), float)})
        {'x': [1, 'inf', "<class 'float'>"]}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)


def protocol_to_dict(protocol: Protocol) -> dict[str, Any]:
    """A protocol as plain data.

    Example:
        >>> arm = Arm("a", "llm", {}, {"lr": 1e-3}, {"lr": (1e-4, 1e-2)})
        >>> one = Protocol((arm,), "a", "val_loss", "min", 10, (0, 10), 4, 6)
        >>> protocol_from_dict(protocol_to_dict(one)) == one
        True
    """
    data: dict[str, Any] = plain(asdict(protocol))
    return data


def protocol_from_dict(data: Mapping[str, Any]) -> Protocol:
    """The protocol that `protocol_to_dict` wrote.

    Example:
        >>> arm = {"name": "a", "recipe": "llm", "overrides": {}, "start": {"lr": 1.0}, "box": {"lr": [0.1, 10.0]}}
        >>> protocol_from_dict(
        ...     {"arms": [arm], "baseline": "a", "metric": "m", "mode": "min", "budget_steps": 2, "eval_steps": [0, 2],
        ...      "trials": 1, "seeds": 1}
        ... ).arms[0].box
        {'lr': (0.1, 10.0)}
    """
    arms = tuple(
        Arm(**{**arm, "box": {key: (float(low), float(high)) for key, (low, high) in arm["box"].items()}})
        for arm in data["arms"]
    )
    steps = {name: tuple(data[name]) for name in ("eval_steps", "horizons") if name in data}
    return Protocol(**{**data, "arms": arms, **steps})


def run_to_dict(run: Run) -> dict[str, Any]:
    """A run as plain data, without the ledger's lines: those are known where it is read.

    Example:
        >>> one = Run("k", "tune", 0, "a", 0, 0, {"lr": 1.0}, "done", {"raw": (Reading(0, 0, 0.0, float("nan"), 2.5),)})
        >>> run_from_dict(run_to_dict(one)).readings["raw"][0].metric
        2.5
    """
    data: dict[str, Any] = plain(asdict(run))
    data.pop("lines")
    data["readings"] = {
        readout: [[r.step, r.samples, plain(r.flops), plain(r.seconds), plain(r.metric)] for r in readings]
        for readout, readings in run.readings.items()
    }
    return data


def run_from_dict(data: Mapping[str, Any], lines: tuple[int, ...] = ()) -> Run:
    """The run that `run_to_dict` wrote.

    Args:
        data: From the ledger.
        lines: Where it stood there.

    Example:
        >>> one = Run("k", "tune", 0, "a", 0, 0, {"lr": 1.0}, "oom", {"raw": ()})
        >>> run_from_dict(run_to_dict(one), lines=(3,)).lines
        (3,)
    """
    readings = {
        readout: tuple(Reading(int(r[0]), int(r[1]), *map(_number, r[2:])) for r in rows)
        for readout, rows in data["readings"].items()
    }
    return Run(**{**data, "readings": readings, "lines": lines})


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
