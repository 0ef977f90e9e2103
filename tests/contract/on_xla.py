"""Every recipe on XLA's CPU device, in an environment of its own: `make test-xla` (torch_xla pins an older torch).

Lightning sets bfloat16 by a variable that XLA reads once, so each precision has a process of its own (-k). Lightning takes
XLA for a TPU and looks for one, so its check is patched; more than one device cannot be run: the
all-reduce of torch_xla 2.9 between two CPU devices ends in a time-out, also without Lightning.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["PJRT_DEVICE"] = "CPU"
# Compiling is most of the time.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")

import lightning
import pytest
import torch
from lightning.fabric.accelerators.xla import XLAAccelerator as FabricsXLA
from lightning.pytorch.accelerators import XLAAccelerator

from lit_opt import EMA, Recipe
from lit_opt.errors import RecipeError
from lit_opt.explain.strategies import strategies_markdown
from lit_opt.optim.registry import row_of
from lit_opt.recipes import get_recipe, list_recipes
from lit_opt.resolve import preview
from lit_opt.resolve.strategies import PRECISIONS, lightning_refuses, refusals
from tests.callbacks.modules import SaveAt
from tests.callbacks.modules import trainer as cpu_trainer
from tests.contract.record import Record, distance, recorded
from tests.contract.strategy_runs import Watch
from tests.contract.test_strategies import ROOT
from tests.contract.tiny import BATCH, STEPS, Share, Tiny

torch_xla = pytest.importorskip("torch_xla", reason="run `make test-xla`")


@pytest.fixture(autouse=True)
def _xla_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for accelerator in (XLAAccelerator, FabricsXLA):
        monkeypatch.setattr(accelerator, "is_available", staticmethod(lambda: True))
        monkeypatch.setattr(accelerator, "auto_device_count", staticmethod(lambda: 1))


@pytest.fixture(scope="module")
def record(request: pytest.FixtureRequest) -> Iterator[Record]:
    record = Record()
    yield record
    if request.config.getoption("--write-tables"):
        versions = {"torch": torch.__version__.split("+")[0], "torch_xla": torch_xla.__version__}
        record.write(versions | {"lightning": lightning.__version__}, of="XLA's CPU device")
        (ROOT / "docs" / "strategies.md").write_text(strategies_markdown())


def fit(name: str, *callbacks: Any, ckpt_path: Any = None, **how: Any) -> tuple[Tiny, Recipe, Any]:
    module, recipe = Tiny(name), Recipe(name, batch_size=BATCH)
    t = cpu_trainer(recipe, *callbacks, max_steps=STEPS, **how)
    t.fit(module, Share(0, 1), ckpt_path=ckpt_path)
    return module, recipe, t


# Of the way, in 32-true: Adafactor's momentum is bfloat16, and bases that follow the gradients follow their rounding.
FOLLOWS = {"adafactor_bv": 0.05, "aro": 0.6, "soap": 0.1, "splus": 0.1}


def seen(recipe: Recipe) -> list[Any]:
    """Groups, decay and rates of every parameter."""
    assert recipe.run is not None
    return [(row.name, row.group, row.weight_decay, row.lr) for row in recipe.run.groups.rows()]


def on_cpu(module: Tiny) -> dict[str, torch.Tensor]:
    return {name: p.detach().cpu().float() for name, p in module.named_parameters() if p.requires_grad}


# Each run compiles its graphs anew, for seconds.
RESUMED = ("diffusion", "large_batch/lamb", "llm", "llm/muon")
XLA: dict[str, Any] = {"accelerator": "tpu", "devices": 1}


@pytest.mark.parametrize("precision", [p for p in PRECISIONS if not lightning_refuses("xla", p)])
def test_every_recipe_is_as_on_the_cpu(precision: Any, record: Record, tmp_path: Any) -> None:
    assert ("XLA_USE_BF16" in os.environ) <= (precision == "bf16-true"), (
        "run each precision in a process of its own: -k"
    )
    passed, failed = [], {}
    for name in list_recipes():
        if refusals(preview(get_recipe(name)), "xla", precision):
            continue
        try:
            compare(name, precision, tmp_path / f"{name.replace('/', '-')}.ckpt")
            passed.append(name)
        except Exception as error:  # the others are run all the same
            failed[name] = f"{type(error).__name__}: {str(error)[:600]}"
    record.note("xla", precision, passed)
    assert not failed, failed
    assert set(passed) == set(recorded("xla", precision, record)), "run `make test-xla TABLES=--write-tables`"


def compare(name: str, precision: Any, path: Path) -> None:
    """Train on XLA's device and on the CPU, and resume on XLA's."""
    ours, theirs = Watch(), Watch()
    module, recipe, t = fit(name, ours, SaveAt(path, STEPS - 1), precision=precision, **XLA)
    assert type(t.strategy).__name__ == "SingleDeviceXLAStrategy" and t.global_step == STEPS
    plain, other, _ = fit(name, theirs, precision=precision)
    assert seen(recipe) == seen(other)
    start = {key: p.detach() for key, p in Tiny(name).named_parameters()}
    planned = preview(get_recipe(name))
    assert isinstance(planned.optimizer, str)
    row, low = row_of(planned.optimizer, planned.hyperparameters), precision != "32-true"
    weights, moved = on_cpu(module), distance(on_cpu(module), start, start)
    assert all(torch.isfinite(weight).all() for weight in weights.values()) and moved > 0
    far = distance(weights, on_cpu(plain), start)
    # In low precision orthogonalisation makes directions of rounding: up to the root of 2 apart (test_strategies.py).
    bound = (1.5 if row.matrix else 0.2) if low else FOLLOWS.get(row.name, 1e-3)
    apart = max((abs(a / b - 1) for a, b in zip(ours.norms, theirs.norms, strict=True)), default=0.0)
    print(f"{name}, {precision}: {far:.1e} of the way from the CPU, norms {apart:.1e}")  # seen with -s
    assert far < bound, f"{far:.1e} of the way from the CPU"
    assert module.losses == pytest.approx(plain.losses, rel=0.02 if low else 1e-4)
    # In low precision sums of squares are bfloat16 there as well.
    assert len(ours.norms) == (STEPS if planned.clip else 0) and apart <= (0.1 if low else 1e-4)
    if name in RESUMED:
        again, _, _ = fit(name, ckpt_path=path, precision=precision, **XLA)
        assert distance(on_cpu(again), weights, start) < 1e-6, "resumed"


def test_averages_and_clipping() -> None:
    _, _, t = fit("llm", EMA(0.9), **XLA)
    ema = next(c for c in t.callbacks if isinstance(c, EMA))
    assert ema.updates == STEPS and ema._averages is not None
    for name in ema._averages.entries:
        assert torch.isfinite(ema._averages.whole(name)).all()


@pytest.mark.parametrize("name", ["llm/adamw_8bit", "diffusion/adamw_8bit"])
def test_what_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match="no kernels for XLA"):
        fit(name, **XLA)


def test_averages_are_refused_in_bf16() -> None:
    """A tensor there says float32 and holds bfloat16, which has no number between 1 and 1 + 1/128."""
    with pytest.raises(RecipeError, match=r"averages stand still. Use precision='32-true'"):
        fit("diffusion", precision="bf16-true", **XLA)
    with pytest.raises(RecipeError, match="averages stand still"):
        fit("llm", EMA(0.9), precision="bf16-true", **XLA)
    held = torch.tensor([1 + 2.0**-10], device="xla")
    assert held.dtype == torch.float32 and float(held) == 1.0
