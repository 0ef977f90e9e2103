"""One run: what it reads, that it repeats bit for bit, and that an arm cannot shift another's data or noise."""

from __future__ import annotations

import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from lit_opt import Recipe
from lit_opt.comparison.codec import run_from_dict, run_to_dict
from lit_opt.comparison.observer import Diverged, Observer
from lit_opt.comparison.records import Arm, Protocol
from lit_opt.comparison.run import execute
from lit_opt.comparison.seeds import confirmation_seed, tuning_seed
from lit_opt.comparison.task import Job, Task, overrides_at
from lit_opt.errors import RecipeError
from lit_opt.recipes import get_recipe, list_recipes
from tests.comparison.toy import CPU, Data, Net

STEPS = 12  # three epochs of four batches


class Drawing(torch.optim.SGD):
    """Draws random numbers from every global generator at each step."""

    def step(self, closure: Any = None) -> Any:
        torch.rand(3), random.random(), np.random.rand()
        return super().step(closure)


def run(
    recipe: str = "llm",
    *,
    module: Any = Net,
    data: Any = Data,
    seed: int = 1,
    values: dict[str, float] | None = None,
    keywords: dict[str, Any] | None = None,
    trainer: dict[str, Any] | None = None,
    metric: str = "val_loss",
    arm: str | None = None,
    settings: dict[str, Any] | None = None,
    eval_every: int = 4,
    stage: Any = "tune",
    point: int = 0,
) -> Any:
    values = {"lr": 0.01} if values is None else values
    one = Arm(arm or recipe, recipe, {}, dict(values), {})
    protocol = Protocol(
        (one,), one.name, metric, "min", STEPS, tuple(range(0, STEPS + 1, eval_every)), 1, 1, settings=settings or {}
    )
    task = Task(module, data, {one.name: (recipe, keywords or {})}, CPU | (trainer or {}))
    return execute(Job(f"{one.name}-{seed}", stage, 0, one.name, point, seed, values), one, task, protocol)


def readings(one):
    return [(r.step, r.samples, r.flops, r.metric) for r in one.readings["raw"]]


def test_a_run_reads_before_training_and_at_each_evaluation():
    one = run(settings={"model_flops_per_pass": 1000.0})
    assert one.state == "done"
    assert [r.step for r in one.readings["raw"]] == [0, 4, 8, 12]
    assert [r.samples for r in one.readings["raw"]] == [0, 64, 128, 192]
    numbers = one.facts["parameters"]
    assert [r.flops for r in one.readings["raw"]] == [step * (1000 + 13 * numbers) for step in (0, 4, 8, 12)]
    seconds = [r.seconds for r in one.readings["raw"]]
    assert seconds[0] == 0 and seconds == sorted(seconds) and seconds[-1] > 0
    assert one.facts["passes_per_step"] == 1 and one.facts["samples_per_step"] == 16
    assert run_from_dict(run_to_dict(one)) == one


@pytest.mark.parametrize("recipe", ["llm", "llm/muon", "cnn/sam"])
def test_a_run_repeats_bit_for_bit(recipe):
    one, other = run(recipe), run(recipe)
    assert readings(one) == readings(other)
    assert one.facts["batch_hashes"] == other.facts["batch_hashes"]


def test_another_seed_is_another_run():
    one, other = run(seed=1), run(seed=2)
    assert one.facts["init_hash"] != other.facts["init_hash"]
    assert one.facts["batch_hashes"] != other.facts["batch_hashes"]


SAME = ("batch_hashes", "init_hash", "first_loss", "structure_hash")


@pytest.mark.parametrize("shift", ["optimizer", "sam", "muon"])
def test_no_arm_shifts_the_data_of_another(shift):
    """An optimizer that draws random numbers changes the order from the second epoch on under plain Lightning."""
    base = run()
    keywords = {"optimizer": Drawing, "weight_decay": 0.0}
    other = {
        "optimizer": lambda: run(keywords=keywords),
        "sam": lambda: run("cnn/sam"),
        "muon": lambda: run("llm/muon"),
    }[shift]()
    assert {key: other.facts[key] for key in SAME} == {key: base.facts[key] for key in SAME}


def test_random_numbers_of_an_optimizer_do_not_reach_the_dropout():
    """The noise of a step follows from seed and step alone."""

    class Quiet(torch.optim.SGD):
        pass

    given = [{"optimizer": cls, "weight_decay": 0.0, "clip": 0.0} for cls in (Quiet, Drawing)]
    one, other = (run(keywords=keywords, module=lambda: Net(dropout=0.5)) for keywords in given)
    assert readings(one)[1:] and [r[3] for r in readings(one)] == [r[3] for r in readings(other)]


def test_both_passes_of_sam_have_one_dropout_mask():
    """As they do outside of a comparison: SAM forks the generators around its first pass, before that is seeded."""
    seen = []

    class Drawn(Net):
        def training_step(self, batch, batch_idx):
            seen.append(torch.rand(1).item())
            return super().training_step(batch, batch_idx)

    run("cnn/sam", module=Drawn)
    assert len(seen) == 2 * STEPS and seen[::2] == seen[1::2] and len(set(seen)) == STEPS


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_numbers_of_python_and_numpy_are_the_same_in_every_arm(dropout):
    """A module may mix its batches with numpy, as timm's Mixup does; Drawing draws before its closure, and others evaluate twice."""
    seen: dict[str, list[Any]] = {}
    keywords = {"optimizer": Drawing, "weight_decay": 0.0}
    arms: dict[str, dict[str, Any]] = {
        "llm": {},
        "drawing": keywords,
        "cnn/sam": {},
        "mars": {"optimizer": "mars_m", "optimizer_kwargs": {"variant": "exact"}},
    }
    for arm, given in arms.items():
        drawn = seen[arm] = []

        class Mixed(Net):
            def on_train_batch_start(self, batch, batch_idx, drawn=drawn):
                drawn.append([random.random(), np.random.rand()])

            def training_step(self, batch, batch_idx, drawn=drawn):
                drawn[-1] += [random.random(), np.random.rand()]
                return super().training_step(batch, batch_idx)

        run(arm if arm in ("llm", "cnn/sam") else "llm", keywords=given, module=lambda cls=Mixed: cls(dropout=dropout))
    base = seen.pop("llm")
    assert len({tuple(numbers) for numbers in base}) == STEPS and {len(numbers) for numbers in base} == {4}
    for arm, drawn in seen.items():
        assert [numbers[:4] for numbers in drawn] == base, arm
        assert all(numbers[2:4] == again for numbers in drawn if (again := numbers[4:])), arm
    assert {len(numbers) for numbers in seen["cnn/sam"]} == {6} and [len(n) for n in seen["mars"]][-1] == 6


def test_noise_of_a_dataset_does_not_reach_the_model_nor_the_other_way():
    class Noisy(Data):
        def train_dataloader(self):
            samples = [(x + 0.1 * torch.randn(8), y) for x, y in zip(*self.train.tensors, strict=True)]

            class Jittered(torch.utils.data.Dataset):
                def __len__(self):
                    return len(samples)

                def __getitem__(self, i):
                    x, y = samples[i]
                    return x + 0.1 * torch.randn(8) + 0.1 * random.random() + 0.1 * np.random.rand(), y

            return DataLoader(Jittered(), 16, shuffle=True)

    drawing = {"optimizer": Drawing, "weight_decay": 0.0}
    one, other = run(data=Noisy), run(data=Noisy, keywords=drawing, module=lambda: Net(dropout=0.4))
    assert one.facts["batch_hashes"] == other.facts["batch_hashes"]


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_do_not_depend_on_the_epoch_boundaries(workers):
    """Every epoch has an order of its own, the same with loader processes."""

    class Three(Data):
        def train_dataloader(self):
            return DataLoader(self.train, 16, shuffle=True, num_workers=workers)

    one, other = (
        run(data=Three, trainer={"limit_train_batches": 3}),
        run("llm/muon", data=Three, trainer={"limit_train_batches": 3}),
    )
    assert one.facts["batch_hashes"] == other.facts["batch_hashes"]
    assert len(set(one.facts["batch_hashes"].values())) == 3


def test_loaders_may_be_given_as_a_pair_or_belong_to_the_module():
    data = Data()
    data.setup("fit")

    class Whole(Net):
        def train_dataloader(self):
            return data.train_dataloader()

        def val_dataloader(self):
            return data.val_dataloader()

    pair = run(data=lambda: (data.train_dataloader(), data.val_dataloader()))
    assert readings(pair) == readings(run()) == readings(run(module=Whole, data=None))


def test_factories_with_and_without_a_seed():
    seen = []

    def make(seed):
        seen.append(seed)
        return Net()

    run(module=make, seed=7)
    assert seen == [7]


def test_seeds_of_search_and_confirmation_are_apart():
    tuned = {tuning_seed(0, study) for study in range(50)}
    confirmed = {confirmation_seed(0, study, i) for study in range(50) for i in range(99)}
    assert not tuned & confirmed and len(confirmed) == 50 * 99


# ---- how runs end


class Exploding(Net):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * (1.0 if self.global_step < 5 else float("nan"))


class Rising(Net):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * (1.0 if self.global_step < 5 else 50.0)


class Failing(Net):
    error: Exception = ValueError("the disk is full")

    def training_step(self, batch, batch_idx):
        if self.global_step == 5:
            raise self.error
        return super().training_step(batch, batch_idx)


class Hungry(Failing):
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


@pytest.mark.parametrize(
    ("module", "state", "words"),
    [
        (Exploding, "diverged", "not finite at step 6"),
        (Rising, "diverged", "above 3 times its first value for 1 batches, at step 6"),
        (Failing, "crashed", "ValueError: the disk is full"),
        (Hungry, "oom", "out of memory"),
    ],
)
def test_how_a_run_ends(module, state, words):
    one = run(module=module)
    assert one.state == state
    assert words in one.facts["error"]
    assert [r.step for r in one.readings["raw"]] == [0, 4]


def test_a_run_that_takes_too_long():
    one = run(settings={"timeout": 1e-6})
    assert (one.state, one.readings["raw"][-1].step) == ("timeout", 0)


class Content(Net):
    def training_step(self, batch, batch_idx):
        self.trainer.should_stop = self.global_step >= 5
        return super().training_step(batch, batch_idx)


def test_a_module_that_stops_early_is_no_crash_but_refused():
    with pytest.raises(RecipeError, match=r"6 of 12 steps: a run was stopped early.*trainer.should_stop"):
        run(module=Content)


def test_what_a_module_writes_goes_with_the_run(tmp_path, monkeypatch):
    """The diffusion workload draws samples into the Trainer's folder, which is the current one if nothing is given."""
    folders = []

    class Drawing(Net):
        def on_validation_epoch_end(self):
            folder = Path(self.trainer.default_root_dir)
            (folder / f"samples-{self.global_step}.png").write_bytes(b"picture")
            folders.append(folder)

    monkeypatch.chdir(tmp_path)
    run(module=Drawing)
    assert list(tmp_path.iterdir()) == [] and len(set(folders)) == 1 and not folders[0].exists()
    run(module=Drawing, trainer={"default_root_dir": str(tmp_path)})
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"samples-{step}.png" for step in (0, 12, 4, 8)]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({7: math.nan}, "not finite at step 7"),
        ({1: math.inf}, "not finite at step 1"),
        ({5: 9.0, 6: 9.0, 7: 9.0, 8: 9.0, 9: 9.0}, "above 3 times its first value for 5 batches, at step 9"),
        ({5: 9.0, 6: 9.0, 7: 9.0, 8: 9.0, 10: 9.0}, None),
        ({99: math.nan}, "not finite at step 99"),
    ],
)
@pytest.mark.parametrize("passes", [1, 2])
def test_losses_are_judged_one_by_one_though_looked_at_together(bad, words, passes):
    watch = Observer(Recipe("llm"), "val_loss", 100, (0, 100), seed=1)
    assert watch._look == 5

    def train():
        for step in range(1, 101):
            for _ in range(passes):
                watch.before_pass(torch.zeros(1))
                watch.on_before_backward(None, None, torch.tensor(bad.get(step, 1.0)))
            watch.on_train_batch_end(
                SimpleNamespace(global_step=step, accumulate_grad_batches=1), None, None, None, step
            )

    if words is None:
        return train()
    with pytest.raises(Diverged) as stopped:
        train()
    assert words.replace("5 batches", f"{5 * passes} batches") in str(stopped.value)


class NotFinite(Net):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * float("nan")


@pytest.mark.parametrize("recipe", ["llm/soap", "llm/shampoo", "llm/muon"])
def test_a_decomposition_that_fails_at_what_is_not_finite_is_a_divergence_and_no_crash(recipe):
    one = run(recipe, module=NotFinite)
    assert (one.state, "not finite" in one.facts["error"]) == ("diverged", True), one.facts["error"]


def test_a_far_too_large_rate_diverges():
    one = run("cnn", values={"lr": 1e4}, keywords={"clip": 0.0})
    assert one.state == "diverged"


def test_what_every_run_would_refuse_is_said_at_once():
    with pytest.raises(RecipeError, match=r"metric: 'val_los' was not logged in validation; logged were: val_loss"):
        run(metric="val_los")


def test_what_a_matrix_optimizer_leaves_to_adamw_keeps_its_ratio():
    settings: dict[str, object] = {"fallback": {"llm/muon": {"lr": 1e-3}}}
    arm = Arm("llm/muon", "llm/muon", {}, {"lr": 0.02, "weight_decay": 0.01}, {})
    protocol = Protocol((arm,), arm.name, "val_loss", "min", STEPS, (0, STEPS), 1, 1, settings=settings)
    task = Task(Net, Data, {arm.name: (arm.recipe, {})}, CPU)
    one = execute(Job("k", "tune", 0, arm.name, 1, 1, {"lr": 0.04, "weight_decay": 0.02}), arm, task, protocol)
    groups = {group["algorithm"]: group["lr"] for group in cast(Any, one.facts["groups"])}
    assert groups == pytest.approx({"muon": 0.04, "adamw": 0.002})


@pytest.mark.parametrize("recipe", list_recipes())
def test_every_recipe_takes_the_values_of_a_trial(recipe):
    """Scion's scale is a number and not a system of units, which kept it out of every search."""
    start = {"lr": float(cast(Any, get_recipe(recipe).lr.base.number)), "weight_decay": 0.01}
    arm = Arm(recipe, recipe, {}, start, {})
    for factor in (0.05, 1.0, 20.0):
        at = overrides_at(arm, {}, {name: factor * value for name, value in start.items()}, {})
        assert Recipe(recipe, **at, existing="replace").spec.name == recipe


def test_averages_are_read_where_the_arm_averages():
    arm = Arm("llm", "llm", {}, {"lr": 0.01}, {}, readout="averages")
    protocol = Protocol((arm,), "llm", "val_loss", "min", STEPS, (0, STEPS), 1, 1)
    one = execute(
        Job("k", "tune", 0, "llm", 0, 1, {"lr": 0.01}),
        arm,
        Task(Net, Data, {"llm": ("llm", {"ema": 0.9})}, CPU),
        protocol,
    )
    assert list(one.readings) == ["averages"]
    assert one.readings["averages"][-1].metric != run().readings["raw"][-1].metric
