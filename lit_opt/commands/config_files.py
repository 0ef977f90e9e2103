"""The files that `lit-opt fit` is given: configs and a checkpoint, each read once before anything is built."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from lit_opt.errors import RecipeError, nearest
from lit_opt.explain.shipped_configs import shipped_configs

# Words that Lightning understands in place of a path.
_CHECKPOINT_WORDS = ("best", "last", "hpc", "registry")


def expand_configs(args: Sequence[str], *, verb: str | None = None) -> list[str]:
    """Replace the name of a shipped config by its path, and read each config once to see that it can be.

    A file of that name wins over a shipped config. Classes may lie in files beside it.

    Args:
        args: Of `fit`, `validate`, `test` or `predict`, with the verb.
        verb: What the user typed, where it is another one.

    Raises:
        RecipeError: No such file, no YAML, or no sections in it; a word without `--config` before it.

    Example:
        >>> expand_configs(["fit", "--config", "llm"])[2].endswith("llm.yaml")
        True
    """
    if len(args) > 1 and not args[1].startswith("-"):
        typed = f"lit-opt {verb or args[0]}"
        raise RecipeError(
            [f"{args[1]}: a config is named after --config. Type: {typed} --config {args[1]}. See `{typed} --help`."]
        )
    expanded, problems = list(args), []
    for i, arg in enumerate(args):
        if arg.startswith("--config="):
            value, put = arg.removeprefix("--config="), "--config={}"
        elif i > 0 and args[i - 1] in ("--config", "-c"):
            value, put = arg, "{}"
        else:
            continue
        path = Path(value)
        if not path.is_file() and value in shipped_configs():
            path = shipped_configs()[value]
        expanded[i] = put.format(path)
        problems += _config_problems(value, path)
        if path.is_file() and path not in shipped_configs().values():
            _find_beside(path)
    if problems:
        raise RecipeError(problems)
    return expanded


def _find_beside(config: Path) -> None:
    """Let `class_path: model.MyModel` name a file beside the config, as `python train.py` finds its neighbours.

    Or, after all else, one in the working folder: a config that `lit-opt sweep` wrote lies in a folder below it.
    """
    folder = str(config.parent.resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    if not {str(Path.cwd()), ""} & set(sys.path):
        sys.path.append(str(Path.cwd()))


def _config_problems(value: str, path: Path) -> list[str]:
    if not path.is_file():
        shipped = list(shipped_configs())
        near = "" if path.is_dir() else nearest(path.name, [*shipped, *_files(path, "*.y*ml")])
        what = "is a folder." if path.is_dir() else "no such file."
        return [f"config: {value}: {what}{near} Shipped: {', '.join(shipped)}; else give the path of a YAML file."]
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        return [f"config: {value}{where}: this is no YAML ({error.problem or error.context}). Mind the indentation."]
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        return [f"config: {value}: cannot be read ({error}). Give a YAML file."]
    if not isinstance(content, dict):
        return [f"config: {value}: no sections in it; it has to hold `recipe:`, `trainer:`, `model:` and `data:`."]
    return []


def config_contents(args: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """The sections of each config, in order.

    Args:
        args: As `expand_configs` returns them: every config is a file that has been seen to be YAML with sections.
    """
    for before, arg in pairwise(["", *args]):
        if arg.startswith("--config=") or before in ("--config", "-c"):
            yield yaml.safe_load(Path(arg.removeprefix("--config=")).read_text(encoding="utf-8"))


def _files(path: Path, pattern: str) -> list[str]:
    try:
        return [file.name for file in path.parent.glob(pattern)]
    except OSError:
        return []


def check_checkpoint(path: Any) -> None:
    """Refuse a checkpoint that is missing, unreadable or not of Lightning, before anything is built.

    Raises:
        RecipeError: With the reason, and the nearest file where it is missing.
    """
    if path is None or path in _CHECKPOINT_WORDS or "://" in str(path):
        return
    file = Path(path)
    if not file.exists():
        near = nearest(file.name, _files(file, "*.ckpt"))
        raise RecipeError([f"ckpt_path: {path}: no such file.{near} Give a checkpoint that `fit` has written."])
    # Not above: a config that is wrong is said at once, without torch.
    from lit_opt.callbacks.checkpoint_file import contents, refuse_damaged

    refuse_damaged(file)
    if file.is_dir():
        return  # a sharded checkpoint
    content = contents(file)
    missing = [key for key in ("state_dict", "pytorch-lightning_version") if key not in _keys(content)]
    if missing:
        raise RecipeError(
            [
                f"ckpt_path: {path}: is no checkpoint of Lightning (no {missing[0]!r} in it). "
                "Give one that `fit` has written, or load weights in your own model."
            ]
        )


def _keys(content: object) -> Iterable[str]:
    return content if isinstance(content, dict) else ()
