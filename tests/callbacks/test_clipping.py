"""The clipped gradient is torch's, whatever the precision, the accumulation and the optimizer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import SingleDeviceStrategy

from lit_opt import ClipSpec, Recipe
from lit_opt.callbacks.clipping import clip_gradients
from lit_opt.errors import RecipeError
from tests.callbacks.modules import Manual, Net, OwnSGD, fit, loader

LIMIT = 0.05


def scaler() -> dict[str, Any]:
    """Mixed float16 on the CPU with a GradScaler; `precision="16-mixed"` would fall back to bf16 there."""
    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=64.0))]}


class Norms(Net):
    """Keeps the gradients that the optimizer's step has used."""

    def __init__(self) -> None:
        super().__init__()
        self.gradients: list[list[torch.Tensor]] = []

    def keep(self, *_: Any) -> None:
        self.gradients.append([p.grad.detach().clone() for p in self.parameters() if p.grad is not None])

    def on_train_start(self) -> None:
        optimizer = self.optimizers()
        optimizer.optimizer.register_step_post_hook(self.keep)  # type: ignore[union-attr]

    @property
    def norms(self) -> list[float]:
        """Total norm at each step."""
        return [float(torch.nn.utils.get_total_norm(g)) for g in self.gradients]


class ManualNorms(Norms, Manual):
    training_step = Manual.training_step


def test_equals_torchs_own_clipping() -> None:
    ours = Net()
    theirs = copy.deepcopy(ours)
    batch = next(iter(loader()))
    for module in (ours, theirs):
        module.training_step = module.loss  # type: ignore[assignment]
        module.loss(batch).backward()
    norm = clip_gradients(ours.parameters(), ClipSpec(limit=LIMIT))
    expected = torch.nn.utils.clip_grad_norm_(theirs.parameters(), LIMIT)
    torch.testing.assert_close(norm, expected, rtol=0, atol=0)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None and torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_equals_lightnings_own_clipping(accumulate: int) -> None:
    kwargs: dict[str, Any] = {"max_epochs": 2, "accumulate_grad_batches": accumulate}
    ours, theirs = Norms(), Norms()
    fit(ours, Recipe("llm", clip=LIMIT), **kwargs)
    fit(theirs, Recipe("llm", clip=0), gradient_clip_val=LIMIT, **kwargs)
    assert len(ours.gradients) == len(theirs.gradients) == (6 if accumulate == 3 else 16)
    assert ours.norms == pytest.approx([LIMIT] * len(ours.norms), rel=1e-4)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "scaler", "32-true", "64-true"])
@pytest.mark.parametrize("kind", [Norms, ManualNorms])
def test_precisions(precision: Any, kind: type[Norms]) -> None:
    class Cast(kind):  # type: ignore[misc, valid-type]
        def loss(self, batch: Any) -> Any:
            dtype = self.net[0].weight.dtype
            return torch.nn.functional.cross_entropy(self.net(batch[0].to(dtype)).float(), batch[1])

    module, recipe = Cast(), Recipe("llm", clip=LIMIT)
    fit(module, recipe, **(scaler() if precision == "scaler" else {"precision": precision}))
    assert isinstance(recipe.optimizer, torch.optim.AdamW)
    assert recipe.optimizer.defaults["fused"], "the registry asks for the fused step on CPU"
    tolerance = 2e-2 if precision == "bf16-true" else 1e-3
    assert module.norms == pytest.approx([LIMIT] * len(module.norms), rel=tolerance)
    assert len(module.norms) == 4


def test_a_fused_optimizer_of_ones_own_under_a_grad_scaler() -> None:
    class Fused(Norms):
        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=1e-3, fused=True)

    module = Fused()
    t = fit(module, Recipe("llm", clip=LIMIT, existing="keep"), **scaler())
    assert module.norms == pytest.approx([LIMIT] * len(module.norms), rel=1e-3)
    assert t.optimizers[0]._step_supports_amp_scaling is True  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", [Norms, ManualNorms])
def test_by_value(kind: type[Norms]) -> None:
    module = kind()
    fit(module, Recipe("llm", clip=ClipSpec(limit=0.01, kind="value")))
    largest = [max(float(g.abs().max()) for g in gradients) for gradients in module.gradients]
    assert largest == pytest.approx([0.01] * 4)


def test_off() -> None:
    module = Norms()
    fit(module, Recipe("llm", clip=0))
    assert min(module.norms) > LIMIT


def test_keep_adds_clipping_to_ones_own_optimizer() -> None:
    class Own(Norms, OwnSGD):
        pass

    module = Own()
    t = fit(module, Recipe("llm", clip=LIMIT, existing="keep"))
    assert isinstance(t.optimizers[0], torch.optim.SGD)
    assert module.norms == pytest.approx([LIMIT] * 4, rel=1e-4)


def test_the_trainers_own_value_is_an_error() -> None:
    with pytest.raises(RecipeError, match=r"clip: both Trainer\(gradient_clip_val=0.3\)"):
        fit(Net(), Recipe("llm"), gradient_clip_val=0.3)
    module = Norms()
    fit(module, Recipe("llm", clip=0), gradient_clip_val=LIMIT)
    assert module.norms == pytest.approx([LIMIT] * 4, rel=1e-4)


def test_the_modules_own_method_is_kept(caplog: Any) -> None:
    class OwnClip(Norms):
        def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
            self.clip_gradients(optimizer, gradient_clip_val=0.01, gradient_clip_algorithm="norm")

    module = OwnClip()
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        fit(module, Recipe("llm"))
    assert module.norms == pytest.approx([0.01] * 4, rel=1e-4)
    assert caplog.text.count("configure_gradient_clipping is kept") == 1
    with pytest.raises(RecipeError, match="has its own configure_gradient_clipping"):
        fit(OwnClip(), Recipe("llm", clip=1.0))


class DeepSpeedStrategy(SingleDeviceStrategy):
    """DeepSpeed itself needs a GPU: it reads the Trainer's value in strategy.setup and clips by itself."""

    def __init__(self) -> None:
        super().__init__(device="cpu")
        self.value: float | None = None

    def setup(self, trainer: Any) -> None:
        self.value = trainer.gradient_clip_val
        super().setup(trainer)


def test_deepspeed_is_given_the_trainers_value_for_the_length_of_the_run() -> None:
    strategy = DeepSpeedStrategy()
    t = fit(Norms(), Recipe("llm", clip=LIMIT), strategy=strategy)
    assert strategy.value == LIMIT and t.gradient_clip_val is None
    with pytest.raises(RecipeError, match="DeepSpeed clips by the global norm only"):
        fit(Norms(), Recipe("llm", clip=ClipSpec(limit=0.1, kind="value")), strategy=DeepSpeedStrategy())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_norm_of_half_precision_is_float32s(dtype: torch.dtype) -> None:
    """bfloat16 has three digits, and the sum of squares of float16 overflows at a norm of 256."""
    g = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.zeros(64, 64, dtype=dtype)) for _ in range(3)]
    for p in parameters:
        p.grad = (10 * torch.randn(64, 64, generator=g)).to(dtype)
    whole = torch.cat([p.grad.flatten().double() for p in parameters])  # type: ignore[union-attr]
    norm = clip_gradients(parameters, ClipSpec(limit=1.0))
    assert norm is not None and norm.dtype == torch.float32
    assert float(norm) == pytest.approx(float(whole.norm()), rel=1e-6)
    clipped = torch.cat([p.grad.flatten().double() for p in parameters])  # type: ignore[union-attr]
    assert float(clipped.norm()) == pytest.approx(1.0, rel=5e-3)
