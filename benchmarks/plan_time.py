"""How long a plan takes, beside the model's own construction on the meta device.

    python -m benchmarks.plan_time
    python -m benchmarks.plan_time --litgpt       where litgpt is importable: tests/preflight/litgpt_models.py says how

writes benchmarks/results/plan_time.md: process time on one thread, so that other load on the machine weighs less.
Either part keeps what the other has written.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from lit_opt import Recipe
from lit_opt.preflight.check import Report
from tests.preflight import litgpt_models
from tests.preflight.models import MODELS, build

ROUNDS = 3
RESULT = Path(__file__).parent / "results" / "plan_time.md"
HEAD = """| model | recipe | numbers | tensors | lines | build | plan | text |
|---|---|---:|---:|---:|---:|---:|---:|
"""
INTRO = """# How long a plan takes

Written by `python -m benchmarks.plan_time` with torch {torch}, transformers {transformers}, timm {timm}, diffusers
{diffusers}. Seconds of process time on one thread, the best of {rounds}; the libraries are imported before. "build" is
the model's own construction on the meta device, "plan" is `Recipe.plan` and "text" its tables at 100 columns. "lines"
are the patterns that the tensors become.

"""
LITGPT = "\n## litgpt's GPT\n"
LITGPT_INTRO = """
Written by `python -m benchmarks.plan_time --litgpt` with litgpt {litgpt}, beside this package's own environment
(`{install}`): its pins (huggingface-hub below 1.4, jsonargparse up to 4.41) shut out transformers 5, so the tests do not
install it. tests/preflight/test_litgpt.py runs where it is importable.

"""
CHECKS = """
What `check` says of these models (false alarms are errors and warnings; both setups are correct):

| model | setup | groups | checks | errors | warnings | notes |
|---|---|---:|---:|---:|---:|---|
"""


def row(name: str, make: Callable[[], tuple[str, nn.Module]]) -> str:
    """A line of the table."""
    builds, plans, texts = [], [], []
    for _ in range(ROUNDS):
        start = time.process_time()
        recipe, module = make()
        built = time.process_time()
        plan = Recipe(recipe).plan(module, batch_size=1024, total_steps=100_000, devices=8, strategy="fsdp2")
        planned = time.process_time()
        plan.text(width=100)
        builds.append(built - start)
        plans.append(planned - built)
        texts.append(time.process_time() - planned)
    cells = (f"{plan.parameters['trainable']:,}", f"{len(plan.rows):,}", f"{len(plan.folded):,}")
    seconds = " | ".join(f"{min(values):.2f}" for values in (builds, plans, texts))
    return f"| {name} | {recipe} | {' | '.join(cells)} | {seconds} |\n"


def verdict(name: str, setup: str, groups: int, report: Report) -> str:
    """A line of what was found."""
    by_level = {level: [f.id for f in report.findings if f.level == level] for level in ("error", "warning", "note")}
    loud = f"{len(by_level['error'])} | {len(by_level['warning'])}"
    return f"| {name} | {setup} | {groups} | {report.judged} | {loud} | {', '.join(by_level['note']) or 'none'} |\n"


def litgpt() -> str:
    """The part about litgpt."""
    if not litgpt_models.HERE:
        raise SystemExit(f"litgpt is not importable: {litgpt_models.INSTALL}")
    found = [
        row(name, lambda name=name: (litgpt_models.MODELS[name][0], litgpt_models.build(name)))  # type: ignore[misc]
        for name in litgpt_models.MODELS
    ]
    verdicts = []
    for name, (recipe, *_) in litgpt_models.MODELS.items():
        plan = Recipe(recipe).plan(litgpt_models.build(name), batch_size=1024, total_steps=100_000)
        verdicts.append(verdict(name, recipe, len(plan.groups), litgpt_models.checked_with_recipe(name)))
        verdicts.append(verdict(name, "litgpt's own", 1, litgpt_models.checked_as_litgpt_trains(name)))
    intro = LITGPT_INTRO.format(litgpt=version("litgpt"), install=litgpt_models.INSTALL)
    return intro + HEAD + "".join(found) + CHECKS + "".join(verdicts)


def main() -> None:
    """Write the tables."""
    options = argparse.ArgumentParser(description="Seconds that a plan takes, on the meta device.")
    options.add_argument("--litgpt", action="store_true", help="only the part about litgpt's GPT")
    torch.set_num_threads(1)
    ours, _, theirs = RESULT.read_text().partition(LITGPT) if RESULT.exists() else ("", "", "")
    if options.parse_args().litgpt:
        theirs = litgpt()
    else:
        libraries = {library: version(library) for library in ("torch", "transformers", "timm", "diffusers")}
        rows = [row(name, lambda name=name: build(name)) for name in MODELS]  # type: ignore[misc]
        ours = INTRO.format(rounds=ROUNDS, **libraries) + HEAD + "".join(rows)
    RESULT.write_text(ours + (LITGPT + theirs if theirs else ""))
    print(RESULT)


if __name__ == "__main__":
    main()
