"""The multipliers against their meaning: the spectral norm of real steps, and tables that others published."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lit_opt.optim import build
from lit_opt.optim.registry import get_row, list_optimizers
from lit_opt.transfer.run import run_factors
from lit_opt.transfer.spec import Transfer
from lit_opt.transfer.width import WITH_A_RULE, Sides, no_rule, width_multipliers

torch.set_num_threads(1)

SHAPES = ((64, 64), (176, 64), (64, 176))


def hidden(algorithm: str, options: dict[str, Any], shape: tuple[int, int], times: int) -> float:
    small, large = (Sides.of("hidden", *(n * k for n in shape)) for k in (1, times))
    return width_multipliers("hidden", algorithm, options, small, large).lr


def step_norm(algorithm: str, options: dict[str, Any], rows: int, cols: int) -> float:
    """Spectral norm of the third step on gradients of rank one, in units of sqrt(rows / cols)."""
    weight = torch.nn.Parameter(torch.zeros(rows, cols))
    optimizer = build(algorithm, [weight], lr=1.0, **options)
    generator = torch.Generator().manual_seed(rows + cols)
    left, right = torch.randn(rows, generator=generator), torch.randn(cols, generator=generator)
    for _ in range(3):
        before = weight.detach().clone()
        weight.grad = torch.outer(left, right) / rows
        optimizer.step()
    change = (weight.detach() - before).float()
    return float(torch.linalg.matrix_norm(change, ord=2)) / math.sqrt(rows / cols)


@pytest.mark.parametrize(
    ("algorithm", "options"),
    [
        ("adamw", {}),
        ("lion", {}),
        ("rmsprop", {}),
        ("signum", {}),
        ("muon", {"scale": "original"}),
        ("muon", {"scale": "spectral_unclamped"}),
        ("muon", {"scale": "match_rms_adamw"}),
        ("muon", {"scale": "unit"}),
        ("normuon", {"scale": "original"}),
        ("scion", {}),
        ("scion", {"norm": "Spectral", "norm_kwargs": {"max": True}}),
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_steps_have_the_same_spectral_norm_at_four_times_the_width(
    algorithm: str, options: dict[str, Any], shape: tuple[int, int]
) -> None:
    options = {"weight_decay": 0.0, "ns_dtype": "float32", **options}
    options = {k: v for k, v in options.items() if k in get_row(algorithm).hyperparameters}
    rows, cols = shape
    small, large = step_norm(algorithm, options, rows, cols), step_norm(algorithm, options, 4 * rows, 4 * cols)
    carried = large * hidden(algorithm, options, shape, 4)
    # An aligned (rank one) gradient: entries of one size, or one singular value.
    assert carried / small == pytest.approx(1.0, rel=0.35)
    if options.get("scale") == "match_rms_adamw" or algorithm in ("adamw", "lion"):
        assert large / small > 1.9, "without the rule the step grows"


def test_sgd_follows_the_table_of_mup() -> None:
    """arXiv:2203.03466, table 3: input layers and biases by fan-out, hidden ones not, the head by 1 / fan-in."""
    for kind, small, large, wanted in (
        ("embedding", (99, 64), (99, 256), 4.0),
        ("vector", (64, 1), (256, 1), 4.0),
        ("hidden", (64, 64), (256, 256), 1.0),
        ("head", (10, 64), (10, 256), 0.25),
    ):
        found = width_multipliers(kind, "sgd", {}, Sides.of(kind, *small), Sides.of(kind, *large))
        assert found.lr == wanted, kind


def test_adam_follows_the_table_of_mup() -> None:
    for kind, small, large, wanted, eps in (
        ("embedding", (99, 64), (99, 256), 1.0, 0.25),
        ("vector", (64, 1), (256, 1), 1.0, 0.25),
        ("hidden", (64, 64), (256, 256), 0.25, 0.25),
        ("hidden", (256, 64), (1024, 256), 0.25, 0.25),
        ("hidden", (64, 3), (256, 3), 1.0, 0.25),
        ("head", (10, 64), (10, 256), 0.25, 1.0),
    ):
        found = width_multipliers(kind, "adamw", {}, Sides.of(kind, *small), Sides.of(kind, *large))
        assert (found.lr, found.eps) == (wanted, eps), kind


@pytest.mark.parametrize("algorithm", WITH_A_RULE)
def test_the_base_itself_is_not_changed(algorithm: str) -> None:
    options = dict(get_row(algorithm).hyperparameters)
    for kind in ("hidden", "head", "embedding", "vector"):
        side = Sides.of(kind, 48, 32)
        assert width_multipliers(kind, algorithm, options, side, side).numbers == (1.0, 1.0, 1.0)


def test_decay_by_three_rules() -> None:
    small, large = Sides.of("hidden", 64, 64), Sides.of("hidden", 256, 256)
    for word, adam, muon in (("independent", 4.0, 1.0), ("inverse_width", 1.0, 0.25), ("kept", 1.0, 1.0)):
        for algorithm, wanted in (("adamw", adam), ("muon", muon)):
            found = width_multipliers("hidden", algorithm, {}, small, large, weight_decay=word)
            assert found.weight_decay == wanted, (word, algorithm)
    # SPlus's decay has its rate's own 2 / (rows + cols): the share stays all the same.
    found = width_multipliers("hidden", "splus", {"max_preconditioner_dim": 10000}, small, large)
    assert found.lr * found.weight_decay * (2 / 512) == pytest.approx(2 / 128)


def test_depth_alone() -> None:
    side = Sides.of("hidden", 64, 64)
    large = Sides.of("hidden", 256, 256)
    found = width_multipliers("hidden", "adamw", {}, side, large, width=False, repeats=4.0)
    assert found.numbers == (1.0, 1.0, 0.25) and "2505.01618" in found.source
    shampoo = width_multipliers("hidden", "shampoo", {"exponent": 0.25}, side, side, repeats=4.0)
    assert shampoo.numbers == (1.0, 1.0, 1 / 16)


def test_shampoos_blocks_and_exponents() -> None:
    """A matrix in four blocks steps twice as far as one whole one at exponent 1/4 on each side."""
    small, large = Sides.of("hidden", 64, 64), Sides.of("hidden", 128, 128)
    found = width_multipliers("hidden", "shampoo", {"exponent": 0.25, "max_preconditioner_dim": 64}, small, large)
    assert found.lr == pytest.approx(0.5)
    wide = Sides.of("hidden", 64, 256)
    for exponent, wanted in ((0.25, 0.5), (0.5, 1.0)):
        assert width_multipliers("hidden", "shampoo", {"exponent": exponent}, small, wide).lr == pytest.approx(wanted)
    assert width_multipliers("hidden", "shampoo", {"grafting": "adam"}, small, wide).lr == 0.25


def test_every_optimizer_has_a_rule_or_a_refusal() -> None:
    for name in list_optimizers():
        text = no_rule(get_row(name), {})
        assert (name in WITH_A_RULE) != text.startswith("transfer: no rule is known")
    assert set(WITH_A_RULE) <= set(list_optimizers())


def test_what_is_derived_is_labelled() -> None:
    small, large = Sides.of("hidden", 64, 64), Sides.of("hidden", 256, 256)
    for algorithm, published in (("adamw", True), ("muon", True), ("soap", True), ("lion", False), ("normuon", False)):
        source = width_multipliers("hidden", algorithm, {}, small, large).source
        assert ("no published evidence" not in source) == published, algorithm


def test_batch_rules() -> None:
    def factors(rule: str, algorithm: str) -> tuple[float, float, float, float]:
        found, _ = run_factors(Transfer(base=dict, batch=rule, base_batch_size=64), algorithm, 1024, None)
        return found.lr, found.weight_decay, found.eps, found.forgetting

    assert factors("sqrt", "adamw") == (4.0, 4.0, 0.25, 16.0)
    assert factors("linear", "adamw") == (16.0, 1.0, 1.0, 16.0)
    assert factors("linear", "sgd") == (16.0, 1.0, 1.0, 1.0)
    found, missing = run_factors(Transfer(base=dict, batch="sqrt", base_batch_size=64), "adamw", None, None)
    assert found.lr == 1.0 and "batch_size=" in missing[0]


def test_horizon_rules() -> None:
    asked = Transfer(base=dict, horizon="lr", base_total_steps=100)
    assert run_factors(asked, "adamw", None, 1000)[0].lr == pytest.approx(10**-0.32)
    asked = Transfer(base=dict, horizon="weight_decay", base_total_steps=100, batch="sqrt", base_batch_size=4)
    found, _ = run_factors(asked, "adamw", 16, 200)
    # lr x wd is 1 / the steps of the run: twice the steps, half the share.
    assert found.lr * found.weight_decay == pytest.approx(0.5)
    # Without a rule for the batch its size does not matter: as many steps, as large a share in each.
    asked = Transfer(base=dict, horizon="weight_decay", base_total_steps=100, base_batch_size=4)
    assert run_factors(asked, "adamw", 16, 100)[0].weight_decay == 1.0
    assert run_factors(asked, "adamw", 16, 400)[0].weight_decay == pytest.approx(0.25)
