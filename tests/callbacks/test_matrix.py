"""A matrix recipe through Lightning: routed groups, exact resume, plain checkpoints, and shards that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lit_opt import Recipe
from lit_opt.callbacks.session import Session
from lit_opt.errors import RecipeError
from lit_opt.optim.matrix.cost import orthogonalization_share
from lit_opt.recipes.schema import GroupRule
from lit_opt.workloads import LanguageModel
from tests.callbacks.modules import Manual, Net, OwnSGD, SaveAt, fit, loader, trainer

RECIPES: dict[str, dict[str, Any]] = {
    "llm/muon": {},
    "llm/muon_rms": {},
    "llm/normuon": {},
    "teon": {"optimizer": "teon", "lr": 0.02, "weight_decay": 0.01},
    "mars_m": {"optimizer": "mars_m"},
}


def recipe(name: str, **kwargs: Any) -> Recipe:
    return Recipe(name if "/" in name else "llm", **(RECIPES[name] | {"warmup": 2, "total_steps": 8} | kwargs))


def language_model() -> LanguageModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LanguageModel(layers=2, width=16, heads=2, mlp_width=32, context=16)


def text() -> DataLoader[Any]:
    """Four batches in one order, so that a run saved at the end of an epoch is continued exactly."""
    g = torch.Generator().manual_seed(0)
    phrase = torch.randint(0, 256, (32,), generator=g)
    windows = torch.stack([phrase.roll(int(shift))[:17] for shift in torch.randint(0, 32, (16,), generator=g)])
    return DataLoader(windows, batch_size=4)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", RECIPES)
def test_trains_and_resumes_bit_for_bit(name: str, tmp_path: Path) -> None:
    first, before = language_model(), language_model()
    ours = recipe(name)
    path = tmp_path / "half.ckpt"
    fit(first, ours, SaveAt(path, 4, "on_train_epoch_end"), data=text(), max_epochs=2)
    assert all(not torch.equal(a, b) for a, b in zip(first.parameters(), before.parameters(), strict=True))
    with torch.no_grad():
        windows = next(iter(text()))
        assert first.loss(windows) < before.loss(windows) - 0.03

    saved = torch.load(path, weights_only=True)
    assert {group["algorithm"] for group in saved["lit_opt"]["groups"]} == {ours.run.resolved.optimizer, "adamw"}  # type: ignore[union-attr]
    assert saved["lit_opt"]["recipe"]["fallback"] == ours.resolved.as_dict()["fallback"]  # type: ignore[union-attr]
    for again in (recipe(name), Recipe("llm", on_resume="checkpoint", total_steps=8)):
        rest = language_model()
        fit(rest, again, data=text(), max_epochs=2, ckpt_path=path)
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), rest.parameters(), strict=True))


def test_the_groups_are_announced(caplog: pytest.LogCaptureFixture) -> None:
    ours = recipe("llm/muon")
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        fit(language_model(), ours, data=text())
    lines = [line.split() for line in caplog.text.replace("│", " ").splitlines()]
    assert ["decay", "muon", "0.02", "0.01", "14", "5,120"] in lines
    assert ["decay/adamw", "adamw", "0.0003", "0.01", "1", "4,096"] in lines
    assert ["no_decay/adamw", "adamw", "0.0003", "0", "6", "4,176"] in lines
    assert ["fallback.lr", "0.0003", "recipe"] in [line[:3] for line in lines]
    # Both rates follow the schedule.
    assert ours.optimizer is not None
    muon, adamw = (ours.optimizer.param_groups[i]["lr"] for i in (0, 1))
    assert 0 < muon < 0.02 and adamw / muon == pytest.approx(3e-4 / 0.02)


def test_teon_stacks_consecutive_blocks() -> None:
    ours = recipe("teon")
    fit(language_model(), ours, data=text())
    assert ours.optimizer is not None
    group = ours.optimizer.param_groups[0]
    names = [[group["param_names"][i] for i in stack] for stack in group["stack"]]
    assert names == [
        [f"model.model.layers.{i}.self_attn.{role}_proj.weight" for i in (0, 1)] for role in ("q", "k", "v")
    ]


def test_another_fallback_is_another_recipe(tmp_path: Path) -> None:
    path = tmp_path / "c.ckpt"
    fit(language_model(), recipe("llm/muon"), data=text(), max_steps=2).save_checkpoint(path)
    with pytest.raises(RecipeError, match=r"fallback.lr: 0.0003 in the checkpoint, 0.001 now"):
        fit(language_model(), recipe("llm/muon", fallback={"lr": 1e-3}), data=text(), ckpt_path=path)
    moved = recipe("llm/muon", groups=[GroupRule(match="*.down_proj.weight", algorithm="adamw")], on_resume="config")
    with pytest.raises(RecipeError, match="in another group or with another algorithm"):
        fit(language_model(), moved, data=text(), ckpt_path=path)


def test_fused_weights_are_split_from_yaml() -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(Recipe, "recipe")
    given = parser.parse_string("""
recipe:
  name: llm/muon
  groups:
    - {match: "*.qkv.weight", split_sizes: qkv}
    - {match: "*.kv.weight", split_sizes: [16, 8]}
    - {match: "*.q.weight", num_heads: 4}
""")
    block = nn.ModuleDict({"qkv": nn.Linear(8, 24), "kv": nn.Linear(8, 24), "q": nn.Linear(8, 8)})
    module = nn.ModuleDict({"block": block, "head": nn.Linear(8, 4)})
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # before jsonargparse 4.49
    ours = instantiate(given).recipe
    optimizer, _ = ours.configure(module, total_steps=10)
    found = {group["name"]: (group.get("split_sizes"), group.get("num_heads")) for group in optimizer.param_groups}
    assert found["decay/qkv.weight/split_8_8_8"] == ([8, 8, 8], None)
    assert found["decay/kv.weight/split_16_8"] == ([16, 8], None)
    assert found["decay/q.weight/blocks_4"] == (None, 4)
    assert all(how == (None, None) for name, how in found.items() if "weight" not in name)


# ---- what a step costs


def said(caplog: pytest.LogCaptureFixture, ours: Recipe, module: Any, data: Any, **kwargs: Any) -> list[str]:
    caplog.clear()
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        fit(module, ours, data=data, **kwargs)
    return [record.getMessage() for record in caplog.records if "orthogonalisation" in record.getMessage()]


def test_the_cost_is_said_once_where_the_tokens_are_known(caplog: pytest.LogCaptureFixture) -> None:
    model = language_model()
    ours = recipe("llm/muon")
    [line] = said(caplog, ours, model, text())
    assert ours.optimizer is not None
    share = orthogonalization_share(ours.optimizer, tokens=4 * 17)
    assert line == (
        f"muon: about {share:.0%} of a step's operations go into the orthogonalisation (estimate at 68 tokens a step: 68 "
        "in the first batch x accumulation 1 x 1 processes)."
    )
    [line] = said(caplog, recipe("llm/muon"), language_model(), text(), accumulate_grad_batches=2, max_steps=2)
    assert "estimate at 136 tokens a step: 68 in the first batch x accumulation 2" in line
    [line] = said(caplog, recipe("llm/muon", batch_tokens=10_000), language_model(), text())
    assert "estimate at 10,000 tokens a step: as given" in line
    # What is no language model has no tokens, and AdamW no orthogonalisation.
    assert said(caplog, Recipe("vit/muon", batch_size=4, warmup=1), Net(), None) == []
    assert said(caplog, Recipe("llm", lr=1e-3), language_model(), text(), max_steps=1) == []


# ---- MARS-M's exact variant


def exact(**kwargs: Any) -> Recipe:
    return Recipe(
        "llm", optimizer="mars_m", warmup=1, optimizer_kwargs={"variant": "exact", "ns_dtype": "float32"}, **kwargs
    )


class Recording(Net):
    """Batch norm and dropout, and what each evaluation of a batch saw."""

    def __init__(self) -> None:
        super().__init__(dropout=0.5)
        self.net[1] = nn.BatchNorm1d(16)
        self.calls: list[tuple[int, Tensor, Tensor]] = []
        self.net[2].register_forward_hook(lambda module, args, output: self.masks.append(output == 0))
        self.masks: list[Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.calls.append((batch_idx, self.net[0].weight.detach().clone(), self.masks[-1]))  # type: ignore[operator]
        return loss


def test_exact_evaluates_each_batch_at_the_last_weights_and_at_these() -> None:
    torch.manual_seed(3)
    module = Recording()
    fit(module, exact(), max_steps=4)
    assert [index for index, _, _ in module.calls] == [0, 1, 1, 2, 2, 3, 3]
    current = [weights for _, weights, _ in module.calls[::2]]
    previous = [weights for _, weights, _ in module.calls[1::2]]
    for step, weights in enumerate(previous):
        assert torch.equal(weights, current[step])
        assert not torch.equal(weights, current[step + 1])
    # The same neurons are dropped in both, and others in the next batch.
    for step in range(3):
        first, second = module.calls[2 * step + 1][2], module.calls[2 * step + 2][2]
        # What a batch norm puts below zero is no mask; without a non-linearity zeros are dropped ones alone.
        assert torch.equal(first, second)
    assert not torch.equal(module.calls[2][2], module.calls[4][2])
    # The running statistics of batch norm move once a batch.
    assert module.net[1].num_batches_tracked == 4


def test_exact_equals_plain_torch() -> None:
    module, plain = Net(), Net()
    ours = exact(clip=0)
    fit(module, ours, max_steps=4)
    optimizer, scheduler = exact(clip=0).configure(plain, total_steps=4, global_batch=4)
    for batch in list(loader())[:4]:

        def closure(batch: Any = batch) -> Tensor:
            optimizer.zero_grad()
            loss = plain.loss(batch)
            loss.backward()
            return loss

        optimizer.step(closure)  # type: ignore[arg-type]
        scheduler.step()
    for ran, expected in zip(module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ran, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("module", "kwargs", "words"),
    [
        (Net, {"accumulate_grad_batches": 2}, "of 2 accumulated batches only the last is there"),
        (Net, {"callbacks": GradientAccumulationScheduler({0: 1, 1: 4})}, "of 4 accumulated batches"),
        (
            Net,
            {"plugins": MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))},
            "under precision='16-mixed' Lightning steps without the closure",
        ),
        (Manual, {}, "under manual optimization nothing here knows how"),
        (Net, {"strategy": ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1)}, "FSDP2 may still"),
    ],
)
def test_exact_is_refused_where_the_batch_cannot_be_evaluated_twice(
    module: Any, kwargs: dict[str, Any], words: str
) -> None:
    callbacks = [kwargs.pop("callbacks")] if "callbacks" in kwargs else []
    ours, net = exact(), module()
    with pytest.raises(RecipeError) as error:
        trainer(ours, *callbacks, max_steps=2, **kwargs).fit(net, loader())
    assert words in str(error.value) and "or type variant='approx'" in str(error.value)
    assert "configure_optimizers" not in vars(net)
    assert ours._session is None


# ---- shards


class DeepSpeedStrategy(SingleDeviceStrategy):
    """DeepSpeed itself needs a GPU; what is read of it is its name and config."""

    def __init__(self, stage: int) -> None:
        super().__init__(device="cpu")
        self.config = {"zero_optimization": {"stage": stage}}


@pytest.mark.parametrize("strategy", [FSDPStrategy(), DeepSpeedStrategy(1), DeepSpeedStrategy(3)])
def test_flat_shards_are_refused_before_anything_is_installed(strategy: Any) -> None:
    module = Net()
    ours = Recipe("llm/muon")
    t: Any = trainer(ours, max_steps=1)
    t.strategy.__class__ = type(strategy)  # Lightning refuses FSDPStrategy itself without a GPU
    t.strategy.config = getattr(strategy, "config", None)
    t.strategy._precision_plugin = None  # FSDPStrategy takes its own alone
    with pytest.raises(RecipeError, match=r"whole matrices.*flat shards \((FSDP1|ZeRO stage \d)\)") as error:
        Session(ours, t, module)
    assert "ModelParallelStrategy (FSDP2) or DDP" in str(error.value)
    assert "configure_optimizers" not in vars(module)
    # AdamW is fine there, and so is an optimizer of the module's own.
    for other, kept in ((Recipe("llm"), Net()), (Recipe("llm/muon", existing="keep", clip=0), OwnSGD())):
        t.callbacks[0] = other
        Session(other, t, kept).close()


def test_flat_shards_are_refused_in_plain_torch_as_well() -> None:
    module = nn.Linear(8, 8)
    module.weight.ds_shape = (8, 8)  # type: ignore[attr-defined]
    with pytest.raises(RecipeError, match=r"flat shards \(FSDP1 or ZeRO\)"):
        Recipe("llm/muon").configure(module, total_steps=10)
    Recipe("llm", lr=1e-3).configure(module, total_steps=10)
