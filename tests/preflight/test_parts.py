"""The parts of a plan: folding, milestones, operations, the plot."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

from lit_opt import Recipe
from lit_opt.optim import build
from lit_opt.optim.matrix.cost import orthogonalization_share
from lit_opt.param_groups import ParamRow
from lit_opt.preflight.flops import count_flops
from lit_opt.preflight.folding import fold
from lit_opt.preflight.lr_plot import text_plot
from lit_opt.preflight.milestones import milestones
from lit_opt.preflight.placement import Placement
from lit_opt.resolve.resolved import RunFacts
from lit_opt.schedules import Schedule, factor
from tests.preflight.measured import network

torch.set_num_threads(1)


def row(name: str, **changes: object) -> ParamRow:
    values = {"shape": (2, 2), "group": "decay", "algorithm": "adamw", "lr": 1.0, "weight_decay": 0.1, "reason": "w"}
    return ParamRow(name=name, **(values | changes))  # type: ignore[arg-type]


def shown(rows: list[ParamRow]) -> list[tuple[str, int]]:
    return [(f.pattern, f.count) for f in fold(rows)]


def test_folding_keeps_order_and_counts() -> None:
    rows = [row("stem.w"), *(row(f"layers.{i}.{leaf}") for i in range(3) for leaf in ("a", "b")), row("head.w")]
    assert shown(rows) == [("stem.w", 1), ("layers.*.a", 3), ("layers.*.b", 3), ("head.w", 1)]


def test_what_differs_is_not_joined() -> None:
    rows = [row("l.0.w"), row("l.1.w", shape=(3, 2)), row("l.2.w", group="other"), row("l.3.w", lr=2.0)]
    rows += [row("l.4.w", weight_decay=0.0), row("l.5.w", algorithm="muon"), row("l.6.w", reason="tied")]
    assert shown(rows) == [(f"l.{i}.w", 1) for i in range(7)]


def test_ranges_where_only_some_are_alike() -> None:
    rows = [row(f"l.{i}.w", lr=2.0 if i in (3, 7) else 1.0) for i in range(9)]
    assert shown(rows) == [("l.{0-2,4-6,8}.w", 7), ("l.{3,7}.w", 2)]


def test_two_numbers_in_a_name() -> None:
    rows = [row(f"l.{i}.experts.{j}.w") for i in range(2) for j in range(4)]
    assert shown(rows) == [("l.*.experts.*.w", 8)]
    # Not every pair is there: no pattern that says more than is true.
    ragged = [row(f"stages.{i}.{j}.w") for i, n in enumerate((1, 3, 3)) for j in range(n)]
    assert shown(ragged) == [("stages.0.0.w", 1), ("stages.1.*.w", 3), ("stages.2.*.w", 3)]


def test_numbers_inside_a_word_stay() -> None:
    assert shown([row("conv1.w"), row("conv2.w"), row("layer1.0.w"), row("layer1.1.w")]) == [
        ("conv1.w", 1),
        ("conv2.w", 1),
        ("layer1.*.w", 2),
    ]


def test_rates_by_layer_are_one_line() -> None:
    rows = [
        row(f"b.{i}.w", group=f"decay/layer_{i:02d}", lr=0.5**i, reason=f"w; layer {i} of 3: lr x {i}")
        for i in range(4)
    ]
    (line,) = fold(rows)
    assert (line.pattern, line.group, line.lr) == ("b.*.w", "decay/layer_*", (0.125, 1.0))
    assert line.reason == "w; lr by layer, the last is 3"
    assert fold(rows[:1])[0].reason == "w; layer 0 of 3: lr x 0"


def test_folding_loses_nothing() -> None:
    rng = random.Random(0)
    rows = [
        row(f"a.{i}.b.{j}.c.{k}", lr=rng.choice([1.0, 2.0]))
        for i in range(4)
        for j in range(4)
        for k in range(3)
        if rng.random() < 0.7
    ]
    folded = fold(rows)
    assert sum(f.count for f in folded) == len(rows)
    named: set[str] = set()
    for f in folded:
        names = {r.name for r in rows if r.lr == f.lr[0] and matches(f.pattern, r.name)}
        assert len(names) >= f.count
        if "*" not in f.pattern:
            assert len(names) == f.count
        named |= names
    assert named == {r.name for r in rows}


def matches(pattern: str, name: str) -> bool:
    for place, number in zip(pattern.split("."), name.split("."), strict=True):
        if place.startswith("{"):
            allowed: set[int] = set()
            for part in place.strip("{}").split(","):
                low, _, high = part.partition("-")
                allowed |= set(range(int(low), int(high or low) + 1))
            if int(number) not in allowed:
                return False
        elif place not in ("*", number):
            return False
    return True


# ---- milestones


@pytest.mark.parametrize("kind", ["cosine", "linear", "polynomial", "constant", "wsd", "step"])
@pytest.mark.parametrize("warmup", [0, 10])
def test_milestones_are_steps_of_the_schedule(kind: str, warmup: int) -> None:
    schedule = Schedule(
        total_steps=100,
        warmup_steps=warmup,
        kind=kind,
        final=0.1,
        milestones=(30, 60, 200),
        cooldown_steps=20,
        gamma=0.5,
    )
    found = milestones(schedule, RunFacts(steps_per_epoch=25, global_batch=8, tokens_per_batch=64))
    steps = [m.step for m in found]
    assert steps == sorted(set(steps)) and steps[0] == 0 and steps[-1] == 99
    assert warmup in steps
    if kind == "step":
        assert {30, 60} <= set(steps) and 200 not in steps
    if kind == "wsd":
        assert 80 in steps
    for m in found:
        assert m.factor == factor(schedule, m.step)
        assert (m.epoch, m.samples, m.tokens) == (m.step / 25, m.step * 8, m.step * 64)


def test_a_schedule_without_a_horizon() -> None:
    found = milestones(Schedule(total_steps=None, warmup_steps=5, kind="constant"), RunFacts())
    assert [(m.step, m.epoch, m.samples, m.tokens) for m in found] == [(0, None, None, None), (5, None, None, None)]


# ---- operations


def test_the_share_is_the_cost_module_s() -> None:
    module = network()
    ours = Recipe("llm/muon")
    plan = ours.plan(module, total_steps=10, tokens_per_batch=4096)
    optimizer, _ = ours.configure(module, total_steps=10, global_batch=1)
    assert plan.flops is not None
    assert plan.flops.share == orthogonalization_share(optimizer, 4096)
    assert plan.flops.share == pytest.approx(plan.flops.optimizer / (plan.flops.optimizer + (plan.flops.model or 0)))
    # Eight devices divide it by whole matrices, and each sees an eighth of the tokens.
    eight = ours.plan(module, total_steps=10, tokens_per_batch=4096, devices=8, strategy="fsdp2").flops
    assert eight is not None and eight.model is not None and plan.flops.model is not None
    assert plan.flops.optimizer / 8 <= eight.optimizer < plan.flops.optimizer / 2
    assert eight.model == plan.flops.model / 8


def test_measured_operations_of_a_forward() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 16, 10))
    plan = Recipe("cnn").plan(module, batch_size=64, total_steps=10, example=torch.zeros(2, 3, 4, 4))
    forward = 2 * (8 * 27 * 16 + 128 * 10)
    assert plan.flops is not None
    assert plan.flops.model == 3 * forward * 64
    with_attribute = nn.Linear(4, 4)
    with_attribute.example_input_array = torch.zeros(1, 4)
    found = Recipe("cnn").plan(with_attribute, batch_size=8, total_steps=10).flops
    assert found is not None and found.model == 3 * 2 * 16 * 8


def test_an_element_wise_step_is_shared_by_shards_alone() -> None:
    module = nn.Linear(64, 64, bias=False)
    optimizer = build("adamw", [module.weight], lr=1e-3)
    kinds = {}
    for kind in ("ddp", "fsdp2"):
        place = Placement(kind=kind, devices=4, data_parallel=4)
        kinds[kind] = count_flops(module, optimizer, setting="llm", tokens=64, samples=None, placement=place)
    assert kinds["ddp"].optimizer == 4 * kinds["fsdp2"].optimizer
    assert kinds["ddp"].model == kinds["fsdp2"].model


@pytest.mark.parametrize(
    "kwargs, words",
    [
        ({}, "set example_input_array"),
        ({"example": torch.zeros(2, 5)}, "could not be counted"),
        ({"example": torch.zeros(2, 4)}, "the global batch is unknown"),
    ],
)
def test_operations_that_are_unknown(kwargs: dict[str, torch.Tensor], words: str) -> None:
    plan = Recipe("cnn").plan(nn.Linear(4, 4), total_steps=10, **kwargs)  # type: ignore[arg-type]
    assert plan.flops is not None and plan.flops.share is None
    assert any(words in line for line in plan.flops.how)
    assert "the model's are unknown" in plan.text()


# ---- the plot


@pytest.mark.parametrize("width", [60, 80, 100, 160])
@pytest.mark.parametrize("total", [2, 3, 17, 450, 10_000_000])
def test_a_plot_of_any_size(width: int, total: int) -> None:
    schedule = Schedule(total_steps=total, warmup_steps=total // 10, kind="cosine")
    groups = [("decay", 1e-3), ("no_decay", 1e-3), *((f"layer_{i}", 1e-3 * 0.5**i) for i in range(1, 12))]
    lines = text_plot(schedule, groups, width=width)
    assert max(map(len, lines)) <= width
    assert all(ord(c) < 128 for line in lines for c in line)
    assert f"{total:,} steps" in "\n".join(lines)
    assert any("decay, no_decay" in line for line in lines)
    assert "layer_11" in "\n".join(lines)


def test_the_plot_is_the_schedule() -> None:
    """The highest mark of a column is where the formula says."""
    schedule = Schedule(total_steps=60, warmup_steps=20, kind="linear")
    lines = text_plot(schedule, [("all", 1.0)], width=200)
    start = lines[0].index("|") + 1
    for step in range(60):
        rows = [i for i, line in enumerate(lines[:13]) if len(line) > start + step and line[start + step] == "*"]
        assert rows == [12 - round(12 * factor(schedule, step))]
