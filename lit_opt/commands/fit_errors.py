"""What can be wrong with the arguments of `lit-opt fit`, said in one message each."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from lit_opt.commands.config_files import config_contents
from lit_opt.errors import RecipeError, nearest
from lit_opt.recipes import list_recipes
from lit_opt.resolve.overrides import FIELDS, nearest_field
from lit_opt.resolve.plain import OTHER_WORDS

# Arguments of Recipe that choose what it does with a run.
RECIPE_WORDS = ("existing", "on_resume", "on_nonfinite")

# The parser's names of types, as they are said.
_TYPES = {"int": "a whole number", "float": "a number", "str": "a word", "bool": "true or false", "NoneType": "null"}

# Section -> the base of the classes that it may name, and an example.
_BASES = {
    "model": ("LightningModule", "lit_opt.workloads.LanguageModel"),
    "data": ("LightningDataModule", "lit_opt.workloads.ByteText"),
    "callbacks": ("Callback", "lightning.pytorch.callbacks.ModelCheckpoint"),
    "logger": ("Logger", "lightning.pytorch.loggers.CSVLogger"),
}


def parse_problems(message: str, verb: str, known: Sequence[str], args: Sequence[str] = ()) -> list[str]:
    """Everything that is wrong with the arguments: the argument, the value, what is allowed, the nearest name.

    The parser stops at the first; the sections `recipe:` and `trainer:` are read once more here, to say all of it.

    Args:
        message: Of jsonargparse.
        verb: Subcommand.
        known: All options of the subcommand, with their dashes.
        args: What was given, with the paths of configs.

    Example:
        >>> parse_problems("unrecognized arguments: --recipe.lrr=1", "fit", ["--recipe.lr"])[0][:64]
        "--recipe.lrr: unknown argument. Did you mean '--recipe.lr'? See "
    """
    see = f"See `lit-opt {verb} --help`."
    options = _Options(known)
    seen = [*_unknown_keys(args, options, see), *_recipe_problems(args)]
    said = [_key(problem) for problem in seen]
    first = [
        problem
        for problem in _parser_problems(message, verb, options, see)
        if not any(_within(_key(problem), key) or _within(key, _key(problem)) for key in said)
    ]
    return [*first, *seen]


def _key(problem: str) -> str:
    return problem.partition(":")[0]


def _within(key: str, other: str) -> bool:
    """Whether a key is another one or a part of it: recipe.groups[0] of recipe.groups, trainer.max_step of trainer."""
    return key == other or key.startswith((f"{other}.", f"{other}["))


class _Options:
    """The options of a verb as keys of a config: "recipe.lr", "trainer.max_steps", ..."""

    def __init__(self, known: Sequence[str]) -> None:
        self.keys = [option.removeprefix("--") for option in known if option.startswith("--")]
        self.sections = sorted({key.partition(".")[0] for key in self.keys})

    def near(self, key: str) -> str:
        """The key that was probably meant, as " Did you mean ...?", or ""."""
        section, _, name = key.partition(".")
        if not name:
            deeper = [known for known in self.keys if known.endswith(f".{key}")]
            if deeper:
                return f" Did you mean {deeper[0]!r}?"
            if key in OTHER_WORDS:
                return f" Did you mean 'recipe.{OTHER_WORDS[key]}'?"
        if section not in self.sections:
            return nearest(section, self.sections)
        if section == "recipe":
            return nearest_field(name, (*RECIPE_WORDS, "name")).replace("mean '", "mean 'recipe.")
        return nearest(key, [known for known in self.keys if known.startswith(f"{section}.")])


def _unknown_keys(args: Sequence[str], options: _Options, see: str) -> Iterator[str]:
    """Sections that no config has, and keys that `recipe:` and `trainer:` do not have."""
    for content in config_contents(args):
        for section, given in content.items():
            if section not in options.sections:
                near = options.near(str(section))
                yield f"{section}: unknown in the config.{near} {see}"
            elif section in ("recipe", "trainer") and isinstance(given, Mapping):
                for key in (f"{section}.{name}" for name in given):
                    if key not in options.keys:
                        yield f"{key}: unknown in the config.{options.near(key)} {see}"


def _recipe_problems(args: Sequence[str]) -> list[str]:
    """What `lit_opt.Recipe` says of the section `recipe:` with the overrides of the command line."""
    given: dict[str, Any] = {}
    for content in config_contents(args):
        section = content.get("recipe")
        given |= section if isinstance(section, Mapping) else {}
    for arg in args:
        if found := re.match(r"--recipe\.(\w+)=(.*)", arg, re.DOTALL):
            given[found[1]] = _read(found[2])
    name = given.pop("name", "llm")
    values = {key: _as_parsed(key, value) for key, value in given.items() if key in (*FIELDS, *RECIPE_WORDS)}
    from lit_opt.callbacks.recipe import Recipe  # torch, which the parser has loaded

    try:
        Recipe(name, **values)
    except RecipeError as error:
        return [problem if problem.startswith("recipe:") else f"recipe.{problem}" for problem in error.problems]
    return []


def _as_parsed(key: str, value: Any) -> Any:
    """A value of a config as the parser hands it on: numbers in quotes are numbers, dotted paths are classes."""
    if isinstance(value, Mapping) and "class_path" in value:
        value = value["class_path"] if key == "optimizer" else value.get("init_args") or {}
    if isinstance(value, list):
        return [_as_parsed(key, item) for item in value]
    if not isinstance(value, str):
        return value
    if key == "optimizer" and "." in value:
        module, _, name = value.rpartition(".")
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            return value
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def _read(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _parser_problems(message: str, verb: str, options: _Options, see: str) -> list[str]:
    """The parser's message in our words."""
    if found := re.match(r"unrecognized arguments: (.*)", message, re.IGNORECASE | re.DOTALL):
        given = [a.partition("=")[0] for a in found[1].split() if a.startswith("-")] or found[1].split()
        return [f"{option}: unknown argument.{_near_option(option, options)} {see}" for option in given]
    if found := re.search(r"does not accept option '([^']+)'", message):
        return [f"{found[1]}: unknown in the config.{options.near(found[1])} {see}"]
    if found := re.match(r"argument (?:\S+/)?(\S+): expected one argument", message):
        return [f"{found[1]}: a value is needed. {see}"]
    if "required: " in message:
        names = [name.strip().removeprefix(f"{verb}.") for name in message.partition("required: ")[2].split(",")]
        return [_required(name) for name in names]
    if found := re.match(r'Parser key "([^"]+)":', message):
        key = found[1].removeprefix(f"{verb}.")
        given_one, value = _given_value(message)
        if key == "recipe":
            word = re.search(r'Unable to load config "?\'?([^"\']*)', message)
            return [
                f"recipe: {word[1] if word else value!r} is no section. Write recipe: {{name: llm}}, or --recipe.name=llm."
            ]
        return [_wrong_value(key, value, message, given_one)]
    return [f"{message.strip()} {see}"]


def _near_option(option: str, options: _Options) -> str:
    return options.near(option.removeprefix("--")).replace("mean '", "mean '--")


def _given_value(message: str) -> tuple[bool, Any]:
    """Whether the parser names the value it was given, and the value."""
    found = re.search(r"(?:Given|Got) value: (.*)", message)
    return (False, None) if found is None else (True, _read(found[1]))


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
        return _no_class(key, value)
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
        types = re.sub(r"<class '([^']+)'>", lambda m: m[1].rpartition(".")[2], subtypes[1]).replace("typing.", "")
        return f"{key}: {value!r} is not allowed; give {' or '.join(_TYPES.get(t, t) for t in types.split(', '))}."
    details = " ".join(line.strip(" -") for line in message.splitlines()[1:]) or message
    return f"{key}: {details}"


def _no_class(key: str, value: object) -> str:
    """Why a class cannot be had: no such module, no such name in it, or another kind of class."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, Mapping):
        value = value.get("class_path")
    base, example = _BASES.get(key.rpartition(".")[2], ("class", "lit_opt.workloads.LanguageModel"))
    no_class = f"{key}: {value!r} is no class that can be imported"
    give = f"Give the dotted path of a {base}, such as {example}."
    module, _, name = str(value).rpartition(".")
    if not module:
        return f"{no_class}. {give}"
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        where = "A file of your own has to lie beside the config or in the current folder. " * (error.name == module)
        return f"{no_class}: there is no module {error.name!r}. {where}{give}"
    except Exception as error:  # somebody else's module: whatever fails in it
        return f"{no_class}: {module} fails with {type(error).__name__}: {error}. {give}"
    if not hasattr(found, name):
        return f"{no_class}: {module} has no {name!r}.{nearest(name, [n for n in dir(found) if n[0] != '_'])} {give}"
    return f"{key}: {value!r} is no {base}. {give}"


def _class_problem(key: str, class_path: str, message: str) -> str:
    """A wrong argument of a class that the config names."""
    if found := re.match(r"Option '([^']+)' is not accepted", message):
        if not _own_class(class_path):  # the base: the section does not say which class
            near = nearest(found[1], ("class_path", "init_args"))
            return f"{key}: {found[1]!r} is unknown.{near} Write {key}: {{class_path: my_package.MyClass, init_args: {{...}}}}."
        arguments = _arguments(class_path)
        known = f" Known: {', '.join(arguments)}." if arguments else ""
        return f"{key}: {class_path} has no argument {found[1]!r}.{nearest(found[1], arguments)}{known}"
    if re.match(r"module '[^']+' has no attribute|No module named", message):
        return _no_class(key, class_path)
    if found := re.match(r'Parser key "([^"]+)":', message):
        given, value = _given_value(message)
        return _wrong_value(f"{key}.{found[1]}", value, message, given)
    return f"{key}: {class_path}: {' '.join(message.split())}"


def _own_class(class_path: str) -> bool:
    return class_path.rpartition(".")[2] not in {base for base, _ in _BASES.values()}


def _arguments(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    try:
        parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters.values()
    except (ImportError, AttributeError, ValueError, TypeError):
        return []
    return [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
