"""Recipes under DeepSpeed on one CPU process, in an environment of its own: `make test-deepspeed`.

Lightning runs DeepSpeed on CUDA devices alone, so its check is patched. On one process nothing is cut into parts, but the
engine steps, clips and schedules as it does on many: on flat partitions of copies.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from lightning.pytorch.strategies import deepspeed as theirs

from lit_opt import ClipSpec, Recipe
from lit_opt.errors import RecipeError
from lit_opt.explain.strategies import strategies_markdown
from lit_opt.recipes import get_recipe, list_recipes
from lit_opt.resolve import preview
from lit_opt.resolve.strategies import refusals
from tests.callbacks.modules import trainer
from tests.contract.record import Record, distance, recorded
from tests.contract.test_strategies import ROOT
from tests.contract.tiny import BATCH, STEPS, Share, Tiny

deepspeed = pytest.importorskip("deepspeed", reason="run `make test-deepspeed`")
STAGES = (1, 2)


@pytest.fixture(autouse=True)
def _on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DeepSpeedStrategy, "setup_environment", DDPStrategy.setup_environment)
    monkeypatch.setattr(theirs, "_validate_device_index_selection", lambda devices: None)
    monkeypatch.setattr(DeepSpeedStrategy, "root_device", property(lambda self: torch.device("cpu", 0)))


@pytest.fixture(scope="module")
def record(request: pytest.FixtureRequest) -> Iterator[Record]:
    record = Record()
    yield record
    if request.config.getoption("--write-tables"):
        versions = {"torch": torch.__version__.split("+")[0], "deepspeed": deepspeed.__version__}
        record.write(versions | {"lightning": lightning.__version__}, of="DeepSpeed, one CPU process")
        (ROOT / "docs" / "strategies.md").write_text(strategies_markdown())


class Watch(Callback):
    """Norms before clipping."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        session = next(c for c in trainer.callbacks if isinstance(c, Recipe))._session
        assert session is not None
        self.norms.append(float(session.norm))


def fit(name: str, stage: int = 0, *callbacks: Any, **kwargs: Any) -> tuple[Tiny, Recipe, Any]:
    module, recipe = Tiny(name), Recipe(name, batch_size=BATCH, **kwargs)
    strategy = DeepSpeedStrategy(stage=stage, process_group_backend="gloo") if stage else "auto"
    t = trainer(recipe, *callbacks, max_steps=STEPS, strategy=strategy)
    t.fit(module, Share(0, 1))
    return module, recipe, t


@pytest.mark.parametrize("stage", STAGES)
def test_every_recipe_is_as_on_one_device(stage: int, record: Record) -> None:
    passed = []
    for name in list_recipes():
        planned = preview(get_recipe(name))
        expected = refusals(planned, f"zero{stage}", "32-true")
        if expected:
            with pytest.raises(RecipeError) as error:
                fit(name, stage)
            assert all(reason in str(error.value) for reason in expected), name
            continue
        if planned.optimizer != "adamw_8bit":
            module, recipe, t = fit(name, stage)
            alone, other, _ = fit(name)
            start = {key: p.detach() for key, p in Tiny(name).named_parameters()}
            weights, wanted = (
                {k: p.detach() for k, p in m.named_parameters() if p.requires_grad} for m in (module, alone)
            )
            assert recipe.run is not None and other.run is not None and t.global_step == STEPS
            assert recipe.run.group_names == other.run.group_names
            assert distance(weights, wanted, start) < 1e-4, name
            passed.append(name)
    record.note(f"zero{stage}", "32-true", passed)
    assert set(passed) == set(recorded(f"zero{stage}", "32-true", record)), (
        "run `make test-deepspeed TABLES=--write-tables`"
    )


def test_it_clips_by_its_own_configuration() -> None:
    ours, theirs = Watch(), Watch()
    module, _, t = fit("llm", 1, ours, clip=0.05)
    alone, _, _ = fit("llm", 0, theirs, clip=0.05)
    assert min(theirs.norms) > 0.05 and ours.norms == pytest.approx(theirs.norms, rel=1e-5)
    assert t.strategy.config["gradient_clipping"] == 0.05
    start = {key: p.detach() for key, p in Tiny("llm").named_parameters()}
    ends = [{k: p.detach() for k, p in m.named_parameters()} for m in (module, alone)]
    assert distance(ends[0], ends[1], start) < 1e-4
    with pytest.raises(RecipeError, match="DeepSpeed clips by the global norm only"):
        fit("llm", 1, clip=ClipSpec(limit=0.1, kind="value"))
