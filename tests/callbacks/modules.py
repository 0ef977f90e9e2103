"""Tiny modules, data and Trainers that the tests of the callbacks share."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from lit_opt import Recipe

torch.set_num_threads(1)

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def trainer(*callbacks: Any, **kwargs: Any) -> Trainer:
    """A quiet Trainer on one CPU process."""
    return Trainer(callbacks=list(callbacks), **(QUIET | kwargs))


def tensors(n: int = 32, seed: int = 0) -> TensorDataset:
    """`n` samples of 8 features with labels below 4."""
    g = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.randn(n, 8, generator=g), torch.randint(0, 4, (n,), generator=g))


def loader(n: int = 32, batch_size: int = 4, **kwargs: Any) -> DataLoader[Any]:
    """Eight batches of 4, in one order, unless told otherwise."""
    data: Dataset[Any] = tensors(n)
    return DataLoader(data, batch_size, **kwargs)


class Endless(IterableDataset[Any]):
    """Samples without a known length."""

    def __init__(self, n: int = 32) -> None:
        self.n = n

    def __iter__(self) -> Iterator[Any]:
        return iter(tensors(self.n))


class Net(LightningModule):
    """Two linear layers and a norm; no configure_optimizers."""

    def __init__(self, seed: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Dropout(dropout), nn.Linear(16, 4))
        self.seen: list[tuple[int, list[float]]] = []

    def loss(self, batch: list[Tensor]) -> Tensor:
        return F.cross_entropy(self.net(batch[0]).float(), batch[1])

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("test_loss", self.loss(batch))

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.net(batch[0])

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.seen.append((self.trainer.global_step, [float(g["lr"]) for g in optimizer.param_groups]))

    @property
    def lrs(self) -> list[float]:
        """Learning rate of the first group at each step."""
        return [rates[0] for _, rates in self.seen]


class OwnSGD(Net):
    """Has its own configure_optimizers."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.5)


class Manual(Net):
    """Optimizes by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        optimizer = self.optimizers()
        optimizer.zero_grad()  # type: ignore[union-attr]
        loss = self.loss(batch)
        self.manual_backward(loss)
        optimizer.step()  # type: ignore[union-attr]
        return loss


class ManualOwn(Manual):
    """Optimizes by hand, with its own optimizer."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.5)


def fit(module: LightningModule, recipe: Recipe | None, *callbacks: Any, data: Any = None, **kwargs: Any) -> Trainer:
    """Fit `module` with `recipe` for max_steps=4 unless told otherwise."""
    if not {"max_steps", "max_epochs", "max_time", "fast_dev_run"} & set(kwargs):
        kwargs["max_steps"] = 4
    ckpt = {k: kwargs.pop(k) for k in ("ckpt_path", "val_dataloaders") if k in kwargs}
    t = trainer(*([recipe] if recipe is not None else []), *callbacks, **kwargs)
    t.fit(module, loader() if data is None else data, **ckpt)
    return t


def snapshot(module: LightningModule) -> dict[str, Any]:
    """What lies in the instance's own dictionary, by name and identity, without what every fit sets."""
    return {
        name: id(value)
        for name, value in vars(module).items()
        if name not in ("_trainer", "_device", "_current_fx_name", "training", "_dtype", "_hparams")
    }


def trainer_fields(t: Trainer) -> dict[str, Any]:
    """The Trainer's fields that a recipe could touch."""
    names = ("gradient_clip_val", "gradient_clip_algorithm", "max_steps", "max_epochs", "accumulate_grad_batches")
    return {name: getattr(t, name) for name in names} | {"callbacks": [id(c) for c in callbacks_of(t)]}


def names_of(recipe: Recipe) -> list[str]:
    """Names of the groups of the current or last run."""
    assert recipe.optimizer is not None
    return [group["name"] for group in recipe.optimizer.param_groups]


def roundtrip(thing: Any) -> Any:
    """A pickled and unpickled copy."""
    return pickle.loads(pickle.dumps(thing))


class StatefulLoader:
    """Batches in an order seeded by the epoch; knows its position, and adds noise from the global generator."""

    def __init__(self, n: int = 32, batch_size: int = 4, noise: float = 0.1) -> None:
        self.data, self.batch_size, self.noise, self.position = tensors(n), batch_size, noise, 0
        self.given: list[list[int]] = []

    def __len__(self) -> int:
        return len(self.data) // self.batch_size

    def __iter__(self) -> Iterator[Any]:
        first = self.position
        for position in range(first, first - first % len(self) + len(self)):
            epoch, batch = divmod(position, len(self))
            order = torch.randperm(len(self.data), generator=torch.Generator().manual_seed(epoch)).tolist()
            chosen = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            inputs, labels = self.data[chosen]
            self.position = position + 1
            self.given.append(chosen)
            yield [inputs + self.noise * torch.randn_like(inputs), labels]

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]


class SaveAt(Callback):
    """Saves a checkpoint in the hook `where` at global step `step`, and may stop the run there."""

    def __init__(self, path: Any, step: int, where: str = "on_train_batch_end", stop: bool = False) -> None:
        self.path, self.step, self.where, self.stop, self.done = path, step, where, stop, False

    def _save(self, t: Trainer, where: str) -> None:
        if where == self.where and t.global_step == self.step and not self.done and not t.sanity_checking:
            self.done = True
            t.save_checkpoint(self.path)
            t.should_stop = self.stop

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self._save(trainer, "on_train_batch_end")

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self._save(trainer, "on_validation_end")

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._save(trainer, "on_train_epoch_end")


def callbacks_of(t: Trainer) -> list[Callback]:
    """Set by a connector, so type checkers do not know it."""
    found: list[Callback] = t.callbacks  # type: ignore[attr-defined]
    return found
