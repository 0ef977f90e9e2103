"""The rules of what runs where: what they refuse is what flat shards would change, and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lit_opt.optim import build, get_row
from lit_opt.optim.registry import REQUIRED
from lit_opt.recipes import get_recipe
from lit_opt.resolve import preview
from lit_opt.resolve.strategies import FLAT, PRECISIONS, STRATEGIES, lightning_refuses, refusals
from tests.rows import ALONE

STEPWISE = [name for name in ALONE if not get_row(name).needs_closure]


def trained(name: str, pieces: list[torch.Tensor], cuts: list[list[torch.Tensor]]) -> torch.Tensor:
    """Weights after some steps, flat; `cuts` has the gradients of each step."""
    params = [nn.Parameter(piece.clone()) for piece in pieces]
    row = get_row(name)
    needed = {k: 1 for k, default in row.hyperparameters.items() if default is REQUIRED and k != "lr"}
    optimizer = build(name, params, lr=0.01, **needed)
    for gradients in cuts:
        for p, g in zip(params, gradients, strict=True):
            p.grad = g.clone()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in params])


@pytest.mark.parametrize("name", STEPWISE)
def test_a_rule_that_reads_whole_tensors_says_so(name: str) -> None:
    """FSDP1 gives an optimizer runs of numbers. Who treats each number by itself does not see the difference."""
    g = torch.Generator().manual_seed(0)
    start = torch.randn(32, 24, generator=g)
    gradients = [torch.randn(32, 24, generator=g) for _ in range(3)]
    whole = trained(name, [start], [[x] for x in gradients])
    half = start.numel() // 3
    flat = trained(
        name,
        list(start.flatten().split([half, 2 * half])),
        [list(x.flatten().split([half, 2 * half])) for x in gradients],
    )
    same = float((whole - flat).abs().max()) < 1e-6
    row = get_row(name)
    assert same == (not row.of_whole and not row.matrix)


@pytest.mark.parametrize("strategy", ["fsdp1", "zero1", "zero3", "xla_fsdp"])
@pytest.mark.parametrize(("optimizer", "base"), [("lookahead", "lamb"), ("lookahead", "muon"), ("sam", "lars")])
def test_a_wrapper_is_refused_with_what_is_inside_it(strategy: str, optimizer: str, base: str) -> None:
    overrides = {"optimizer": optimizer, "optimizer_kwargs": {"base": base}, "lr": 0.02, "weight_decay": 0.01}
    planned = preview(get_recipe("cnn"), overrides)
    [first, *_] = refusals(planned, strategy, "32-true")
    assert FLAT[strategy] in first and "Use ModelParallelStrategy (FSDP2) or DDP" in first
    assert refusals(planned, "fsdp2", "32-true") == []


def test_what_the_module_itself_optimizes_is_not_judged() -> None:
    planned = preview(get_recipe("llm/muon"))
    assert refusals(planned, "fsdp1", "32-true") and not refusals(planned, "fsdp1", "32-true", optimizer=False)


def test_a_strategy_nobody_knows_is_not_refused_to_plain_optimizers() -> None:
    assert refusals(preview(get_recipe("llm")), "other", "16-mixed") == []


def test_lightning_refuses_nothing_in_full_precision() -> None:
    assert not any(lightning_refuses(strategy, "32-true") for strategy in STRATEGIES)
    assert PRECISIONS[0] == "32-true"
