"""A griffe extension: sections called `Example:` are read as `Examples:`, the one name of Google's style that griffe knows.

Under any other name a doctest becomes prose, and its lists become links.
"""

from __future__ import annotations

import re
from typing import Any

import griffe


class OneExample(griffe.Extension):
    """Rename the section in each docstring."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called by griffe for every module, class, function and attribute that it has read."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.M)
