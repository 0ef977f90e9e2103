"""Docstrings of the public names (docs/public-api.md): every argument, what is returned, what is raised, an example. By ast."""

import ast
import re

import pytest

from tests.tables import DOCS
from tests.test_house import PACKAGE, ROOT

PAGE = (DOCS / "public-api.md").read_text()
# What Lightning, torch or a base class of the package calls: the arguments are theirs, and explained there. The last line
# are the stages of lit_opt.optim.matrix.engine and of SAM.
HOOKS = re.compile(
    r"(_.*|on_.*|setup|teardown|state_dict|load_state_dict|add_param_group|log|open|step|zero_grad|forward|training_step|"
    r"validation_step|datasets|read|kept|due|update|accumulate|decomposed|problems_of|scale)$"
)
# These need the network, or files, to show anything.
WITHOUT_EXAMPLE = {"CIFAR10", "ImageFolder", "HuggingFaceImages", "HuggingFaceText"}
# A docstring whose first words say what comes back needs no section for it.
SAYS_SO = re.compile(
    r"((The|A|An|All|Every|Names|Optimizer and|How|Whether|One|Optimizer|Who|Where|What|Linear|Write|Either|For) |.*: returns |.*; returns )",
    re.DOTALL,
)


def public():
    """(module, name) of every function and class on the page."""
    for module, names in re.findall(r"^\| `(lit_opt[\w.]*)` \| (.+) \|$", PAGE, re.MULTILINE):
        for name in re.findall(r"`(\w+)`", names):
            if name != "__version__":
                yield module, name


def definition(module, name):
    """(path, node) of a public name, through the imports of its package."""
    path = ROOT / module.replace(".", "/")
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    tree = ast.parse(path.read_text())
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return path, node
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
            return definition(str(node.module), name)
    raise LookupError(f"{module}.{name}")


def arguments(node):
    """Names of the arguments of a function, or of a class: those of its __init__, or its fields."""
    if isinstance(node, ast.ClassDef):
        init = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
        if init is None:
            fields = [n.target for n in node.body if isinstance(n, ast.AnnAssign)]
            names = [target.id for target in fields if isinstance(target, ast.Name)]
            return [name for name in names if name[0] != "_"] if is_data(node) else []
        node = init
    a = node.args
    every = [*a.posonlyargs, *a.args, *([a.vararg] if a.vararg else []), *a.kwonlyargs, *([a.kwarg] if a.kwarg else [])]
    return [arg.arg for arg in every if arg.arg not in ("self", "cls")]


def is_data(node):
    return any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)


def raises(node):
    """Whether it, or a class's __init__, raises RecipeError itself."""
    if isinstance(node, ast.ClassDef):
        node = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    return node is not None and any(
        isinstance(n, ast.Raise) and n.exc is not None and "RecipeError" in ast.unparse(n.exc) for n in ast.walk(node)
    )


def problems(node, where):
    doc = ast.get_docstring(node) or ""
    missing = [
        f"argument {name}" for name in arguments(node) if not re.search(rf"^ *\*{{0,2}}{name}: ", doc, re.MULTILINE)
    ]
    if (
        isinstance(node, ast.FunctionDef)
        and node.returns is not None
        and ast.unparse(node.returns) not in ("None", "Self")
    ):
        noun = "property" in [ast.unparse(decorator) for decorator in node.decorator_list]
        missing += [] if noun or "Returns:" in doc or SAYS_SO.match(doc) else ["Returns"]
    missing += ["Raises"] if raises(node) and "Raises:" not in doc else []
    return [f"{where}: {one}" for one in missing] if doc else [f"{where}: docstring"]


def found(module, name):
    path, node = definition(module, name)
    yield from problems(node, f"{path.relative_to(PACKAGE)} {name}")
    if isinstance(node, ast.ClassDef):
        if ">>>" not in (ast.get_docstring(node) or "") and not is_data(node) and name not in WITHOUT_EXAMPLE:
            yield f"{path.relative_to(PACKAGE)} {name}: Example"
        for method in node.body:
            if isinstance(method, ast.FunctionDef) and not HOOKS.match(method.name):
                yield from problems(method, f"{path.relative_to(PACKAGE)} {name}.{method.name}")
    elif ">>>" not in (ast.get_docstring(node) or ""):
        yield f"{path.relative_to(PACKAGE)} {name}: Example"


NAMES = list(public())


def test_names_are_found():
    assert len(NAMES) > 60


@pytest.mark.parametrize(("module", "name"), NAMES, ids=lambda x: x)
def test_complete(module, name):
    assert list(found(module, name)) == []


@pytest.mark.parametrize("name", [n for m, n in NAMES if m == "lit_opt.optim" and n[0].isupper()])
def test_optimizers_have_a_source(name):
    _, node = definition("lit_opt.optim", name)
    assert re.search(r"Source|arXiv:|torch\.optim|github", ast.get_docstring(node) or ""), name
