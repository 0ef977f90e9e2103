"""A second set of published setups, put together after the checks were settled on the first.

It holds the codebases that are known to disagree with the majority. Those marked "read" were opened for it; the others are
in the tables of benchmarks and recipes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import lr_scheduler as lrs

from tests.param_groups.architectures import build
from tests.preflight.public_language import Build, MuonWithAuxAdam, everything, stable, warm_linear, without
from tests.preflight.setups import Report, by_dimension, cosine, run, schedule, stepped

BF16 = {"clip": 1.0, "precision": "bf16-mixed", "accelerator": "cuda"}


def mpt() -> Report:
    module = build("transformers/llama")
    optimizer = torch.optim.AdamW(everything(module, 0.0), lr=6e-4, betas=(0.9, 0.95))
    return run(
        module, optimizer, schedule(optimizer, cosine(4800, 100, 0.1)), "llm", total=4800, batch=256, trainer=BF16
    )


def pythia() -> Report:
    module = build("transformers/llama")
    optimizer = torch.optim.AdamW(by_dimension(module, 0.1), lr=6e-4, betas=(0.9, 0.95))
    factor = cosine(143_000, 1430, 0.1)
    trainer = {"clip": 1.0, "precision": "16-mixed", "accelerator": "cuda"}
    return run(module, optimizer, schedule(optimizer, factor), "llm", total=143_000, batch=1024, trainer=trainer)


def shakespeare() -> Report:
    module = build("transformers/gpt2")
    optimizer = torch.optim.AdamW(by_dimension(module, 0.1), lr=1e-3, betas=(0.9, 0.99))
    return run(
        module, optimizer, schedule(optimizer, cosine(5000, 100, 0.1)), "llm", total=5000, batch=64, trainer=BF16
    )


def epfml() -> Report:
    module = build("transformers/llama")
    optimizer = torch.optim.AdamW(everything(module, 0.1), lr=1e-3, betas=(0.8, 0.999))
    factor = schedule(optimizer, cosine(128_000, 2000, 0.01))
    return run(module, optimizer, factor, "llm", total=128_000, batch=256, trainer=BF16 | {"clip": 0.5})


class StableAdamW(torch.optim.AdamW):
    """By its name, as in optimi and composer."""


def modernbert() -> Report:
    """Its 1e-5 is not multiplied by the rate: 1e-5 / 8e-4 = 0.0125 in torch's unit."""
    module = build("transformers/bert")
    optimizer = StableAdamW(by_dimension(module, 0.0125), lr=8e-4, betas=(0.9, 0.98), eps=1e-6)
    total = 364_000
    factor = schedule(optimizer, lambda s: min(1.0, (s + 1) / 635))
    return run(module, optimizer, factor, "llm", total=total, batch=4608, trainer=BF16 | {"clip": 0.0})


class SOAP(torch.optim.AdamW):
    """By its name, as in nikhilvyas/SOAP."""


def soap() -> Report:
    module = build("transformers/llama")
    optimizer = SOAP(everything(module, 0.01), lr=3e-3, betas=(0.95, 0.95))
    return run(module, optimizer, schedule(optimizer, cosine(20_000, 600)), "llm", total=20_000, trainer=BF16)


def segmentation() -> Report:
    """FCN: backbone and classifier at one rate, the auxiliary head at ten times it."""
    module = nn.ModuleDict({"backbone": build("torchvision/resnet"), "classifier": nn.Conv2d(64, 21, 1)})
    module["aux_classifier"] = nn.Conv2d(64, 21, 1)
    groups: list[Any] = [
        {"params": list(module["backbone"].parameters())},
        {"params": list(module["classifier"].parameters())},
        {"params": list(module["aux_classifier"].parameters()), "lr": 0.1},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9, weight_decay=1e-4)
    total = 30 * 925
    return run(module, optimizer, schedule(optimizer, lambda s: (1 - s / total) ** 0.9), None, total=total, batch=32)


def mnist() -> Report:
    module = nn.Sequential(nn.Conv2d(1, 32, 3), nn.Conv2d(32, 64, 3), nn.Linear(9216, 128), nn.Linear(128, 10))
    optimizer = torch.optim.Adadelta(module.parameters(), lr=1.0)
    drops = stepped(lrs.StepLR(optimizer, step_size=1, gamma=0.7), "epoch")
    return run(module, optimizer, drops, None, total=14 * 938, batch=64, per_epoch=938)


def segformer() -> Report:
    """Norms excluded by name, biases decayed, ten times the rate for the head."""
    import transformers

    with torch.device("meta"):
        module = transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(depths=[1, 1, 1, 1]))
    named = list(module.named_parameters())
    groups = [
        {
            "params": [p for n, p in named if ("norm" in n) is norm and ("head" in n) is head],
            "lr": 6e-4 if head else 6e-5,
            "weight_decay": 0.0 if norm else 0.01,
        }
        for norm in (False, True)
        for head in (False, True)
    ]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]])
    factor = schedule(optimizer, warm_linear(160_000, 1500))
    return run(module, optimizer, factor, "vit/finetune", total=160_000, batch=16)


def setr() -> Report:
    module = build("timm/vit")
    head: list[Any] = list(module.head.parameters())  # type: ignore[union-attr]
    body: list[Any] = [p for n, p in module.named_parameters() if not n.startswith("head.")]
    groups: list[Any] = [{"params": body}, {"params": head, "lr": 0.1}]
    optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9)
    poly = schedule(optimizer, lambda s: max(0.01, (1 - s / 80_000) ** 0.9))
    return run(module, optimizer, poly, "vit/finetune", total=80_000, batch=8)


def mmpretrain_dino() -> Report:
    module = build("timm/vit")
    words = ("norm", "bias", "pos_embed", "mask_token", "cls_token")
    optimizer = torch.optim.AdamW(without(module, 0.05, lambda n, p: any(w in n for w in words)), lr=2.4e-3)
    total = 100 * 313
    return run(
        module, optimizer, schedule(optimizer, cosine(total, 3130)), "vit", total=total, batch=4096, per_epoch=313
    )


def mmpretrain_vit() -> Report:
    """Decay 0.3, from which only the class token and the positions are excluded."""
    module = build("timm/vit")
    optimizer = torch.optim.AdamW(without(module, 0.3, lambda n, p: "pos_embed" in n or "cls_token" in n), lr=1.5e-3)
    total = 300 * 626
    factor = schedule(optimizer, cosine(total, 10_000))
    return run(module, optimizer, factor, "vit", total=total, batch=2048, per_epoch=626, trainer={"clip": 1.0})


def airbench() -> Report:
    module = build("torchvision/resnet")
    named = list(module.named_parameters())
    filters = [p for n, p in named if p.ndim == 4 and n != "conv1.weight"]
    taken = {id(p) for p in filters}
    rest = [p for _, p in named if id(p) not in taken]
    muon = MuonWithAuxAdam([{"params": filters, "use_muon": True, "lr": 0.24, "momentum": 0.6, "weight_decay": 0.0}])
    sgd = torch.optim.SGD(rest, lr=0.053, momentum=0.85, nesterov=True)
    linear = warm_linear(200, 0)
    return run(
        module,
        [muon, sgd],
        [*schedule(muon, linear), *schedule(sgd, linear)],
        "cnn",
        total=200,
        batch=2000,
        per_epoch=25,
    )


def flux() -> Report:
    """torchtitan's FLUX: decay 0.1 on everything, 3,000 of 30,000 steps of warmup, no averages."""
    module = build("diffusers/dit")
    optimizer = torch.optim.AdamW(everything(module, 0.1), lr=1e-4, betas=(0.9, 0.95))
    factor = schedule(optimizer, stable(10**9, 3000, 0.0001))
    return run(module, optimizer, factor, "diffusion", total=30_000, batch=256, trainer=BF16)


SECOND: dict[str, tuple[str, Build]] = {
    "MPT-125M": ("mosaicml/llm-foundry mpt-125m.yaml, read", mpt),
    "Pythia-160M": ("EleutherAI/pythia pythia-160m.yml, read", pythia),
    "nanoGPT, characters": ("karpathy/nanoGPT config/train_shakespeare_char.py", shakespeare),
    "llm-optimizer-benchmark AdamW": ("epfml/llm-optimizer-benchmark scripts/124m", epfml),
    "ModernBERT": ("AnswerDotAI/ModernBERT modernbert-base-pretrain.yaml, read", modernbert),
    "SOAP": ("nikhilvyas/SOAP README.md", soap),
    "torchvision FCN": ("pytorch/vision references/segmentation/train.py, read", segmentation),
    "MNIST example": ("pytorch/examples mnist/main.py, read", mnist),
    "SegFormer-B0": ("NVlabs/SegFormer segformer.b0.512x512.ade.160k.py, read", segformer),
    "SETR": ("open-mmlab/mmsegmentation SETR_Naive_DeiT, read in a fork", setr),
    "mmpretrain DINO": ("open-mmlab/mmpretrain dino_vit-base-p16_8xb64-amp-coslr-100e_in1k.py, read", mmpretrain_dino),
    "mmpretrain ViT": ("open-mmlab imagenet_bs2048_AdamW.py, read in a fork", mmpretrain_vit),
    "cifar10-airbench, Muon": ("KellerJordan/cifar10-airbench airbench94_muon.py:340-365", airbench),
    "torchtitan FLUX": ("pytorch/torchtitan models/flux/config_registry.py:140-150", flux),
}
