"""microsoft/mup 1.0.0 agrees on every parameter's rate and decay, and trains the same model: see make_mup_fixture.py.

Its head (MuReadout) divides its input by the width over the base's. The same head without that factor has weights, and a rate,
divided by it, and a decay multiplied by it.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from lit_opt import Recipe, Transfer
from tests.transfer.mup_models import BASE, MODELS, SETTINGS, WIDTH, decayed, fill, plain, train

MUP = json.loads((Path(__file__).parents[1] / "fixtures" / "mup.json").read_text())
GROWN = WIDTH / BASE


@pytest.mark.parametrize("optimizer", SETTINGS)
@pytest.mark.parametrize("name", MODELS)
def test_rates_decays_and_losses(name: str, optimizer: str) -> None:
    theirs, given = MUP[f"{name} {optimizer}"], dict(SETTINGS[optimizer])
    module = plain(name, WIDTH).double()
    fill(module)
    with torch.no_grad():
        module.head.weight.div_(GROWN)  # type: ignore[operator, union-attr]
    kwargs = {key: given.pop(key) for key in ("eps",) if key in given}
    recipe = Recipe(
        "llm", optimizer=optimizer, warmup=0, decay="constant", clip=0, ema=0, optimizer_kwargs=kwargs or None,
        transfer=Transfer(base=partial(plain, name, BASE)), **given,
    )  # fmt: skip
    ours, _ = recipe.configure(module, total_steps=9, global_batch=1)
    found = {id(p): (g["lr"], g["weight_decay"]) for g in ours.param_groups for p in g["params"]}
    for key, p in module.named_parameters():
        rate, decay = theirs["lr"][key], theirs["weight_decay"][key]
        if key == "head.weight":
            # SGD's gradient has their factor as well: with it squared, their rate of x 4 is one of / 4.
            rate, decay = (rate / GROWN, decay * GROWN) if optimizer == "adamw" else (rate / GROWN**2, decay * GROWN**2)
        assert found[id(p)][0] == pytest.approx(given["lr"] * rate), key
        assert found[id(p)][1] == pytest.approx(given["weight_decay"] * decay if decayed(key, p) else 0.0), key
    losses = train(name, module, ours)
    # The recipe's rates are float64 numbers; what differs is rounding, and epsilon where a gradient is 0.
    assert losses == pytest.approx(theirs["losses"], rel=1e-6)
    assert losses[-1] < 0.9 * losses[0]
