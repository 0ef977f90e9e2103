"""The pictures of README and site, each made by the package itself: `make pictures`, or `python docs/make_pictures.py plan schedule`.

- schedule.png: `lit-opt plan --config vlm --plot docs/pictures/schedule.png`
- plan.svg: what `lit-opt plan --config llm` prints
- comparison.png: the first figure of `lit-opt compare report --out benchmarks/evidence/llm`
- spirals.png, spirals.gif: `lit-opt spirals --out docs/pictures`
"""

from __future__ import annotations

import io
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import DEFAULT_TERMINAL_THEME
from rich.text import Text

from lit_opt.cli import main as lit_opt

HERE = Path(__file__).parent / "pictures"
EVIDENCE = Path(__file__).parents[1] / "benchmarks/evidence"
# Rich's own template asks another host for its font.
SVG = """<svg xmlns="http://www.w3.org/2000/svg" class="rich-terminal" viewBox="0 0 {terminal_width} {terminal_height}">
<style>.{unique_id}-matrix {{ font-family: monospace; font-size: {char_height}px; line-height: {line_height}px; }}
{styles}</style>
<defs>{lines}</defs>
<rect width="100%" height="100%" fill="#ffffff" stroke="#d0d7de"/>
<g transform="translate(12, 12)"><g class="{unique_id}-matrix">{backgrounds}{matrix}</g></g>
</svg>
"""


def schedule() -> None:
    """The learning rates of a recipe with a rate for each part of the model."""
    assert lit_opt(["plan", "--config", "vlm", "--plot", str(HERE / "schedule.png"), "--format", "json"]) == 0


def plan() -> None:
    """What `lit-opt plan` prints, without the plot, which is a picture of its own, and without the sources at the end."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        assert lit_opt(["plan", "--config", "llm"]) == 0
    blocks = printed.getvalue().split("\n\n")
    [plot] = [i for i, block in enumerate(blocks) if block.lstrip().startswith("2e-3 |")]
    [memory] = [i for i, block in enumerate(blocks) if block.startswith("Memory")]
    shown = "\n\n".join([*blocks[:plot], *blocks[plot + 1 : memory + 1], "...", " "])
    # Two columns more than the longest line, and an empty line at the end: rich counts no margin.
    console = Console(record=True, width=2 + max(map(len, shown.splitlines())), file=io.StringIO())
    console.print(Text("$ lit-opt plan --config llm\n" + shown), soft_wrap=True)
    console.save_svg(str(HERE / "plan.svg"), theme=DEFAULT_TERMINAL_THEME, code_format=SVG, unique_id="plan")


def comparison(name: str = "llm") -> None:
    """The first figure in the report of a comparison."""
    from lit_opt.comparison.plots import pictures

    drawn = pictures(json.loads((EVIDENCE / name / "results.json").read_text()))
    (HERE / "comparison.png").write_bytes(drawn["difference"])


def spirals() -> None:
    """Paths of three optimizers over a loss surface."""
    assert lit_opt(["spirals", "--out", str(HERE)]) == 0


def main(names: list[str]) -> None:
    """Make the pictures that are named, or all."""
    for make in (schedule, plan, comparison, spirals):
        if not names or make.__name__ in names:
            make()


if __name__ == "__main__":
    main(sys.argv[1:])
