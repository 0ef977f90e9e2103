"""The plan of a run beside the run, and how it looks."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lit_opt import Recipe
from lit_opt.errors import RecipeError
from lit_opt.explain.formats import to_json
from lit_opt.preflight.plan import Plan
from lit_opt.recipes import list_recipes
from tests.callbacks.modules import Net, fit, loader
from tests.param_groups.architectures import build
from tests.preflight.measured import network

torch.set_num_threads(1)

WIDTHS = (80, 100, 140)


def widest(text: str) -> int:
    return max(map(len, text.splitlines()))


# ---- the plan is what the run does


@pytest.mark.parametrize(
    "ours", [Recipe("llm"), Recipe("cnn"), Recipe("llm/muon"), Recipe("vit", layer_decay=0.5), Recipe("diffusion")]
)
def test_the_run_does_what_the_plan_says(ours: Recipe) -> None:
    if ours.spec.name == "vit":
        module: Any = Blocks()
    else:
        module = Net()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    plan = ours.plan(module, batch_size=4, total_steps=6, steps_per_epoch=8)
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in module.named_parameters())
    fit(module, ours, max_steps=6)
    assert ours.run is not None
    assert list(plan.groups) == ours.run.groups.summary()
    assert list(plan.rows) == ours.run.groups.rows()
    assert plan.resolved.schedule == ours.run.resolved.schedule
    facts = ours.run.resolved.facts
    assert (plan.resolved.facts.global_batch, plan.resolved.facts.parameter_count) == (4, facts.parameter_count)
    # What the optimizer really used at each milestone.
    name = ours.run.optimizer.param_groups[0]["name"]
    peak = next(g.lr for g in plan.groups if g.name == name)
    used = dict(module.seen_rates)
    for milestone in plan.milestones:
        assert used[milestone.step] == pytest.approx(peak * milestone.factor, rel=1e-12)


class Stack(nn.Module):
    """A stem, three blocks, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, 16), nn.Linear(16, 4)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 16) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Blocks(Net):
    """Repeated blocks, for rates by layer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Stack()  # type: ignore[assignment]


@pytest.fixture(autouse=True)
def note_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    def on_train_batch_start(self: Any, batch: Any, batch_idx: int) -> None:
        self.__dict__.setdefault("seen_rates", []).append(
            (self.trainer.global_step, self.trainer.optimizers[0].param_groups[0]["lr"])
        )

    monkeypatch.setattr(Net, "on_train_batch_start", on_train_batch_start, raising=False)


@pytest.mark.parametrize("name", sorted(list_recipes()))
def test_every_recipe_has_a_plan(name: str) -> None:
    module: nn.Module = network()
    if name == "vlm":
        module = build("transformers/llava")
    elif name == "llm/lora":
        module.register_parameter("lora_A", nn.Parameter(torch.zeros(2, 4)))
        module.requires_grad_(False)
        module.lora_A.requires_grad_(True)
    elif name == "vit/finetune":
        module = build("timm/vit")
    plan = Recipe(name).plan(module, batch_size=1024, total_steps=10_000, steps_per_epoch=100)
    assert sum(f.count for f in plan.folded) == len(plan.rows)
    assert sum(math.prod(row.shape) for row in plan.rows) == plan.parameters["trainable"]
    assert plan.memory.held > 0 and plan.flops is not None
    text = plan.text()
    assert widest(text) <= 100
    for entry in plan.values:
        assert entry.name in text
    assert json.loads(to_json(plan.as_dict()))["recipe"] == name


def test_what_is_unknown_is_said_and_stays_open() -> None:
    plan = Recipe("cnn").plan(Net())
    assert plan.milestones == () and plan.resolved.schedule is None
    said = " ".join(plan.notes)
    assert "horizon is unknown" in said and "batch in samples unknown, not scaled" in said
    assert "unknown, since the horizon is" in plan.text()
    assert "Unknown, since the horizon is." in plan.markdown()
    with pytest.raises(RecipeError, match="the horizon is unknown"):
        plan.plot("lr.png")


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Recipe("llm").plan(nn.Linear(2, 2).requires_grad_(False)), "none of the module's 2 parameters"),
        (lambda: Recipe("llm", warmup=50).plan(nn.Linear(2, 2), total_steps=50), "warmup: 50 steps"),
        (lambda: Recipe("llm/muon").plan(network(), devices=8, strategy="fsdp"), "makes them flat shards"),
        (lambda: Recipe("diffusion").plan(network(), devices=8, strategy="zero3"), "cannot be averaged by name"),
        (lambda: Recipe("vit/lamb").plan(network(), devices=8, strategy="fsdp"), "the norm of each layer"),
        (lambda: Recipe("llm/muon").plan(network(), devices=8, strategy="deepspeed_stage_1"), "ZeRO stage 1"),
        (lambda: Recipe("llm").plan(nn.Linear(2, 2), batch_size=0), "global_batch: 0 is not allowed"),
        (lambda: Recipe("llm").plan(nn.Linear(2, 2), devices=0), "devices: 0 is not allowed"),
        (lambda: Recipe("llm").plan(nn.Linear(2, 2), strategy="fdsp"), "Did you mean 'fsdp'"),
        (lambda: Recipe("llm").plan(nn.LazyLinear(2)), "have no shape yet"),
    ],
)
def test_what_the_run_would_refuse(make: Any, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        make()


def test_another_optimizer_s_numbers() -> None:
    plan = Recipe("llm", optimizer="muon", batch_tokens=4096).plan(network(), total_steps=100)
    assert {row.algorithm for row in plan.rows} == {"muon", "adamw"}
    lr = next(entry for entry in plan.values if entry.name == "lr")
    assert lr.number == 0.02


# ---- how it looks


@pytest.fixture(scope="module")
def long_plan() -> Plan:
    """Long names, long reasons, many groups."""
    return Recipe("vlm", optimizer="muon", lr=1e-3, weight_decay=0.1).plan(
        build("transformers/llava"),
        batch_size=131_072,
        total_steps=1_000_000,
        tokens_per_batch=2**26,
        steps_per_epoch=1234.5,
    )


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rows", [False, True])
def test_nothing_is_cut(long_plan: Plan, width: int, rows: bool) -> None:
    text = long_plan.text(width=width, rows=rows)
    assert widest(text) <= width
    assert "…" not in text
    # Broken lines, put together again, hold every name.
    joined = "".join(text.split())
    for folded in long_plan.folded:
        assert rows or long_plan_name(folded.pattern, text)
    for group in long_plan.groups:
        assert group.name in joined


def long_plan_name(pattern: str, text: str) -> bool:
    """Every part of a name is there, in order, where it is broken."""
    place = 0
    for part in pattern.split("."):
        place = text.find(part, place)
        if place < 0:
            return False
    return True


def test_rows_list_every_parameter(long_plan: Plan) -> None:
    module = Net()
    plan = Recipe("llm").plan(module, total_steps=10)
    text = plan.text(rows=True)
    for name, _ in module.named_parameters():
        assert name in text
    markdown = long_plan.markdown(rows=True)
    assert all(f"| `{row.name}` | 1 |" in markdown for row in long_plan.rows)


def test_milestones_in_steps_epochs_samples_and_tokens(long_plan: Plan) -> None:
    text = long_plan.text()
    assert "epoch" in text and "tokens" in text and "33,554,432,000,000" in text
    half = next(m for m in long_plan.milestones if "half" in m.what)
    assert (half.step, half.samples, half.tokens) == (500_000, 500_000 * 131_072, 500_000 * 2**26)
    assert half.epoch == pytest.approx(500_000 / 1234.5)


def test_markdown_is_tables(long_plan: Plan) -> None:
    lines = long_plan.markdown().splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith("|--") or line.startswith("| ---")]
    assert len(starts) >= 6
    for i in starts:
        columns = lines[i].count("|")
        j = i
        while j + 1 < len(lines) and lines[j + 1].startswith("|"):
            j += 1
            assert lines[j].replace("\\|", "").count("|") == columns, lines[j]


def test_json_has_everything(long_plan: Plan) -> None:
    data = json.loads(to_json(long_plan.as_dict()))
    assert {"recipe", "values", "groups", "patterns", "rows", "milestones", "memory", "flops", "notes"} <= data.keys()
    assert len(data["rows"]) == len(long_plan.rows)
    assert sum(pattern["count"] for pattern in data["patterns"]) == len(data["rows"])
    assert {"name", "shape", "group", "algorithm", "lr", "weight_decay", "reason"} <= data["rows"][0].keys()
    value = data["values"][0]
    assert {"number", "unit", "range", "practice", "source", "notes", "origin", "judgement"} <= value.keys()


def test_a_plan_shows_itself(long_plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    assert str(long_plan) == long_plan.text()
    assert repr(long_plan).startswith("Plan('vlm', LlavaForConditionalGeneration, ")
    long_plan.show()
    assert "Memory per device" in capsys.readouterr().out


def test_picture(long_plan: Plan, tmp_path: Path) -> None:
    path = long_plan.plot(tmp_path / "deep" / "lr.png")
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 10_000


def test_picture_without_matplotlib(long_plan: Plan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(RecipeError, match=r"pip install 'lit-opt\[workloads\]'"):
        long_plan.plot(tmp_path / "lr.png")


def test_loader_facts_are_shown() -> None:
    from lit_opt.preflight.facts import foresee
    from lit_opt.preflight.plan import make_plan

    class WithData(Net):
        def train_dataloader(self) -> Any:
            return loader()

    module, ours = WithData(), Recipe("cnn")
    seen = foresee({"max_epochs": 2, "devices": 2, "accelerator": "gpu", "accumulate_grad_batches": 2}, module)
    plan = make_plan(ours.spec, ours.overrides, module, seen.run, seen.placement)
    assert "global batch 16 = loader 4 x accumulation 2 x data-parallel 2" in plan.text()
    assert "4 optimizer steps, 2 an epoch" in plan.text()
