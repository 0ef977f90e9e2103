"""What the recipe needs of Lightning and torch; runs alone on the oldest supported versions (`make test-oldest`)."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_opt import Recipe
from lit_opt.errors import RecipeError

NAMESPACES = [
    name for name in ("lightning.pytorch", "pytorch_lightning") if importlib.util.find_spec(name.partition(".")[0])
]


@pytest.fixture(params=NAMESPACES)
def pl(request: pytest.FixtureRequest) -> Any:
    """The Lightning package; a Recipe works in both."""
    return importlib.import_module(request.param)


def make_module(pl: Any, base: Any = object, dropout: float = 0.5) -> Any:
    class Net(pl.LightningModule, base):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Dropout(dropout), nn.Linear(8, 2))
            self.lrs: list[float] = []
            self.norms: list[float] = []

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def on_before_zero_grad(self, optimizer: Any) -> None:
            grads = [p.grad for p in self.parameters() if p.grad is not None]
            if grads:
                self.norms.append(float(torch.nn.utils.get_total_norm(grads)))

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            self.lrs.append(optimizer.param_groups[0]["lr"])

    return Net()


class Position:
    """Batches in a fixed order; knows its position."""

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(0)
        self.batches = [[torch.randn(4, 4, generator=g), torch.randint(0, 2, (4,), generator=g)] for _ in range(6)]
        self.position = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Any:
        for position in range(self.position % len(self), len(self)):
            self.position += 1
            yield self.batches[position]

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


def make_trainer(pl: Any, *callbacks: Any, **kwargs: Any) -> Any:
    quiet = {
        "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False,
    }  # fmt: skip
    return pl.Trainer(callbacks=list(callbacks), **(quiet | kwargs))


def recipe() -> Recipe:
    return Recipe("llm", lr=1e-2, warmup=3, clip=0.05)


class OwnSGD:
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.5)  # type: ignore[attr-defined]


@pytest.mark.parametrize("base", [object, OwnSGD])
def test_log_is_assigned_before_the_verification_and_everything_is_taken_off(pl: Any, base: Any) -> None:
    assigned: list[bool] = []

    class Watched(Recipe):
        def open(self, trainer: Any, module: Any) -> None:
            assigned.append("configure_optimizers" not in vars(module))
            super().open(trainer, module)

    module, ours = make_module(pl, base), Watched("llm", lr=1e-2, warmup=3, clip=0.05)
    before = set(vars(module))
    t = make_trainer(pl, ours, max_epochs=2)
    t.fit(module, Position())
    assert assigned[0]
    assert t.global_step == 12 and isinstance(ours.optimizer, torch.optim.AdamW)
    assert module.lrs[:4] == pytest.approx([0.0025, 0.005, 0.0075, 0.01])
    assert max(module.norms) == pytest.approx(0.05, rel=1e-3)
    for name in ("configure_optimizers", "configure_gradient_clipping", "on_save_checkpoint", "setup"):
        assert name not in set(vars(module)) - before


def test_an_error_takes_everything_off(pl: Any) -> None:
    module = make_module(pl)
    module.training_step = None
    del module.training_step
    original = type(module).training_step

    def fails(self: Any, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 2:
            raise RuntimeError("stop here")
        return original(self, batch, batch_idx)

    type(module).training_step = fails
    with pytest.raises(RuntimeError, match="stop here"):
        make_trainer(pl, recipe(), max_epochs=1).fit(module, Position())
    assert "configure_optimizers" not in vars(module)


def test_attach(pl: Any) -> None:
    ours = recipe()
    make_trainer(pl, max_epochs=1).fit(ours.attach(make_module(pl)), Position())
    assert isinstance(ours.optimizer, torch.optim.AdamW)


@pytest.mark.parametrize("step", [4, 6, 8])  # in the middle of an epoch, at its end
def test_a_resume_is_exact(pl: Any, tmp_path: Path, step: int) -> None:
    class Save(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step == step:
                trainer.save_checkpoint(tmp_path / "c.ckpt")

    whole = make_module(pl)
    make_trainer(pl, recipe(), Save(), max_epochs=2).fit(whole, Position())
    rest = make_module(pl)
    torch.manual_seed(9)
    make_trainer(pl, recipe(), max_epochs=2).fit(rest, Position(), ckpt_path=tmp_path / "c.ckpt")
    assert rest.lrs == whole.lrs[step:]
    for a, b in zip(whole.parameters(), rest.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_resume_after_a_shuffled_epoch_is_exact(pl: Any, tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(24, 4, generator=g), torch.randint(0, 2, (24,), generator=g))

    def loader() -> Any:
        return DataLoader(data, 4, shuffle=True)

    checkpoint = pl.callbacks.ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    torch.manual_seed(3)
    whole = make_module(pl)
    make_trainer(pl, recipe(), checkpoint, max_epochs=3, enable_checkpointing=True).fit(whole, loader())
    torch.manual_seed(9)
    rest = make_module(pl)
    path = tmp_path / "epoch=0.ckpt"
    make_trainer(pl, recipe(), max_epochs=3).fit(rest, loader(), ckpt_path=path)
    assert len(rest.lrs) == 12
    for a, b in zip(whole.parameters(), rest.parameters(), strict=True):
        assert torch.equal(a, b)


def test_another_recipe_is_refused(pl: Any, tmp_path: Path) -> None:
    t = make_trainer(pl, recipe(), max_epochs=1)
    t.fit(make_module(pl), Position())
    t.save_checkpoint(tmp_path / "c.ckpt")
    other = Recipe("llm", lr=2e-2, warmup=3, clip=0.05)
    with pytest.raises(RecipeError, match=r"lr: 0\.01 in the checkpoint, 0\.02 now"):
        make_trainer(pl, other, max_epochs=2).fit(make_module(pl), Position(), ckpt_path=tmp_path / "c.ckpt")
