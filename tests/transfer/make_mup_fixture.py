"""Writes tests/fixtures/mup.json with microsoft/mup, which no test needs:

pip install --no-deps --target /tmp/mup_pkg mup==1.0.0
PYTHONPATH=/tmp/mup_pkg:. python -m tests.transfer.make_mup_fixture
"""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import mup  # type: ignore[import-not-found]
import torch

from tests.transfer.mup_models import BASE, MODELS, SETTINGS, STEPS, WIDTH, decayed, fill, train

TARGET = Path(__file__).parents[1] / "fixtures" / "mup.json"


def measure(name: str, optimizer: str) -> dict[str, Any]:
    """Rates and decays of every parameter relative to the base, and the losses of a few steps."""
    module = MODELS[name](WIDTH, mup.MuReadout)
    mup.set_base_shapes(module, MODELS[name](BASE, mup.MuReadout), delta=MODELS[name](2 * BASE, mup.MuReadout))
    module.double()
    fill(module)
    given = dict(SETTINGS[optimizer])
    named = list(module.named_parameters())
    groups = [
        {"params": [p for n, p in named if decayed(n, p)]},
        {"params": [p for n, p in named if not decayed(n, p)], "weight_decay": 0.0},
    ]
    made = {"adamw": mup.MuAdamW, "sgd": mup.MuSGD}[optimizer](groups, **given)
    found = {id(p): (g["lr"] / given["lr"], g["weight_decay"] / given["weight_decay"])
             for g in made.param_groups for p in g["params"]}  # fmt: skip
    rates = {n: found[id(p)][0] for n, p in named}
    decays = {n: found[id(p)][1] for n, p in named}
    return {"lr": rates, "weight_decay": decays, "losses": train(name, module, made)}


def main() -> None:
    """Both models with both optimizers, in float64."""
    torch.set_num_threads(1)
    found = {f"{name} {optimizer}": measure(name, optimizer) for name in MODELS for optimizer in SETTINGS}
    about = {"mup": metadata.version("mup"), "torch": torch.__version__, "base": BASE, "width": WIDTH, "steps": STEPS}
    TARGET.write_text(json.dumps({"about": about, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
