"""The procedural glyphs: pure functions of (seed, index), disjoint validation, captions that tell the truth."""

import math

import pytest
import torch

from lit_opt.errors import RecipeError
from lit_opt.workloads.glyphs import (
    CAPTION_LENGTH,
    CHARACTERS,
    FONTS,
    GlyphImages,
    Glyphs,
    _distance_fields,
    decode_caption,
    encode_caption,
)


def test_a_sample_depends_on_seed_and_index_alone():
    glyphs = GlyphImages(1000, seed=3)
    batch = glyphs.samples_at([5, 900, 7])
    for index, (image, label) in zip([5, 900, 7], batch, strict=True):
        torch.manual_seed(index)
        alone, same = glyphs[index]
        assert torch.equal(alone, image) and same == label
    assert not torch.equal(GlyphImages(1000, seed=4)[5][0], batch[0][0])
    assert torch.equal(GlyphImages(6, seed=3)[5][0], batch[0][0]), "the number of samples changes none of them"


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    GlyphImages(10)[3]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 32), (1, 16)])
def test_shapes_and_range(channels, side):
    images = torch.stack([x for x, _ in GlyphImages(64, channels=channels, image_size=side).samples_at(range(64))])
    assert images.shape == (64, channels, side, side) and images.dtype == torch.float32
    assert images.min() >= -1 and images.max() <= 1
    assert (images.amax(dim=(1, 2, 3)) - images.amin(dim=(1, 2, 3)) > 0.4).all(), "a glyph is seen in each"


def test_every_character_of_every_font_is_drawn():
    fields = _distance_fields()
    assert len(fields) == len(FONTS) * len(CHARACTERS)
    assert (fields.amax(dim=(1, 2)) > 0.5).all() and (fields.amin(dim=(1, 2)) < -5).all()
    by_font = fields.view(len(FONTS), len(CHARACTERS), -1)
    for font in by_font:
        assert len({tuple(f.sign().int().tolist()) for f in font}) == len(CHARACTERS), "a box for a missing glyph"


def test_validation_is_the_same_for_every_seed_and_no_training_sample():
    one, two = (Glyphs(train_samples=300, val_samples=50, seed=seed) for seed in (0, 1))
    (train, val), (other, same) = one.datasets(), two.datasets()
    assert all(
        torch.equal(a[0], b[0]) for a, b in zip(val.samples_at(range(50)), same.samples_at(range(50)), strict=True)
    )
    seen = {x.numpy().tobytes() for x, _ in [*train.samples_at(range(300)), *other.samples_at(range(300))]}
    assert len(seen) == 600 and not seen & {x.numpy().tobytes() for x, _ in val.samples_at(range(50))}


def test_captions_fit_their_images():
    """Words are measured in the pixels: the height of the glyph and the direction it leans to."""
    glyphs = GlyphImages(4000)
    lean: dict[str, list[float]] = {"left": [], "right": []}
    height: dict[str, list[float]] = {"small": [], "large": []}
    for index in range(4000):
        text = glyphs.caption(index)
        if text.split(",")[0].split()[-1] not in "HINM1" or "italic" in text:
            continue
        ink = ((glyphs[index][0][0] + 1) / 2 - 0.5).clamp(min=0)
        rows, columns = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
        x, y = columns - (ink * columns).sum() / ink.sum(), (ink * rows).sum() / ink.sum() - rows
        for word, values in height.items():
            if word in text:
                values.append(float((ink * y**2).sum() / ink.sum()) ** 0.5)
        for word, values in lean.items():
            if f"rotated {word}" in text and text.split(",")[0].endswith(("I", "1")):
                values.append(float((ink * x * y).sum() / (ink * y**2).sum()))
    mean = {word: sum(values) / len(values) for word, values in {**lean, **height}.items()}
    assert mean["left"] < -0.1 and mean["right"] > 0.1, "y points up: leaning left is a negative slope"
    assert mean["large"] > 1.3 * mean["small"]


def test_caption_tokens():
    data = Glyphs(captions=True, batch_size=4, train_samples=40)
    images, tokens = next(iter(data.train_dataloader()))
    assert images.shape == (4, 1, 28, 28) and tokens.shape == (4, CAPTION_LENGTH)
    assert all(decode_caption(row).split()[0] in ("a", "an") for row in tokens)
    assert max(len(data.caption(i)) for i in range(40)) < CAPTION_LENGTH
    with pytest.raises(RecipeError, match="at most 55 bytes"):
        encode_caption("x" * 56)


def test_labels_are_even():
    labels = torch.stack([label for _, label in GlyphImages(4700).samples_at(range(4700))])
    counts = torch.bincount(labels, minlength=47).float()
    assert (counts - 100).abs().max() < 5 * math.sqrt(100)


def test_the_stream_resumes_where_it_stopped():
    data = Glyphs(train_samples=64, batch_size=8)
    loader = data.train_dataloader()
    stream = iter(loader)
    for _ in range(3):
        next(stream)
    state, expected = data.state_dict(), next(stream)
    again = Glyphs(train_samples=64, batch_size=8)
    again.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(next(iter(again.train_dataloader())), expected, strict=True))


@pytest.mark.parametrize("wrong", [{"channels": 2}, {"image_size": 8}, {"train_samples": 0}, {"batch_size": 0}])
def test_arguments_are_refused(wrong):
    with pytest.raises(RecipeError, match=next(iter(wrong))):
        Glyphs(**wrong)
    with pytest.raises(IndexError, match="not in 0"):
        GlyphImages(3)[3]
