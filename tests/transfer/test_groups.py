"""A transfer on modules: who gets what, what is refused, and that a run and a resume have the same numbers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_opt import GroupRule, Recipe, Transfer, scale_initial
from lit_opt.errors import RecipeError
from lit_opt.param_groups import ParamGroups, group_parameters
from lit_opt.recipes import get_recipe
from lit_opt.resolve import RunFacts, preview
from tests.callbacks.modules import Net, StatefulLoader, fit

torch.set_num_threads(1)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)


class Model(nn.Module):
    """Embedding, blocks, head; `tied` and `scale` as a user might have them."""

    def __init__(self, width: int, blocks: int = 2, tied: bool = False, scale: float | None = None) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, width)
        self.blocks = nn.ModuleList([Block(width) for _ in range(blocks)])
        self.head = nn.Linear(width, 50, bias=False)
        if tied:
            self.head.weight = self.embed.weight
        if scale is not None:
            self.residual_scale = scale


def groups(module: nn.Module, asked: Transfer, name: str = "llm", **overrides: Any) -> ParamGroups:
    overrides = {"lr": 1e-3, "transfer": asked, **overrides}
    return group_parameters(module, preview(get_recipe(name), overrides, RunFacts(total_steps=10)))


def by_name(found: ParamGroups) -> dict[str, tuple[str, float, float]]:
    return {row.name: (row.group, row.lr, row.weight_decay) for row in found.rows()}


def message(module: nn.Module, asked: Transfer, **overrides: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        groups(module, asked, **overrides)
    return str(caught.value)


def test_adamw() -> None:
    found = groups(Model(64), Transfer(base=lambda: Model(16)))
    rows = by_name(found)
    assert rows["blocks.0.up.weight"] == ("decay/hidden", 1e-3 / 4, 0.4)
    assert rows["head.weight"] == ("decay/head", 1e-3 / 4, 0.4)
    assert rows["embed.weight"] == ("no_decay", 1e-3, 0.0)
    assert rows["blocks.1.norm.weight"] == ("no_decay", 1e-3, 0.0)
    live = {g["name"]: g for g in found.for_optimizer(Model(64).named_parameters())}
    assert live["decay/hidden"]["eps"] == pytest.approx(1e-8 / 4) and "eps" not in live["decay/head"]
    assert {row.group for row in found.transfer} == set(live)


def test_the_base_at_its_own_size_changes_nothing() -> None:
    asked = Transfer(base=lambda: Model(64))
    plain = group_parameters(Model(64), preview(get_recipe("llm"), {"lr": 1e-3})).rows()
    found = groups(Model(64), asked).rows()
    assert [(r.group, r.lr, r.weight_decay) for r in found] == [(r.group, r.lr, r.weight_decay) for r in plain]


def test_muon_in_its_own_units_and_in_adamws() -> None:
    asked = Transfer(base=lambda: Model(16))
    own = by_name(groups(Model(64), asked, "llm/muon", lr=0.02))
    assert own["blocks.0.up.weight"][1] == own["blocks.0.down.weight"][1] == 0.02
    assert own["head.weight"][:2] == ("decay/adamw", 3e-4 / 4) and own["head.weight"][2] == pytest.approx(0.04)
    rms = by_name(groups(Model(64), asked, "llm/muon_rms"))
    assert rms["blocks.0.up.weight"][1] == pytest.approx(5e-4) and rms["head.weight"][1] == pytest.approx(2.5e-4)


def test_heads_that_are_orthogonalised_alone() -> None:
    """A head of 8 rows steps sqrt(8 / n) far in the spectral norm, and `original` has no factor for it."""
    rules = [GroupRule(match="*.qkv.weight", num_heads=24)]
    found = by_name(groups(Model(64), Transfer(base=lambda: Model(16)), "llm/muon", lr=0.02, groups=rules))
    assert found["blocks.0.qkv.weight"][1] == pytest.approx(0.01)


def test_layer_decay_and_rules_compose() -> None:
    asked = Transfer(base=lambda: Model(16))
    found = by_name(groups(Model(64), asked, layer_decay=0.5, groups=[GroupRule(match="*.down.weight", lr_scale=3.0)]))
    plain = preview(get_recipe("llm"), {"lr": 1e-3, "layer_decay": 0.5})
    before = {row.name: row.lr for row in group_parameters(Model(64), plain).rows()}
    assert found["blocks.0.up.weight"][1] == pytest.approx(before["blocks.0.up.weight"] / 4)
    assert found["blocks.0.down.weight"][1] == pytest.approx(3 * before["blocks.0.down.weight"] / 4)
    assert found["blocks.0.norm.weight"][1] == before["blocks.0.norm.weight"]
    assert all(re.fullmatch(r"[\w./-]+", group) for group, _, _ in found.values())


def test_unequal_growth_splits_groups() -> None:
    class Uneven(nn.Module):
        def __init__(self, width: int, inner: int) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(width, inner, bias=False), nn.Linear(inner, width, bias=False)
            self.head = nn.Linear(width, 3, bias=False)

    rows = by_name(groups(Uneven(32, 256), Transfer(base=lambda: Uneven(16, 16))))
    assert rows["up.weight"][1] == 1e-3 / 2 and rows["down.weight"][1] == 1e-3 / 16
    assert len({group for group, _, _ in rows.values()}) == 3


@pytest.mark.parametrize(
    "base", [Model(16), lambda: Model(16), {"class_path": f"{__name__}.Small"}], ids=["m", "f", "y"]
)
def test_the_ways_to_give_a_base(base: Any) -> None:
    assert by_name(groups(Model(64), Transfer(base=base)))["head.weight"][1] == 1e-3 / 4


class Small(Model):
    """For a class path without arguments."""

    def __init__(self) -> None:
        super().__init__(16)


def test_random_states_and_memory_are_left_alone() -> None:
    module = Model(64)
    state = torch.get_rng_state()
    found = groups(module, Transfer(base=_refuses_meta))
    assert torch.equal(torch.get_rng_state(), state) and by_name(found)["head.weight"][1] == 1e-3 / 4


def _refuses_meta() -> nn.Module:
    module = Model(16)
    float(module.head.weight.detach().sum())  # as a module that looks at its own numbers
    return module


# ---- refusals


def test_models_that_differ_in_more_than_size() -> None:
    class Other(Model):
        def __init__(self) -> None:
            super().__init__(16)
            self.extra = nn.Linear(16, 16)
            del self.head

    text = message(Model(64), Transfer(base=Other))
    assert "only in this model: 'head.weight'" in text and "only in" in text and "'extra.weight', 'extra.bias'" in text


def test_another_depth_has_to_be_asked_for() -> None:
    text = message(Model(64, blocks=4), Transfer(base=lambda: Model(16)))
    assert "the number of blocks differs" in text and "depth=True" in text


def test_depth_needs_the_residual_scale() -> None:
    asked = Transfer(base=lambda: Model(16, scale=1.0), depth=True)
    recipe = Recipe("llm", lr=1e-3, transfer=asked)
    with pytest.raises(RecipeError, match=r"has no residual_scale.*residual_scale=0.5 is needed"):
        recipe.configure(Model(64, blocks=4), total_steps=10)
    with pytest.raises(RecipeError, match="has residual_scale=1"):
        recipe.configure(Model(64, blocks=4, scale=1.0), total_steps=10)
    optimizer, _ = recipe.configure(Model(64, blocks=4, scale=0.5), total_steps=10)
    eps = {g["name"]: g["eps"] for g in optimizer.param_groups}
    assert eps["decay/hidden"] == pytest.approx(1e-8 / 8) and eps["decay/head"] == 1e-8


@pytest.mark.parametrize(
    ("asked", "overrides", "words"),
    [
        ({"base": Small}, {}, "Give lr="),
        ({"base": Small}, {"base_lr": 1e-3}, "Give lr= in place of base_lr="),
        ({"base": 3}, {"lr": 1.0}, "is not a model"),
        ({"base": Small, "widht": True}, {"lr": 1.0}, "Did you mean 'width'"),
        ({"width": True}, {"lr": 1.0}, "base is missing"),
        ({"base": Small, "width": False}, {"lr": 1.0}, "nothing is asked for"),
        ({"base": Small, "batch": "sqr"}, {"lr": 1.0}, "Did you mean 'sqrt'"),
        ({"base": Small, "batch": "sqrt"}, {"lr": 1.0}, "needs base_batch_size="),
        ({"base": Small, "horizon": "lr"}, {"lr": 1.0}, "needs base_total_steps="),
        ({"base": Small, "weight_decay": "none"}, {"lr": 1.0}, "Known: independent, inverse_width, kept"),
        ({"base": Small}, {"lr": 1.0, "optimizer": "lamb", "weight_decay": 0.1}, "no rule is known for lamb"),
    ],
)
def test_refused_before_a_run(asked: dict[str, Any], overrides: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(words)):
        Recipe("llm", transfer=asked, **overrides)  # type: ignore[arg-type]


def test_a_base_that_cannot_be_made() -> None:
    assert "cannot be made (TypeError" in message(Model(64), Transfer(base=Model))
    assert "cannot be imported" in message(Model(64), Transfer(base={"class_path": "nowhere.Model"}))
    assert "made a int" in message(Model(64), Transfer(base=lambda: 3))


def test_tied_weights_are_said() -> None:
    found = groups(Model(64, tied=True), Transfer(base=lambda: Model(16, tied=True)))
    assert any("tied" in note and "logits" in note for note in found.notes)


def test_clipping_that_depends_on_the_width_is_said() -> None:
    asked = Transfer(base=lambda: Model(16))
    sgd = groups(Model(64), asked, optimizer="sgd", lr=0.1, weight_decay=1e-4)
    assert any("clip=0" in note for note in sgd.notes)
    without = groups(Model(64), asked, optimizer="sgd", lr=0.1, weight_decay=1e-4, clip=0)
    for found in (without, groups(Model(64), asked)):
        assert not any("clip=0" in note for note in found.notes)


def test_what_does_not_transfer_of_a_method_is_said() -> None:
    asked = Transfer(base=lambda: Model(16))
    notes = {
        name: " ".join(groups(Model(64), asked, optimizer=name, lr=0.1, weight_decay=0.1).notes)
        for name in ("adam", "adamw", "lion")
    }
    assert "L2" in notes["adam"] and "starts at 0" in notes["lion"]
    assert "L2" not in notes["adamw"] + notes["lion"] and "starts at 0" not in notes["adamw"] + notes["adam"]
    assert "L2" not in " ".join(groups(Model(64), asked, optimizer="adam", lr=0.1, weight_decay=0.0).notes)


def test_the_norm_of_the_gradient_grows_with_the_head() -> None:
    """What that note says, on random labels: with muP's weights the norm grows as sqrt(width), by the head alone."""
    norms = {}
    for width in (64, 1024):
        torch.manual_seed(0)
        model = Model(width)
        scale_initial(model, lambda: Model(64))
        block = model.blocks[0]
        assert isinstance(block, Block)
        hidden = block.norm(model.embed(torch.arange(40)))
        logits = model.head(hidden + block.down(block.up(hidden)))
        F.cross_entropy(logits, torch.arange(40) % 7).backward()
        norms[width] = {name: float(p.grad.norm()) for name, p in model.named_parameters() if p.grad is not None}
    assert norms[1024]["head.weight"] / norms[64]["head.weight"] == pytest.approx(4, rel=0.15)
    assert norms[1024]["blocks.0.up.weight"] / norms[64]["blocks.0.up.weight"] < 1.3


# ---- batch and horizon


def test_the_batch_changes_rate_betas_and_eps() -> None:
    asked = Transfer(base=lambda: Model(16), width=False, batch="sqrt", base_batch_size=8)
    overrides: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.95), "transfer": asked, "batch_size": 16}
    found = preview(get_recipe("llm"), overrides)
    assert found.lr == pytest.approx(1e-3 * 2**0.5) and found.hyperparameters["eps"] == pytest.approx(1e-8 / 2**0.5)
    assert found.hyperparameters["betas"] == pytest.approx((0.8, 0.9))
    assert "2205.10287" in found.provenance["lr"].note
    with pytest.raises(RecipeError, match="would forget within one step"):
        Recipe("llm", **(overrides | {"batch_size": 800})).configure(Model(16), total_steps=9)
    with pytest.raises(RecipeError, match="give batch_size="):
        Recipe("llm", lr=1e-3, transfer=asked).configure(Model(16), total_steps=9)


# ---- runs


class Wide(Net):
    """`Net` of another width."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(8, width), nn.LayerNorm(width), nn.Linear(width, 4))

    def loss(self, batch: list[Tensor]) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])


def carried(width: int = 16, **more: Any) -> Recipe:
    return Recipe("llm", lr=1e-2, total_steps=8, transfer=Transfer(base=lambda: Wide(width)), **more)


def test_a_run_and_its_resume(tmp_path: Path) -> None:
    path = tmp_path / "half.ckpt"
    straight = Wide(64)
    fit(straight, carried(), data=StatefulLoader(noise=0.0), max_steps=8)
    fit(Wide(64), carried(), data=StatefulLoader(noise=0.0)).save_checkpoint(path)
    resumed = Wide(64)
    fit(resumed, carried(), data=StatefulLoader(noise=0.0), ckpt_path=path, max_steps=8)
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    rates = dict(zip(("decay", "head"), straight.seen[3][1], strict=False))
    assert rates["decay"] != rates["head"]
    with pytest.raises(RecipeError, match=r"transfer\.base"):
        fit(Wide(64), carried(32), data=StatefulLoader(noise=0.0), ckpt_path=path, max_steps=8)
    # The checkpoint holds what decides: its values win without the base being built again.
    theirs = Wide(64)
    fit(theirs, carried(32, on_resume="checkpoint"), data=StatefulLoader(noise=0.0), ckpt_path=path, max_steps=8)
    assert theirs.seen == straight.seen[4:]


def test_a_plan_shows_multiplier_rule_and_source() -> None:
    with torch.device("meta"):
        module = Model(64)
    plan = Recipe("llm/muon_rms", lr=1e-3, transfer=Transfer(base=lambda: Model(16))).plan(module, total_steps=10)
    text = " ".join(plan.text(width=200).split())
    for words in (
        "Transfer from a small model",
        "scale match_rms_adamw divided out",
        "x 0.5",
        "2512.05620",
        "1 / fan-in",
    ):
        assert words in text, words
    assert any("scale_initial" in note for note in plan.notes)
    row = next(r for r in plan.as_dict()["transfer"] if r["kind"] == "head")
    assert row["lr"] == 0.25 and row["sizes"] == "50 x 16 -> 50 x 64"
    assert "Transfer from a small model" in plan.markdown()


def test_initial_scale() -> None:
    def constant(width: int) -> Model:
        model = Model(width)
        for p in model.parameters():
            if p.ndim > 1:
                nn.init.normal_(p, std=0.02)
        return model

    large = constant(256)
    factors = scale_initial(large, lambda: constant(64))
    assert factors["blocks.0.up.weight"] == pytest.approx(0.5, rel=0.1)
    assert factors["head.weight"] == pytest.approx(0.25, rel=0.1)
    assert "embed.weight" not in factors and "blocks.0.norm.weight" not in factors
    assert float(large.head.weight.detach().std()) == pytest.approx(0.005, rel=0.1)
    # torch's own start has 1 / sqrt(fan-in) already: the head alone is brought down.
    assert set(scale_initial(Model(256), lambda: Model(64))) == {"head.weight"}


# ---- microsoft/mup


def test_the_groups_are_those_of_microsofts_mup() -> None:
    """mup/optim.py (0518b39), MuAdamW: with two growing dimensions lr / fan-in's and decay x fan-in's, else as it is.

    Its head has one growing dimension, the rate of the base, and a forward multiplier of 1 / width (MuReadout). Without
    that multiplier the same step of the logits is one with rate / width, which is what a head gets here.
    """
    small, large = Model(16), Model(64)
    rows = by_name(groups(large, Transfer(base=lambda: Model(16))))
    shapes = dict(small.named_parameters())
    for name, p in large.named_parameters():
        grown = [new / old for new, old in zip(p.shape, shapes[name].shape, strict=True) if new != old]
        matrix_like = len(grown) == 2 or name == "head.weight"
        assert rows[name][1] == pytest.approx(1e-3 / grown[-1] if matrix_like else 1e-3), name
        if rows[name][2]:
            assert rows[name][2] == pytest.approx(0.1 * grown[-1] if matrix_like else 0.1), name


def test_the_same_for_mups_sgd() -> None:
    """MuSGD: with one growing dimension lr x it, with two lr x fan-out / fan-in, and the head as above."""
    found = groups(Model(64), Transfer(base=lambda: Model(16)), optimizer="sgd", lr=0.1, weight_decay=1e-4)
    rates = {name: row[1] for name, row in by_name(found).items()}
    assert rates["embed.weight"] == rates["blocks.0.norm.weight"] == rates["blocks.0.up.bias"] == pytest.approx(0.4)
    assert rates["blocks.0.up.weight"] == pytest.approx(0.1) and rates["head.weight"] == pytest.approx(0.1 / 4)


def test_depthwise_and_tied_layers_and_sizes_that_are_not_asked_for() -> None:
    class Convs(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, width, 3, bias=False)
            self.depthwise = nn.Conv2d(width, width, 3, groups=width, bias=False)
            self.mix = nn.Conv2d(width, width, 1, bias=False)
            self.fc = nn.Linear(width, 10, bias=False)

    asked = Transfer(base=lambda: Convs(16))
    adam = {name: row[1] for name, row in by_name(groups(Convs(64), asked)).items()}
    assert adam == {name: pytest.approx(1e-3 / (1 if name[:5] in ("stem.", "depth") else 4)) for name in adam}
    sgd = {name: row[1] for name, row in by_name(groups(Convs(64), asked, "cnn", lr=0.1)).items()}
    wanted = {"stem.weight": 0.4, "depthwise.weight": 0.4, "mix.weight": 0.1, "fc.weight": 0.025}
    assert sgd == {name: pytest.approx(rate) for name, rate in wanted.items()}

    found = groups(Model(64, blocks=4, scale=0.5), Transfer(base=lambda: Model(16, scale=1.0), width=False, depth=True))
    assert {row.lr for row in found.transfer} == {1.0} and {row.eps for row in found.transfer} == {1.0, 0.5}
