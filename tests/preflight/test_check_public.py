"""False alarms: on published setups, and on every recipe of the package, no error and no warning."""

from __future__ import annotations

import pytest
from torch import nn

from lit_opt import Recipe
from lit_opt.preflight.check import CHECKS
from lit_opt.recipes import get_recipe, list_recipes
from lit_opt.resolve.resolved import ResolvedRecipe
from tests.preflight.public_images import IMAGES
from tests.preflight.public_language import LANGUAGE, _peft
from tests.preflight.public_second import SECOND
from tests.preflight.setups import CNN, LM, TOTAL, Denoiser, ViT, run, stepped

PUBLIC = LANGUAGE | IMAGES | SECOND
# What is said of a published setup that is not wrong. Each is explained in benchmarks/results/check_false_alarms.md.
KNOWN = {
    "RoBERTa (fairseq)": ["no-clipping"],
    "llm-optimizer-benchmark AdamW": ["beta2-llm"],
    "mmpretrain ViT": ["decay-on-norms"],
    "torchtitan FLUX": ["ema-missing"],
}


def loud(report):
    return [finding.id for finding in report.findings if finding.level != "note"]


def test_there_are_enough_of_them():
    assert len(PUBLIC) == 74


@pytest.mark.parametrize("name", PUBLIC)
def test_published_setups(name):
    _, make = PUBLIC[name]
    assert loud(make()) == KNOWN.get(name, [])


def fitting(name):
    """A small model that a recipe fits."""
    if name.endswith("lora"):
        return _peft()
    setting = get_recipe(name).setting
    parts = ("vision_tower", "multi_modal_projector", "language_model")
    if setting == "vlm":
        return nn.ModuleDict({part: LM() for part in parts})
    return {"llm": LM, "vit": ViT, "cnn": CNN, "diffusion": Denoiser, "large_batch": CNN}[setting]()


# Where the published batch of a recipe lies.
BATCH = {
    "large_batch/lars": 16_384,
    "large_batch/lamb": 16_384,
    "large_batch/control": 8192,
    "vit": 1024,
    "vit/lamb": 2048,
}


@pytest.mark.parametrize("name", list_recipes())
def test_the_packages_own_recipes(name):
    module = fitting(name)
    recipe = Recipe(name)
    batch = BATCH.get(name, 256)
    optimizer, scheduler = recipe.configure(module, total_steps=TOTAL, global_batch=batch, steps_per_epoch=1000)
    resolved = recipe.resolved
    assert isinstance(resolved, ResolvedRecipe)
    clip = resolved.clip.limit if resolved.clip else 0.0
    report = run(
        module,
        optimizer,
        stepped(scheduler),
        recipe=resolved,
        batch=batch,
        callbacks=[recipe],
        trainer={"clip": clip, "clip_by": "Recipe(clip)"},
    )
    assert loud(report) == []
    assert report.unjudged == ()
    assert report.setting == get_recipe(name).registry_key


def test_every_check_is_planted_somewhere():
    """The tests name each id, where the fault is planted."""
    from pathlib import Path

    text = "".join(path.read_text() for path in Path(__file__).parent.glob("test_check_*.py"))
    assert [check.id for check in CHECKS if f'"{check.id}"' not in text] == []
    assert len({check.id for check in CHECKS}) == len(CHECKS)
