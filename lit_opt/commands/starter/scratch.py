"""The starter projects that train from scratch, one a setting."""

from __future__ import annotations

from dataclasses import replace

from lit_opt.commands.generate_configs import TABLE
from lit_opt.commands.starter.project import Project
from lit_opt.commands.starter.source import Source

# The functions of the library say on whose behalf they need torchvision.
_CROPS = (
    ('random_crop(self.image_size, "ImageFolder")', "random_crop(self.image_size)"),
    ('centre_crop(self.image_size, "ImageFolder")', "centre_crop(self.image_size)"),
    ("def random_crop(image_size: int, who: str)", "def random_crop(image_size: int)"),
    ("def centre_crop(image_size: int, who: str)", "def centre_crop(image_size: int)"),
)
_IMAGES = (Source(file="image_data.py", keep=("Digits", "ImageFolder"), edits=_CROPS),)
CLASSIFIER = Source(file="image_classifier.py", keep=("ImageClassifier",))
_GLYPHS = Source(
    file="glyphs.py",
    keep=("Glyphs",),
    imported=("GlyphImages", "CHARACTERS"),
    edits=(
        ('"""Rasterise the fonts once in this process; worker processes share the result."""', '"""Two datasets."""'),
        ("        _distance_fields()\n", ""),
    ),
)

_CLASSES = (
    "images, labels = batch",
    "assert images.ndim == 4 and images.shape[1] == 3 and images.dtype == torch.float32",
    "assert labels.shape == (len(images),)",
    "assert model(images).shape == (len(images), {classes})",
)
_OWN_IMAGES = """\
`data.py` has `ImageFolder` beside the data that it starts with. It reads `train/<class>/<image>` and
`val/<class>/<image>`; in `config.yaml`:

```yaml
data:
  class_path: data.ImageFolder
  init_args: {root: path/to/images, image_size: 224, batch_size: 64}
```

and give the model as many classes: `model.init_args.num_classes`. For data of another kind let `datasets()` return two
torch datasets, for training and for validation, of (image, label)."""
_OWN_TEXT = """\
In `config.yaml`, a text file or a folder with some:

```yaml
data:
  class_path: data.ByteText
  init_args: {path: path/to/text, max_bytes: 100000000}
```

For tokens in place of bytes let `datasets()` in `data.py` return windows of token ids, and give the model their number:
`vocab_size` in `model.py`."""

WITHOUT_ADAPTERS = (
    (
        "        lora_rank: Train adapters of this rank beside all linear layers but the head (peft's LoRA, with alpha twice\n"
        "            the rank) and freeze everything else; 0 trains the model itself.\n",
        "",
    ),
    ("        lora_rank: int = 0,\n", ""),
    ("        if lora_rank:\n            self._add_adapters(lora_rank, on_random_weights=weights is None)\n", ""),
)

LLM = Project(
    line="a small Llama from scratch, over the bytes of any text",
    recipe="llm",
    work=TABLE["llm"][1],
    model=Source(file="language_model.py", keep=("LanguageModel",), without=("_add_adapters",), edits=WITHOUT_ADAPTERS),
    data=(Source(file="text_data.py", keep=("ByteText",)),),
    small_model={"layers": 1, "width": 32, "heads": 2, "mlp_width": 64, "context": 64},
    small_data={"seq_len": 64, "batch_size": 8, "max_bytes": 100_000, "val_windows": 32},
    steps=40,
    falls_to=0.85,
    test_recipe={"lr": 1e-2, "warmup": 5},
    shapes=(
        "assert batch.shape == (8, 65) and batch.dtype == torch.long",
        "assert model(batch[:, :-1]).shape == (8, 64, 256)",
        'assert model.sample("def ", n_bytes=3).startswith("def ")',
    ),
    own_data=_OWN_TEXT,
    own_model="The size of the model is in `model.init_args` (layers, width, heads, mlp_width), the length of the text "
    "that it sees in `context` of the model and `seq_len` of the data.",
)

CNN = Project(
    line="a narrow ResNet-18, or any CNN of timm or torchvision, on images with labels",
    recipe="cnn",
    work=TABLE["cnn"][1],
    model=CLASSIFIER,
    data=_IMAGES,
    small_model={"width": 0.125},
    small_data={"batch_size": 64},
    steps=40,
    falls_to=0.9,
    test_recipe={"lr": 0.1},
    shapes=tuple(line.format(classes=10) for line in _CLASSES),
    own_data=_OWN_IMAGES,
    own_model="`model: resnet50, small_images: false, width: 1.0` in `model.init_args` is the published network; any name "
    "of timm or torchvision will do.",
)

_SMALL_VIT = {
    "model": "vit_tiny_patch16_224",
    "small_images": False,
    "width": 1.0,
    "model_kwargs": {"img_size": 16, "patch_size": 4, "embed_dim": 48, "depth": 2, "num_heads": 3},
}

VIT = replace(
    CNN,
    line="a small vision transformer on images with labels",
    recipe="vit",
    work=TABLE["vit"][1],
    small_model=_SMALL_VIT,
    steps=60,
    falls_to=0.95,
    test_recipe={"lr": 3e-3},
    own_model="In `model.init_args`, `model: vit_small_patch16_224, model_kwargs: {}` is the published network for images "
    "of 224 pixels.",
)

_DDPM = replace(
    TABLE["diffusion"][1],
    about="A small UNet that learns to draw the digits by DDPM; see the pictures in the run's folder.",
    model_args={"objective": "ddpm"},
    labelled={
        "lr": (1e-3, "for a tiny model: Frechet distance 3.6 against 134, mean of 3 seeds, averages (600 steps)"),
    },
)

DIFFUSION = Project(
    line="a small UNet that learns to draw, by DDPM",
    recipe="diffusion",
    work=_DDPM,
    model=Source(file="diffusion.py", keep=("DiffusionModel",)),
    data=_IMAGES,
    small_model={"objective": "ddpm", "width": 8, "grid_steps": 0},
    small_data={"batch_size": 64},
    steps=40,
    falls_to=0.8,
    test_recipe={"lr": 3e-3},
    shapes=(
        "images, labels = batch",
        "noisy = torch.zeros(len(images), 1, 16, 16)",
        "assert model(noisy, torch.rand(len(images)), labels).shape == noisy.shape",
        "assert model.sample(3, steps=2).shape == (3, 1, 16, 16)",
    ),
    own_data=_OWN_IMAGES.partition("\n\nand give")[0]
    + """

The model draws in grey: it averages the channels. `image_size`, `num_classes` and `value_range` (black and white of the
data) in `model.init_args` have to fit the data. For colour give `UNet2DModel` in `model.py` three channels in and out, and
leave out the mean in `_scaled`.""",
    own_model="`width` is the channels of the UNet. The averages of the weights are what is validated, sampled and meant "
    "to be kept: `lit-opt export-ema last.ckpt weights.pt`.",
)

FLOW = replace(
    DIFFUSION,
    line="a small UNet that learns to draw, by flow matching",
    work=TABLE["diffusion"][1],
    small_model={**DIFFUSION.small_model, "objective": "flow"},
)

VLM = Project(
    line="a vision tower, a projector and a language model that caption images",
    recipe="vlm",
    work=TABLE["vlm"][1],
    model=Source(file="vision_language.py", keep=("VisionLanguageModel",)),
    data=(_GLYPHS,),
    small_model={"vision_width": 8, "width": 32, "layers": 1, "heads": 2, "decoded": 4},
    small_data={"captions": True, "batch_size": 32, "train_samples": 2_000, "val_samples": 64},
    steps=30,
    falls_to=0.7,
    test_recipe={"lr": 6e-3, "parts": {"projector": {"lr_scale": 1.0}}},
    shapes=(
        "images, captions = batch",
        "assert images.shape == (32, 1, 28, 28) and captions.shape == (32, 56)",
        "assert model(images, captions).shape == (32, 56, 256)",
        "assert len(model.write(images[:2], length=3)) == 2",
    ),
    own_data="""\
Let `datasets()` in `data.py` return two torch datasets, for training and for validation, of (image, caption): a float
image (channels, height, width), and the caption as integers of one length: `lit_opt.workloads.glyphs.encode_caption(text)`
gives the bytes of a text of up to 55 bytes. Then `channels` in `model.init_args` is 1 for grey images and 3 for colour.""",
    own_model="The parts are called `vision_tower`, `multi_modal_projector` and `language_model`, and the recipe finds them by "
    'these names. With other names, or to change their rates: `parts: {projector: "*.bridge.*"}` under `recipe:`.',
)

LARGE = Project(
    line="a CNN at a batch of 4,096 with LARS, as 16 batches of 256",
    recipe="large_batch/lars",
    work=TABLE["large_batch/lars"][1],
    model=CLASSIFIER,
    data=(_GLYPHS, Source(file="image_data.py", keep=("ImageFolder",), edits=_CROPS)),
    small_model={"num_classes": 47, "small_images": False, "width": 0.125},
    small_data={"channels": 3, "batch_size": 128, "train_samples": 4_000, "val_samples": 200},
    steps=30,
    falls_to=0.9,
    test_recipe={"lr": 10.0, "warmup": 10},
    test_trainer={"accumulate_grad_batches": 2},
    shapes=tuple(line.format(classes=47) for line in _CLASSES),
    own_data=_OWN_IMAGES,
    own_model="The batch is `batch_size` x `accumulate_grad_batches` x devices. Up to 8,192 images plain SGD does as well: always "
    "run the control beside it, `--recipe.name=large_batch/control`, and `large_batch/lamb` for transformers.",
)
