"""`--ckpt_path=last`: the newest whole checkpoint of the runs that this config writes.

Lightning's own "last" looks into the folder of the new run alone, which has none where a logger numbers its runs, and
takes the newest file, whole or not.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lit_opt.callbacks.checkpoint_file import last_whole


def find_last(trainer: Mapping[str, Any]) -> str | None:
    """The checkpoint to go on from, None where there is none yet; says what it found.

    Args:
        trainer: The `trainer` section of a config.

    Example:
        >>> find_last({"default_root_dir": "nowhere"})
    """
    folders = run_folders(trainer)
    found, damaged = last_whole(folders)
    for path, reason in damaged:
        rank_zero_info(f"ckpt_path: {path} is passed over: {reason}.")
    where = ", ".join(map(str, folders))
    if found is None:
        rank_zero_info(f"ckpt_path: there is no whole checkpoint in {where}; the run starts from the beginning.")
        return None
    rank_zero_info(f"ckpt_path: last is {found}.")
    return str(found)


def run_folders(trainer: Mapping[str, Any]) -> list[Path]:
    """Where runs with this `trainer` section write their checkpoints.

    Example:
        >>> logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "runs", "name": "llm"}}
        >>> [str(folder) for folder in run_folders({"logger": logger})]
        ['runs/llm']
    """
    root = Path(trainer.get("default_root_dir") or ".")
    folders = []
    for part in _listed(trainer.get("callbacks")):
        given = _arguments(part).get("dirpath")
        if given:
            folders.append(Path(given))
    loggers = trainer.get("logger")
    if loggers is None or loggers is True:
        folders.append(root / "lightning_logs")
    elif loggers is False or not _listed(loggers):
        folders.append(root / "checkpoints")
    else:
        for part in _listed(loggers):
            given = _arguments(part)
            name = given.get("name") if given.get("project") is None else given["project"]
            folders.append(Path(given.get("save_dir") or root) / (name if name is not None else "lightning_logs"))
    return list(dict.fromkeys(folders))


def _listed(parts: Any) -> list[Any]:
    return [] if not parts or isinstance(parts, bool) else parts if isinstance(parts, list) else [parts]


def _arguments(part: Any) -> dict[str, Any]:
    found = part.get("init_args") if hasattr(part, "get") else None
    if found is None:
        return {}
    return dict(found.as_dict() if hasattr(found, "as_dict") else found)
