"""`lit-opt sweep`: the best of a known curve, edges, resuming, and the YAML that plan and fit take."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn

from lit_opt import Recipe
from lit_opt.cli import main
from lit_opt.commands.sweep_recipe import Carried, Large
from lit_opt.commands.sweep_yaml import put_recipe, writable
from lit_opt.comparison.ledger import Ledger
from lit_opt.comparison.records import Arm, Protocol, Reading, Run, State
from lit_opt.comparison.stages import Progress, progress_of
from lit_opt.comparison.sweep import read_sweep, sweep
from lit_opt.comparison.sweep_result import found_in, sweep_sentences
from lit_opt.comparison.sweep_stages import sweep_jobs
from lit_opt.errors import RecipeError
from tests.comparison.toy import CPU, Data, Net

# Forked from a process with one thread: it is there at once.
FORK = multiprocessing.get_context("fork")

SMALL = """
trainer:
  accelerator: cpu
  max_steps: 100
model:
  class_path: tests.comparison.toy.Net
  init_args: {width: 8}
data:
  class_path: tests.comparison.toy.Data
recipe:
  name: llm
  lr: 1.0e-1
"""
LARGE = """\
# the large run
trainer:
  accelerator: cpu
  max_steps: 2  # short
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
recipe:
  # tuned by hand
  name: llm
  lr: 9.0e-4
  ema: 0.99
  total_steps: 2
# what is trained
model:
  class_path: tests.comparison.toy.Net
  init_args: {width: 32}
data:
  class_path: tests.comparison.toy.Data
"""
STEPS = ["--budget-steps=8", "--trials=5", "--seeds=2", "--decades=3"]


@pytest.fixture
def configs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(SMALL)
    Path("large.yaml").write_text(LARGE)
    return tmp_path


def command(*more, param="lr", out="out"):
    return ["sweep", "--config=small.yaml", f"--param={param}", *STEPS, f"--out={out}", *more]


class Bowl(Net):
    """Half the sum of h w^2, from w = 1: after K steps of gradient descent w is (1 - lr h)^K, whatever the batch."""

    h: Tensor

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.layers = nn.Sequential()
        self.bowl = nn.Linear(2, 1, bias=False)
        nn.init.ones_(self.bowl.weight)
        self.register_buffer("h", torch.tensor([[1.0, 0.1]]))

    def value(self):
        return (self.h * self.bowl.weight.square()).sum() / 2

    def training_step(self, batch, batch_idx):
        return self.value()

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.value(), batch_size=1)


DESCENT = {"name": "cnn", "optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "warmup": 0, "decay": "constant"}
DESCENT |= {"clip": 0.0, "ema": 0.0}


def exact(lr: float, steps: int) -> float:
    return sum(h * (1 - lr * h) ** (2 * steps) for h in (1.0, 0.1)) / 2


def bowl(folder, *, lr, trials, extend=0, seeds=1, steps=6):
    task, request = read_sweep(
        {
            "make_module": Bowl,
            "make_datamodule": Data,
            "recipe": {**DESCENT, "lr": lr},
            "params": ["lr"],
            "budget_steps": steps,
            "trials": trials,
            "seeds": seeds,
            "extend": extend,
            "workers": 1,
            "seed": 0,
            "decades": 2.0,
            "metric": None,
            "mode": None,
            "trainer": CPU,
        }
    )
    return sweep(task, request, folder, extend=extend, quiet=True)


# ---- what is found


def test_the_best_rate_of_a_known_bowl(tmp_path):
    found = bowl(tmp_path, lr=0.5, trials=7)
    tried = [point.values["lr"] for point in found.points]
    assert tried == pytest.approx([0.05 * 10 ** (i / 3) for i in range(7)], rel=1e-5), "an even grid of the logarithm"
    for point in found.points:
        if math.isfinite(point.mean):
            assert point.mean == pytest.approx(exact(point.values["lr"], 6), rel=1e-4)
    assert found.best is found.chosen and found.edges == {}
    assert found.best.values["lr"] == min(tried, key=lambda lr: exact(lr, 6))
    assert [point.as_good for point in found.points].count("") == 6, "no other is within 1 %"


def test_an_edge_is_named_and_extending_goes_on_with_the_same_grid(tmp_path):
    found = bowl(tmp_path, lr=0.02, trials=5)
    assert found.edges == {"lr": "high"} and found.best.values["lr"] == pytest.approx(0.2)
    assert "lr 0.2 stands at the upper edge of what was tried" in " ".join(sweep_sentences(found))
    before = (tmp_path / "ledger.jsonl").read_bytes()
    wider = bowl(tmp_path, lr=0.02, trials=5, extend=1)
    assert (tmp_path / "ledger.jsonl").read_bytes().startswith(before), "what is done is kept"
    tried = [point.values["lr"] for point in wider.points]
    assert tried == pytest.approx([0.002 * 10 ** (i / 2) for i in range(8)], rel=1e-5)
    assert wider.edges == {} and wider.best.values["lr"] == min(tried, key=lambda lr: exact(lr, 6))
    assert wider.rounds == 1


def made(costs, *, tuned=("lr",), trials=3):
    """A finished sweep whose runs ended at these costs: one list a point."""
    start = {"lr": 0.01, "weight_decay": 0.1}
    arm = Arm("llm", "llm", {}, start, {name: (start[name] / 10, start[name] * 10) for name in tuned})
    protocol = Protocol((arm,), "llm", "val_loss", "min", 4, (0, 4), trials, len(costs[0]))
    empty = Progress(protocol, protocol, "", {}, {}, Counter(), (), None, None)
    index: Counter[int] = Counter()
    for job in sweep_jobs(empty):
        cost = costs[job.point][index[job.point]]
        index[job.point] += 1
        state: State = "done" if math.isfinite(cost) else "diverged"
        empty.runs[job.key] = Run(
            job.key, "tune", 0, "llm", job.point, job.seed, job.values, state, {"raw": (Reading(4, 4, 0.0, 0.0, cost),)}
        )
    return found_in(empty)


def test_an_inner_point_as_good_within_the_noise_is_taken_in_place_of_one_at_the_edge():
    found = made([[3.0, 3.0], [2.1, 2.0], [2.0, 2.05]])
    assert found.best.values["lr"] == 0.1 and found.chosen.values["lr"] == 0.01 and found.edges == {}
    assert "inside is as good within seed noise, and is taken" in sweep_sentences(found)[0]
    clear = made([[3.0, 3.0], [2.4, 2.5], [2.0, 2.05]])
    assert clear.chosen is clear.best and clear.edges == {"lr": "high"}
    alone = made([[3.0], [2.05], [2.0]])
    assert alone.edges == {"lr": "high"}, "one seed knows nothing of noise"


def test_the_valley():
    found = made([[3.0, 3.0], [2.015, 2.015], [2.0, 2.0], [2.1, 1.98], [math.inf, 2.0]], trials=5)
    assert [point.as_good for point in found.points] == ["", "1 %", "best", "seed noise", ""]
    assert (
        "The valley: 2 other points are as good (within 1 % or seed noise), lr 0.003162 to 0.03162."
        in sweep_sentences(found)
    )


def test_a_run_that_failed_is_the_worst_there_is():
    found = made([[math.inf] * 2] * 3)
    assert found.best is None and found.chosen is None
    assert "nothing can be said" in sweep_sentences(found)[0]


# ---- the command


def test_the_large_models_config_goes_through_plan_and_fit(configs, capsys):
    assert main([*command("--target=large.yaml")]) == 0
    said = capsys.readouterr().out
    assert "llm: lr, 5 values from 0.003162 to 3.162, evenly in the logarithm; val_loss decides" in said
    assert "10 runs of 8 steps (5 points, 2 seeds). Estimated from a few timed steps" in said
    assert "Left out of large.yaml's own recipe: ema." in said
    assert Path("out/sweep.png").stat().st_size > 5000
    found = found_in(progress_of(Ledger(Path("out")).read()))
    text = Path("out/transferred.yaml").read_text()
    recipe = yaml.safe_load(text)["recipe"]
    assert found.chosen is not None
    best = found.chosen.values["lr"]
    assert recipe == {
        "name": "llm",
        "lr": best,
        "weight_decay": 0.1,
        "total_steps": 2,
        "transfer": {"base": {"class_path": "tests.comparison.toy.Net", "init_args": {"dropout": 0.1, "width": 8}}},
    }
    assert text.startswith("# the large run\n") and "# what is trained\nmodel:" in text and "# short" in text
    assert "# tuned on the small model" in text and "by hand" not in text
    assert f"{found.chosen.mean:.5g} after 8 steps of 16 samples" in text

    model = Net(width=32)
    optimizer, _ = Recipe(**recipe).configure(model, global_batch=16)
    rates = {p: group["initial_lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[model.layers[0].weight] == pytest.approx(best), "its inputs are the data's"
    assert rates[model.layers[3].weight] == pytest.approx(best * 8 / 32)

    capsys.readouterr()
    assert main(["plan", "--config=out/transferred.yaml"]) == 0
    assert "0.25" in capsys.readouterr().out
    assert main(["fit", "--config=out/transferred.yaml"]) == 0

    ledger = Path("out/ledger.jsonl").read_bytes()
    assert main(command("--target=large.yaml")) == 0, "the same command adds nothing"
    assert Path("out/ledger.jsonl").read_bytes() == ledger and Path("out/transferred.yaml").read_text() == text
    assert main(command("--target=large.yaml", "--trials=4")) == 2
    assert "trials: 5 then, 4 now" in capsys.readouterr().err
    assert main(["compare", "report", "--out=out"]) == main(["compare", "worker", "--out=out"]) == 2
    assert "out holds a sweep. The same `lit-opt sweep` command" in capsys.readouterr().err
    assert main(command("--target=large.yaml", param="weight_decay")) == 2
    assert "tuned: ['lr'] then, ['weight_decay'] now" in capsys.readouterr().err


def test_without_a_target_the_section_alone_beside_the_large_config(configs, capsys):
    assert main(command("--batch=sqrt", "--horizon=lr", "--depth", "--seeds=1")) == 0
    content = yaml.safe_load(Path("out/transferred.yaml").read_text())
    transfer = content["recipe"]["transfer"]
    assert list(content) == ["recipe"]
    assert (transfer["batch"], transfer["base_batch_size"]) == ("sqrt", 16)
    assert (transfer["horizon"], transfer["base_total_steps"], transfer["depth"]) == ("lr", 8, True)
    assert "With one seed nothing is known of seed noise" in capsys.readouterr().out
    Path("out/transferred.yaml").write_text(
        yaml.safe_dump({"recipe": content["recipe"] | {"transfer": {"base": transfer["base"]}}})
    )
    assert main(["plan", "--config=large.yaml", "--config=out/transferred.yaml"]) == 0
    assert f"{content['recipe']['lr'] / 4:.4g}" in capsys.readouterr().out


def test_two_values_start_from_the_configs_own(configs):
    assert main([*command("--param=weight_decay"), "--trials=4", "--seeds=1"]) in (0, 1)
    progress = progress_of(Ledger(Path("out")).read())
    (arm,) = progress.protocol.arms
    assert found_in(progress).tuned == ("lr", "weight_decay")
    by_point = {run.point: run.values for run in progress.runs.values()}
    assert by_point[0] == arm.start == {"lr": 0.1, "weight_decay": 0.1}
    scattered = [tuple(by_point[i].values()) for i in (1, 2, 3)]
    assert len({lr for lr, _ in scattered}) == len({decay for _, decay in scattered}) == 3
    assert Path("out/sweep.png").stat().st_size > 5000
    assert Path("out/transferred.yaml").exists() == (not found_in(progress).edges)


def test_what_is_carried_over_and_what_is_left_out():
    arm = Arm("llm/muon", "llm/muon", {}, {"lr": 0.02, "weight_decay": 0.1}, {"lr": (0.002, 0.2)})
    settings = {"fallback": {"llm/muon": {"lr": 1e-3}}, "samples_per_step": 16}
    protocol = Protocol((arm,), "llm/muon", "val_loss", "min", 8, (0, 8), 5, 1, settings=settings)
    own = {"name": "llm", "clip": 1.0, "ema": 0.99, "total_steps": 2, "transfer": {"base": {"class_path": "my.Model"}}}
    base = {"class_path": "my.Small", "init_args": {"width": 8}}
    large = Large("large.yaml", LARGE, own)
    carried = Carried("small.yaml", base, "llm/muon", {"clip": 1.0, "batch_size": 4}, {"horizon": "lr"}, large)
    assert carried.recipe(protocol, {"lr": 0.04, "weight_decay": 0.1}) == {
        "name": "llm/muon",
        "lr": 0.04,
        "weight_decay": 0.1,
        "optimizer_kwargs": {"scale": "original"},
        "fallback": {"lr": 2e-3},
        "clip": 1.0,
        "total_steps": 2,
        "transfer": {"base": base, "horizon": "lr", "base_batch_size": 16, "base_total_steps": 8},
    }
    assert carried.left_out() == ["name llm", "ema", "transfer"]


def test_an_edge_writes_nothing(configs, capsys):
    assert main(command("--recipe.lr=1e-7", "--seeds=1", "--trials=3")) == 1
    said = " ".join(capsys.readouterr().out.split())  # wherever lines are broken
    assert "stands at the upper edge" in said and "The same command with --extend 1" in said
    assert not Path("out/transferred.yaml").exists() and Path("out/sweep.png").exists()


def test_a_dry_run_writes_nothing(configs, capsys):
    assert main(command("--dry-run", "--extend=2")) == 0
    said = capsys.readouterr().out
    assert "10 runs of 8 steps" in said and "half as many points beyond it, up to twice" in said
    assert not Path("out").exists()


def in_another_process(arguments: list[str]) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    main(arguments)


def test_a_sweep_that_was_killed_goes_on_to_the_same_yaml(configs):
    assert main(command("--target=large.yaml", out="whole")) == 0
    process = FORK.Process(target=in_another_process, args=(command("--target=large.yaml", out="killed"),))
    process.start()
    ledger = Path("killed/ledger.jsonl")
    while not ledger.exists() or ledger.read_bytes().count(b'"event": "finished"') < 4:
        assert process.is_alive(), "it ended before it could be killed"
        time.sleep(0.005)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL and not Path("killed/transferred.yaml").exists()
    assert main(command("--target=large.yaml", out="killed")) == 0
    assert Path("killed/transferred.yaml").read_bytes() == Path("whole/transferred.yaml").read_bytes()
    finished = [event["run"]["key"] for _, event in Ledger(Path("killed")).read().of("finished")]
    assert len(finished) == len(set(finished)) == 10


# ---- what is refused

DEEPER = LARGE.replace("tests.comparison.toy.Net", "tests.commands.test_sweep.Bowl").replace("{width: 32}", "{}")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--param=beta"], "param: 'beta' cannot be tuned here"),
        (["--trials=2", "--seeds=0"], "seeds: 0 is not allowed"),
        (["--trials=2"], "trials: 2 is not allowed; give a whole number from 3 up"),
        (["--budget-steps=0"], "budget_steps: 0 is not allowed"),
        (["--recipe.optimizer=lamb", "--recipe.weight_decay=0.1"], "transfer: no rule is known for lamb"),
        (["--recipe.weight_decay=0", "--param=weight_decay"], "give a start, such as --recipe.weight_decay=0.1"),
        (["--recipe.total_steps=5"], "total_steps: the budget decides it"),
        (["--target=nowhere.yaml"], "target: nowhere.yaml: no such file"),
        (["--target=bowl.yaml"], "target: transfer.base: the models differ in more than size"),
        (["--target=small.yaml", "--batch=cube"], "'cube' is unknown"),
        (["--trails=3"], "trails"),
        (["--metric=val_acc"], "'val_acc' was not logged in validation"),
    ],
)
def test_mistakes_are_said_before_the_first_run(more, words, configs, capsys):
    Path("bowl.yaml").write_text(DEEPER)
    assert main(command(*more)) == 2
    assert words.lower() in capsys.readouterr().err.lower()
    assert not Path("out").exists()


def test_all_that_is_missing_at_once(configs, capsys):
    assert main(["sweep"]) == 2
    assert "--config, --param, --budget-steps: needed. Type: lit-opt sweep" in capsys.readouterr().err
    Path("none.yaml").write_text("model: tests.comparison.toy.Net\n")
    assert main(["sweep", "--config=none.yaml", "--param=lr", "--budget-steps=3"]) == 2
    assert "the config has no section `recipe:`" in capsys.readouterr().err


def test_a_config_with_a_transfer_is_refused(configs, capsys):
    small = yaml.safe_load(SMALL)
    small["recipe"]["transfer"] = {"base": {"class_path": "tests.comparison.toy.Net"}}
    Path("small.yaml").write_text(yaml.safe_dump(small))
    assert main(command()) == 2
    assert "recipe.transfer: values are tuned on the small model as they are" in capsys.readouterr().err


def test_a_target_whose_recipe_is_a_callback_is_refused(configs, capsys):
    large = yaml.safe_load(LARGE)
    large["trainer"]["callbacks"] = [{"class_path": "lit_opt.Recipe", "init_args": {"name": "llm"}}]
    Path("large.yaml").write_text(yaml.safe_dump(large))
    assert main(command("--target=large.yaml")) == 2
    assert "has its recipe among trainer.callbacks" in capsys.readouterr().err


# ---- the YAML

SECTION = "# said\nrecipe:\n  name: llm\n"


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ("a: 1\n", "a: 1\n# said\nrecipe:\n  name: llm\n"),
        ("a: 1  # one", "a: 1  # one\n\n# said\nrecipe:\n  name: llm\n"),
        ("recipe: {name: cnn}\na: 1\n", "# said\nrecipe:\n  name: llm\na: 1\n"),
        ("recipe:\n  name: cnn\n  # in it\n\n# of b\nb: 2\n", "# said\nrecipe:\n  name: llm\n\n# of b\nb: 2\n"),
        ("recipe: {lr: &x 3}\nb: *x\n", "b: 3\n\n# said\nrecipe:\n  name: llm\n"),
    ],
)
def test_the_rest_of_a_config_stays_as_it_was_typed(config, text):
    assert put_recipe(config, SECTION).replace("\n\n# said", "\n# said") == text.replace("\n\n# said", "\n# said")
    assert yaml.safe_load(put_recipe(config, SECTION))["recipe"] == {"name": "llm"}


def test_what_yaml_has_no_word_for_is_named():
    assert writable({"a": (1, Path("x")), "b": None}, "model") == {"a": [1, "x"], "b": None}
    with pytest.raises(RecipeError, match=r"model.a\[0\]: dtype torch.float32 cannot be written"):
        writable({"a": [torch.float32]}, "model")


def test_the_help_teaches(capsys):
    assert main(["sweep", "--help"]) == 0
    said = capsys.readouterr().out
    for words in ("--dry-run", "--target large.yaml", "exit codes: 0 done, 1", "resumes after any stop"):
        assert words in said


def test_a_class_in_the_working_folder_is_found_from_a_config_below_it(configs, monkeypatch):
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder not in ("", str(configs))])
    Path("beside_me.py").write_text("from tests.comparison.toy import Net as Mine\n")
    Path("runs").mkdir()
    Path("runs/mine.yaml").write_text(SMALL.replace("tests.comparison.toy.Net", "beside_me.Mine"))
    assert main(["plan", "--config=runs/mine.yaml"]) == 0
