"""The vision-language workload: what it computes, that it sees the image, and that it trains under its recipe."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lit_opt import Recipe
from lit_opt.errors import RecipeError
from lit_opt.param_groups import group_parameters
from lit_opt.workloads import ResumableDataModule, VisionLanguageModel
from lit_opt.workloads.report import vision_language_lines
from lit_opt.workloads.vision_language import END, PAD, _text
from tests.workloads.test_text import quiet_trainer

TINY = {"vision_width": 8, "width": 16, "layers": 1, "heads": 2}


def batch(texts: list[str], length: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    rows = [[*text.encode(), END] for text in texts]
    captions = torch.tensor([row + [PAD] * (length - len(row)) for row in rows])
    images = torch.stack([torch.full((1, 28, 28), float(sum(row) % 7) / 3 - 1) for row in rows])
    return images, captions


class Dots(ResumableDataModule):
    """Bright images are called "light", dark ones "dark": the image alone tells."""

    def datasets(self):
        images, captions = batch(["dark", "light"] * 32)
        images = torch.stack([torch.full((1, 28, 28), -1.0 if i % 2 == 0 else 1.0) for i in range(64)])
        samples = list(zip(images, captions, strict=True))
        return samples, samples[:8]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def test_the_loss_is_that_of_the_captions_bytes_alone():
    model = VisionLanguageModel(**TINY).eval()
    images, captions = batch(["ab", "a longer"])
    total, count = 0.0, 0
    for image, caption in zip(images, captions, strict=True):
        true = caption[caption != PAD][None]  # END included
        logits = model(image[None], true)
        total += float(F.cross_entropy(logits[0], true[0], reduction="sum").detach())
        count += true.shape[1]
    assert float(model.loss(images, captions).detach()) == pytest.approx(total / count, rel=1e-5)


def test_a_byte_is_predicted_from_the_image_and_the_bytes_before_it():
    model = VisionLanguageModel(**TINY).eval()
    images, captions = batch(["abcdef"])
    logits = model(images, captions)
    changed = captions.clone()
    changed[0, 3] = 120
    after = model(images, changed)
    torch.testing.assert_close(after[0, :4], logits[0, :4])
    assert not torch.allclose(after[0, 4], logits[0, 4])
    assert not torch.allclose(model(images + torch.randn_like(images), captions)[0, 0], logits[0, 0])


def test_writing_is_greedy_decoding():
    model = VisionLanguageModel(**TINY)
    images, _ = batch(["ab", "cd", "efg"])
    expected = []
    for image in images:  # without a cache, one image at a time
        bytes_: list[int] = []
        for _ in range(6):
            so_far = torch.tensor([[*bytes_, 0]])
            bytes_.append(int(model.eval()(image[None], so_far)[0, -1].argmax()))
        expected.append(_text(bytes_))
    assert model.train().write(images, length=6) == expected
    assert model.training


def test_it_learns_to_see_under_the_vlm_recipe():
    model = VisionLanguageModel(**TINY, decoded=6)
    slow = {"projector": {"lr_scale": 1.0}}  # ten times a rate for tiny models would be too much
    trainer = quiet_trainer(max_steps=60, callbacks=[Recipe("vlm", lr=1e-2, parts=slow)])
    trainer.fit(model, Dots(batch_size=16))
    [row] = trainer.validate(model, Dots(batch_size=4), verbose=False)
    assert row["caption_accuracy"] == row["word_accuracy"] == 1.0 and row["val_loss"] < 3
    assert model.shown == [("dark", "dark"), ("light", "light")] * 3
    lines = vision_language_lines(model, trainer.callback_metrics)
    assert lines[0].startswith("Validation: 100.0 % of the captions") and lines[1:3] == [
        "  is:      dark",
        "  written: dark",
    ]


def test_the_parts_are_found_by_their_names():
    groups = group_parameters(VisionLanguageModel(**TINY), "vlm")
    assert groups.notes == ()
    rates = {s.name.split("/")[1]: s.lr for s in groups.summary()}
    assert rates == pytest.approx({"projector": 1e-3, "language_model": 5e-5, "vision_tower": 5e-5})


def test_arguments_are_checked_at_once():
    with pytest.raises(RecipeError, match="layers=0") as caught:
        VisionLanguageModel(layers=0, heads=True)
    assert "heads=True" in str(caught.value)
    with pytest.raises(RecipeError, match="width=20: a multiple of 8 is needed for heads=4"):
        VisionLanguageModel(width=20)


def test_nothing_is_shown_before_a_validation():
    assert vision_language_lines(VisionLanguageModel(**TINY), {}) == []
