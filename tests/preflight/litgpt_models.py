"""litgpt's GPT at real sizes on the meta device, for who has litgpt beside this package.

litgpt 0.5.13 wants huggingface-hub below 1.4 and jsonargparse up to 4.41, which shuts out transformers 5, so it is no
dependency of the tests. Its model needs torch alone: see `INSTALL`.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import nn

from lit_opt import Recipe
from lit_opt.preflight.check import Report
from lit_opt.recipes import get_recipe
from tests.preflight.setups import cosine, run, schedule, stepped

INSTALL = "pip install litgpt==0.5.13 --no-deps --target DIR; then PYTHONPATH=.:DIR"
HERE = find_spec("litgpt") is not None

# Name of litgpt's config -> (recipe, parameters in millions, lines of the plan). litgpt never ties the head: falcon-7b has
# 6921.7 where it is tied.
MODELS = {
    "Llama-2-7b-hf": ("llm", 6738.4, 10),
    "Qwen2.5-7B": ("llm/muon", 7615.6, 11),
    "pythia-1b": ("llm/muon", 1011.8, 16),
    "Mixtral-8x7B-v0.1": ("llm/muon", 46702.8, 11),
    "falcon-7b": ("llm", 7217.2, 10),
}


def build(name: str) -> nn.Module:
    """The model, on the meta device."""
    from litgpt import GPT, Config

    with torch.device("meta"):
        return GPT(Config.from_name(name))


def checked_with_recipe(name: str) -> Report:
    """What `check` says of a package's recipe on it."""
    module, recipe = build(name), Recipe(MODELS[name][0])
    optimizer, scheduler = recipe.configure(module, total_steps=100_000, global_batch=256, steps_per_epoch=1000)
    return run(
        module,
        optimizer,
        stepped(scheduler),
        recipe=recipe.resolved,
        callbacks=[recipe],
        trainer={"clip": 1.0, "clip_by": "Recipe(clip)"} if get_recipe(MODELS[name][0]).clip else {},
    )


def checked_as_litgpt_trains(name: str) -> Report:
    """litgpt/pretrain.py with config_hub/pretrain/tinyllama.yaml: one group of AdamW for everything, cosine to a tenth."""
    module = build(name)
    optimizer = torch.optim.AdamW(module.parameters(), lr=4e-4, weight_decay=0.1, betas=(0.9, 0.95))
    factor = cosine(1_430_000, 2000, 0.1)
    trainer = {"clip": 1.0, "precision": "bf16-mixed", "accelerator": "cuda"}
    return run(
        module,
        optimizer,
        schedule(optimizer, factor),
        "llm",
        total=1_430_000,
        batch=512,
        per_epoch=1_430_000,
        trainer=trainer,
    )
