"""What the workloads share in checking their arguments and their optional packages."""

from __future__ import annotations

import importlib
from types import ModuleType

from lit_opt.errors import RecipeError


def require(module: str, who: str) -> ModuleType:
    """Import an optional package, or say how to get it.

    Args:
        module: Dotted name, such as "torchvision.datasets".
        who: The class that needs it, for the message.

    Raises:
        RecipeError: The package is not installed.

    Example:
        >>> require("torch.utils.data", "Digits").__name__
        'torch.utils.data'
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as missing:
        if missing.name is None or missing.name.partition(".")[0] != module.partition(".")[0]:
            raise  # the package is there, but something it needs is not: its own message is the better one
        extra = "datasets" if missing.name == "datasets" else "workloads"
        raise RecipeError(
            [f"{who}: needs {missing.name}, which is not installed. Type: pip install 'lit-opt[{extra}]'."]
        ) from missing


def whole_number_problems(least: int, **arguments: object) -> list[str]:
    """One sentence for each argument that is not a whole number of at least `least`.

    Example:
        >>> whole_number_problems(1, batch_size=0, seq_len=8)
        ['batch_size=0: a whole number of at least 1 is needed.']
    """
    return [
        f"{name}={value!r}: a whole number of at least {least} is needed."
        for name, value in arguments.items()
        if isinstance(value, bool) or not isinstance(value, int) or value < least
    ]
