"""`RecipeCheck` under real Trainers, and the played curves beside the rates of real runs."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import nn
from torch.optim import lr_scheduler as lrs
from torch.utils.data import DataLoader

import lit_opt
from lit_opt import EMA, Recipe, RecipeCheck
from lit_opt.errors import RecipeError
from lit_opt.preflight.check import Report
from lit_opt.preflight.check_report import problems, report_json, report_text
from lit_opt.preflight.trainer_evidence import evidence_of_trainer
from tests.callbacks.modules import Endless, Manual, Net, OwnSGD, fit, loader
from tests.preflight.setups import ids, llm, the


class Own(Net):
    """Its optimizer and scheduler come from outside."""

    def __init__(self, make: Any, interval: str = "step", frequency: int = 1, lr: float = 0.1) -> None:
        super().__init__()
        self.make, self.interval, self.frequency, self.lr = make, interval, frequency, lr

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9, weight_decay=0.0)
        scheduler = {"scheduler": self.make(optimizer), "interval": self.interval, "frequency": self.frequency}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


def checked(module: Any, *callbacks: Any, check: RecipeCheck | None = None, **kwargs: Any) -> Report:
    check = check or RecipeCheck()
    fit(module, None, *callbacks, check, **kwargs)
    assert check.report is not None
    assert not [item for item in check.report.unjudged if "failed" in item.reason]
    return check.report


class Keep(RecipeCheck):
    """Keeps the curve that was played at the start."""

    def on_train_start(self, trainer, pl_module):
        self.evidence = evidence_of_trainer(trainer, pl_module)
        super().on_train_start(trainer, pl_module)


SCHEDULES = {
    "cosine": lambda o: lrs.CosineAnnealingLR(o, T_max=12),
    "one_cycle": lambda o: lrs.OneCycleLR(o, 0.1, total_steps=24),
    "lambda": lambda o: lrs.LambdaLR(o, lambda s: 1 / (1 + s)),
    "linear": lambda o: lrs.LinearLR(o, 0.1, total_iters=7),
    "steps": lambda o: lrs.MultiStepLR(o, [2, 5, 11]),
    "polynomial": lambda o: lrs.PolynomialLR(o, total_iters=20, power=2),
    "exponential": lambda o: lrs.ExponentialLR(o, 0.9),
    "restarts": lambda o: lrs.CosineAnnealingWarmRestarts(o, T_0=3, T_mult=2),
    "cyclic": lambda o: lrs.CyclicLR(o, 0.01, 0.1, step_size_up=4),
    "sequential": lambda o: lrs.SequentialLR(
        o, [lrs.LinearLR(o, 0.1, total_iters=3), lrs.CosineAnnealingLR(o, T_max=10)], [3]
    ),
    "chained": lambda o: lrs.ChainedScheduler([lrs.LinearLR(o, 0.1, total_iters=5), lrs.ExponentialLR(o, 0.95)]),
    "multiplicative": lambda o: lrs.MultiplicativeLR(o, lambda s: 0.9),
}


@pytest.mark.filterwarnings("ignore:A `OneCycleLR` scheduler")
@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize(("interval", "frequency", "accumulation"), [("step", 1, 1), ("step", 2, 4), ("epoch", 2, 2)])
def test_played_curves_are_those_of_real_runs(kind, interval, frequency, accumulation):
    """24 batches in three epochs: the rates that Lightning's steps had, beside those that were played."""
    module = Own(SCHEDULES[kind], interval, frequency)
    keep = Keep()
    fit(module, None, keep, max_epochs=3, accumulate_grad_batches=accumulation)
    curve = keep.evidence.curves[0]
    assert curve.unknown == ""
    real = module.lrs
    assert len(real) == keep.evidence.facts.total_steps == 24 // accumulation
    played = [max(i for i, step in enumerate(curve.steps) if step <= s) for s in range(len(real))]
    assert [curve.rates[i][0] for i in played] == pytest.approx(real, rel=1e-6, abs=1e-12)


def nested(o: Any) -> Any:
    """torch cannot begin a sequence inside of a sequence."""
    inner = lrs.SequentialLR(o, [lrs.ConstantLR(o, 0.5, total_iters=3), lrs.StepLR(o, 4)], [5])
    return lrs.SequentialLR(o, [lrs.LinearLR(o, 0.1, total_iters=2), inner], [2])


@pytest.mark.parametrize(
    ("make", "error", "step"),
    [(nested, NotImplementedError, 2), (lambda o: lrs.OneCycleLR(o, 0.1, total_steps=23), ValueError, 24)],
)
def test_a_schedule_that_raises_in_a_real_run_is_foreseen(make, error, step):
    check = RecipeCheck()
    module = Own(make)
    with pytest.raises(error):
        fit(module, None, check, max_epochs=3)
    assert len(module.lrs) == step
    assert check.report is not None
    found = the(check.report, "horizon-mismatch")
    assert found.level == "error" and f"it fails at optimizer step {step} of 24" in found.evidence


def test_a_module_without_a_recipe():
    report = checked(Own(lambda o: lrs.CosineAnnealingLR(o, T_max=16), "epoch"), max_epochs=2)
    found = the(report, "schedule-per-epoch")
    assert found.level == "error" and "stepped 2 times in 16 optimizer steps" in found.evidence
    assert report.setting == ""
    fine = checked(Own(lambda o: lrs.CosineAnnealingLR(o, T_max=16)), max_epochs=2)
    assert fine.findings == ()


def test_the_setting_may_be_given():
    report = checked(OwnSGD(), check=RecipeCheck("cnn"))
    assert {"momentum-missing", "no-schedule"} <= set(ids(report))
    assert report.setting == "cnn"


def test_a_run_with_a_recipe():
    check = RecipeCheck()
    fit(Net(), Recipe("llm"), check, max_steps=8)
    assert check.report is not None and check.report.setting == "llm"
    assert [finding.id for finding in check.report.findings if finding.level != "note"] == []


def test_the_order_of_callbacks_does_not_matter():
    check = RecipeCheck()
    fit(Net(), None, check, Recipe("vit", batch_size=256), max_steps=8)
    assert check.report is not None and check.report.setting == "vit"


def test_a_recipe_that_keeps_the_modules_optimizer():
    check = RecipeCheck()
    fit(OwnSGD(), Recipe("cnn", existing="keep"), check)
    assert check.report is not None
    assert "momentum-missing" in ids(check.report)


def test_a_recipe_with_layer_decay_and_averages():
    check = RecipeCheck()
    fit(Net(), Recipe("diffusion", batch_size=256), check, max_steps=8)
    assert check.report is not None
    assert "ema-missing" not in ids(check.report)


def test_errors_raise_when_asked():
    module = Own(lambda o: lrs.CosineAnnealingLR(o, T_max=16), "epoch")
    check = RecipeCheck(on_error="raise")
    with pytest.raises(RecipeError, match=r"schedule-per-epoch: CosineAnnealingLR is 16 long"):
        fit(module, None, check, max_epochs=2)
    assert module.lrs == []  # no step was taken
    fit(OwnSGD(), None, RecipeCheck("cnn", on_error="raise"))  # warnings do not raise


def test_module_optimizer_and_random_states_are_left_as_they_were():
    def run(*callbacks: Any) -> tuple[list[Any], Any, Any]:
        torch.manual_seed(3)
        module = Own(SCHEDULES["sequential"])
        trainer = fit(module, None, *callbacks, max_epochs=1, data=loader(shuffle=True))
        state = {k: v for k, v in trainer.optimizers[0].state_dict().items() if k == "param_groups"}
        return [p.detach().clone() for p in module.parameters()], module.lrs, state

    plain, with_check = run(), run(RecipeCheck("llm"))
    assert all(torch.equal(a, b) for a, b in zip(plain[0], with_check[0], strict=True))
    assert plain[1:] == with_check[1:]


def test_clipping_precision_and_accumulation_are_the_trainers():
    class Look(RecipeCheck):
        def on_train_start(self, trainer, pl_module):
            self.settings = evidence_of_trainer(trainer, pl_module).trainer

    look = Look()
    fit(OwnSGD(), None, look, gradient_clip_val=0.5, precision="bf16-mixed", accumulate_grad_batches=2)
    assert look.settings is not None
    s = look.settings
    assert (s.clip, s.precision, s.accumulation, s.accelerator, s.automatic) == (0.5, "bf16-mixed", 2, "cpu", True)
    fit(Net(), Recipe("llm", clip=0.7), look)
    assert (look.settings.clip, look.settings.clip_by, look.settings.own_clipping) == (0.7, "Recipe(clip)", False)
    fit(Net(), Recipe("cnn", batch_size=256), look)
    assert (look.settings.clip, look.settings.own_clipping) == (0.0, False)


def test_manual_optimization_is_not_judged_where_it_cannot_be():
    class ByHand(Manual):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
            return [optimizer], [lrs.StepLR(optimizer, 100)]

    report = checked(ByHand())
    assert any("under manual optimization" in item.reason for item in report.unjudged)
    assert ids(report) == []


def test_gradient_accumulation_that_changes():
    report = checked(
        Own(lambda o: lrs.CosineAnnealingLR(o, T_max=12)), GradientAccumulationScheduler({0: 1, 1: 2}), max_epochs=2
    )
    assert "horizon-mismatch" not in ids(report)


def test_data_without_a_length():
    """The horizon is unknown: the rates are judged, the run's length is not."""
    report = checked(Own(lambda o: lrs.CosineAnnealingLR(o, T_max=100)), data=DataLoader(Endless(), 4), max_epochs=1)
    reasons = {item.reason: item for item in report.unjudged}
    horizon = reasons["the optimizer steps of the run are not known"]
    assert "a warmup longer than the run" in horizon.checks and "max_steps" in horizon.remedy


def test_a_smoke_run_does_not_judge_the_horizon():
    report = checked(Own(lambda o: lrs.CosineAnnealingLR(o, T_max=10_000)), fast_dev_run=True)
    assert any("fast_dev_run is not the real run" in item.reason for item in report.unjudged)
    assert "horizon-mismatch" not in ids(report)


def test_what_cannot_be_read_is_said(caplog):
    class Lazy(Net):
        def __init__(self):
            super().__init__()
            self.extra = nn.LazyLinear(3)

        def configure_optimizers(self):
            return torch.optim.SGD(self.net.parameters(), lr=0.1)

    check = RecipeCheck()
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        fit(Lazy(), None, check)
    assert check.report is None
    assert "nothing was judged" in caplog.text and "lazy modules" in caplog.text


def test_arguments():
    with pytest.raises(RecipeError, match=r"setting: 'vti' is unknown. Did you mean 'vit'\?"):
        RecipeCheck("vti")
    with pytest.raises(RecipeError, match=r"on_error: 'rais' is unknown. Did you mean 'raise'\?"):
        RecipeCheck(on_error="rais")  # type: ignore[arg-type]
    assert lit_opt.RecipeCheck is RecipeCheck


def test_one_table_is_printed_in_a_hundred_columns(caplog):
    check = RecipeCheck("llm")
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        fit(Own(lambda o: lrs.CosineAnnealingLR(o, T_max=16), "epoch"), None, check, EMA(decay=0.9), max_epochs=2)
    assert check.report is not None
    tables = [record.message for record in caplog.records if record.message.startswith("RecipeCheck")]
    assert len(tables) == 1
    assert max(map(len, tables[0].splitlines())) <= 100
    flat = " ".join(tables[0].replace("│", " ").split())
    for finding in check.report.findings:
        for part in (finding.message, finding.evidence, finding.why, finding.source, finding.fix, finding.id):
            assert " ".join(part.split()) in flat, part
    assert "…" not in tables[0]


def test_long_names_are_folded_and_not_cut():
    module = nn.ModuleDict({"a" * 150: nn.LayerNorm(4), "b": nn.Linear(4, 4)})
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, weight_decay=0.1)
    text = report_text(llm(module=module, optimizer=optimizer, setting="vit"))
    assert max(map(len, text.splitlines())) <= 100 and "…" not in text
    assert "a" * 150 in "".join(c for c in text if c not in " │\n")


def test_json_and_problems():
    import json

    report = llm(betas=(0.9, 0.999), schedulers=[])
    data = json.loads(report_json(report))
    assert {item["id"] for item in data["findings"]} >= {"beta2-llm", "no-schedule", "no-warmup"}
    assert set(data["findings"][0]) == {"id", "level", "message", "evidence", "why", "source", "fix"}
    assert data["setting"] == "llm" and data["judged"] > 25
    assert problems(report) == []


def test_a_finding_that_is_meant_neither_raises_nor_hides():
    wrong = Own(lambda o: lrs.CosineAnnealingLR(o, T_max=16), "epoch")
    with pytest.raises(RecipeError, match="schedule-per-epoch"):
        checked(wrong, check=RecipeCheck(on_error="raise"), max_epochs=2)
    report = checked(wrong, check=RecipeCheck(on_error="raise", ignore=["schedule-per-epoch", "adam-l2"]), max_epochs=2)
    assert ids(report) == [] and [f.id for f in report.silenced] == ["schedule-per-epoch"]
    assert report.worst == "" and problems(report) == []
    assert "Silenced by ignore: 1 finding: schedule-per-epoch (error). Nothing to silence for adam-l2." in report_text(
        report
    )
    assert json.loads(report_json(report))["ignored"] == ["schedule-per-epoch", "adam-l2"]


def test_what_cannot_be_ignored_is_refused():
    with pytest.raises(
        RecipeError, match=r"no check has the id 'schedule_per_epoch'\. Did you mean 'schedule-per-epoch'"
    ):
        RecipeCheck(ignore=["schedule_per_epoch"])
    with pytest.raises(RecipeError, match=r"is a string\. Give a list, ignore=\['adam-l2'\]"):
        RecipeCheck(ignore="adam-l2")
