"""What can be wrong with the arguments of `lit-opt fit`, said in one message each."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from lit_opt.errors import RecipeError, nearest
from lit_opt.explain.shipped_configs import shipped_configs
from lit_opt.recipes import get_recipe, list_recipes
from lit_opt.resolve.overrides import find_problems

# Words that Lightning understands in place of a path.
_CHECKPOINT_WORDS = ("best", "last", "hpc", "registry")


def expand_configs(args: Sequence[str]) -> list[str]:
    """Replace the name of a shipped config by its path, and read each config once to see that it can be.

    A file of that name wins over a shipped config. Classes may lie in files beside it.

    Raises:
        RecipeError: No such file, no YAML, or no sections in it.

    Example:
        >>> expand_configs(["fit", "--config", "llm"])[2].endswith("llm.yaml")
        True
    """
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
        near = nearest(path.name, [*shipped, *_files(path, "*.y*ml")])
        what = "is a folder" if path.is_dir() else "no such file"
        return [f"config: {value}: {what}.{near} Shipped: {', '.join(shipped)}; else give the path of a YAML file."]
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


def parse_problems(message: str, verb: str, known: Sequence[str]) -> list[str]:
    """The parser's message as ours: the argument, the value, what is allowed, the nearest name.

    Args:
        message: Of jsonargparse.
        verb: Subcommand.
        known: All options of the subcommand, with their dashes.

    Example:
        >>> parse_problems("unrecognized arguments: --recipe.lrr=1", "fit", ["--recipe.lr"])[0][:64]
        "--recipe.lrr: unknown argument. Did you mean '--recipe.lr'? See "
    """
    see = f"See `lit-opt {verb} --help`."
    if found := re.match(r"unrecognized arguments: (.*)", message, re.IGNORECASE | re.DOTALL):
        options = [a.partition("=")[0] for a in found[1].split() if a.startswith("-")] or found[1].split()
        return [f"{option}: unknown argument.{nearest(option, known)} {see}" for option in options]
    if found := re.search(r"does not accept option '([^']+)'", message):
        keys = [option.removeprefix("--") for option in known]
        sections = sorted({key.partition(".")[0] for key in keys})
        first = found[1].partition(".")[0]
        near = nearest(found[1], keys) if first in sections else nearest(first, sections)
        return [f"{found[1]}: unknown in the config.{near} {see}"]
    if "required: " in message:
        names = [name.strip().removeprefix(f"{verb}.") for name in message.partition("required: ")[2].split(",")]
        return [_required(name) for name in names]
    if found := re.match(r'Parser key "([^"]+)":', message):
        key = found[1].removeprefix(f"{verb}.")
        given, value = _given_value(message)
        if key.startswith("recipe."):
            name = key.removeprefix("recipe.")
            problems = (
                []
                if name in ("name", "existing", "on_resume", "on_nonfinite")
                else find_problems(get_recipe("llm"), {name: value})
            )
            if problems:
                return [f"recipe.{problem}" for problem in problems]
        return [_wrong_value(key, value, message, given)]
    return [f"{message.strip()} {see}"]


def _given_value(message: str) -> tuple[bool, Any]:
    """Whether the parser names the value it was given, and the value."""
    found = re.search(r"(?:Given|Got) value: (.*)", message)
    if found is None:
        return False, None
    try:
        return True, yaml.safe_load(found[1])
    except yaml.YAMLError:
        return True, found[1]


def _required(name: str) -> str:
    if name == "recipe.name":
        return (
            "recipe.name: a recipe is needed. Give --recipe.name=llm, or a section `recipe: {name: llm}` in the config. "
            f"Known: {', '.join(list_recipes())}."
        )
    if name == "model":
        return "model: a model is needed. Give --model=my_package.MyModel, or a shipped config: --config llm."
    return f"{name}: is needed. Give --{name}=..., or put it into the config."


def _wrong_value(key: str, value: object, message: str, has_value: bool) -> str:
    if "dot import path" in message or "not accessible or invalid" in message:
        return (
            f"{key}: {value!r} is no class that can be imported. Give its dotted path, such as "
            "lit_opt.workloads.LanguageModel, in a module that Python finds from here."
        )
    if found := re.search(
        r"^( *)(?:- )?Problem with given class_path '([^']+)':\s+(.*)", message, re.DOTALL | re.MULTILINE
    ):
        inner = found[3].split(f"\n{found[1]}- ")[0].strip()
        return _class_problem(key, found[2], inner)
    words = re.findall(r"Literal\[(.*?)\]", message)
    if has_value and words:
        allowed = list(dict.fromkeys(word.strip("'") for group in words for word in group.split(", ")))
        return f"{key}: {value!r} is not allowed.{nearest(value, allowed)} Known: {', '.join(allowed)}."
    subtypes = re.search(r"Subtypes: \[(.*)\]", message) or re.search(r"Expected an? (.*?)(?:\.|$)", message)
    if has_value and subtypes and "class_path" not in message:
        types = re.sub(r"<class '([^']+)'>", lambda m: m[1].rpartition(".")[2], subtypes[1])
        types = types.replace("NoneType", "null").replace("typing.", "")
        return f"{key}: {value!r} is not allowed; give {' or '.join(types.split(', '))}."
    details = " ".join(line.strip(" -") for line in message.splitlines()[1:]) or message
    return f"{key}: {details}"


def _class_problem(key: str, class_path: str, message: str) -> str:
    """A wrong argument of a class that the config names."""
    if found := re.match(r"Option '([^']+)' is not accepted", message):
        arguments = _arguments(class_path)
        known = f" Known: {', '.join(arguments)}." if arguments else ""
        return f"{key}: {class_path} has no argument {found[1]!r}.{nearest(found[1], arguments)}{known}"
    if found := re.match(r'Parser key "([^"]+)":', message):
        given, value = _given_value(message)
        return _wrong_value(f"{key}.{found[1]}", value, message, given)
    return f"{key}: {class_path}: {' '.join(message.split())}"


def _arguments(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    try:
        parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters.values()
    except (ImportError, AttributeError, ValueError, TypeError):
        return []
    return [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
