"""The house rules: who may import whom, what stays lazy, what every file has. Read from the source with ast."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import lit_opt
from lit_opt.optim import rows as rows_package
from lit_opt.optim.registry import ROWS, get_row, list_optimizers

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "lit_opt"
FILES = sorted(PACKAGE.rglob("*.py"))

# A room is a folder or a single file; these files belong to a folder's room.
ROOM_OF = {"cli": "commands", "__main__": "commands"}

_DATA = {"errors", "recipes"}
_CORE = _DATA | {"schedules", "scaling", "optim", "averaging", "param_groups", "resolve", "explain", "transfer"}
_ABOVE = _CORE | {"callbacks"}

# Room -> the rooms it may import from, its own aside. Imports point one way.
MAY_IMPORT = {
    "errors": set(),
    "recipes": {"errors"},
    "schedules": {"errors"},
    "scaling": {"errors"},
    "averaging": {"errors"},
    "optim": _DATA | {"averaging"},
    # Rules as plain data for all three: resolve applies those of the run, param_groups those of sizes.
    "transfer": {"errors", "optim"},
    "param_groups": _DATA | {"optim", "transfer"},
    "resolve": _DATA | {"optim", "schedules", "scaling", "transfer"},
    "explain": _DATA | {"resolve", "optim"},
    "callbacks": _CORE,
    "workloads": _ABOVE,
    "preflight": _ABOVE | {"workloads"},
    "comparison": _ABOVE | {"workloads"},
    "commands": _ABOVE | {"workloads", "preflight", "comparison"},
}

# Finer than rooms: from that room, these modules alone.
ONLY = {
    ("optim", "recipes"): {"lit_opt.recipes.schema", "lit_opt.recipes.common"},
    ("optim", "averaging"): {"lit_opt.averaging.shards"},
    ("transfer", "optim"): {"lit_opt.optim.schema", "lit_opt.optim.matrix.scale"},
    ("param_groups", "optim"): {"lit_opt.optim.registry"},
    ("explain", "optim"): {"lit_opt.optim.registry", "lit_opt.optim.schema", "lit_opt.optim.matrix.scale"},
    ("resolve", "optim"): {
        "lit_opt.optim.registry",
        "lit_opt.optim.check",
        "lit_opt.optim.schema",
        "lit_opt.optim.matrix.scale",
    },
    ("resolve", "recipes"): {"lit_opt.recipes.schema", "lit_opt.recipes.common"},
}

# Imports inside a function against the direction of the table, and why.
INSIDE_FUNCTIONS = {
    ("lit_opt/param_groups/groups.py", "lit_opt.resolve"): "group_parameters takes a recipe's name as well",
    ("lit_opt/callbacks/plans.py", "lit_opt.preflight.placement"): "Recipe.plan is a method, and preflight is above it",
    ("lit_opt/callbacks/plans.py", "lit_opt.preflight.plan"): "Recipe.plan is a method, and preflight is above it",
}

NO_TORCH = {"errors", "recipes", "schedules", "scaling", "resolve", "explain", "transfer"}
LIGHTNING = {"callbacks", "workloads", "preflight", "comparison", "commands"}

LONGEST = 340
LONGER: dict[str, str] = {}


def relative(path):
    return path.relative_to(ROOT).as_posix()


def room(module):
    top = module.split(".")[1] if "." in module else ""
    return ROOM_OF.get(top, top)


def module_of(path):
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path):
    """(module, line, where) with where "top", "function" or "types", of each import of a file."""
    found: list[tuple[str, int, str]] = []

    def visit(node, where):
        if isinstance(node, ast.Import):
            found.extend((alias.name, node.lineno, where) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{relative(path)}:{node.lineno}: a relative import; write the whole name"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name for name in inner if is_module(name)] or [str(node.module)]
            found.extend((name, node.lineno, where) for name in names)
        for child in ast.iter_child_nodes(node):
            inside = where
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                inside = "function"
            elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and child in node.body:
                inside = "types"
            visit(child, inside)

    visit(ast.parse(path.read_text()), "top")
    return found


def is_module(name):
    base = ROOT / name.replace(".", "/")
    return base.is_dir() or base.with_suffix(".py").is_file()


def test_every_file_has_a_room():
    rooms = {room(module_of(path)) for path in FILES} - {""}
    assert rooms <= set(MAY_IMPORT), f"decide what {rooms - set(MAY_IMPORT)} may import: MAY_IMPORT in {__file__}"


def test_imports_point_one_way():
    wrong, used = [], set()
    for path in FILES:
        here = room(module_of(path))
        for name, line, where in imports(path):
            if not name.startswith("lit_opt") or where == "types" or not here:
                continue
            there = room(name)
            if where == "function" and (relative(path), name) in INSIDE_FUNCTIONS:
                used.add((relative(path), name))
                continue
            # The package itself is lazy: `from lit_opt import __version__` reaches no room.
            fine = there in ("", here) or there in MAY_IMPORT[here]
            if not fine or name not in ONLY.get((here, there), {name}):
                wrong.append(f"{relative(path)}:{line}: {here} imports {name}")
    assert wrong == []
    assert used == set(INSIDE_FUNCTIONS), "an exception that nothing uses"


def test_the_table_has_no_circles():
    left = {name: set(allowed) for name, allowed in MAY_IMPORT.items()}
    while left:
        free = [name for name, allowed in left.items() if not allowed & set(left)]
        assert free, f"a circle among {sorted(left)}"
        for name in free:
            del left[name]


def test_torch_and_lightning_stay_where_they_belong():
    wrong = []
    for path in FILES:
        here = room(module_of(path))
        for name, line, where in imports(path):
            library = name.split(".")[0]
            if where == "types":
                continue
            if library == "torch" and (here in NO_TORCH or here == ""):
                wrong.append(f"{relative(path)}:{line}: torch in {here or 'the package'}")
            if library in ("lightning", "pytorch_lightning") and here not in LIGHTNING:
                wrong.append(f"{relative(path)}:{line}: lightning in {here or 'the package'}")
            if library in ("recipes", "callbacks", "configs"):
                wrong.append(f"{relative(path)}:{line}: {name} through a root link")
    assert wrong == []


@pytest.mark.parametrize(
    "module",
    [
        "lit_opt",
        "lit_opt.recipes",
        "lit_opt.resolve",
        "lit_opt.resolve.overrides",
        "lit_opt.explain.show",
        "lit_opt.explain.values",
        "lit_opt.optim",
        "lit_opt.optim.registry",
        "lit_opt.optim.check",
        "lit_opt.schedules",
        "lit_opt.scaling",
        "lit_opt.transfer.spec",
        "lit_opt.cli",
    ],
)
def test_laziness(module):
    """These serve `lit-opt explain`, which answers at once; lit_opt.param_groups does import torch."""
    code = f"import sys, {module}; print([m for m in ('torch', 'lightning', 'timm', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_lazy_names_exist():
    for name in lit_opt.__all__:
        assert getattr(lit_opt, name) is not None
    with pytest.raises(AttributeError, match=r"no attribute 'Recipes'.*Public names"):
        _ = lit_opt.Recipes


@pytest.mark.parametrize("name", ["recipes", "callbacks", "configs"])
def test_root_links(name):
    link = ROOT / name
    assert link.is_symlink()
    assert link.readlink().as_posix() == f"lit_opt/{name}"
    assert link.is_dir() and link.resolve() == PACKAGE / name


def test_files_stay_short():
    lengths = {relative(path): len(path.read_text().splitlines()) for path in FILES}
    long = {name for name, lines in lengths.items() if lines > LONGEST}
    assert long == set(LONGER), "shorten it or give the reason in LONGER; take a shortened one off the list"


def test_nothing_is_left_to_do():
    words = ("TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK", "NotImplemented" + "Error")
    found = {(relative(path), word) for path in FILES for word in words if word in path.read_text()}
    # A base class that says what its subclasses have to define, and an answer of Lightning's that is caught.
    assert found == {
        (f"lit_opt/{file}", words[-1]) for file in ("workloads/data_module.py", "callbacks/checkpoint_file.py")
    }


# ---- docstrings

# Folders and rooms whose files are parts of something that tests run as a whole: inside a Trainer, in several
# processes, or from a command line. What is public in them is named here.
PARTS: dict[str, set[str]] = {
    "callbacks": {"recipe", "ema", "monitor", "noise_scale", "posthoc_ema", "trajectory", "plane"},
    "commands": set(),
}


def is_a_part(path):
    here = room(module_of(path))
    shards = {"lit_opt/averaging/shards.py", "lit_opt/averaging/flat.py"}
    return relative(path) in shards or (here in PARTS and path.stem not in PARTS[here])


# One-line predicates, and frozen data whose fields are explained and that an example elsewhere shows.
WITHOUT_EXAMPLE = {
    "lit_opt/explain/values.py": {"Entry"},
    "lit_opt/explain/formats.py": {
        "recipe_text",
        "entry_sections",
        "entry_tables",
        "recipe_json",
        "to_json",
        "recipe_markdown",
        "optimizer_text",
        "optimizer_dict",
        "optimizer_markdown",
    },
    "lit_opt/explain/listing.py": {"listing_tables"},
    "lit_opt/param_groups/placement.py": {
        "GroupSummary",
        "ParamRow",
        "Placed",
        "place",
    },
    "lit_opt/param_groups/rules.py": {"match_rules", "misplaced", "unsplittable", "row_blocks", "blocks_in_words"},
    "lit_opt/optim/matrix/plan.py": {"Slot", "Chunk"},
    "lit_opt/optim/low_bit_torchao.py": {"AdamW8bit", "AdamW4bit", "AdamWFp8"},  # need the extra lowbit
    "lit_opt/optim/schema.py": {"OptimizerRow"},
    "lit_opt/resolve/plain.py": {"plain", "is_real", "is_whole", "is_number"},
    "lit_opt/param_groups/roles.py": {"type_name"},
    "lit_opt/param_groups/snapshot.py": {"ParamInfo", "ParamSnapshot"},
    "lit_opt/recipes/common.py": {"label_smoothing"},
    "lit_opt/recipes/schema.py": {"Scaling", "LearningRate", "Warmup", "Decay"},
    "lit_opt/comparison/records.py": {"Arm", "Protocol", "Reading", "Run"},
    "lit_opt/preflight/plan_text.py": {"plan_text"},
    "lit_opt/preflight/plan_lines.py": {"fact_lines", "flops_lines", "rates"},
    "lit_opt/preflight/plan_markdown.py": {"plan_markdown"},
    "lit_opt/resolve/lr.py": {"BatchRule"},
    "lit_opt/workloads/hugging_face.py": {"HuggingFaceImages", "HuggingFaceText", "load_splits"},
    "lit_opt/workloads/image_data.py": {"CIFAR10", "ImageFolder"},
}


def public_definitions(path):
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node


def test_every_module_and_public_name_has_a_docstring():
    missing = [relative(path) for path in FILES if not ast.get_docstring(ast.parse(path.read_text()))]
    missing += [f"{relative(p)}: {n.name}" for p in FILES for n in public_definitions(p) if not ast.get_docstring(n)]
    assert missing == []


def test_public_names_have_an_example():
    missing = {}
    for path in FILES:
        if is_a_part(path):
            continue
        names = {n.name for n in public_definitions(path) if ">>>" not in (ast.get_docstring(n) or "")}
        if names:
            missing[relative(path)] = names
    new = {name: names - WITHOUT_EXAMPLE.get(name, set()) for name, names in missing.items()}
    assert {name: names for name, names in new.items() if names} == {}, "add an example that runs"


# ---- the registry


def test_every_row_is_found():
    """Adding an optimizer touches its file and one row; a file of rows that nobody reads fails here."""
    found = []
    for info in pkgutil.iter_modules(rows_package.__path__):
        module = importlib.import_module(f"{rows_package.__name__}.{info.name}")
        found += [row.name for row in getattr(module, "ROWS", ())]
    assert sorted(found) == list_optimizers()
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_every_optimizer_class_of_the_package_has_a_row():
    """A subclass of torch's Optimizer under optim/ is somebody's factory, or a base of one."""
    classes, bases = {}, set()
    for path in sorted((PACKAGE / "optim").rglob("*.py")):
        for node in public_definitions(path):
            if isinstance(node, ast.ClassDef):
                bases |= set(map(ast.unparse, node.bases))
            if isinstance(node, ast.ClassDef) and any("Optimizer" in ast.unparse(base) for base in node.bases):
                classes[f"{module_of(path)}:{node.name}"] = node
    factories = {row.factory for row in ROWS}
    assert {name for name in classes if name.split(":")[1] not in bases} - factories == set()
    for factory in factories:
        if factory.startswith("lit_opt."):
            module, _, name = factory.partition(":")
            assert is_module(module), factory
            if module.endswith("_torchao"):  # the extra lowbit need not be there
                continue
            assert hasattr(importlib.import_module(module), name), factory


@pytest.mark.parametrize("name", list_optimizers())
def test_rows_are_complete(name):
    row = get_row(name)
    for word in ("factory", "provider", "summary", "rule", "source", "evidence"):
        assert getattr(row, word), f"{name}.{word}"
    assert "lr" in row.hyperparameters
    assert not set(row.fixed) & set(row.hyperparameters)
    for published in row.settings.values():
        assert set(published.hyperparameters) <= set(row.hyperparameters)
        for value in (published.lr, published.weight_decay, *published.hyperparameters.values()):
            assert value.unit and value.source and value.common_practice
