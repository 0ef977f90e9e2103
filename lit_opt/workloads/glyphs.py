"""Drawn letters and digits of many fonts, any number of them: sample i is a pure function of (seed, i).

Each glyph of each font is rasterised once and kept as a signed distance field (for each pixel the distance to
the outline, positive inside). A sample is one bilinear look-up into it along an affine map, for a whole batch
at once; thickness and blur are then a threshold and a slope.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from lit_opt.errors import RecipeError
from lit_opt.workloads.counter_random import uniform
from lit_opt.workloads.data_module import ResumableDataModule
from lit_opt.workloads.require import require, whole_number_problems

# EMNIST's 47 balanced classes (1702.05373, section II): small letters that are no scaled copy of the capital
CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt"
FONTS = {
    "DejaVuSans": "sans",
    "DejaVuSans-Bold": "bold sans",
    "DejaVuSans-Oblique": "italic sans",
    "DejaVuSans-BoldOblique": "bold italic sans",
    "DejaVuSerif": "serif",
    "DejaVuSerif-Bold": "bold serif",
    "DejaVuSerif-Italic": "italic serif",
    "DejaVuSerif-BoldItalic": "bold italic serif",
    "DejaVuSansMono": "mono",
    "DejaVuSansMono-Bold": "bold mono",
    "DejaVuSansMono-Oblique": "italic mono",
    "DejaVuSansMono-BoldOblique": "bold italic mono",
    "STIXGeneral": "serif",
    "STIXGeneralBol": "bold serif",
    "STIXGeneralItalic": "italic serif",
    "STIXGeneralBolIta": "bold italic serif",
    "cmr10": "serif",
    "cmb10": "bold serif",
    "cmti10": "italic serif",
    "cmss10": "sans",
    "cmtt10": "mono",
}
CAPTION_LENGTH = 56  # bytes; the longest caption has 53, and one END
END, PAD = 10, 0  # a newline ends a caption

_FIRST_VALIDATION_INDEX = 2**40  # far beyond any training index
_MASTER, _GLYPH = 64, 44  # pixels of a distance field, and of the larger side of the glyph in it


class Glyphs(ResumableDataModule):
    """Letters and digits in 21 fonts, shifted, scaled, rotated, sheared, blurred, and with noise.

    The fonts ship with matplotlib; nothing is downloaded. A batch is (images, labels): float images
    (batch_size, channels, image_size, image_size) from -1 (black) to 1 (white), a bright glyph on a dark
    ground, and labels 0..46, places in `CHARACTERS`. Samples repeat in each epoch, without further
    augmentation; the validation samples are the same for every seed, and no training sample.

    With `captions=True` a batch is (images, captions): bytes of a text such as "a bold italic serif capital
    Q, rotated left, small" as integers (batch_size, 56), one END (10) after the text and PAD (0) from there.
    The captions are exact: what they name was drawn from separate ranges. `caption(index)`,
    `encode_caption` and `decode_caption` give the text.

    Args:
        image_size: Height and width in pixels, at least 16; below 28 small letters become hard to read.
        channels: 1 for grey, 3 for a random colour on a random dark ground.
        captions: Give captions in place of labels.
        train_samples: Number of training images.
        val_samples: Number of validation images.
        batch_size: Images in a batch of one process.
        val_batch_size: Images in a validation batch; by default `batch_size`.
        seed: Decides the training samples and their order.
        num_workers: Worker processes; drawing takes about 50 microseconds an image.

    Raises:
        RecipeError: An argument is out of range; on `setup`, matplotlib or one of its fonts is missing.

    Example:
        >>> data = Glyphs(batch_size=8, captions=True)
        >>> data.caption(6)
        'a bold serif digit 8, rotated left, large'
        >>> data.setup("fit")
        >>> images, captions = next(iter(data.train_dataloader()))
        >>> images.shape, captions.shape
        (torch.Size([8, 1, 28, 28]), torch.Size([8, 56]))
    """

    num_classes = len(CHARACTERS)
    pixel_range = (-1.0, 1.0)

    def __init__(
        self,
        *,
        image_size: int = 28,
        channels: int = 1,
        captions: bool = False,
        train_samples: int = 100_000,
        val_samples: int = 2_000,
        batch_size: int = 128,
        val_batch_size: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        problems = whole_number_problems(16, image_size=image_size)
        problems += whole_number_problems(1, train_samples=train_samples, val_samples=val_samples)
        if channels not in (1, 3):
            problems.append(f"channels={channels!r}: 1 (grey) or 3 (colour) is needed.")
        if problems:
            raise RecipeError(problems)
        super().__init__(batch_size=batch_size, val_batch_size=val_batch_size, seed=seed, num_workers=num_workers)
        settings: dict[str, Any] = {"image_size": image_size, "channels": channels, "captions": captions}
        self._train = GlyphImages(train_samples, seed=seed, **settings)
        self._val = GlyphImages(val_samples, first_index=_FIRST_VALIDATION_INDEX, **settings)

    def datasets(self) -> tuple[GlyphImages, GlyphImages]:
        """Rasterise the fonts once in this process; worker processes share the result."""
        _distance_fields()
        return self._train, self._val

    def caption(self, index: int) -> str:
        """The caption of a training sample.

        Args:
            index: From 0.
        """
        return self._train.caption(index)


class _Drawn(NamedTuple):
    """What was drawn for each sample, arrays of length n."""

    character: NDArray[np.int64]  # place in CHARACTERS
    font: NDArray[np.int64]  # place in FONTS
    tilt: NDArray[np.int64]  # -1 right, 0 upright, 1 left
    size: NDArray[np.int64]  # 0 small, 1 medium, 2 large
    rest: NDArray[np.float64]  # uniform numbers for what a caption does not tell


class GlyphImages(Dataset[tuple[Tensor, Tensor]]):
    """Samples `first_index` to `first_index + samples` of the stream of a seed; see `Glyphs`.

    Example:
        >>> glyphs = GlyphImages(1000, seed=3)
        >>> image, label = glyphs[7]
        >>> image.shape, CHARACTERS[label] == glyphs.caption(7).split(",")[0][-1]
        (torch.Size([1, 28, 28]), True)
    """

    def __init__(
        self,
        samples: int,
        *,
        seed: int = 0,
        first_index: int = 0,
        image_size: int = 28,
        channels: int = 1,
        captions: bool = False,
    ) -> None:
        self.samples, self.seed, self.first_index = samples, seed, first_index
        self.image_size, self.channels, self.captions = image_size, channels, captions

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.samples_at([index])[0]

    def samples_at(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Several samples at once, each the same as alone; `ResumableLoader` fetches batches with it."""
        drawn = self._draw(indices)
        if self.captions:
            targets = torch.stack([encode_caption(text) for text in _captions(drawn)])
        else:
            targets = torch.from_numpy(drawn.character)
        return list(zip(self._images(indices, drawn), targets, strict=True))

    def caption(self, index: int) -> str:
        """The text that describes a sample, whether `captions` is set or not."""
        return _captions(self._draw([index]))[0]

    def _counters(self, indices: Sequence[int]) -> list[int]:
        for index in indices:
            if not 0 <= index < self.samples:
                raise IndexError(f"index {index} is not in 0..{self.samples - 1}")
        return [self.first_index + index for index in indices]

    def _draw(self, indices: Sequence[int]) -> _Drawn:
        u = uniform(self.seed, self._counters(indices), 24)
        character, font, tilt, size = (
            (u[:, i] * n).astype(np.int64) for i, n in enumerate((len(CHARACTERS), len(FONTS), 3, 3))
        )
        return _Drawn(character, font, tilt - 1, size, u[:, 4:])

    def _images(self, indices: Sequence[int], drawn: _Drawn) -> Tensor:
        """Images (n, channels, image_size, image_size) from -1 to 1, rounded to 256 steps."""
        u = drawn.rest
        side, n = self.image_size, len(indices)
        # gaps between the ranges: a caption's "small" or "rotated left" is never a matter of taste
        angle = np.deg2rad(np.where(drawn.tilt == 0, 10 * u[:, 0] - 5, drawn.tilt * (12 + 14 * u[:, 0])))
        size = np.array([0.46, 0.62, 0.78])[drawn.size] + 0.08 * u[:, 1]  # share of the image's height
        shear = 0.16 * u[:, 2] - 0.08
        shift = (u[:, 3:5] - 0.5) * (1.1 - size)[:, None]  # in half images; the glyph stays inside
        cos, sin, zoom = np.cos(angle), np.sin(angle), _GLYPH / _MASTER / size
        # from a place in the image to a place in the distance field: unshift, unrotate, unshear, unscale
        to_field = np.stack([cos - shear * sin, -sin - shear * cos, sin, cos], 1) * zoom[:, None]
        a, b, c, d, dx, dy, per_pixel, bolder, slope, noise = torch.tensor(
            np.column_stack(
                [
                    to_field,
                    shift,
                    size * side / _GLYPH,  # image pixels in a pixel of the field
                    (0.6 * u[:, 5] - 0.2) * side / 28,  # pixels added on either side of a stroke
                    1 / (1 + 1.2 * u[:, 6] ** 2),  # of the edge: 1 is sharp
                    0.08 * u[:, 7],
                ]
            ),
            dtype=torch.float32,
        ).T[:, :, None, None]
        centres = (torch.arange(side) + 0.5) / side * 2 - 1
        x, y = centres[None, None, :] - dx, centres[None, :, None] - dy
        fields = _distance_fields()[drawn.font * len(CHARACTERS) + drawn.character]
        grid = torch.stack([a * x + b * y, c * x + d * y], dim=-1)
        distance = F.grid_sample(fields[:, None], grid, padding_mode="border", align_corners=False)[:, 0]
        inside = (0.5 + slope * (distance * per_pixel + bolder)).clamp(0, 1)[:, None]
        if self.channels == 1:
            bright, dark = 0.7 + 0.3 * u[:, 8:9], 0.2 * u[:, 9:10] ** 2
        else:
            bright, dark = 0.5 + 0.5 * u[:, 8:11], 0.35 * u[:, 11:14]
        low, high = (torch.tensor(c, dtype=torch.float32)[:, :, None, None] for c in (dark, bright))
        counters = self._counters(indices)
        grain = uniform(self.seed + 2**32, counters, self.channels * side * side)  # another stream
        speckle = torch.from_numpy(grain.astype(np.float32)).reshape(n, self.channels, side, side) * 2 - 1
        image = low + (high - low) * inside + noise[:, None] * speckle
        return (image.clamp(0, 1) * 255).round() / 127.5 - 1


def encode_caption(text: str) -> Tensor:
    """A caption as integers of shape (56,): its bytes, END, and PAD up to the fixed length.

    Raises:
        RecipeError: The text is too long, or holds an END or a PAD.

    Example:
        >>> encode_caption("a mono digit 7")[-4:], decode_caption(encode_caption("a mono digit 7"))
        (tensor([0, 0, 0, 0]), 'a mono digit 7')
    """
    content = text.encode()
    if len(content) >= CAPTION_LENGTH or END in content or PAD in content:
        raise RecipeError(
            [
                f"caption {text!r}: at most {CAPTION_LENGTH - 1} bytes in one line are allowed, and"
                f" these are {len(content)}. Shorten it."
            ]
        )
    return torch.tensor([*content, END, *[PAD] * (CAPTION_LENGTH - 1 - len(content))])


def decode_caption(tokens: Tensor) -> str:
    """The text up to the first END or PAD; bytes that are no valid UTF-8 show as U+FFFD.

    Example:
        >>> decode_caption(torch.tensor([97, 32, 98, 10, 99]))
        'a b'
    """
    content = bytes(tokens.tolist())
    return content.partition(bytes([END]))[0].partition(bytes([PAD]))[0].decode(errors="replace")


def _captions(drawn: _Drawn) -> list[str]:
    texts = []
    for character, font, tilt, size in zip(*drawn[:4], strict=True):
        glyph, style = CHARACTERS[character], list(FONTS.values())[font]
        kind = "digit" if glyph.isdigit() else "capital" if glyph.isupper() else "lowercase"
        turned = {-1: ", rotated right", 0: "", 1: ", rotated left"}[int(tilt)]
        sized = (", small", "", ", large")[size]
        article = "an" if style.startswith("i") else "a"
        texts.append(f"{article} {style} {kind} {glyph}{turned}{sized}")
    return texts


@cache
def _distance_fields() -> Tensor:
    """Signed distances in pixels, shape (fonts * characters, 64, 64); a second or two, once a process."""
    matplotlib = require("matplotlib", "Glyphs")
    image, image_font = require("PIL.Image", "Glyphs"), require("PIL.ImageFont", "Glyphs")
    image_draw = require("PIL.ImageDraw", "Glyphs")
    distance = require("scipy.ndimage", "Glyphs").distance_transform_edt
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    missing = [name for name in FONTS if not (folder / f"{name}.ttf").exists()]
    if missing:
        raise RecipeError(
            [
                f"Glyphs: these fonts are not in {folder}: {', '.join(missing)}. Every release of matplotlib"
                " brings them; type: pip install --force-reinstall matplotlib."
            ]
        )
    fields = []
    for name in FONTS:
        large = image_font.truetype(str(folder / f"{name}.ttf"), 200)
        for character in CHARACTERS:
            left, top, right, bottom = large.getbbox(character, anchor="ls")
            # twice the size of the field, so that the outline is known to half a pixel of it
            em = 2 * _GLYPH * 200 / max(right - left, bottom - top)
            font = image_font.truetype(str(folder / f"{name}.ttf"), em)
            centre = [_MASTER - em / 200 * (a + b) / 2 for a, b in ((left, right), (top, bottom))]
            canvas = image.new("L", (2 * _MASTER, 2 * _MASTER))
            image_draw.Draw(canvas).text(tuple(centre), character, fill=255, font=font, anchor="ls")
            inside = np.asarray(canvas) >= 128
            signed = distance(inside) - distance(~inside)
            fields.append(torch.from_numpy(signed).float())
    # distances between pixel centres are half a pixel too long on either side of the outline
    stacked = torch.stack(fields)
    stacked = stacked - 0.5 * stacked.sign()
    return F.avg_pool2d(stacked[:, None], 2)[:, 0] / 2
