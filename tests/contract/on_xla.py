"""Every recipe on XLA's CPU device, in an environment of its own: `make test-xla` (torch_xla pins an older torch).

Lightning sets bfloat16 by a variable that XLA reads once, so each precision has a process of its own (-k). Lightning takes
XLA for a TPU and looks for one, so its check is patched; more than one device cannot be run: the
all-reduce of torch_xla 2.9 between two CPU devices ends in a time-out, also without Lightning.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

os.environ["PJRT_DEVICE"] = "CPU"

import lightning
import pytest
import torch
from lightning.fabric.accelerators.xla import XLAAccelerator as FabricsXLA
from lightning.pytorch.accelerators import XLAAccelerator

from lit_opt import EMA, Recipe
from lit_opt.explain.strategies import strategies_markdown
from lit_opt.recipes import get_recipe, list_recipes
from lit_opt.resolve import preview
from lit_opt.resolve.strategies import PRECISIONS, lightning_refuses, refusals
from tests.callbacks.modules import SaveAt
from tests.callbacks.modules import trainer as cpu_trainer
from tests.contract.record import Record, distance, recorded
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
    passed = []
    for name in list_recipes():
        planned = preview(get_recipe(name))
        if refusals(planned, "xla", precision):
            continue
        path = tmp_path / f"{name.replace('/', '-')}.ckpt"
        module, recipe, t = fit(name, SaveAt(path, STEPS - 1), precision=precision, **XLA)
        assert type(t.strategy).__name__ == "SingleDeviceXLAStrategy" and t.global_step == STEPS
        plain, other, _ = fit(name, precision=precision)
        assert recipe.run is not None and other.run is not None
        assert recipe.run.group_names == other.run.group_names
        start = {key: p.detach() for key, p in Tiny(name).named_parameters()}
        far = distance(on_cpu(module), on_cpu(plain), start)
        # Adafactor's momentum is bfloat16, and orthogonalisation runs in it.
        low = planned.optimizer == "adafactor_bv"
        bound = 1.0 if planned.optimizer in ("muon", "normuon") or precision != "32-true" else 0.2 if low else 1e-3
        assert far < bound, (name, far)
        for ours, theirs in zip(module.losses, plain.losses, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4 if precision == "32-true" else 0.02), name
        if name in RESUMED:
            again, _, _ = fit(name, ckpt_path=path, precision=precision, **XLA)
            assert distance(on_cpu(again), on_cpu(module), start) < 1e-6, name
        passed.append(name)
    record.note("xla", precision, passed)
    assert set(passed) == set(recorded("xla", precision, record)), "run `make tables`"


def test_averages_and_clipping() -> None:
    _, _, t = fit("llm", EMA(0.9), **XLA)
    ema = next(c for c in t.callbacks if isinstance(c, EMA))
    assert ema.updates == STEPS and ema._averages is not None
    for name in ema._averages.entries:
        assert torch.isfinite(ema._averages.whole(name)).all()


@pytest.mark.parametrize("name", ["llm/adamw_8bit", "diffusion/adamw_8bit"])
def test_what_is_refused(name: str) -> None:
    with pytest.raises(Exception, match="no kernels for XLA"):
        fit(name, **XLA)
