"""Published setups of image models, diffusion and others, as their repositories build them. All are correct."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.optim import lr_scheduler as lrs

from lit_opt import EMA
from tests.param_groups.architectures import build
from tests.preflight.public_language import Build, everything, without
from tests.preflight.setups import Report, ViT, by_dimension, cosine, run, schedule, stepped

GPU = {"accelerator": "cuda", "precision": "16-mixed"}
_SAM_RHO = 0.05


def _norm_or_bias(name: str, p: Any) -> bool:
    return p.ndim <= 1 or name.endswith(".bias")


def deit() -> Report:
    """timm's optimizer and scheduler."""
    from timm.optim import create_optimizer_v2
    from timm.scheduler import CosineLRScheduler

    module = build("timm/vit")
    optimizer = create_optimizer_v2(module, opt="adamw", lr=1e-3, weight_decay=0.05)
    theirs = CosineLRScheduler(optimizer, t_initial=300, lr_min=1e-5, warmup_t=5, warmup_lr_init=1e-6, cycle_limit=1)
    return run(
        module, optimizer, stepped(theirs, "epoch"), "vit", total=300 * 1251, batch=1024, per_epoch=1251, trainer=GPU,
        callbacks=[EMA(decay=0.99996, warmup=False)],
    )  # fmt: skip


def swin() -> Report:
    from timm.scheduler import CosineLRScheduler

    module = build("timm/swin")
    words = ("relative_position_bias_table", "absolute_pos_embed", "norm", "bias")
    groups = without(module, 0.05, lambda n, p: p.ndim <= 1 or any(word in n for word in words))
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    theirs = CosineLRScheduler(
        optimizer, t_initial=280 * 1252, lr_min=1e-5, warmup_t=20 * 1252, warmup_lr_init=1e-6, t_in_epochs=False,
        warmup_prefix=True,
    )  # fmt: skip
    return run(
        module,
        optimizer,
        stepped(theirs),
        "vit",
        total=300 * 1252,
        batch=1024,
        per_epoch=1252,
        trainer=GPU | {"clip": 5.0},
    )


def convnext() -> Report:
    module = build("timm/convnext")
    optimizer = torch.optim.AdamW(without(module, 0.05, _norm_or_bias), lr=4e-3)
    total = 300 * 312
    return run(
        module, optimizer, schedule(optimizer, cosine(total, 20 * 312)), "cnn", total=total, batch=4096, per_epoch=312,
        trainer=GPU, callbacks=[EMA(decay=0.9999, warmup=False)],
    )  # fmt: skip


class MAE(ViT):
    """MAE's own class lists nothing, and its positions are frozen."""

    no_weight_decay = None  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.pos_embed.requires_grad_(False)


def mae() -> Report:
    module = MAE()
    optimizer = torch.optim.AdamW(by_dimension(module, 0.05), lr=2.4e-3, betas=(0.9, 0.95))
    total = 800 * 312
    return run(
        module, optimizer, schedule(optimizer, cosine(total, 40 * 312)), "vit", total=total, batch=4096, per_epoch=312,
        trainer=GPU,
    )  # fmt: skip


def mae_finetune() -> Report:
    """timm's layer decay with timm's scheduler, which applies it."""
    from timm.optim import param_groups_layer_decay
    from timm.scheduler import CosineLRScheduler

    module = build("timm/vit")
    listed = module.no_weight_decay()  # type: ignore[operator]
    groups = param_groups_layer_decay(module, weight_decay=0.05, no_weight_decay_list=listed, layer_decay=0.65)
    optimizer = torch.optim.AdamW(groups, lr=2e-3)
    theirs = CosineLRScheduler(optimizer, t_initial=100, lr_min=1e-6, warmup_t=5, warmup_lr_init=0.0, cycle_limit=1)
    return run(
        module, optimizer, stepped(theirs, "epoch"), "vit/finetune", total=100 * 1251, batch=1024, per_epoch=1251,
        trainer=GPU,
    )  # fmt: skip


def big_vision() -> Report:
    """Its 1e-4, which is not multiplied by the rate, is 0.1 in torch's unit; kernels only."""
    module = build("timm/vit")
    groups = without(module, 0.1, lambda n, p: _norm_or_bias(n, p) or "pos_embed" in n or "cls_token" in n)
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    total = 112_590
    return run(
        module, optimizer, schedule(optimizer, cosine(total, 10_000)), "vit", total=total, batch=1024, per_epoch=1251,
        trainer={"clip": 1.0},
    )  # fmt: skip


def dinov2() -> Report:
    """Student and teacher: the teacher follows."""
    student, teacher = build("timm/vit"), build("timm/vit")
    teacher.requires_grad_(False)
    module = nn.ModuleDict({"student": student, "teacher": teacher})
    words = ("bias", "norm", "gamma", "pos_embed", "cls_token")
    groups = without(student, 0.04, lambda n, p: any(word in n for word in words))
    optimizer = torch.optim.AdamW(groups, lr=4e-3)
    total = 100 * 1250
    return run(
        module, optimizer, schedule(optimizer, cosine(total, 12_500, 2.5e-4)), "vit", total=total, batch=1024,
        per_epoch=1250, trainer=GPU | {"clip": 3.0},
    )  # fmt: skip


def beit_finetune() -> Report:
    """Layer decay folded into each group's rate, under torch's scheduler."""
    from timm.optim import param_groups_layer_decay

    module = build("timm/beit")
    listed = module.no_weight_decay()  # type: ignore[operator]
    groups = param_groups_layer_decay(module, weight_decay=0.05, no_weight_decay_list=listed, layer_decay=0.65)
    folded = [group | {"lr": 2e-3 * group.pop("lr_scale")} for group in groups]
    optimizer = torch.optim.AdamW(folded)
    total = 100 * 1251
    return run(
        module, optimizer, schedule(optimizer, cosine(total, 20 * 1251)), "vit/finetune", total=total, batch=1024,
        per_epoch=1251, trainer=GPU,
    )  # fmt: skip


def vit_finetune_sgd() -> Report:
    """google-research/vision_transformer: SGD 0.03 at 512, 500 steps of warmup."""
    module = build("transformers/vit")
    optimizer = torch.optim.SGD(module.parameters(), lr=0.03, momentum=0.9)
    return run(
        module, optimizer, schedule(optimizer, cosine(20_000, 500)), "vit/finetune", total=20_000, batch=512,
        trainer={"clip": 1.0},
    )  # fmt: skip


def resnet50() -> Report:
    """torchvision's first recipe: no warmup, norms decayed, steps of 30 epochs."""
    module = build("torchvision/resnet")
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    steps = stepped(lrs.StepLR(optimizer, step_size=30, gamma=0.1), "epoch")
    return run(module, optimizer, steps, "cnn", total=90 * 5005, batch=256, per_epoch=5005)


def resnet50_v2() -> Report:
    module = build("torchvision/resnet")
    optimizer = torch.optim.SGD(without(module, 2e-5, lambda n, p: "bn" in n or p.ndim <= 1), lr=0.5, momentum=0.9)
    parts = [lrs.LinearLR(optimizer, 0.01, total_iters=5), lrs.CosineAnnealingLR(optimizer, T_max=595)]
    both = stepped(lrs.SequentialLR(optimizer, parts, [5]), "epoch")
    return run(
        module, optimizer, both, "cnn", total=600 * 1251, batch=1024, per_epoch=1251,
        callbacks=[EMA(decay=0.99998, warmup=False)],
    )  # fmt: skip


def nvidia_resnet50() -> Report:
    module = build("torchvision/resnet")
    optimizer = torch.optim.SGD(without(module, 3.05e-5, lambda n, p: "bn" in n), lr=2.048, momentum=0.875)
    total = 250 * 626
    return run(
        module, optimizer, schedule(optimizer, cosine(total, 8 * 626)), "cnn", total=total, batch=2048, per_epoch=626
    )


def cifar_resnet() -> Report:
    module = build("torchvision/resnet")
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    drops = stepped(lrs.MultiStepLR(optimizer, [100, 150]), "epoch")
    return run(module, optimizer, drops, "cnn", total=200 * 391, batch=128, per_epoch=391)


class SAM(torch.optim.Optimizer):
    """davda54/sam, as far as it is built."""

    def __init__(self, params: Any, base_optimizer: Any, rho: float = _SAM_RHO, **kwargs: Any) -> None:
        super().__init__(params, {"rho": rho, **kwargs})
        self.base_optimizer = base_optimizer(self.param_groups, **kwargs)
        self.param_groups = self.base_optimizer.param_groups

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Nothing is trained."""


def sam_cifar() -> Report:
    module = build("torchvision/resnet")
    optimizer = SAM(module.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=5e-4)
    drops = stepped(lrs.MultiStepLR(optimizer, [60, 120, 160], gamma=0.2), "epoch")
    return run(module, optimizer, drops, "cnn", total=200 * 391, batch=128, per_epoch=391)


def rsb_a2() -> Report:
    from timm.optim import create_optimizer_v2
    from timm.scheduler import CosineLRScheduler

    module = build("timm/resnet")
    optimizer = create_optimizer_v2(module, opt="lamb", lr=5e-3, weight_decay=0.02)
    theirs = CosineLRScheduler(optimizer, t_initial=300, lr_min=1e-6, warmup_t=5, warmup_lr_init=1e-4, cycle_limit=1)
    return run(
        module, optimizer, stepped(theirs, "epoch"), "cnn", total=300 * 626, batch=2048, per_epoch=626, trainer=GPU
    )


def lars_resnet50() -> Report:
    from timm.optim import Lars

    module = build("torchvision/resnet")
    optimizer = Lars(without(module, 2e-4, lambda n, p: p.ndim <= 1), lr=31.2, momentum=0.9, trust_coeff=0.001)
    total, warmup = 64 * 40, 25 * 40
    poly = schedule(optimizer, lambda s: (s + 1) / warmup if s < warmup else (1 - (s - warmup) / (total - warmup)) ** 2)
    return run(module, optimizer, poly, "large_batch", total=total, batch=32_768, per_epoch=40)


def simclr() -> Report:
    """vissl: SGD with LARC, norms and biases regularised, cosine after ten epochs."""
    from timm.optim import Lars

    module = build("torchvision/resnet")
    optimizer = Lars(everything(module, 1e-6), lr=4.8, momentum=0.9)
    total = 100 * 312
    return run(
        module, optimizer, schedule(optimizer, cosine(total, 3120)), None, total=total, batch=4096, per_epoch=312
    )


def byol() -> Report:
    """The target network follows the online one and is in no optimizer."""
    from timm.optim import Lars

    online, target = build("torchvision/resnet"), build("torchvision/resnet")
    target.requires_grad_(False)
    module = nn.ModuleDict({"online": online, "target": target})
    optimizer = Lars(without(online, 1.5e-6, lambda n, p: p.ndim <= 1), lr=3.2, momentum=0.9)
    total = 1000 * 312
    return run(
        module, optimizer, schedule(optimizer, cosine(total, 3120)), None, total=total, batch=4096, per_epoch=312
    )


def moco() -> Report:
    query, key = build("torchvision/resnet"), build("torchvision/resnet")
    key.requires_grad_(False)
    module = nn.ModuleDict({"encoder_q": query, "encoder_k": key})
    optimizer = torch.optim.SGD(query.parameters(), lr=0.03, momentum=0.9, weight_decay=1e-4)
    drop = stepped(lrs.CosineAnnealingLR(optimizer, T_max=200), "epoch")
    return run(module, optimizer, drop, "cnn", total=200 * 5004, batch=256, per_epoch=5004)


def efficientnet() -> Report:
    """timm's RMSProp in TensorFlow's form, steps of 2.4 epochs, averages."""
    from timm.optim import create_optimizer_v2
    from timm.scheduler import StepLRScheduler

    module = build("timm/efficientnet")
    optimizer = create_optimizer_v2(module, opt="rmsproptf", lr=0.048, weight_decay=1e-5, eps=0.001)
    theirs = StepLRScheduler(optimizer, decay_t=2.4, decay_rate=0.97, warmup_t=3, warmup_lr_init=1e-6)
    return run(
        module, optimizer, stepped(theirs, "epoch"), "cnn", total=450 * 1668, batch=768, per_epoch=1668,
        callbacks=[EMA(decay=0.9999, warmup=False)],
    )  # fmt: skip


def detr() -> Report:
    """A lower rate for the backbone, decay 1e-4 on everything, clip 0.1."""
    module = build("transformers/detr")
    named = list(module.named_parameters())
    groups: list[Any] = [
        {"params": [p for n, p in named if "backbone" not in n and p.requires_grad]},
        {"params": [p for n, p in named if "backbone" in n and p.requires_grad], "lr": 1e-5},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, weight_decay=1e-4)
    drop = stepped(lrs.StepLR(optimizer, 200), "epoch")
    return run(module, optimizer, drop, None, total=300 * 1848, batch=64, per_epoch=1848, trainer={"clip": 0.1})


def nnunet() -> Report:
    """SGD with Nesterov 0.99, polynomial 0.9 over 1,000 epochs."""
    module = build("diffusers/unet2d")
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.99, nesterov=True, weight_decay=3e-5)
    poly = stepped(lrs.PolynomialLR(optimizer, total_iters=1000, power=0.9), "epoch")
    return run(module, optimizer, poly, None, total=250_000, batch=2, per_epoch=250, trainer={"clip": 12.0})


def ddpm() -> Report:
    module = build("diffusers/unet2d")
    optimizer = torch.optim.Adam(module.parameters(), lr=2e-4)
    warm = schedule(optimizer, lambda s: min(1.0, (s + 1) / 5000))
    return run(
        module, optimizer, warm, "diffusion", total=800_000, batch=128, trainer={"clip": 1.0},
        callbacks=[EMA(decay=0.9999, warmup=False)],
    )  # fmt: skip


def dit() -> Report:
    module = build("diffusers/dit")
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, weight_decay=0)
    return run(
        module, optimizer, (), "diffusion", total=400_000, batch=256, callbacks=[EMA(decay=0.9999, warmup=False)]
    )


def lightning_dit() -> Report:
    module = build("diffusers/dit")
    optimizer = torch.optim.AdamW(module.parameters(), lr=2e-4, betas=(0.9, 0.95), weight_decay=0)
    return run(
        module, optimizer, (), "diffusion", total=80_000, batch=1024, callbacks=[EMA(decay=0.9999, warmup=False)],
        trainer={"clip": 1.0},
    )  # fmt: skip


def diffusers_unconditional() -> Report:
    from diffusers.optimization import get_cosine_schedule_with_warmup

    module = build("diffusers/unet2d")
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6)
    warm = stepped(get_cosine_schedule_with_warmup(optimizer, 500, 50_000))
    return run(
        module,
        optimizer,
        warm,
        "diffusion",
        total=50_000,
        batch=16,
        trainer={"clip": 1.0},
        callbacks=[EMA(decay=0.9999)],
    )


def text_to_image() -> Report:
    from diffusers.optimization import get_constant_schedule_with_warmup

    module = build("diffusers/unet2d_condition")
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-5, weight_decay=1e-2)
    warm = stepped(get_constant_schedule_with_warmup(optimizer, 500))
    return run(module, optimizer, warm, "diffusion/finetune", total=15_000, batch=4, trainer={"clip": 1.0})


def flow_matching() -> Report:
    module = build("diffusers/unet2d")
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, betas=(0.9, 0.95))
    return run(module, optimizer, (), "diffusion", total=150_000, batch=1024, callbacks=[EMA(decay=0.9999)])


def gcn() -> Report:
    """Kipf and Welling: Adam 0.01 with L2 5e-4."""
    module = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 7))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01, weight_decay=5e-4)
    return run(module, optimizer, (), None, total=200, batch=1, per_epoch=1)


def dcgan() -> Report:
    """Two optimizers under manual optimization."""
    module = nn.ModuleDict({"generator": build("torchvision/resnet"), "discriminator": build("torchvision/resnet")})
    both = [torch.optim.Adam(part.parameters(), lr=2e-4, betas=(0.5, 0.999)) for part in module.values()]
    return run(module, both, (), None, total=50_000, batch=128, trainer={"automatic": False})


def ppo() -> Report:
    """CleanRL: Adam 2.5e-4, eps 1e-5, linear to 0."""
    module = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 4))
    optimizer = torch.optim.Adam(module.parameters(), lr=2.5e-4, eps=1e-5)
    linear = schedule(optimizer, lambda s: 1 - s / 9765)
    return run(module, optimizer, linear, None, total=9765, batch=128, trainer={"clip": 0.5})


def one_cycle() -> Report:
    """fast.ai's one cycle with AdamW and two rates."""
    module = build("torchvision/resnet")
    head = list(module.fc.parameters())  # type: ignore[union-attr]
    body = [p for n, p in module.named_parameters() if not n.startswith("fc.")]
    optimizer = torch.optim.AdamW([{"params": body}, {"params": head}], weight_decay=1e-3, betas=(0.95, 0.99))
    cycle = stepped(lrs.OneCycleLR(optimizer, [1e-4, 1e-3], total_steps=5000))
    return run(module, optimizer, cycle, None, total=5000, batch=64, per_epoch=1000)


def plateau() -> Report:
    """A U-Net on a plateau schedule."""
    module = build("diffusers/unet2d")
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-4)
    return run(module, optimizer, stepped(lrs.ReduceLROnPlateau(optimizer), "epoch"), None, total=50_000, batch=8)


def warm_restarts() -> Report:
    module = build("torchvision/resnet")
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    restarts = stepped(lrs.CosineAnnealingWarmRestarts(optimizer, T_0=10, T_mult=2), "epoch")
    assert math.isclose(optimizer.param_groups[0]["lr"], 0.05)
    return run(module, optimizer, restarts, "cnn", total=150 * 391, batch=128, per_epoch=391)


IMAGES: dict[str, tuple[str, Build]] = {
    "DeiT-S by timm": ("facebookresearch/deit main.py:50-150", deit),
    "Swin-T": ("open-mmlab/mmpretrain imagenet_bs1024_adamw_swin.py", swin),
    "ConvNeXt-T": ("facebookresearch/ConvNeXt main.py:74-106", convnext),
    "MAE pretraining": ("facebookresearch/mae PRETRAIN.md", mae),
    "MAE fine-tuning, layer decay": ("facebookresearch/mae FINETUNE.md, timm's groups and scheduler", mae_finetune),
    "big_vision ViT-S/16": ("google-research/big_vision configs/vit_s16_i1k.py:78-84", big_vision),
    "DINOv2 student and teacher": ("facebookresearch/dinov2 ssl_default_config.yaml:92-108", dinov2),
    "BEiT fine-tuning, folded rates": ("microsoft/unilm beit, layer decay 0.65", beit_finetune),
    "ViT fine-tuning, SGD": ("google-research/vision_transformer configs/common.py", vit_finetune_sgd),
    "torchvision ResNet-50": ("pytorch/vision references/classification/train.py", resnet50),
    "torchvision ResNet-50 v2": ("pytorch/vision#3995", resnet50_v2),
    "NVIDIA ResNet-50": ("NVIDIA/DeepLearningExamples ConvNets/configs.yml", nvidia_resnet50),
    "mmpretrain CIFAR-10 ResNet": ("open-mmlab/mmpretrain cifar10_bs128.py", cifar_resnet),
    "SAM on CIFAR": ("davda54/sam example/train.py", sam_cifar),
    "RSB A2, LAMB": ("timm hparams.mdx; mmpretrain imagenet_bs2048_rsb.py", rsb_a2),
    "LARS ResNet-50 at 32k": ("mlcommons/training lars_util.py:77-107", lars_resnet50),
    "SimCLR": ("facebookresearch/vissl simclr_8node_resnet.yaml", simclr),
    "BYOL": ("arXiv:2006.07733 section 3.2", byol),
    "MoCo v2": ("facebookresearch/moco main_moco.py", moco),
    "EfficientNet-B0 by timm": ("timm hparams.mdx", efficientnet),
    "DETR": ("facebookresearch/detr main.py", detr),
    "nnU-Net": ("MIC-DKFZ/nnUNet nnUNetTrainer.py", nnunet),
    "DDPM CIFAR-10": ("arXiv:2006.11239 appendix B", ddpm),
    "DiT-XL/2": ("facebookresearch/DiT train.py:40,155,262", dit),
    "LightningDiT": ("hustvl/LightningDiT configs", lightning_dit),
    "diffusers unconditional": ("huggingface/diffusers train_unconditional.py:171-201", diffusers_unconditional),
    "diffusers text to image": ("huggingface/diffusers train_text_to_image.py:334-414", text_to_image),
    "flow_matching": ("facebookresearch/flow_matching examples/image/train.py:117", flow_matching),
    "GCN on Cora": ("tkipf/pygcn train.py", gcn),
    "DCGAN": ("pytorch/examples dcgan", dcgan),
    "PPO": ("vwxyzjn/cleanrl ppo.py", ppo),
    "One cycle": ("fastai fit_one_cycle", one_cycle),
    "U-Net on a plateau": ("milesial/Pytorch-UNet train.py", plateau),
    "Warm restarts": ("arXiv:1608.03983", warm_restarts),
}
