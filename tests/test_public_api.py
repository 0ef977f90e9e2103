"""The public names are those of docs/public-api.md; adding, renaming or removing one changes the page as well."""

import importlib
import inspect
import re

import pytest
from lightning.pytorch import Callback

import lit_opt
from lit_opt.cli import FIT_VERBS, main
from tests.tables import DOCS

PAGE = (DOCS / "public-api.md").read_text()


def rows(heading):
    """First cell -> names of the second, of the table whose first column is `heading`."""
    table = PAGE.partition(f"| {heading} |")[2].partition("\n\n")[0].splitlines()[2:]
    cells = [line.strip("| ").split(" | ") for line in table]
    return {key: re.findall(r"`([^`]+)`", rest) for row in cells for rest in row[1:2] or [""] for key in ticked(row[0])}


def ticked(text):
    return re.findall(r"`([^`]+)`", text)


def own_functions(module):
    return [
        n for n, f in vars(module).items() if inspect.isfunction(f) and f.__module__ == module.__name__ and n[0] != "_"
    ]


@pytest.mark.parametrize("name", rows("module"))
def test_modules(name):
    module = importlib.import_module(name)
    public = getattr(module, "__all__", None)
    if name == "lit_opt.errors":
        public = ["RecipeError", "nearest"]
    assert sorted(rows("module")[name]) == sorted(own_functions(module) if public is None else public)
    assert all(getattr(module, public_name) is not None for public_name in rows("module")[name])


@pytest.mark.parametrize("name", rows("class"))
def test_arguments(name):
    assert rows("class")[name] == list(inspect.signature(getattr(lit_opt, name)).parameters)


def test_attributes_of_the_recipe():
    hooks = {name for base in Callback.__mro__ for name in vars(base)}
    own = {
        n for cls in lit_opt.Recipe.__mro__ if cls.__module__.startswith("lit_opt") for n in vars(cls) if n[0] != "_"
    }
    # Hooks of Lightning's, the door through which it attaches, and what the classes below Recipe tell one another.
    inner = {"log", "open", "averaging", "follow_ema"}
    listed = set(ticked(PAGE.partition("beside Lightning's hooks:")[2].partition("\n\n")[0]))
    assert listed == own - hooks - inner


def test_commands(capsys):
    table = {command.removeprefix("lit-opt "): options for command, options in rows("command").items()}
    main(["no-such-verb"])
    known = re.search(r"Known: ([^.]+)\.", capsys.readouterr().err)
    assert known is not None and set(table) == set(known.group(1).split(", "))
    for verb, options in table.items():
        if verb not in FIT_VERBS:
            main([verb, "--help"])
            shown = set(re.findall(r"^  (?:-\w(?: \w+)?, )?(--[a-z-]+)", capsys.readouterr().out, re.MULTILINE))
            assert set(options) == shown - {"--help"}, verb
