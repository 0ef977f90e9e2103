"""Training runs that write down what every step has seen, in one process or in several."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lit_opt.workloads import ResumableDataModule

SAMPLES = 46  # with a global batch of 8: five batches an epoch, six samples left out


class Augmented(torch.utils.data.Dataset):
    """Sample i is (i, a random number): the second shows that the augmentation repeats as well."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> Tensor:
        return torch.stack([torch.tensor(float(index)), torch.rand(())])


class Data(ResumableDataModule):
    def datasets(self):
        return Augmented(), Augmented()


class Model(LightningModule):
    """Keeps (global step, hash of the samples) for each training batch, and the samples themselves."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer = torch.nn.Linear(2, 1)
        self.seen: list[tuple[int, str]] = []
        self.samples: list[list[list[float]]] = []
        self.evaluated: list[float] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.seen.append((self.global_step, hashlib.sha256(batch.cpu().numpy().tobytes()).hexdigest()[:12]))
        self.samples.append(batch.tolist())
        torch.rand(3)  # as dropout would: the data must not depend on the global generator
        return self.layer(batch / SAMPLES).square().mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.evaluated += batch[:, 0].tolist()
        self.log("val_mean", batch[:, 0].mean(), batch_size=len(batch), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def run(
    folder: Path,
    *,
    data: dict[str, Any] | None = None,
    checkpoint: dict[str, Any] | None = None,
    **trainer: Any,
) -> tuple[Model, Trainer]:
    """Fit once; `checkpoint` are arguments of ModelCheckpoint; `ckpt_path` in `trainer` resumes."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    model, ckpt_path = Model(), trainer.pop("ckpt_path", None)
    callbacks = [ModelCheckpoint(dirpath=folder, save_top_k=-1, **checkpoint)] if checkpoint else []
    settings = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    settings |= {"enable_checkpointing": bool(checkpoint), "callbacks": callbacks}
    fitted = Trainer(**{**settings, **trainer})
    fitted.fit(model, datamodule=Data(**{"batch_size": 8, "seed": 3, **(data or {})}), ckpt_path=ckpt_path)
    return model, fitted


if __name__ == "__main__":  # one rank of a DDP run: `python -m tests.workloads.runs folder '{"max_steps": 7, ...}'`
    torch.set_num_threads(1)
    target, arguments = Path(sys.argv[1]), json.loads(sys.argv[2])
    model, fitted = run(target, strategy="ddp", devices=2, **arguments)
    (target / f"rank{fitted.global_rank}.json").write_text(
        json.dumps(
            {
                "seen": model.seen,
                "samples": model.samples,
                "evaluated": model.evaluated,
                "val_mean": float(fitted.callback_metrics["val_mean"]),
                "weight": model.layer.weight.tolist(),
            }
        )
    )
