"""Every example in a docstring runs and prints what it says."""

import doctest
import importlib
import pkgutil

import pytest

import lit_opt

MODULES = ["lit_opt", *sorted(m.name for m in pkgutil.walk_packages(lit_opt.__path__, "lit_opt."))]
# `python -m lit_opt` runs the command when it is imported.
MODULES = [name for name in MODULES if not name.endswith("__main__")]
# Needs the extra lowbit, and has no examples.
MODULES.remove("lit_opt.optim.low_bit_torchao")


@pytest.mark.parametrize("name", MODULES)
def test_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # what an example writes is written here
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert failed == 0, f"{failed} examples of {name} fail; the output above says which"


def test_examples_are_found():
    """An example that doctest does not see would pass for ever."""
    finder = doctest.DocTestFinder()
    found = [test for name in MODULES for test in finder.find(importlib.import_module(name)) if test.examples]
    assert len(found) > 40
