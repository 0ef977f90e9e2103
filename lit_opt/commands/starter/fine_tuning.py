"""The starter projects that fine-tune: the same workloads with an argument for pretrained weights."""

from __future__ import annotations

from dataclasses import replace

from lit_opt.commands.generate_configs import TABLE
from lit_opt.commands.starter.project import Pretraining
from lit_opt.commands.starter.scratch import CLASSIFIER, DIFFUSION, FLOW, LLM, VIT
from lit_opt.commands.starter.source import Source

_PRETRAINED = """        pretrained: A model to begin with: a folder that `save_pretrained` has written, or a name on the Hugging Face
            Hub; the other sizes are not used then.
"""


_OWN_RUN = (
    "`weights` takes the checkpoint of another run of the same model, such as one of a project that trains from scratch: "
    "`--model.weights=path/to/last.ckpt`. "
)


def _fine_tuning(source: Source, *edits: tuple[str, str], without: tuple[str, ...] = ()) -> Source:
    return replace(source, edits=(*source.edits, *edits), without=without)


_LLM_EDITS = (
    (
        "        weights: Start from the checkpoint of another run of this model; its averages where it has them.\n",
        "        weights: Start from the checkpoint of another run of this model; its averages where it has them.\n"
        + _PRETRAINED,
    ),
    (
        "        weights: str | None = None,\n",
        "        weights: str | None = None,\n        pretrained: str | None = None,\n",
    ),
    (
        "        if weights is not None:\n",
        "        if pretrained is not None:\n"
        "            # float32 weights are what an optimizer needs, whatever the file holds; it comes in evaluation mode\n"
        "            self.model = transformers.AutoModelForCausalLM.from_pretrained(pretrained).float().train()\n"
        "        if weights is not None:\n",
    ),
)
_TOKENIZER = (
    (
        "        path: str | Path | None = None,\n        *,\n",
        "        path: str | Path | None = None,\n        *,\n        tokenizer: str | None = None,\n",
    ),
    ("        self.path = Path(path)", "        self.tokenizer = tokenizer\n        self.path = Path(path)"),
    (
        "            without its tests.\n",
        "            without its tests.\n"
        "        tokenizer: Of the model: a folder, or a name on the Hugging Face Hub. The windows are then of its tokens,\n"
        "            and `max_bytes` still counts bytes.\n",
    ),
    (
        "        text = torch.frombuffer(bytearray(self.read()), dtype=torch.uint8)\n",
        "        raw = self.read()\n"
        "        text = torch.frombuffer(bytearray(raw), dtype=torch.uint8)\n"
        "        if self.tokenizer is not None:\n"
        "            tokenizer = transformers.AutoTokenizer.from_pretrained(self.tokenizer)\n"
        '            text = torch.tensor(tokenizer(raw.decode(errors="replace")).input_ids)\n',
    ),
    ("import torch\nfrom torch import Tensor\n", "import torch\nimport transformers\nfrom torch import Tensor\n"),
)
_LORA_EDIT = ("on_random_weights=weights is None", "on_random_weights=weights is None and pretrained is None")

LLM_FINETUNE = replace(
    LLM,
    line="all weights of a pretrained language model, on your text",
    recipe="llm/finetune",
    work=TABLE["llm/finetune"][1],
    model=_fine_tuning(LLM.model, *_LLM_EDITS, without=("sample", "_add_adapters")),
    data=(_fine_tuning(LLM.data[0], *_TOKENIZER),),
    steps=20,
    falls_to=0.98,
    test_recipe={"lr": 3e-3},
    shapes=LLM.shapes[:2],
    pretrain=Pretraining(
        recipe="llm",
        arguments={"lr": 1e-2, "warmup": 5},
        save="model.model.save_pretrained(folder)",
        load="small_model(pretrained=str(folder))",
    ),
    own_data="""\
In `config.yaml`, a model that transformers can load, with its tokenizer, and a text file or a folder with some:

```yaml
model:
  class_path: model.LanguageModel
  init_args: {pretrained: HuggingFaceTB/SmolLM2-135M}
data:
  class_path: data.ByteText
  init_args: {path: path/to/text, tokenizer: HuggingFaceTB/SmolLM2-135M, seq_len: 1024, batch_size: 4}
```

A name on the Hub is downloaded by transformers when the run starts; the path of a folder is not. With a tokenizer
`val_bpb` is bits per token.""",
    own_model=_OWN_RUN + "As it stands the model begins from scratch, which only shows that everything runs: the rates "
    "are for pretrained weights.",
)

LLM_LORA = replace(
    LLM_FINETUNE,
    line="adapters (LoRA) in a pretrained language model, on your text",
    recipe="llm/lora",
    work=TABLE["llm/lora"][1],
    model=Source(
        file="language_model.py",
        keep=("LanguageModel",),
        edits=(*_LLM_EDITS, _LORA_EDIT),
        without=("sample",),
    ),
    small_model={**LLM.small_model, "lora_rank": 8},
    steps=60,
    falls_to=0.985,
    test_recipe={"lr": 1e-2},
    pretrain=Pretraining(
        recipe="llm",
        arguments={"lr": 1e-2, "warmup": 5},
        save="model.model.save_pretrained(folder)",
        load="small_model(pretrained=str(folder))",
        model={"lora_rank": 0},
        renamed=(("base_model.model.", ""), (".base_layer.", ".")),
    ),
    own_model="`lora_rank` in `model.init_args`, and the layers that get adapters (`_add_adapters` in `model.py`), are what LoRA "
    "lets you choose. " + LLM_FINETUNE.own_model,
)

_VIT_EDITS = (
    (
        "        channels_last: bool = False,\n",
        "        channels_last: bool = False,\n        pretrained: bool = False,\n",
    ),
    (
        "faster for convolutions on most devices.\n",
        "faster for convolutions on most devices.\n"
        "        pretrained: Begin with timm's weights, which timm downloads; with those of a file where `model_kwargs` has\n"
        '            `pretrained_cfg_overlay: {"file": path, "num_classes": classes in it}`.\n',
    ),
    (
        "model, num_classes, small_images, width, model_kwargs or {})",
        'model, num_classes, small_images, width, {"pretrained": pretrained, **(model_kwargs or {})})',
    ),
    ("create_model(name, pretrained=False, num_classes", "create_model(name, num_classes"),
    (
        "    if not timm.is_model(name):\n",
        "    if not timm.is_model(name):\n"
        '        if kwargs.pop("pretrained"):\n'
        '            raise RecipeError([f"pretrained=True: {name!r} is torchvision\'s. Take the name of a timm model."])\n',
    ),
)

VIT_FINETUNE = replace(
    VIT,
    line="a pretrained vision transformer on your images, a rate for each layer",
    recipe="vit/finetune",
    work=TABLE["vit/finetune"][1],
    model=_fine_tuning(CLASSIFIER, *_VIT_EDITS),
    steps=30,
    falls_to=0.97,
    test_recipe={"lr": 3e-3},
    pretrain=Pretraining(
        recipe="vit",
        arguments={"lr": 3e-3},
        save='torch.save(model.model.state_dict(), folder)\n    overlay = {"file": str(folder), "num_classes": 10}',
        load='small_model(pretrained=True, model_kwargs={**SMALL["model_kwargs"], "pretrained_cfg_overlay": overlay})',
    ),
    own_model="In `model.init_args`, `model: vit_small_patch16_224, pretrained: true, model_kwargs: {}` begins with timm's weights, "
    "for images of 224 pixels; timm downloads them when the run starts. " + _OWN_RUN + "As it stands the model begins "
    "from scratch, which only shows that everything runs.",
)

DIFFUSION_FINETUNE = replace(
    FLOW,
    line="a pretrained diffusion model on your images",
    recipe="diffusion/finetune",
    work=TABLE["diffusion/finetune"][1],
    model=_fine_tuning(
        FLOW.model,
        (
            "        weights: str | None = None,\n",
            "        weights: str | None = None,\n        pretrained: str | None = None,\n",
        ),
        (
            "        weights: Start from the checkpoint of another run of this model; its averages where it has them.\n",
            "        weights: Start from the checkpoint of another run of this model; its averages where it has them.\n"
            "        pretrained: A UNet2DModel to begin with: a folder that `save_pretrained` has written, or a name on the\n"
            "            Hugging Face Hub; `width` is not used then.\n",
        ),
        (
            "            num_class_embeds=num_classes or None,\n        )\n",
            "            num_class_embeds=num_classes or None,\n        )\n"
            "        if pretrained is not None:  # it comes in evaluation mode\n"
            "            self.model = diffusers.UNet2DModel.from_pretrained(pretrained).float().train()\n",
        ),
    ),
    steps=20,
    falls_to=0.98,
    test_recipe={"lr": 1e-3, "warmup": 2},
    pretrain=Pretraining(
        recipe="diffusion",
        arguments={"lr": 3e-3},
        save="model.model.save_pretrained(folder)",
        load="small_model(pretrained=str(folder))",
    ),
    own_model="`pretrained` in `model.init_args` is the model to begin with. " + _OWN_RUN + "As it stands "
    "the model begins from scratch, which only shows that everything runs. " + DIFFUSION.own_model,
)
