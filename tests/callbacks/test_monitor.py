"""`OptimizerMonitor`: its numbers are those computed by hand, it reads the device once, and it changes no bit of a run."""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lit_opt import EMA, OptimizerMonitor, Recipe
from lit_opt.callbacks.reading import Reading, effective_rank, sampled
from lit_opt.errors import RecipeError
from lit_opt.optim import build
from tests.callbacks.modules import Net, loader, trainer
from tests.processes import launch as launch_processes


class Keeps(Logger):
    """A logger that keeps what it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int | None, dict[str, float]]] = []

    name, version = "keeps", 0

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Not looked at."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        ours = {k.removeprefix("optim/"): v for k, v in metrics.items() if k.startswith("optim/")}
        if ours:
            self.rows.append((step, ours))


class AdamW(Net):
    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=0.1)


class Manual(Net):
    """Manual optimization."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:  # type: ignore[override]
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        optimizer.step()


class Two(Manual):
    """Two optimizers; the second steps in every other batch."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:  # type: ignore[override]
        both: Any = self.optimizers()
        first, second = both
        first.zero_grad()
        second.zero_grad()
        self.manual_backward(self.loss(batch))
        first.step()
        if batch_idx % 2:
            second.step()

    def configure_optimizers(self) -> Any:
        net: Any = self.net
        first, second = [net[0].weight], [net[3].weight]
        return torch.optim.SGD(first, lr=0.1), torch.optim.Adam(second, lr=0.01)


def llm(**kwargs: Any) -> Recipe:
    return Recipe("llm", **({"lr": 1e-2, "warmup": 2, "clip": 0.05} | kwargs))


def fit(module: Net, *callbacks: Any, monitor: OptimizerMonitor | None = None, **kwargs: Any) -> Keeps:
    torch.manual_seed(0)
    keeps = Keeps()
    given = [*callbacks, *([monitor] if monitor else [])]
    trainer(*given, logger=keeps, **({"max_steps": 6} | kwargs)).fit(module, loader())
    return keeps


def scaler() -> dict[str, Any]:
    """Mixed float16 on the CPU with a GradScaler; `precision="16-mixed"` would fall back to bf16 there."""
    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=64.0))]}


# ---- it changes nothing

RUNS: dict[str, tuple[type[Net], Any, Any]] = {
    "own optimizer": (AdamW, lambda: [], {}),
    "clipping by the Trainer": (AdamW, lambda: [], {"gradient_clip_val": 0.1}),
    "recipe": (Net, lambda: [llm()], {}),
    "averages": (Net, lambda: [llm(ema=0.9)], {}),
    "accumulation": (Net, lambda: [llm()], {"accumulate_grad_batches": 2, "max_steps": 4}),
    "manual": (Manual, lambda: [llm(existing="replace")], {}),
    "two optimizers": (Two, lambda: [], {}),
    "muon": (Net, lambda: [Recipe("llm/muon", warmup=2)], {}),
    "lars": (Net, lambda: [Recipe("large_batch/lars", batch_size=4096, warmup=2)], {}),
    "lamb": (Net, lambda: [Recipe("large_batch/lamb", warmup=2)], {}),
    "half precision": (AdamW, lambda: [], scaler),
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("weights", ["sample", "all"])
def test_a_run_is_the_same_bit_for_bit(name, weights):
    kind, callbacks, given = RUNS[name]
    kwargs = (lambda: given) if isinstance(given, dict) else given
    plain: Any = kind()
    watched: Any = kind()
    plain.net[2].p = watched.net[2].p = 0.5  # dropout: the random stream is not touched either
    fit(plain, *callbacks(), **kwargs())
    drawn = torch.rand(())
    keeps = fit(watched, *callbacks(), monitor=OptimizerMonitor(1, weights=weights), **kwargs())
    assert torch.equal(torch.rand(()), drawn)
    assert len(keeps.rows) > 1
    for key, value in plain.state_dict().items():
        assert torch.equal(value, watched.state_dict()[key]), key


# ---- the numbers


class ByHand(AdamW):
    """Notes weights before each step, gradients before and after clipping, weights after it."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[dict[str, Any]] = []

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        norm = torch.stack([p.grad.norm() for p in self.parameters() if p.grad is not None]).norm()
        self.notes.append({"norm": float(norm), "before": [p.detach().clone() for p in self.parameters()]})

    def on_train_batch_end(self, *args: Any) -> None:
        if self.notes and "after" not in self.notes[-1]:
            norm = torch.stack([p.grad.norm() for p in self.parameters() if p.grad is not None]).norm()
            self.notes[-1] |= {"clipped": float(norm), "after": [p.detach().clone() for p in self.parameters()]}


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_norms_and_updates_are_those_by_hand(algorithm):
    module = ByHand()
    kwargs = {"gradient_clip_val": 2.05, "gradient_clip_algorithm": algorithm, "max_steps": 8}
    keeps = fit(module, monitor=OptimizerMonitor(1, weights="all"), **kwargs)
    assert [step for step, _ in keeps.rows] == list(range(8))
    clipped = 0
    for number, ((_, row), note) in enumerate(zip(keeps.rows, module.notes, strict=True), start=1):
        assert row["grad_norm"] == pytest.approx(note["norm"], rel=1e-6)
        assert row["grad_norm_clipped"] == pytest.approx(note["clipped"], rel=1e-5)
        changed = math.sqrt(
            sum(float((a - b).square().sum()) for a, b in zip(note["after"], note["before"], strict=True))
        )
        size = math.sqrt(sum(float(b.square().sum()) for b in note["before"]))
        assert row["0/update_to_weight"] == pytest.approx(changed / size, rel=1e-5)
        assert (row["0/lr"], row["0/weight_decay"]) == (1e-2, 0.1)
        update = note["after"][0] - note["before"][0]
        s = torch.linalg.svdvals(update)
        assert row["0/effective_rank"] == pytest.approx(float(s.square().sum() ** 2 / (s**4).sum()) / 8, rel=1e-4)
        clipped += note["norm"] > 2.05
        if algorithm == "norm":
            assert row["clipped_share"] == pytest.approx(clipped / number)
    assert 0 < clipped < 8


def test_a_recipes_clipping_is_counted_on_every_step():
    keeps = fit(Net(), llm(clip=2.05), monitor=OptimizerMonitor(4), max_steps=8)
    every = fit(Net(), llm(clip=2.05), monitor=OptimizerMonitor(1), max_steps=8)
    assert [step for step, _ in keeps.rows] == [3, 7]
    for (_, row), (_, other) in zip(keeps.rows, [every.rows[3], every.rows[7]], strict=True):
        assert {k: v for k, v in row.items() if "second" not in k} == {
            k: v for k, v in other.items() if "second" not in k
        }
    over = [row["grad_norm"] > 2.05 for _, row in every.rows]
    assert keeps.rows[1][1]["clipped_share"] == pytest.approx(sum(over) / 8)
    assert 0 < sum(over) < 8
    for _, row in every.rows:
        assert row["grad_norm_clipped"] == pytest.approx(min(row["grad_norm"], 2.05), rel=1e-5)


def test_rates_are_those_that_the_step_used():
    keeps = fit(Net(), llm(), monitor=OptimizerMonitor(1))
    rates = [row["decay/lr"] for _, row in keeps.rows]
    assert rates[:3] == pytest.approx([1e-2 / 3, 2e-2 / 3, 1e-2]) and rates[-1] < rates[2]
    assert {row["no_decay/weight_decay"] for _, row in keeps.rows} == {0.0}
    assert {row["decay/weight_decay"] for _, row in keeps.rows} == {0.1}


class Deep(Net):
    """With a matrix between the first and the last layer, which Muon takes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(*self.net[:3], nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))


def test_muon_spreads_its_update_and_adam_less():
    def spread(recipe: Recipe, batch: int) -> float:
        monitor = OptimizerMonitor(1)
        trainer(recipe, monitor, max_steps=1).fit(Deep(), loader(32, batch))
        return monitor.latest["optim/decay/effective_rank"]

    muon, adam = spread(Recipe("llm/muon", warmup=0), 32), spread(llm(warmup=0), 32)
    assert muon > 0.9 and adam < 0.8 * muon
    # Four samples make gradients of at most four directions out of eight.
    assert spread(Recipe("llm/muon", warmup=0), 4) == pytest.approx(0.5, abs=0.05)


def test_effective_rank():
    assert float(effective_rank(torch.linalg.qr(torch.randn(9, 5))[0] * 1e-8)) == pytest.approx(1, rel=1e-4)
    one = torch.outer(torch.randn(6), torch.randn(30)).reshape(6, 5, 2, 3)
    assert float(effective_rank(one)) == pytest.approx(1 / 6, rel=1e-4)
    assert math.isnan(float(effective_rank(torch.zeros(3, 3))))


def test_the_distance_of_averages():
    module, ours = Net(), llm(ema=0.9)
    keeps = fit(module, ours, monitor=OptimizerMonitor(1, weights="all"))
    assert ours.ema is not None
    checked: list[float] = [row["ema_distance"] for _, row in keeps.rows]
    assert len(checked) == 6 and all(0 < x < 1 for x in checked)
    alone = fit(AdamW(), EMA(decay=0.5, warmup=False), monitor=OptimizerMonitor(1, weights="all"), max_steps=1)
    row = alone.rows[0][1]
    # After one step from w0 to w1 the average is their mean.
    assert row["ema_distance"] == pytest.approx(row["0/update_to_weight"] / 2, rel=0.05)


@pytest.mark.parametrize("clip", [0, 0.3])
def test_trust_ratios_of_lars(clip):
    class Lars(Net):
        ratios: list[list[float]] = []  # noqa: RUF012

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            whole = torch.stack([p.grad.norm() for p in self.parameters() if p.grad is not None]).norm()
            share = min(1.0, clip / float(whole)) if clip else 1.0
            group = optimizer.param_groups[0]
            wd = group["weight_decay"]
            self.ratios.append(
                [float(0.001 * p.norm() / (p.grad.norm() * share + wd * p.norm())) for p in group["params"]]
            )

    Lars.ratios = []
    recipe = Recipe("large_batch/lars", batch_size=4096, warmup=2, clip=clip)
    keeps = fit(Lars(), recipe, monitor=OptimizerMonitor(1, weights="all"))
    for (_, row), ratios in zip(keeps.rows, Lars.ratios, strict=True):
        assert row["trust_ratio_min"] == pytest.approx(min(ratios), rel=1e-4)
        assert row["trust_ratio_max"] == pytest.approx(max(ratios), rel=1e-4)


def test_trust_ratios_of_lamb():
    """LAMB makes the update lr times as long as the weights, so the ratio is |w| over what Adam would do."""
    weight = nn.Parameter(torch.randn(6, 5, generator=torch.Generator().manual_seed(0)))
    size = float(weight.detach().norm())

    class One(Net):
        def __init__(self) -> None:
            super().__init__()
            self.w = weight

        def loss(self, batch: list[Tensor]) -> Tensor:
            return (self.w**2).sum() + 0 * self.net(batch[0]).sum()

        def configure_optimizers(self) -> Any:
            return build("lamb", [self.w], lr=0.01, weight_decay=0.5)

    keeps = fit(One(), monitor=OptimizerMonitor(1), max_steps=1)
    row = keeps.rows[0][1]
    w = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    g = 2 * w
    g = g / max(1.0, float(g.norm()))
    direction = g / (g.abs() + 1e-6) + 0.5 * w  # the first step of Adam, and the decay
    assert row["trust_ratio_min"] == row["trust_ratio_max"] == pytest.approx(size / float(direction.norm()), rel=1e-3)
    assert row["0/update_to_weight"] == pytest.approx(0.01, rel=1e-3)


class Overflows(AdamW):
    """The third batch has an infinite gradient."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * float("inf") if batch_idx == 2 else loss


def test_skipped_steps_are_counted():
    keeps = fit(Overflows(), monitor=OptimizerMonitor(1), **scaler())
    assert [row["skipped_steps"] for _, row in keeps.rows] == [0, 0, 1, 1, 1, 1]
    assert "0/update_to_weight" not in keeps.rows[2][1]
    assert not math.isfinite(keeps.rows[2][1]["grad_norm"])
    # Unscaled: gradients of ordinary size, not 65,536 times as large.
    assert keeps.rows[0][1]["grad_norm"] < 100


def test_fused_steps_unscale_themselves():
    class Fused(Net):
        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=1e-2, fused=True)

    scaled = fit(Fused(), monitor=OptimizerMonitor(1), max_steps=2, **scaler())
    plain = fit(Fused(), monitor=OptimizerMonitor(1), max_steps=2)
    for (_, a), (_, b) in zip(scaled.rows, plain.rows, strict=True):
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=0.05)


def test_several_optimizers_have_their_own_names():
    keeps = fit(Two(), monitor=OptimizerMonitor(1), max_steps=9)
    with_second = [any(k.startswith("1/") for k in row) for _, row in keeps.rows]
    assert with_second == [False, True] * 3
    assert keeps.rows[1][1]["0/0/lr"] == 0.1 and keeps.rows[1][1]["1/0/lr"] == 0.01


def test_accumulation_is_one_step():
    monitor = OptimizerMonitor(1)
    keeps = fit(Net(), llm(), monitor=monitor, accumulate_grad_batches=2, max_steps=4)
    assert [step for step, _ in keeps.rows] == [0, 1, 2, 3]
    assert all(row["samples_per_second"] / row["steps_per_second"] == pytest.approx(8) for _, row in keeps.rows)


# ---- what it costs and where it goes


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for a device: reading a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.items = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.items += "_local_scalar_dense" in str(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("every", [1, 3])
def test_one_read_a_logged_step(every, monkeypatch):
    lists = 0
    whole = Tensor.tolist

    def counted(self: Tensor) -> Any:
        nonlocal lists
        lists += 1
        return whole(self)

    monkeypatch.setattr(Tensor, "tolist", counted)

    def run(*callbacks: Any) -> tuple[int, int]:
        nonlocal lists
        lists = 0
        with Waits() as waits:
            fit(Net(), llm(ema=0.9), *callbacks)
        return waits.items, lists

    without, lists_without = run()
    with_, lists_with = run(OptimizerMonitor(every))
    assert with_ == without
    assert lists_with - lists_without == 6 // every


def test_every_logger_gets_it(tmp_path):
    keeps, csv = Keeps(), CSVLogger(tmp_path)
    module = Net()
    t = trainer(llm(), OptimizerMonitor(), logger=[keeps, csv], log_every_n_steps=2, max_steps=4)
    t.fit(module, loader())
    header = (Path(csv.log_dir) / "metrics.csv").read_text().splitlines()[0].split(",")
    assert "optim/grad_norm" in header and "optim/decay/update_to_weight" in header
    assert [step for step, _ in keeps.rows] == [1, 3]


def test_without_a_logger_the_latest_values_are_there():
    monitor = OptimizerMonitor(2)
    trainer(llm(), monitor, max_steps=5).fit(Net(), loader())
    assert monitor.latest["optim/grad_norm"] > 0
    assert set(monitor.latest) >= {f"optim/{k}" for k in ("grad_norm_clipped", "clipped_share", "steps_per_second")}


def test_it_leaves_the_optimizers_as_they_were():
    class Stops(AdamW):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 1:
                raise ZeroDivisionError

    for module, error in ((AdamW(), None), (Stops(), ZeroDivisionError)):
        t = trainer(OptimizerMonitor(1), max_steps=3)
        if error:
            with pytest.raises(error):
                t.fit(module, loader())
        else:
            t.fit(module, loader())
        assert not any(o._optimizer_step_post_hooks for o in t.optimizers)


def test_copies_carry_the_settings():
    monitor = OptimizerMonitor(3, weights="all")
    trainer(llm(), monitor, max_steps=3).fit(Net(), loader())
    for twin in (copy.deepcopy(monitor), pickle.loads(pickle.dumps(monitor))):
        assert (twin.every_n_steps, twin.weights, twin.latest) == (3, "all", monitor.latest)
        trainer(llm(), twin, max_steps=3).fit(Net(), loader())


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"every_n_steps": 0}, "at least 1"),
        ({"every_n_steps": 1.5}, "no whole number"),
        ({"every_n_steps": True}, "no whole number"),
        ({"weights": "some"}, "Known: 'sample', 'all'"),
        ({"every_n_steps": 0, "weights": "some"}, "2 problems"),
    ],
)
def test_refusals(kwargs, said):
    with pytest.raises(RecipeError, match=said):
        OptimizerMonitor(**kwargs)


def test_the_sample():
    parameters = [torch.zeros(2, 2) for _ in range(10)] + [torch.zeros(3) for _ in range(5)]
    for p in parameters:
        p.grad = torch.zeros_like(p)
    parameters[0].grad = None
    found = sampled(parameters, 4)
    assert [next(i for i, p in enumerate(parameters) if p is f) for f in found] == [1, 4, 6, 9]
    assert len(sampled(parameters, None)) == 14 and len(sampled(parameters[10:], 4)) == 4
    assert Reading().read() == []


# ---- two processes


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("monitor")
    done = launch_processes("tests.callbacks.monitor_processes", folder)
    assert done.returncode == 0, done.stderr[-6000:]
    return folder


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_measure_what_one_does(kind, launched):
    from tests.callbacks.monitor_processes import run_one

    one = run_one()
    first, second = (torch.load(launched / f"{kind}.{rank}.pt", weights_only=False) for rank in (0, 1))
    assert "error" not in first, first.get("error")
    [log] = (launched / kind).rglob("metrics.csv")
    assert "optim/grad_norm" in log.read_text() and len(first["rows"]) == 6
    for row, alone, other in zip(first["rows"], one["rows"], second["rows"], strict=True):
        assert row.keys() == alone.keys() == other.keys()
        for name in row:
            if "second" not in name:
                assert row[name] == pytest.approx(alone[name], rel=2e-4, abs=1e-9), name
                assert row[name] == pytest.approx(other[name], rel=1e-6), name
    assert {"optim/ema_distance", "optim/decay/effective_rank", "optim/clipped_share"} <= set(first["rows"][0])
