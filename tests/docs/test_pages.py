"""Every block of the documentation runs.

```python blocks of a page run in order, in one namespace and an empty folder; a ```text block after one is what it printed
(`...` stands for anything). ```console blocks run through the command's own entry point. A block that cannot run here has
`<!-- not run: reason -->` in the line before it. The README's blocks have `model` and `data` of their reader.
"""

import doctest
import io
import re
import shlex
from functools import partial
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel

from lit_opt.cli import main
from tests.tables import DOCS

ROOT = DOCS.parent
# Generated (tests/explain/test_cards.py), the page of a command that tests of its own run, and tests/test_newcomer.py's.
ELSEWHERE = ("cards/", "compare.md", "tutorials/first_hour.md")
PAGES = [p for p in sorted(DOCS.rglob("*.md")) if not p.relative_to(DOCS).as_posix().startswith(ELSEWHERE)]
WRITTEN = [*ROOT.glob("*.md"), ROOT / "benchmarks/evidence/README.md", *DOCS.rglob("*.md")]
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<why>[^>]+) -->\n)?^```(?P<kind>python|console|text|bash)\n(?P<code>.*?)^```$", re.M | re.S
)
torch.set_num_threads(1)


def blocks(page):
    return [(m["kind"], m["code"], m["why"]) for m in BLOCK.finditer(page.read_text())]


def run_page(page, namespace):
    printed = None
    for kind, code, why in blocks(page):
        if kind == "text":
            same = doctest.OutputChecker().check_output(
                code, printed or "", doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
            )
            assert same, f"{page.name} says\n{code}\nand it is\n{printed}"
        elif why is None and kind == "python":
            out = io.StringIO()
            # The page's own print: Lightning's progress bar writes to stdout as well.
            namespace["print"] = partial(print, file=out)
            exec(compile(code, str(page), "exec"), namespace)
            printed = out.getvalue()
        elif why is None and kind == "console":
            for command in map(str.strip, code.splitlines()):
                words = shlex.split(command, comments=True)
                if words:
                    assert words[0] == "lit-opt", (
                        f"{page.name}: {command!r} is no command of ours: mark it `not run`, with the reason"
                    )
                    assert main(words[1:]) == 0, command


@pytest.fixture(autouse=True)
def _quiet_and_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seed_everything(0)
    yield
    torch.use_deterministic_algorithms(False)


def test_pages_are_found():
    assert len(PAGES) >= 25
    assert sum(kind == "python" for page in PAGES for kind, _, _ in blocks(page)) >= 40


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: p.relative_to(DOCS).as_posix())
def test_page(page, capsys):
    run_page(page, {"__name__": "__main__"})


def test_readme(capsys, monkeypatch):
    """Its run of 10,000 steps is cut to two."""
    from lit_opt import Recipe

    fit = Trainer.fit

    def two_steps(self: Trainer, *args: Any, **more: Any) -> None:
        self.fit_loop.epoch_loop.max_steps = 2
        fit(self, *args, **more)

    monkeypatch.setattr(Trainer, "fit", two_steps)
    model = BoringModel()
    for block in re.findall(r"^```yaml\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S):
        for callback in yaml.safe_load(block)["trainer"]["callbacks"]:
            assert callback["class_path"] == "lit_opt.Recipe" and Recipe(**callback["init_args"])
    run_page(ROOT / "README.md", {"model": model, "data": BoringDataModule(), "module": model, "recipe": Recipe("llm")})


def test_links_and_pictures_are_there():
    """In the repository, as a forge shows it; `make docs-check` walks the site."""
    missing = []
    for page in WRITTEN:
        prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
        targets = re.findall(r"\]\(([^)#\s]+)", prose)
        missing += [(page.name, t) for t in targets if not re.match("[a-z]+:", t) and not (page.parent / t).exists()]
    assert not missing


def test_options_that_pages_name_are_there():
    """Those of our own verbs; tests/test_public_api.py compares the page of options with the code."""
    rows = re.findall(r"^\| `lit-opt ([\w-]+)` \| (.*)\|$", (DOCS / "public-api.md").read_text(), re.M)
    options = {verb: {"--config", *re.findall(r"--[\w-]+", named)} for verb, named in rows}
    called = re.compile(rf"lit-opt ({'|'.join(options)})\b([^`\n]*)")
    option = re.compile(r"(?<!\S)--[a-z][\w-]*(?=[ =]|$)")  # those with a dot are the config's
    wrong = [
        (page.name, command[0])
        for page in WRITTEN
        for command in called.finditer(page.read_text())
        if not set(option.findall(command[2])) <= options[command[1]]
    ]
    assert len(options) >= 9 and not wrong


def test_few_blocks_are_not_run():
    left = [(page.relative_to(DOCS).as_posix(), why) for page in PAGES for _, _, why in blocks(page) if why]
    assert len(left) <= 4, left
