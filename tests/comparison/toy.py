"""A regression on eight numbers: a run of twenty steps takes milliseconds."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

torch.set_num_threads(1)


class Net(LightningModule):
    """Two layers and dropout; no configure_optimizers."""

    def __init__(self, dropout: float = 0.1, width: int = 16) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.Sequential(nn.Linear(8, width), nn.ReLU(), self.dropout, nn.Linear(width, 1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return F.mse_loss(self(x), y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", F.mse_loss(self(x), y), batch_size=len(x))


class Data(LightningDataModule):
    """A noisy teacher; `shuffle=True` with no generator, as most people write it."""

    def __init__(self, n: int = 64, batch_size: int = 16) -> None:
        super().__init__()
        self.n, self.batch_size = n, batch_size

    def setup(self, stage: str) -> None:
        g = torch.Generator().manual_seed(0)
        x = torch.randn(self.n + 32, 8, generator=g)
        y = torch.tanh(x @ torch.randn(8, 1, generator=g)) + 0.3 * torch.randn(self.n + 32, 1, generator=g)
        self.train, self.val = TensorDataset(x[: self.n], y[: self.n]), TensorDataset(x[self.n :], y[self.n :])

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.val, 32)


CPU = {"accelerator": "cpu"}
