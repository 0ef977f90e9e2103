"""The exact natural gradient: equal to per-sample gradients by torch.func, and what K-FAC comes close to."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from lit_opt.errors import RecipeError
from lit_opt.optim import build


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3), nn.Tanh(), nn.Linear(3, 3)
    ).double()


def batch(n: int = 10) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, 1, 3, 3, generator=g, dtype=torch.float64), torch.randint(0, 3, (n,), generator=g)


@pytest.mark.parametrize("chunks", [1, 2])
def test_equals_the_definition(chunks: int) -> None:
    model, (x, y) = net(), batch()
    params = {name: p.detach().clone() for name, p in model.named_parameters()}

    def loss(p: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, p, (x[None],)), y[None])

    samples = vmap(grad(loss), in_dims=(None, 0, 0))(params, x, y)
    rows = torch.cat([g.flatten(1) for g in samples.values()], dim=1)
    fisher = rows.T @ rows / len(x)
    start = torch.cat([p.flatten() for p in params.values()])
    u = torch.linalg.solve(fisher + 0.01 * torch.eye(len(start), dtype=torch.float64), rows.mean(dim=0))
    expected = start - 0.1 * (u + 0.02 * start)

    optimizer = build("natural_gradient", model.parameters(), module=model, lr=0.1, damping=0.01, weight_decay=0.02)
    for a, b in zip(x.chunk(chunks), y.chunk(chunks), strict=True):
        (F.cross_entropy(model(a), b) / chunks).backward()
    optimizer.step()
    now = torch.cat([p.detach().flatten() for p in model.parameters()])
    torch.testing.assert_close(now, expected, rtol=0, atol=1e-11)


def test_a_layer_used_twice_and_tokens_sum_over_their_uses() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3, 3).double()
    x = torch.randn(5, 4, 3, dtype=torch.float64)
    params = {name: p.detach().clone() for name, p in layer.named_parameters()}

    def loss(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(layer, p, (torch.tanh(functional_call(layer, p, (x,))),)).square().sum()

    samples = vmap(grad(loss), in_dims=(None, 0))(params, x)
    rows = torch.cat([samples["weight"].flatten(1), samples["bias"]], dim=1)
    fisher = rows.T @ rows / 5 + 0.1 * torch.eye(12, dtype=torch.float64)
    expected = torch.cat([p.flatten() for p in params.values()]) - torch.linalg.solve(fisher, rows.mean(dim=0))
    optimizer = build("natural_gradient", layer.parameters(), module=layer, lr=1.0, damping=0.1)
    layer(torch.tanh(layer(x))).square().sum(dim=(1, 2)).mean().backward()
    optimizer.step()
    torch.testing.assert_close(torch.cat([p.detach().flatten() for p in layer.parameters()]), expected)


def distances(samples: int) -> tuple[float, float]:
    """Relative error and cosine of K-FAC's direction, where g does not depend on a: K-FAC's assumption.

    Loss of a sample: <c, W abar> with c drawn apart from a, so that E[(g g^T) kron (a a^T)] = G kron A in the limit.
    """
    directions = []
    for name in ("kfac", "natural_gradient"):
        g = torch.Generator().manual_seed(3)
        layer = nn.Linear(4, 3).double()
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        mixing = torch.randn(4, 4, generator=g, dtype=torch.float64)
        c_mixing = torch.randn(3, 3, generator=g, dtype=torch.float64)
        a = torch.randn(samples, 4, generator=g, dtype=torch.float64) @ mixing + 0.5
        c = torch.randn(samples, 3, generator=g, dtype=torch.float64) @ c_mixing + 0.3
        options = {"momentum": 0.0, "kl_clip": 0.0} if name == "kfac" else {}
        optimizer = build(name, layer.parameters(), module=layer, lr=1.0, damping=0.05, **options)
        (layer(a) * c).sum(dim=1).mean().backward()
        optimizer.step()
        directions.append(torch.cat([p.detach().flatten() for p in layer.parameters()]))
    ours, exact = directions
    return float((ours - exact).norm() / exact.norm()), float(F.cosine_similarity(ours, exact, dim=0))


def test_kfac_approaches_it_as_its_assumption_comes_true() -> None:
    measured = [distances(n) for n in (30, 300, 3_000, 30_000, 300_000)]
    errors = [error for error, _ in measured]
    assert errors[0] > 0.2 and errors[-1] < 0.01
    # The error is of sampling, so it falls about as the root of the batch: by more than 30 over a factor of 10,000.
    assert errors[-1] < errors[0] / 30
    assert all(later < earlier for earlier, later in pairwise(errors))
    assert measured[-1][1] > 0.9999


def test_kfac_is_exact_for_one_sample() -> None:
    """One rank-one product: there is nothing to approximate."""
    error, cosine = distances(1)
    assert error < 1e-10 and cosine > 1 - 1e-12


def test_refusals() -> None:
    large = nn.Linear(100, 101)
    with pytest.raises(RecipeError, match=r"10,201 numbers.*10,000 is the largest.*Use 'kfac'"):
        build("natural_gradient", large.parameters(), module=large, lr=0.1)
    mixed = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    with pytest.raises(RecipeError, match=r"1\.bias, 1\.weight: not of a Linear or Conv2d layer.*use 'kfac'"):
        build("natural_gradient", mixed.parameters(), module=mixed, lr=0.1)
    two = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 1)])
    optimizer = build("natural_gradient", two.parameters(), module=two, lr=0.1)
    two[1](two[0](torch.randn(4, 3, 2)).flatten(0, 1)).mean().backward()
    with pytest.raises(RecipeError, match=r"not the same for all of them \(4, 12\)"):
        optimizer.step()
