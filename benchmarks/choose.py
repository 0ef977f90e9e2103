"""How often `lit-opt choose` is right, on architectures that its rules were written with and on others.

Run from the root of the repository: `python -m benchmarks.choose`. It builds the modules on the meta device, without
weights, and writes benchmarks/results/choose.md.
"""

from __future__ import annotations

import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path

from lit_opt.preflight.choose import Choice, choose
from tests.param_groups.architectures import BUILDERS, build
from tests.preflight.held_out import HELD_OUT, build_held_out, truth

INTRO = """# Which setting is it?

Written by `python -m benchmarks.choose` with {versions}.

`choose` reads a module's structure and proposes a recipe, or says that it is not sure. "Known" are the {known} architectures
of tests/param_groups/architectures.py, which the rules were written with. "Held out" are the {held} of tests/preflight/held_out.py:
they were listed, labelled and committed before the first rule was written, the rules met them in one run, with the result below.
Two rules were widened after it (a frozen text encoder beside a denoiser, and the order in which layers are registered),
for tests of their own; no answer on the held-out ones changed. The labels are the author's: what the field guide's chooser and the published recipes say, and unsure for what no
recipe here is for. {two} of the held-out ones accept two answers, one of them unsure; "strictly" counts for these the first alone.
All were built by the same person who wrote the rules, so expect less on modules of your own.

| set | architectures | right | strictly right | wrong | unsure, rightly | unsure, wrongly |
|---|---|---|---|---|---|---|
"""

REMARKS = """
## Right by confidence (held out)

| confidence | answers | right |
|---|---|---|
{confidence}
The median time of an answer is {median:.0f} ms, the longest {longest:.0f} ms ({slowest}), on one thread.

## Errors

{errors}
Right for a reason that is not the real one: some of what is called the input of a denoiser is another layer of the same
width (hunyuan, sana, unet1d); the time then carries the answer.

## What it cannot know

Whether weights are pretrained is seen from the gains of norms where weights are there, and not on the meta device. Masked and causal
language models get the same recipe. Patches that are cut by a linear layer are not recognised as images, and points in a plane that
are denoised are not recognised as diffusion: it says unsure for both. A backbone without a head, sound, tables, graphs, detection
and autoencoders are unsure, since no recipe here is for them.

## Every answer

| set | architecture | accepted | answer | confidence |
|---|---|---|---|---|
{all}
"""


def main() -> None:
    """Write the page."""
    rows: list[tuple[str, str, tuple[str, ...], Choice, float]] = []
    for label, names in (("known", BUILDERS), ("held out", HELD_OUT)):
        for name in names:
            module = build(name) if label == "known" else build_held_out(name)
            accepted = truth(name) if label == "known" else HELD_OUT[name][1]
            start = time.process_time()
            choice = choose(module)
            rows.append((label, name, accepted, choice, time.process_time() - start))
    text = INTRO.format(
        versions=", ".join(f"{x} {version(x)}" for x in ("torch", "timm", "torchvision", "transformers", "diffusers")),
        known=len(BUILDERS),
        held=len(HELD_OUT),
        two=sum(len(accepted) > 1 for _, accepted in HELD_OUT.values()),
    )
    for label in ("known", "held out"):
        own = [row for row in rows if row[0] == label]
        right = sum(c.recipe in accepted for _, _, accepted, c, _ in own)
        strict = sum(c.recipe == accepted[0] for _, _, accepted, c, _ in own)
        unsure = sum(not c.recipe and "" in accepted for _, _, accepted, c, _ in own)
        shy = sum(not c.recipe and "" not in accepted for _, _, accepted, c, _ in own)
        n = len(own)
        text += f"| {label} | {n} | {right} ({right / n:.1%}) | {strict} ({strict / n:.1%}) | {n - right} | {unsure} | {shy} |\n"
    counts = Counter((c.confidence, c.recipe in a) for label, _, a, c, _ in rows if label == "held out")
    confidence = "".join(
        f"| {word} | {counts[word, True] + counts[word, False]} | {counts[word, True]} |\n"
        for word in ("high", "medium", "low", "unsure")
    )
    errors = "".join(
        f"- {label}, `{name}`: {_name(c.recipe)} ({c.confidence}), where {_names(a)} is right. {' '.join(c.reasons[:2])}\n"
        for label, name, a, c, _ in rows
        if c.recipe not in a
    )
    times = sorted((seconds, name) for _, name, _, _, seconds in rows)
    text += REMARKS.format(
        confidence=confidence,
        errors=errors or "None.\n",
        median=1e3 * times[len(times) // 2][0],
        longest=1e3 * times[-1][0],
        slowest=times[-1][1],
        all="\n".join(
            f"| {label} | {n} | {_names(a)} | {_name(c.recipe)} | {c.confidence} |" for label, n, a, c, _ in rows
        ),
    )
    path = Path(__file__).parent / "results" / "choose.md"
    path.write_text(text)
    print(f"{path}: {len(rows)} architectures")


def _name(recipe: str) -> str:
    return recipe or "unsure"


def _names(accepted: tuple[str, ...]) -> str:
    return " or ".join(map(_name, accepted))


if __name__ == "__main__":
    main()
