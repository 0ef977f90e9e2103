"""Models and data that microsoft/mup and lit-opt both train: see make_mup_fixture.py and test_mup.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BASE, WIDTH, STEPS = 16, 64, 5
# lr, weight_decay, other keywords. An epsilon too small to be seen: mup leaves it alone, lit-opt scales it.
SETTINGS: dict[str, dict[str, Any]] = {
    "adamw": {"lr": 1e-2, "weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-16},
    "sgd": {"lr": 0.05, "weight_decay": 1e-2, "momentum": 0.9},
}


class MLP(nn.Module):
    def __init__(self, width: int, readout: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.first, self.wide = nn.Linear(8, width), nn.Linear(width, 3 * width)
        self.back, self.head = nn.Linear(3 * width, width), readout(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.back(self.wide(self.first(x).tanh()).tanh()).tanh())


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, -1, 8)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(-2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Heads of 8; wide models have more of them."""

    def __init__(self, width: int, readout: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, width)
        self.blocks = nn.ModuleList([Block(width) for _ in range(2)])
        self.norm, self.head = nn.LayerNorm(width), readout(width, 11, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


MODELS: dict[str, type[nn.Module]] = {"mlp": MLP, "transformer": Transformer}


def plain(name: str, width: int) -> nn.Module:
    """With torch's own head."""
    return MODELS[name](width, nn.Linear)


@torch.no_grad()
def fill(module: nn.Module) -> None:
    """The same weights on any machine, of muP's size: 1 / sqrt(fan-in), in the embedding and in the head 1; no biases.

    The head's are those of mup's MuReadout, which divides by the width itself.
    """
    for place, (name, p) in enumerate(module.named_parameters()):
        if p.ndim > 1:
            numbers = torch.arange(p.numel(), dtype=torch.float64)
            waves = torch.sin(0.37 * numbers**2 + place) * 2**0.5
            size = 1.0 if name in ("embed.weight", "head.weight") else p.shape[1] ** -0.5
            p.copy_((waves * size).reshape(p.shape))
        elif name.endswith("bias"):
            p.zero_()


def decayed(name: str, p: Tensor) -> bool:
    """What the recipe decays: matrices but for the embedding."""
    return p.ndim > 1 and not name.startswith("embed")


def train(name: str, module: nn.Module, optimizer: torch.optim.Optimizer) -> list[float]:
    """The loss at each of a few steps on one batch, and after the last."""
    if name == "mlp":
        inputs = torch.sin(torch.arange(16 * 8, dtype=torch.float64) ** 2).reshape(16, 8)
        targets = torch.arange(16) % 5
    else:
        tokens = (torch.arange(4 * 9).reshape(4, 9) ** 2 + torch.arange(4)[:, None]) % 11
        inputs, targets = tokens[:, :-1], tokens[:, 1:].reshape(-1)
    losses = []
    for step in range(STEPS + 1):
        loss = F.cross_entropy(module(inputs).flatten(0, -2), targets)
        losses.append(float(loss.detach()))
        if step < STEPS:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return losses
