"""Post-hoc EMA: the rule, snapshots, reconstruction against averages kept directly, resume, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_opt import EMA, PostHocEMA
from lit_opt.averaging import reconstruct
from lit_opt.averaging.posthoc import combination, power_decay, power_gamma, write_snapshot
from lit_opt.errors import RecipeError
from tests.callbacks.ema_lib import Net, Trace, loader, same, trainer, weights
from tests.callbacks.modules import SaveAt


def direct(path: list[Tensor], sigma_rel: float) -> Tensor:
    """An average kept from the start, in closed form: the weights of step s count by s^(g + 1) - (s - 1)^(g + 1)."""
    power = power_gamma(sigma_rel) + 1
    steps = torch.arange(len(path) + 1, dtype=torch.float64) / len(path)
    shares = (steps**power).diff()
    return torch.einsum("s,s...->...", shares, torch.stack(path))


def test_lengths_and_exponents() -> None:
    """The pairs of the paper, and the definition of the length as a standard deviation."""
    assert (round(power_gamma(0.05), 2), round(power_gamma(0.10), 2)) == (16.97, 6.94)
    for length in (0.01, 0.05, 0.2, 0.28):
        s = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
        profile = s ** power_gamma(length)
        profile /= profile.sum()
        mean = (profile * s).sum()
        assert float((profile * (s - mean).square()).sum().sqrt()) == pytest.approx(length, rel=1e-4)


def test_the_updates_are_the_power_function() -> None:
    path = [torch.randn(3, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(40)]
    shadow = torch.zeros(3, dtype=torch.float64)
    for step, now in enumerate(path, 1):
        b = power_decay(step, power_gamma(0.1))
        shadow = b * shadow + (1 - b) * now
    torch.testing.assert_close(shadow, direct(path, 0.1), rtol=1e-12, atol=1e-13)


def walk(steps: int) -> list[Tensor]:
    """Weights that drift and wander."""
    noise = torch.randn(steps, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drift = torch.linspace(0, 3, steps, dtype=torch.float64)[:, None]
    return list(noise.cumsum(dim=0) * 0.05 + drift)


@pytest.mark.parametrize(
    ("sigma_rel", "error"),
    [(0.03, 0.03), (0.05, 1e-10), (0.07, 2e-3), (0.10, 1e-10), (0.15, 3e-3), (0.20, 6e-3), (0.25, 1.5e-2)],
)
def test_other_lengths_are_close_to_averages_kept_directly(sigma_rel: float, error: float, tmp_path: Path) -> None:
    """16 snapshots, or 8; the error is relative to how far the average lies from the last weights."""
    path = walk(1024)
    for step in range(64, 1025, 64):
        write_snapshot(tmp_path, step, {kept: {"w": direct(path[:step], kept)} for kept in (0.05, 0.10)}, {})
    expected = direct(path, sigma_rel)
    found = reconstruct(tmp_path, sigma_rel)["w"]
    assert float((found - expected).norm() / (expected - path[-1]).norm()) < error
    half = direct(path[:512], sigma_rel)
    found = reconstruct(tmp_path, sigma_rel, step=512)["w"]
    assert float((found - half).norm() / (half - path[511]).norm()) < 8 * error


def test_factors_minimise_the_distance_of_the_profiles() -> None:
    """Against least squares on a fine grid."""
    steps, gammas = [40, 40, 70, 70, 100, 100], [power_gamma(x) for x in (0.05, 0.10)] * 3
    s = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 2_000
    profiles = torch.stack([(g + 1) * s**g / t ** (g + 1) * (s <= t) for t, g in zip(steps, gammas, strict=True)])
    wanted = power_gamma(0.15)
    target = (wanted + 1) * s**wanted / 100 ** (wanted + 1)
    expected = torch.linalg.lstsq(profiles.T, target[:, None]).solution[:, 0]
    found = torch.tensor(combination(steps, gammas, 100, wanted), dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_snapshots_of_a_run_are_the_averages_of_its_weights(tmp_path: Path) -> None:
    trace, net = Trace(), Net()
    net.net[3].bias.requires_grad_(False)
    posthoc = PostHocEMA(tmp_path / "s", every=4)
    # Beside an EMA, which swaps weights in validation: what is averaged are the raw ones.
    run = trainer(trace, posthoc, EMA(0.9), max_steps=10, precision="64-true", val_check_interval=3)
    run.fit(net, loader(), loader(2))
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == [f"posthoc-{n:09d}.pt" for n in (4, 8, 10)]
    for step in (4, 8, 10):
        found = reconstruct(tmp_path / "s", 0.10, step=step)
        for name in trace.start:
            path = [now[name] for now in trace.train[:step]]
            torch.testing.assert_close(found[name], direct(path, 0.10), rtol=1e-6, atol=1e-9)
    last = Net().double()
    last.load_state_dict(reconstruct(tmp_path / "s", 0.07))
    assert torch.equal(last.net[1].running_mean, net.net[1].running_mean)  # type: ignore[arg-type]
    assert torch.equal(last.get_parameter("net.3.bias"), net.get_parameter("net.3.bias"))


def test_a_resume_is_exact(tmp_path: Path) -> None:
    path = tmp_path / "c.ckpt"

    def fit(folder: str, *more: Any, **options: Any) -> Net:
        net = Net()
        # Listed before: saved when the step is taken and not yet averaged.
        trainer(*more, PostHocEMA(tmp_path / folder, every=3), max_steps=9).fit(net, loader(16, equal=True), **options)
        return net

    first = fit("a", SaveAt(path, 4))
    kept = torch.load(tmp_path / "a" / "posthoc-000000009.pt", weights_only=True)
    rest = fit("a", ckpt_path=path)
    again = torch.load(tmp_path / "a" / "posthoc-000000009.pt", weights_only=True)
    assert same(weights(first), weights(rest))
    for length in (0.05, 0.10):
        assert same(kept["tracks"][length], again["tracks"][length])
    with pytest.raises(RecipeError, match=r"averages of lengths \[0.05, 0.1\], and sigma_rel is \[0.05, 0.2\]"):
        trainer(PostHocEMA(tmp_path / "a", every=3, sigma_rel=(0.05, 0.2)), max_steps=9).fit(
            Net(), loader(), ckpt_path=path
        )
    with pytest.raises(RecipeError, match="holds snapshots of another run"):
        fit("a")


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="every=0 is not a number of optimizer steps"):
        PostHocEMA(tmp_path, every=0)
    with pytest.raises(RecipeError, match="at least two lengths"):
        PostHocEMA(tmp_path, every=1, sigma_rel=(0.05,))
    with pytest.raises(RecipeError, match=r"sigma_rel: 0.3 is not between 0 and 0.2887"):
        PostHocEMA(tmp_path, every=1, sigma_rel=(0.05, 0.3))
    with pytest.raises(RecipeError, match=r"has no posthoc-\*.pt"):
        reconstruct(tmp_path, 0.1)
    with pytest.raises(RecipeError, match=r"nothing\.pt: no such file"):
        reconstruct([tmp_path / "nothing.pt"], 0.1)
    torch.save({"a": 1}, tmp_path / "posthoc-1.pt")
    with pytest.raises(RecipeError, match=r"is no snapshot of lit_opt.PostHocEMA"):
        reconstruct(tmp_path, 0.1)
    (tmp_path / "posthoc-1.pt").unlink()
    for step, name in ((10, "w"), (20, "v")):
        write_snapshot(tmp_path, step, {0.05: {name: torch.ones(1)}, 0.1: {name: torch.ones(1)}}, {})
    with pytest.raises(RecipeError, match=r"step: 13 has no snapshot; the nearest is 10. Snapshots: 10, 20"):
        reconstruct(tmp_path, 0.1, step=13)
    with pytest.raises(RecipeError, match="steps 10 and 20 hold different weights"):
        reconstruct(tmp_path, 0.1)
