"""Tiny modules and correct setups of each setting; the tests break them one thing at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from lit_opt.param_groups import group_parameters
from lit_opt.preflight.check import Report, judge
from lit_opt.preflight.collect import collect
from lit_opt.preflight.evidence import TrainerSettings
from lit_opt.preflight.finding import Finding
from lit_opt.resolve.resolved import RunFacts

torch.set_num_threads(1)


class Block(nn.Module):
    """Pre-norm attention-like block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attn = nn.Linear(width, width)
        self.mlp = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.proj(torch.relu(self.mlp(self.attn(self.norm(x)))))


class LM(nn.Module):
    """A language model with an untied head."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.wte = nn.Embedding(64, width)
        self.blocks = nn.ModuleList([Block(width) for _ in range(3)])
        self.norm = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, 64, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.wte(x)
        for block in self.blocks:
            h = block(h)
        return self.lm_head(self.norm(h))


class ViT(nn.Module):
    """Has tokens, positions and timm's `no_weight_decay`."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, width, 4, 4)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 17, width))
        self.blocks = nn.ModuleList([Block(width) for _ in range(4)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def no_weight_decay(self) -> set[str]:
        return {"cls_token", "pos_embed"}


class CNN(nn.Module):
    """Convolutions and batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(8, 16, 3, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, 10)


class Denoiser(nn.Module):
    """Convolutions with group norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, 8, 3, padding=1)
        self.mid = nn.Sequential(nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 3, padding=1))
        self.conv_out = nn.Conv2d(8, 3, 3, padding=1)


def cosine(total: int, warmup: int, final: float = 0.0) -> Callable[[int], float]:
    """nanoGPT's schedule as a factor."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = min(1.0, (step - warmup) / (total - warmup))
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor


def by_dimension(module: nn.Module, decay: float) -> list[dict[str, Any]]:
    """nanoGPT's two groups."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def by_role(module: nn.Module, recipe: str, decay: float | None = None) -> list[dict[str, Any]]:
    """The package's own groups, without what only its optimizers know."""
    groups = group_parameters(module, recipe).for_optimizer(module.named_parameters())
    kept = [{k: g[k] for k in ("params", "name", "weight_decay")} for g in groups]
    if decay is not None:
        kept = [g | {"weight_decay": decay if g["weight_decay"] else 0.0} for g in kept]
    return kept


TOTAL = 100_000
STEP = "step"


def schedule(optimizer: Any, factor: Callable[[int], float], interval: str = STEP) -> list[Any]:
    """A LambdaLR as Lightning's configuration."""
    return stepped(LambdaLR(optimizer, factor), interval)


def stepped(scheduler: Any, interval: str = STEP, frequency: int = 1) -> list[Any]:
    """A scheduler as Lightning's configuration."""
    return [SimpleNamespace(scheduler=scheduler, interval=interval, frequency=frequency)]


def run(
    module: nn.Module,
    optimizers: Any,
    schedulers: Sequence[Any] = (),
    setting: str | None = None,
    *,
    total: int | None = TOTAL,
    batch: int | None = 256,
    per_epoch: float | None = 1000,
    callbacks: Sequence[Any] = (),
    trainer: Mapping[str, Any] | None = None,
    recipe: Any = None,
) -> Report:
    """Judge a setup."""
    facts = RunFacts(total_steps=total, global_batch=batch, steps_per_epoch=per_epoch, accumulation=1)
    optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
    report = judge(
        collect(
            module,
            optimizers,
            schedulers,
            facts=facts,
            trainer=TrainerSettings(**(trainer or {})),
            callbacks=callbacks,
            setting=setting,
            recipe=recipe,
        )
    )
    assert not [item for item in report.unjudged if "failed" in item.reason], report.unjudged
    return report


def ids(report: Report) -> list[str]:
    """Ids of what was found."""
    return [finding.id for finding in report.findings]


def the(report: Report, id_: str) -> Finding:
    """The one finding of that id."""
    found = [finding for finding in report.findings if finding.id == id_]
    assert len(found) == 1, (id_, ids(report))
    return found[0]


def _total(more: Mapping[str, Any]) -> int:
    return more.get("total") or TOTAL


def llm(**more: Any) -> Report:
    """A correct language model: by keyword what is to be different."""
    module = more.pop("module", None) or LM()
    groups = more.pop("groups", None) or by_role(module, "llm")
    betas = more.pop("betas", (0.9, 0.95))
    optimizer = more.pop("optimizer", None) or torch.optim.AdamW(groups, lr=more.pop("lr", 3e-4), betas=betas)
    schedulers = more.pop("schedulers", None)
    if schedulers is None:
        schedulers = schedule(optimizer, cosine(_total(more), _total(more) // 50, 0.1))
    trainer = {"clip": 1.0} | more.pop("trainer", {})
    setting = more.pop("setting", "llm")
    return run(module, optimizer, schedulers, setting, trainer=trainer, **more)


def vit(**more: Any) -> Report:
    """A correct vision transformer."""
    module = more.pop("module", None) or ViT()
    groups = more.pop("groups", None) or by_role(module, "vit")
    optimizer = more.pop("optimizer", None) or torch.optim.AdamW(groups, lr=more.pop("lr", 1e-3))
    schedulers = more.pop("schedulers", None)
    if schedulers is None:
        schedulers = schedule(optimizer, cosine(_total(more), _total(more) // 20, 0.01))
    return run(module, optimizer, schedulers, more.pop("setting", "vit"), **({"batch": 1024} | more))


def cnn(**more: Any) -> Report:
    """A correct convolutional network."""
    module = more.pop("module", None) or CNN()
    groups = more.pop("groups", None) or by_role(module, "cnn")
    momentum = more.pop("momentum", 0.9)
    optimizer = more.pop("optimizer", None) or torch.optim.SGD(groups, lr=more.pop("lr", 0.1), momentum=momentum)
    schedulers = more.pop("schedulers", None)
    if schedulers is None:
        schedulers = schedule(optimizer, cosine(_total(more), _total(more) // 20))
    return run(module, optimizer, schedulers, more.pop("setting", "cnn"), **more)
