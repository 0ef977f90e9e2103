"""K-FAC, the natural gradient and 1-bit Adam as optimizers of a Recipe, in one process and two."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy, SingleDeviceStrategy
from torch import nn
from torch.utils.data import DataLoader

from lit_opt import GradientNoiseScale, Recipe
from lit_opt.callbacks.demands import demand_problems
from lit_opt.errors import RecipeError
from lit_opt.resolve import preview
from tests.callbacks.curvature_processes import OPTIMIZERS, Plain, fit, recipe, weights
from tests.callbacks.modules import Net, SaveAt, loader, trainer
from tests.callbacks.processes import STEPS, Share
from tests.processes import launch as launch_processes


class DeepSpeedStrategy(SingleDeviceStrategy):
    """DeepSpeed's own needs a GPU; what is read of it is its name."""


def hooks_of(module: nn.Module) -> int:
    return sum(len(part._forward_hooks) for part in module.modules())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_trains_resumes_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    path = tmp_path / "c.ckpt"
    straight = fit(name, 0, 1, SaveAt(path, 4))
    assert any(not torch.equal(a, b) for a, b in zip(straight.parameters(), Plain().parameters(), strict=True))
    resumed = fit(name, 0, 1, ckpt_path=path)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))
    assert hooks_of(straight) == 0


def test_the_module_is_watched_during_the_run_and_not_after_an_exception() -> None:
    class Fails(Plain):
        def on_train_batch_end(self, *args: Any) -> None:
            self.hooks = hooks_of(self)
            raise ValueError("boom")

    module = Fails()
    with pytest.raises(ValueError, match="boom"):
        trainer(recipe("kfac"), max_steps=4).fit(module, loader())
    assert module.hooks == 2 and hooks_of(module) == 0


def test_accumulated_micro_batches_are_one_batch() -> None:
    results = []
    for size, accumulate in ((8, 1), (4, 2)):
        module = Plain()
        run = trainer(recipe("kfac", clip=0), max_steps=4, accumulate_grad_batches=accumulate)
        run.fit(module, loader(batch_size=size))
        results.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
    torch.testing.assert_close(*results, rtol=0, atol=1e-12)


def test_norms_and_frozen_layers_are_fine_and_validation_is_not_recorded() -> None:
    module, ours = Net(), recipe("kfac")
    module.net[0].requires_grad_(False)
    trainer(ours, max_steps=4, val_check_interval=2).fit(module, loader(), loader())
    assert ours.optimizer is not None
    steps = {n: ours.optimizer.state[p].get("factor_steps") for n, p in module.named_parameters() if p.requires_grad}
    assert steps == {"net.1.weight": None, "net.1.bias": None, "net.3.weight": 4, "net.3.bias": None}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_cannot_work_is_refused_before_the_run(name: str) -> None:
    ours = recipe(name)
    for strategy in (ModelParallelStrategy(), DeepSpeedStrategy("cpu")):
        stub = SimpleNamespace(strategy=strategy, precision_plugin=None)
        [problem] = demand_problems(preview(ours.spec, ours.overrides), stub, Plain())
        assert f"{name} needs whole parameters" in problem and f"{type(strategy).__name__} shards them" in problem
    run: Any = trainer(recipe(name), max_steps=1)
    run.strategy.precision_plugin.scaler = object()  # 16-mixed on a CPU has one with torch.amp alone
    with pytest.raises(RecipeError, match=rf"{name} .*under precision='16-mixed'.*Use 'bf16-mixed'"):
        run.fit(Plain(), loader())


def test_a_compiled_module_is_refused() -> None:
    module = torch.compile(Plain())
    with pytest.raises(RecipeError, match=r"compiled, and torch.compile drops the hooks"):
        trainer(recipe("kfac"), max_steps=4).fit(module, loader())  # type: ignore[arg-type]


def test_missing_values_are_asked_for() -> None:
    with pytest.raises(RecipeError, match=r"'kfac' in the setting 'cnn'.*give lr= and weight_decay="):
        Recipe("cnn", optimizer="kfac")
    with pytest.raises(RecipeError, match=r"onebit_adam has no default for freeze_step; give optimizer_kwargs"):
        Recipe("llm", optimizer="onebit_adam", lr=1e-3, weight_decay=0.1)


def test_outside_a_trainer() -> None:
    module = Plain()
    optimizer, _ = recipe("kfac").configure(module, total_steps=10)
    module.loss(next(iter(loader()))).backward()
    optimizer.step()
    assert hooks_of(module) == 2


# ---- two processes


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("curvature")
    result = launch_processes("tests.callbacks.curvature_processes", folder)
    assert result.returncode == 0, result.stderr[-6000:]
    both = [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]
    for each in both:
        assert "error" not in each, each["error"]
    return both


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_two_processes_agree_and_a_resume_is_exact(name: str, launched: list[dict[str, Any]]) -> None:
    first, second = (each[name] for each in launched)
    for key in first["straight"]:
        assert torch.equal(first["straight"][key], second["straight"][key])
        assert torch.equal(first["straight"][key], first["resumed"][key])
    assert first["hooks"] == 0


@pytest.mark.parametrize("name", ["kfac", "natural_gradient"])
def test_two_processes_are_one_with_the_whole_batch(name: str, launched: list[dict[str, Any]]) -> None:
    torch.testing.assert_close(launched[0][name]["straight"], weights(fit(name, 0, 1)), rtol=0, atol=1e-12)


def test_the_noise_scale_of_two_processes_is_that_of_two_micro_batches(launched: list[dict[str, Any]]) -> None:
    halves = [[x[part], y[part]] for x, y in Share(0, 1).batches for part in (slice(0, 4), slice(4, 8))]
    noise = GradientNoiseScale(decay=0.5, batch_size=8)
    run = trainer(recipe("kfac"), noise, max_steps=STEPS, accumulate_grad_batches=2)
    run.fit(Plain(), DataLoader(halves, batch_size=None))  # type: ignore[arg-type]
    assert noise.noise.updates == STEPS
    for each in launched:
        assert each["noise"] == pytest.approx(noise.state_dict(), rel=1e-9)


def test_a_second_communication_hook_is_refused(launched: list[dict[str, Any]]) -> None:
    for each in launched:
        assert "brings its own communication hook, and DDPStrategy(ddp_comm_hook=...) was given" in each["hook"]
