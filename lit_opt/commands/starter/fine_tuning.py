"""The starter projects that fine-tune: the same workloads with an argument for pretrained weights."""

from __future__ import annotations

from dataclasses import replace

from lit_opt.commands.generate_configs import TABLE
from lit_opt.commands.starter.project import Pretraining
from lit_opt.commands.starter.scratch import CLASSIFIER, DIFFUSION, FLOW, LLM, VIT
from lit_opt.commands.starter.source import Source

_PRETRAINED = """        pretrained: A model to begin with: a folder that `save_pretrained` has written, or a name on the Hugging Face
            Hub; the other sizes are not used then. None begins from scratch, to show that it runs.
"""


def _fine_tuning(source: Source, *edits: tuple[str, str], without: tuple[str, ...] = ()) -> Source:
    return replace(source, edits=(*source.edits, *edits), without=without)


_LLM_EDITS = (
    (
        "        self, *, layers: int = 4, width: int = 128, heads: int = 4, mlp_width: int = 352, context: int = 256\n",
        "        self,\n        *,\n        layers: int = 4,\n        width: int = 128,\n        heads: int = 4,\n"
        "        mlp_width: int = 352,\n        context: int = 256,\n        pretrained: str | None = None,\n",
    ),
    (
        "at least the `seq_len` of the data.\n",
        "at least the `seq_len` of the data.\n" + _PRETRAINED,
    ),
    (
        "                eos_token_id=None,\n            )\n        )\n",
        "                eos_token_id=None,\n            )\n        )\n"
        "        if pretrained is not None:\n"
        "            # float32 weights are what an optimizer needs, whatever the file holds; it comes in evaluation mode\n"
        "            self.model = transformers.AutoModelForCausalLM.from_pretrained(pretrained).float().train()\n",
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
        "        text = torch.frombuffer(bytearray(read_bytes(self.path, self.max_bytes)), dtype=torch.uint8)\n",
        "        raw = read_bytes(self.path, self.max_bytes)\n"
        "        text = torch.frombuffer(bytearray(raw), dtype=torch.uint8)\n"
        "        if self.tokenizer is not None:\n"
        "            tokenizer = transformers.AutoTokenizer.from_pretrained(self.tokenizer)\n"
        '            text = torch.tensor(tokenizer(raw.decode(errors="replace")).input_ids)\n',
    ),
    ("import torch\nfrom torch import Tensor\n", "import torch\nimport transformers\nfrom torch import Tensor\n"),
)
_LORA = '''

class LoRA(nn.Module):
    """A frozen linear layer, and beside it two thin matrices that are trained (2106.09685).

    Args:
        linear: The layer.
        rank: Inner size of the two.
        alpha: Their product is multiplied by alpha / rank.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.linear, self.scale = linear, alpha / rank
        self.lora_A = nn.Parameter(torch.randn(rank, linear.in_features) / math.sqrt(linear.in_features))
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        """What the layer gives, and the correction."""
        correction: Tensor = self.scale * F.linear(F.linear(x, self.lora_A), self.lora_B)
        return self.linear(x) + correction


def add_lora(module: nn.Module, rank: int, alpha: float, names: tuple[str, ...] = ("q_proj", "v_proj")) -> None:
    """Freeze everything, and put adapters around the linear layers of these names."""
    module.requires_grad_(False)
    for owner in list(module.modules()):
        for name, child in list(owner.named_children()):
            if name in names and isinstance(child, nn.Linear):
                setattr(owner, name, LoRA(child, rank, alpha))
'''
_LORA_EDITS = (
    (
        "        pretrained: str | None = None,\n",
        "        pretrained: str | None = None,\n        rank: int = 8,\n        alpha: float = 16.0,\n",
    ),
    (
        "from scratch, to show that it runs.\n",
        "from scratch, to show that it runs.\n        rank: Inner size of the adapters; 0 trains all weights.\n"
        "        alpha: What they give is multiplied by alpha / rank.\n",
    ),
    (
        ".from_pretrained(pretrained).float().train()\n",
        ".from_pretrained(pretrained).float().train()\n"
        "        if rank:\n            add_lora(self.model, rank, alpha)\n",
    ),
    ("from torch import Tensor\n", "from torch import Tensor, nn\n"),
    ('        return text.decode(errors="replace")\n', '        return text.decode(errors="replace")\n' + _LORA),
)

LLM_FINETUNE = replace(
    LLM,
    line="all weights of a pretrained language model, on your text",
    recipe="llm/finetune",
    work=TABLE["llm/finetune"][1],
    model=_fine_tuning(LLM.model, *_LLM_EDITS, without=("sample",)),
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
    own_model="As it stands the model begins from scratch, which only shows that everything runs: the rates are for "
    "pretrained weights.",
)

LLM_LORA = replace(
    LLM_FINETUNE,
    line="adapters (LoRA) in a pretrained language model, on your text",
    recipe="llm/lora",
    work=TABLE["llm/finetune"][1],
    model=Source(
        file="language_model.py",
        keep=("LanguageModel",),
        edits=(*_LLM_EDITS, *_LORA_EDITS),
        without=("sample",),
    ),
    steps=40,
    falls_to=0.997,  # adapters of a tiny model can do little
    test_recipe={"lr": 3e-2},
    pretrain=Pretraining(
        recipe="llm",
        arguments={"lr": 1e-2, "warmup": 5},
        save="model.model.save_pretrained(folder)",
        load="small_model(pretrained=str(folder))",
        model={"rank": 0},
        renamed=("_proj.linear.", "_proj."),
    ),
    own_model="`rank`, `alpha` and the names of the layers (`add_lora` in `model.py`) are what LoRA lets you choose. peft does the "
    "same: `self.model = peft.get_peft_model(self.model, peft.LoraConfig(...))` in place of `add_lora`. "
    + LLM_FINETUNE.own_model,
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
    "for images of 224 pixels; timm downloads them when the run starts. As it stands the model begins from scratch, which only "
    "shows that everything runs.",
)

DIFFUSION_FINETUNE = replace(
    FLOW,
    line="a pretrained diffusion model on your images",
    recipe="diffusion/finetune",
    work=TABLE["diffusion/finetune"][1],
    model=_fine_tuning(
        FLOW.model,
        (
            "        grid_steps: int = 20,\n    ) -> None:",
            "        grid_steps: int = 20,\n        pretrained: str | None = None,\n    ) -> None:",
        ),
        (
            "of the picture after a validation; 0 draws none.\n",
            "of the picture after a validation; 0 draws none.\n"
            "        pretrained: A UNet2DModel to begin with: a folder that `save_pretrained` has written, or a name on the\n"
            "            Hugging Face Hub; `width` is not used then. None begins from scratch, to show that it runs.\n",
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
    own_model="`pretrained` in `model.init_args` is the model to begin with. As it stands the model begins from scratch, which "
    "only shows that everything runs. " + DIFFUSION.own_model,
)
