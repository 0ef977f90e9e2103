"""Who decays what: this package beside timm, the Hugging Face Trainer and the rule of two dimensions.

Run from the root of the repository: `python -m benchmarks.param_groups`. It builds the architectures of the tests on
the meta device, without weights, and writes benchmarks/results/param_groups.md.
"""

from __future__ import annotations

import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path

from lit_opt.param_groups import group_parameters, snapshot_parameters
from tests.param_groups.architectures import BUILDERS, build
from tests.param_groups.deciders import DECIDERS

TITLES = {"timm": "timm", "hf": "HF Trainer", "ndim": "two dimensions"}
INTRO = """# Who decays what

Written by `python -m benchmarks.param_groups` with {versions}.

Each architecture is built from its configuration, two layers deep where it can be cut. "decayed" and "not decayed" count
trainable tensors under the recipe `llm`. The other columns count the tensors on which another decider differs: `+3 scale`
is three scales that it decays and we do not, `-2 matrix` two matrices that we decay and it does not. "listed" is a matrix
that the model itself lists in `no_weight_decay()`. The deciders: timm's `param_groups_weight_decay` with the model's own
list, transformers' `Trainer.get_decay_parameter_names`, and decay from two dimensions on (nanoGPT, MAE).

| architecture | tensors | decayed | not decayed | {titles} |
|---|---|---|---|{rules}|
"""


def main() -> None:
    """Write the table."""
    lines = []
    totals = {decider: Counter[str]() for decider in DECIDERS}
    seconds, tensors = 0.0, 0
    for name in BUILDERS:
        module = build(name)
        start = time.perf_counter()
        snapshot = snapshot_parameters(module)
        rows = group_parameters(snapshot, "llm").rows()
        seconds += time.perf_counter() - start
        tensors += len(snapshot.parameters)
        roles = {i.name: "listed" if i.role == "matrix" and i.listed else i.role for i in snapshot.parameters}
        ours = {r.name for r in rows if r.group == "decay"}
        cells = []
        for decider, decays in DECIDERS.items():
            theirs = decays(module)
            found = Counter(f"+ {roles[n]}" for n in theirs - ours) + Counter(f"- {roles[n]}" for n in ours - theirs)
            totals[decider] += found
            cells.append(_words(found))
        lines.append(f"| {name} | {len(rows)} | {len(ours)} | {len(rows) - len(ours)} | {' | '.join(cells)} |")
    lines.append(f"| **all** | | | | {' | '.join(_words(totals[d]) for d in DECIDERS)} |")
    libraries = ("torch", "timm", "torchvision", "transformers", "diffusers")
    text = INTRO.format(
        versions=", ".join(f"{library} {version(library)}" for library in libraries),
        titles=" | ".join(TITLES[d] for d in DECIDERS),
        rules="|".join("---" for _ in DECIDERS),
    )
    path = Path(__file__).parent / "results" / "param_groups.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text + "\n".join(lines) + "\n")
    print(f"{path}: {len(BUILDERS)} architectures, {tensors} tensors, {1e6 * seconds / tensors:.0f} us a tensor")


def _words(found: Counter[str]) -> str:
    parts = ((key[0], count, key[2:]) for key, count in sorted(found.items()))
    return ", ".join(f"{sign}{count} {role}" for sign, count, role in parts) or "same"


if __name__ == "__main__":
    main()
