"""How long a plan takes, beside the model's own construction on the meta device.

    python -m benchmarks.plan_time

writes benchmarks/results/plan_time.md: process time on one thread, so that other load on the machine weighs less.
"""

from __future__ import annotations

import time
from importlib.metadata import version
from pathlib import Path

import torch

from lit_opt import Recipe
from tests.preflight.models import MODELS, build

ROUNDS = 3
RESULT = Path(__file__).parent / "results" / "plan_time.md"
INTRO = """# How long a plan takes

Written by `python -m benchmarks.plan_time` with torch {torch}, transformers {transformers}, timm {timm}, diffusers
{diffusers}. Seconds of process time on one thread, the best of {rounds}; the libraries are imported before. "build" is
the model's own construction on the meta device, "plan" is `Recipe.plan` and "text" its tables at 100 columns. "lines"
are the patterns that the tensors become.

| model | recipe | numbers | tensors | lines | build | plan | text |
|---|---|---:|---:|---:|---:|---:|---:|
"""


def main() -> None:
    """Write the table."""
    torch.set_num_threads(1)
    lines = []
    for name in MODELS:
        builds, plans, texts = [], [], []
        for _ in range(ROUNDS):
            start = time.process_time()
            recipe, module = build(name)
            built = time.process_time()
            plan = Recipe(recipe).plan(module, batch_size=1024, total_steps=100_000, devices=8, strategy="fsdp2")
            planned = time.process_time()
            plan.text(width=100)
            builds.append(built - start)
            plans.append(planned - built)
            texts.append(time.process_time() - planned)
        cells = (f"{plan.parameters['trainable']:,}", f"{len(plan.rows):,}", f"{len(plan.folded):,}")
        seconds = " | ".join(f"{min(values):.2f}" for values in (builds, plans, texts))
        lines.append(f"| {name} | {recipe} | {' | '.join(cells)} | {seconds} |")
    libraries = {library: version(library) for library in ("torch", "transformers", "timm", "diffusers")}
    RESULT.write_text(INTRO.format(rounds=ROUNDS, **libraries) + "\n".join(lines) + "\n")
    print(RESULT)


if __name__ == "__main__":
    main()
