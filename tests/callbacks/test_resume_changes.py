"""What a resume says and does when something differs from the checkpoint."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lit_opt import GroupRule, Recipe
from lit_opt.errors import RecipeError
from tests.callbacks.modules import Net, OwnSGD, StatefulLoader, fit, loader, snapshot, trainer

OLD: dict[str, Any] = {"lr": 1e-2, "warmup": 2, "weight_decay": 0.1, "betas": (0.9, 0.95), "clip": 1.0}
NEW: dict[str, Any] = {"lr": 3e-2, "warmup": 4, "weight_decay": 0.3, "betas": (0.8, 0.99), "clip": 0.5}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four of eight steps of the old recipe."""
    path = tmp_path_factory.mktemp("resume") / "old.ckpt"
    fit(Net(), Recipe("llm", total_steps=8, **OLD), data=StatefulLoader(noise=0.0)).save_checkpoint(path)
    return path


def resume(path: Path, recipe: Recipe, module: Net | None = None, **kwargs: Any) -> Net:
    module = module or Net()
    fit(module, recipe, data=StatefulLoader(noise=0.0), ckpt_path=path, **({"max_steps": 8} | kwargs))
    return module


def test_a_longer_horizon_gives_the_rates_of_a_straight_run(checkpoint: Path, caplog: Any) -> None:
    straight = Net()
    fit(straight, Recipe("llm", **OLD), data=StatefulLoader(noise=0.0), max_steps=12)
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        resumed = resume(checkpoint, Recipe("llm", **OLD), max_steps=12)
    assert resumed.seen == straight.seen[4:]
    assert "total_steps: 8 in the checkpoint, 12 now" in caplog.text


def test_the_same_recipe_with_a_recipe_horizon(checkpoint: Path) -> None:
    straight = Net()
    fit(straight, Recipe("llm", **OLD), data=StatefulLoader(noise=0.0), max_steps=8)
    resumed = resume(checkpoint, Recipe("llm", **OLD))
    assert resumed.seen == straight.seen[4:]
    assert resumed.trainer.global_step == 8
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_different_recipe_is_an_error_that_lists_the_differences(checkpoint: Path) -> None:
    module = Net()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    attributes = snapshot(module)
    with pytest.raises(RecipeError) as caught:
        resume(checkpoint, Recipe("llm", **NEW), module)
    message = str(caught.value)
    for part in (
        "lr: 0.01 in the checkpoint, 0.03 now",
        "weight_decay: 0.1 in the checkpoint, 0.3 now",
        "hyperparameters.betas: [0.9, 0.95] in the checkpoint, [0.8, 0.99] now",
        "clip.limit: 1 in the checkpoint, 0.5 now",
        "warmup_steps: 2 in the checkpoint, 4 now",
        "on_resume='checkpoint'",
        "on_resume='config'",
    ):
        assert part in message, part
    assert snapshot(module) == attributes
    assert module.seen == [] and before.keys() == module.state_dict().keys()


@pytest.mark.parametrize(
    "change", [{"lr": 2e-2}, {"weight_decay": 0.2}, {"warmup": 3}, {"clip": 0}, {"decay": "linear"}]
)
def test_no_change_is_silently_ignored(checkpoint: Path, change: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=f"on_resume: .*\n.*{next(iter(change)).replace('decay', '')}"):
        resume(checkpoint, Recipe("llm", **(OLD | change)))


def test_the_checkpoints_values_win(checkpoint: Path) -> None:
    straight = resume(checkpoint, Recipe("llm", **OLD))
    new = Recipe("llm", on_resume="checkpoint", **NEW)
    resumed = resume(checkpoint, new)
    assert resumed.seen == straight.seen
    assert new.resolved is not None and new.resolved.clip is not None
    assert (new.resolved.lr, new.resolved.weight_decay, new.resolved.clip.limit) == (0.01, 0.1, 1.0)
    assert new.resolved.hyperparameters["betas"] == (0.9, 0.95)
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_checkpoints_clipping_wins_over_none(checkpoint: Path) -> None:
    straight = resume(checkpoint, Recipe("llm", **OLD))
    resumed = resume(checkpoint, Recipe("llm", on_resume="checkpoint", **(OLD | {"clip": 0})))
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_our_values_win(checkpoint: Path) -> None:
    new = Recipe("llm", on_resume="config", **NEW)
    resumed = resume(checkpoint, new)
    straight = Net()
    fit(straight, Recipe("llm", **NEW), data=StatefulLoader(noise=0.0), max_steps=8)
    assert resumed.seen == straight.seen[4:]
    assert new.optimizer is not None
    group = new.optimizer.param_groups[0]
    assert (group["weight_decay"], group["betas"]) == (0.3, (0.8, 0.99))
    for value in new.optimizer.state.values():
        assert value["step"] == 8


class Wider(Net):
    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Linear(4, 4)


class Renamed(Net):
    def __init__(self) -> None:
        super().__init__()
        self.body = self.net
        del self.net

    def loss(self, batch: Any) -> Any:
        return torch.nn.functional.cross_entropy(self.body(batch[0]), batch[1])


@pytest.mark.parametrize("kind", [Wider, Renamed])
def test_changed_parameters(checkpoint: Path, kind: type[Net]) -> None:
    """Missing weights come first; with strict_loading=False the groups of the optimizer do."""
    with pytest.raises(RecipeError, match=r"the checkpoint is of another model(.|\n)*strict=False"):
        resume(checkpoint, Recipe("llm", **OLD), kind())
    module = kind()
    module.strict_loading = False
    with pytest.raises(RecipeError, match=r"only in the model \((extra|body)"):
        resume(checkpoint, Recipe("llm", **OLD), module)


def test_changed_groups(checkpoint: Path) -> None:
    with pytest.raises(RecipeError, match="groups"):
        resume(checkpoint, Recipe("llm", groups=[GroupRule(match="net.0.*", lr_scale=0.1)], **OLD))
    with pytest.raises(RecipeError, match="in another group"):
        rules = [GroupRule(match="net.0.*", lr_scale=0.1)]
        resume(checkpoint, Recipe("llm", groups=rules, on_resume="config", **OLD))


def test_a_checkpoint_without_a_recipe(tmp_path: Path, caplog: Any) -> None:
    class SameShape(Net):
        def configure_optimizers(self) -> Any:
            decayed = [p for p in self.parameters() if p.ndim > 1]
            rest = [p for p in self.parameters() if p.ndim < 2]
            return torch.optim.AdamW([{"params": decayed}, {"params": rest}], lr=0.5)

    for kind in (SameShape, OwnSGD):
        fit(kind(), None, data=loader()).save_checkpoint(tmp_path / f"{kind.__name__}.ckpt")
    recipe = Recipe("llm", **OLD)
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        module = resume(tmp_path / "SameShape.ckpt", recipe)
    assert "without a recipe" in caplog.text
    straight = Net()
    fit(straight, Recipe("llm", **OLD), data=StatefulLoader(noise=0.0), max_steps=8)
    assert module.lrs == straight.lrs[4:]
    with pytest.raises(RecipeError, match=r"Load its weights alone"):
        resume(tmp_path / "OwnSGD.ckpt", Recipe("llm", **OLD))


def test_a_newer_format(checkpoint: Path, tmp_path: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    content["lit_opt"] |= {"format": 99, "version": "7.0"}
    torch.save(content, tmp_path / "newer.ckpt")
    with pytest.raises(RecipeError, match=r"format 99, written by lit-opt 7\.0, and this version reads up to 2"):
        resume(tmp_path / "newer.ckpt", Recipe("llm", **OLD))


def test_a_loader_without_a_position_is_named_in_one_line(tmp_path: Path, caplog: Any) -> None:
    fit(Net(), Recipe("llm", **OLD), data=loader(), max_steps=3).save_checkpoint(tmp_path / "c.ckpt")
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        fit(Net(), Recipe("llm", **OLD), data=loader(), ckpt_path=tmp_path / "c.ckpt", max_steps=6)
    assert caplog.text.count("cannot restore its position") == 1


def test_keep_still_restores_data_and_random_states(tmp_path: Path) -> None:
    def recipe() -> Recipe:
        return Recipe("llm", existing="keep")

    whole, data = OwnSGD(dropout=0.5), StatefulLoader()
    fit(whole, recipe(), data=data, max_steps=3).save_checkpoint(tmp_path / "c.ckpt")
    torch.manual_seed(5)
    rest, rest_data = OwnSGD(dropout=0.5), StatefulLoader()
    t = trainer(recipe(), max_steps=6)
    t.fit(rest, rest_data, ckpt_path=tmp_path / "c.ckpt")
    assert len(rest_data.given) == 3
    assert rest_data.given[0] not in data.given


def test_another_optimizer_cannot_continue_the_state(checkpoint: Path) -> None:
    other = Recipe("llm", optimizer=torch.optim.RMSprop, lr=1e-2, weight_decay=0.1, on_resume="config", total_steps=8)
    with pytest.raises(RecipeError, match=r"the state of 'adamw', which 'torch.optim.rmsprop.RMSprop' cannot continue"):
        resume(checkpoint, other)


def test_another_number_of_processes_is_named_in_one_line(checkpoint: Path, tmp_path: Path, caplog: Any) -> None:
    content = torch.load(checkpoint, weights_only=True)
    content["lit_opt"]["rng"] *= 2
    torch.save(content, tmp_path / "two.ckpt")
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        resume(tmp_path / "two.ckpt", Recipe("llm", **OLD))
    assert caplog.text.count("random states of 2 processes") == 1


def test_a_finished_run_has_nothing_left_to_do(checkpoint: Path) -> None:
    module = resume(checkpoint, Recipe("llm", **OLD), max_steps=4)
    assert module.seen == [] and "configure_optimizers" not in vars(module)


def test_an_algorithm_that_moved_under_the_same_group_name(checkpoint: Path, tmp_path: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    content["lit_opt"]["groups"][0]["algorithm"] = "lion"
    torch.save(content, tmp_path / "moved.ckpt")
    with pytest.raises(RecipeError, match=r"2 in another group or with another algorithm \(net\.0\.weight"):
        resume(tmp_path / "moved.ckpt", Recipe("llm", **OLD))


def test_more_micro_batches_a_step(checkpoint: Path) -> None:
    """Another accumulation is another batch: the rate stays where it was given, and is refused where it would scale."""
    module = resume(checkpoint, Recipe("llm", **OLD), accumulate_grad_batches=2)
    straight = Net()
    fit(straight, Recipe("llm", **OLD), data=StatefulLoader(noise=0.0), max_steps=8)
    assert module.lrs == straight.lrs[4:] and module.trainer.global_step == 8


def test_a_rate_that_would_follow_the_batch(tmp_path: Path) -> None:
    def recipe() -> Recipe:
        return Recipe("cnn", base_lr=0.1, base_batch_size=4, total_steps=8, warmup=1)

    path = tmp_path / "c.ckpt"
    fit(Net(), recipe(), data=StatefulLoader(noise=0.0), max_steps=4).save_checkpoint(path)
    with pytest.raises(RecipeError, match=r"lr: 0.1 in the checkpoint, 0.2 now"):
        resume(path, recipe(), accumulate_grad_batches=2)
    resume(path, recipe())


@pytest.mark.parametrize("before", [True, False])
def test_layers_frozen_or_unfrozen_in_between(tmp_path: Path, before: bool) -> None:
    def module(frozen: bool) -> Net:
        net = Net()
        net.net[0].requires_grad_(not frozen)
        return net

    path, recipe = tmp_path / "c.ckpt", Recipe("llm", total_steps=8, **OLD)
    fit(module(before), recipe, data=StatefulLoader(noise=0.0)).save_checkpoint(path)
    where = "only in the model" if before else "only in the checkpoint"
    with pytest.raises(RecipeError, match=rf"2 {where} \(net\.0\.weight, net\.0\.bias\).*load its weights alone"):
        resume(path, Recipe("llm", **OLD), module(not before))
    resume(path, Recipe("llm", **OLD), module(before))
