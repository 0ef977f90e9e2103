"""What a module's own code says, read from its source: only what cannot be seen on the objects.

Where the source cannot be read (a class typed into an interpreter), nothing is claimed.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

_LIBRARIES = (
    "torch",
    "lightning",
    "pytorch_lightning",
    "transformers",
    "diffusers",
    "timm",
    "peft",
    "lit_opt.workloads",
    "builtins",
)
_EVALUATES = re.compile(r"valid|eval|test|predict|sampl|generat|forward|infer|export|swap|store|copy_to", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Code:
    """The methods of a module's classes, as far as they are the user's.

    Args:
        known: Whether there is source at all.
        text: All of it.
        methods: Name -> syntax tree; of overridden ones the outermost.

    Example:
        >>> Code().mentions("weight_decay")
        False
    """

    known: bool = False
    text: str = ""
    methods: Mapping[str, ast.AST] = field(default_factory=dict, repr=False)

    def mentions(self, word: str) -> bool:
        """Whether a word occurs anywhere."""
        return re.search(rf"\b{re.escape(word)}", self.text) is not None

    @property
    def sets_rates(self) -> bool:
        """Whether a method other than `configure_optimizers` writes `group["lr"]` itself."""
        return any(_writes_rate(tree) for name, tree in self.methods.items() if name != "configure_optimizers")

    def evaluates_with(self, attribute: str) -> bool:
        """Whether a method of evaluation reaches `self.<attribute>`, itself or through the methods it calls."""
        todo = [name for name in self.methods if _EVALUATES.search(name)]
        seen: set[str] = set()
        while todo:
            name = todo.pop()
            if name in seen or name not in self.methods:
                continue
            seen.add(name)
            used = {node.attr for node in ast.walk(self.methods[name]) if isinstance(node, ast.Attribute)}
            if attribute in used:
                return True
            todo += used & self.methods.keys()
        return False


def read_code(module: nn.Module) -> Code:
    """Read the source of a module's classes, without those of libraries.

    Example:
        >>> read_code(nn.Linear(1, 1)).known
        False
    """
    text: list[str] = []
    methods: dict[str, ast.AST] = {}
    for cls in type(module).__mro__:
        if cls.__module__.startswith(_LIBRARIES):
            continue
        try:
            source = textwrap.dedent(inspect.getsource(cls))
            tree = ast.parse(source)
        except (OSError, TypeError, SyntaxError):
            return Code()
        text.append(source)
        for node in tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else ():
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                methods.setdefault(node.name, node)
    return Code(known=bool(text), text="\n".join(text), methods=methods)


def _writes_rate(tree: ast.AST) -> bool:
    for node in ast.walk(tree):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            key = target.slice if isinstance(target, ast.Subscript) else None
            if isinstance(key, ast.Constant) and key.value == "lr":
                return True
    return False
