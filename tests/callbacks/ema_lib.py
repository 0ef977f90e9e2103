"""Small modules, loaders and recorders for the tests of EMA."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

torch.set_num_threads(1)


class Net(pl.LightningModule):
    """Linear, BatchNorm, Linear; SGD with momentum, so that a resume has optimizer state to get right."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]).float(), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val", F.cross_entropy(self.net(batch[0]).float(), batch[1]))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test", F.cross_entropy(self.net(batch[0]).float(), batch[1]))

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.net(batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)


class Trace(pl.Callback):
    """Weights after each batch and at each evaluation."""

    def __init__(self) -> None:
        self.train: list[dict[str, Tensor]] = []
        self.seen: list[dict[str, Tensor]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.start = weights(pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        self.train.append(weights(pl_module))

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        self.seen.append(weights(pl_module))

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end  # type: ignore[assignment]


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def averages(ema: Any) -> dict[str, Tensor]:
    return {name: ema._averages.whole(name).clone() for name in ema._averages.entries}


def loader(batches: int = 8, seed: int = 0, equal: bool = False) -> DataLoader:
    """Batches of 8; with `equal` all are the same, because a resume in mid-epoch starts the loader anew."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(8 if equal else 8 * batches, 8, generator=generator)
    y = torch.randint(0, 4, (len(x),), generator=generator)
    repeats = batches if equal else 1
    return DataLoader(TensorDataset(x.repeat(repeats, 1), y.repeat(repeats)), batch_size=8)


def trainer(*callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "max_epochs": -1,
        "max_steps": 5,
        "num_sanity_val_steps": 0,
    }
    return pl.Trainer(callbacks=list(callbacks), **(quiet | options))


def read(path: str | Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


# Lightning 2.6 lets a caller ask for the safe way to load; earlier ones decide by the version of torch.
SAFE: dict[str, Any] = {"weights_only": True} if "weights_only" in inspect.signature(pl.Trainer.fit).parameters else {}
