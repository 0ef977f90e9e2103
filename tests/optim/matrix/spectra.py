"""Matrices with given singular values."""

import torch
from torch import Tensor


def matrix(rows: int, cols: int, kind: str, seed: int = 0) -> Tensor:
    """(rows, cols) in float64: Gaussian, or with singular values 1 / i, 1 / i^2, down to 1e-8, or of rank 1."""
    generator = torch.Generator().manual_seed(seed)

    def gauss(m: int, n: int) -> Tensor:
        return torch.randn(m, n, dtype=torch.float64, generator=generator)

    if kind == "gauss":
        return gauss(rows, cols)
    short = min(rows, cols)
    left, right = torch.linalg.qr(gauss(rows, short)).Q, torch.linalg.qr(gauss(cols, short)).Q
    i = torch.arange(short, dtype=torch.float64)
    values = {
        "power": 1 / (1 + i),
        "steep": 1 / (1 + i) ** 2,
        "condition_1e8": torch.logspace(0, -8, short, dtype=torch.float64),
        "rank_1": (i == 0).double(),
    }
    return (left * values[kind]) @ right.mT


KINDS = ("gauss", "power", "steep", "condition_1e8", "rank_1")


def polar(x: Tensor) -> Tensor:
    u, _, vh = torch.linalg.svd(x.double(), full_matrices=False)
    return u @ vh
