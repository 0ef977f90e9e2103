"""A workload's source as a file to be edited: the same code without what only a library needs.

One source serves both. The classes of `lit_opt.workloads` are real code that is tested and benchmarked, so a starter
takes their text. A subclass of a workload would be shorter, but everything a newcomer wants to change (the layers, the
loss, where the data come from) would lie in an installed package. What falls away is what a library does for strangers:
the checks of arguments, the messages for missing packages, and in the docstrings the errors and the doctests. Imports and
helpers are those that the rest still needs. It is done on the text by its syntax tree, so comments and layout stay.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

WORKLOADS = Path(__file__).parents[2] / "workloads"

# Where a user imports it from.
_PUBLIC = {"ResumableDataModule": "lit_opt.workloads"}


@dataclass(frozen=True, kw_only=True)
class Source:
    """What to take of one file of the workloads.

    Args:
        file: Its name, such as "language_model.py".
        keep: Names that are taken; what they use of the file comes along.
        without: Methods that are left out.
        edits: (old, new) text, each found exactly once.
        imported: Names of the file that are imported from the package instead.
    """

    file: str
    keep: tuple[str, ...]
    without: tuple[str, ...] = ()
    edits: tuple[tuple[str, str], ...] = ()
    imported: tuple[str, ...] = field(default=())


def starter_file(about: str, sources: Sequence[Source]) -> str:
    """The text of one Python file.

    Args:
        about: Its docstring.
        sources: What it is made of, in order.

    Raises:
        LookupError: An edit or a name is not found; the tests hold that none is missing.
    """
    imports: set[str] = set()
    bodies = []
    for source in sources:
        lines, definitions = _taken(source)
        imports |= lines
        bodies += [text for text in definitions if text not in bodies]
    quotes = f'"""{about}"""' if "\n" not in about else f'"""{about}\n"""'
    head = [quotes, "from __future__ import annotations", *_sections(imports)]
    return "\n\n".join(head) + "\n" + _joined(bodies)


def _joined(definitions: Iterable[str]) -> str:
    """Constants one below the other, two empty lines around functions and classes."""
    text, last = "", False
    for definition in definitions:
        block = bool(re.search(r"^(?:class |def |@)", definition, re.MULTILINE))
        text += ("\n\n" if block or last else "\n" if not text else "") + definition + "\n"
        last = block
    return text


def _taken(source: Source) -> tuple[set[str], list[str]]:
    """The import lines and the definitions, in the order of the file."""
    path = WORKLOADS / source.file
    text = path.read_text(encoding="utf-8")
    for old, new in source.edits:
        if text.count(old) != 1:
            raise LookupError(f"{path.name}: {old!r} is there {text.count(old)} times, not once.")
        text = text.replace(old, new)
    tree = ast.parse(text)
    lines = text.splitlines()
    importable = dict(_imports(tree.body))
    package = f"lit_opt.workloads.{path.stem}"
    importable |= {name: f"from {package} import {name}" for name in source.imported}
    definitions = {name: node for node in tree.body for name in _defined(node) if name not in importable}
    missing = [name for name in source.keep if name not in definitions]
    if missing:
        raise LookupError(f"{path.name}: {missing} is not defined there.")

    taken: dict[int, str] = {}
    imports: set[str] = set()
    wanted = list(source.keep)
    while wanted:
        name = wanted.pop()
        if name in importable:
            imports.add(importable[name])
        elif name in definitions and definitions[name].lineno not in taken:
            node = definitions[name]
            cleaned, hoisted = _cleaned(node, lines, source.without)
            taken[node.lineno] = cleaned
            imports |= hoisted
            wanted += sorted({n.id for n in ast.walk(ast.parse(cleaned)) if isinstance(n, ast.Name)})
    return imports, [taken[line] for line in sorted(taken)]


def _imports(body: Iterable[ast.stmt]) -> Iterator[tuple[str, str]]:
    """Name -> the line that imports it alone."""
    for node in body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield (alias.asname or alias.name).partition(".")[0], ast.unparse(ast.Import([alias]))
        elif isinstance(node, ast.ImportFrom) and node.module != "__future__":
            for alias in node.names:
                module = _PUBLIC.get(alias.name, node.module)
                yield alias.asname or alias.name, ast.unparse(ast.ImportFrom(module, [alias], 0))


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name)]
    return []


def _cleaned(node: ast.stmt, lines: Sequence[str], without: Sequence[str]) -> tuple[str, set[str]]:
    """The text of a definition without the parts of a library, and the imports that were inside it."""
    left_out: set[int] = set()
    drop: set[int] = set()
    change: dict[int, str] = {}
    hoisted: set[str] = set()
    whole: set[ast.expr] = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.FunctionDef) and inner.name in without:
            first = min([inner.lineno, *(d.lineno for d in inner.decorator_list)])
            left_out |= {*range(first, (inner.end_lineno or first) + 1), first - 1}
    for inner in ast.walk(node):
        if getattr(inner, "lineno", 0) in left_out:
            continue
        if isinstance(inner, ast.stmt) and inner is not node and _is_check(inner):
            drop |= set(range(inner.lineno, (inner.end_lineno or inner.lineno) + 1))
        elif isinstance(inner, ast.Import | ast.ImportFrom):
            hoisted |= {line for _, line in _imports([inner])}
            drop.add(inner.lineno)
            # an empty line below a local import would open the block
            if not lines[inner.lineno].strip():
                drop.add(inner.lineno + 1)
        elif isinstance(inner, ast.Assign) and (module := _required(inner.value)):
            assert isinstance(inner.targets[0], ast.Name)
            hoisted.add(_import_as(module, inner.targets[0].id))
            drop.add(inner.lineno)
            whole.add(inner.value)
        elif isinstance(inner, ast.Call) and inner not in whole and (module := _required(inner)):
            assert inner.lineno == inner.end_lineno
            text = change.get(inner.lineno, lines[inner.lineno - 1])
            call = lines[inner.lineno - 1][inner.col_offset : inner.end_col_offset]
            change[inner.lineno] = text.replace(call, module)
            hoisted.add(f"import {module}")
        if isinstance(inner, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(inner):
            drop |= _library_sections(inner.body[0], lines)
    last = node.end_lineno or node.lineno
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
    while lines[first - 2].startswith("#"):
        first -= 1
    kept = [change.get(i, lines[i - 1]) for i in range(first, last + 1) if i not in drop | left_out]
    # a docstring that has only its first line left
    return re.sub(r'^( *""".*)\n *"""$', r'\1"""', "\n".join(kept).rstrip(), flags=re.MULTILINE), hoisted


def _required(node: ast.AST) -> str:
    """The module of `require("module", who)`, or ""."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "require":
        return str(ast.literal_eval(node.args[0]))
    return ""


def _import_as(module: str, name: str) -> str:
    package, _, leaf = module.rpartition(".")
    line = f"from {package} import {leaf}" if package else f"import {leaf}"
    return line if leaf == name else f"{line} as {name}"


def _is_check(node: ast.stmt) -> bool:
    """Whether a statement collects what is wrong with arguments, or raises it."""
    if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return [ast.unparse(target) for target in targets] == ["problems"]
    if isinstance(node, ast.Expr):
        return ast.unparse(node).startswith("problems.")
    if isinstance(node, ast.Raise):
        return node.exc is not None and ast.unparse(node.exc) == "RecipeError(problems)"
    if isinstance(node, ast.If):
        return _is_check(node.body[-1]) and (not node.orelse or _is_check(node.orelse[-1]))
    return False


def _library_sections(docstring: ast.stmt, lines: Sequence[str]) -> set[int]:
    """Lines of the sections "Raises:" and "Example:", with the empty line above each."""
    indent = " " * docstring.col_offset
    end = docstring.end_lineno or docstring.lineno
    found: set[int] = set()
    inside = False
    for number in range(docstring.lineno + 1, end):  # the quotes of a long docstring have a line of their own
        line = lines[number - 1]
        if re.match(rf"{indent}\S", line):
            inside = bool(re.match(rf"{indent}(?:Raises|Example):$", line))
            if inside and not lines[number - 2].strip():
                found.add(number - 1)
        if inside:
            found.add(number)
    return found


def _sections(imports: Iterable[str]) -> list[str]:
    """The standard library and the rest, each sorted as ruff sorts, with names of one module in one line."""
    plain: set[str] = set()
    names: dict[str, set[str]] = {}
    for line in imports:
        if line.startswith("import "):
            plain.add(line)
        else:
            module, _, name = line.removeprefix("from ").partition(" import ")
            names.setdefault(module, set()).add(name)
    lines = sorted(plain, key=str.lower)
    lines += [f"from {module} import {', '.join(sorted(names[module], key=_order))}" for module in sorted(names)]
    standard = [line for line in lines if re.split(r"[ .]", line)[1] in sys.stdlib_module_names]
    return ["\n".join(part) for part in (standard, [line for line in lines if line not in standard]) if part]


def _order(name: str) -> tuple[int, str]:
    """Constants, classes, functions."""
    return (0 if name.isupper() else 1 if name[:1].isupper() else 2, name)
