"""The shipped configs: written by the generator, complete, and each of them trains through the real entry point."""

import dataclasses
import inspect
import re
from types import SimpleNamespace

import pytest
import torch
import yaml
from lightning.pytorch import seed_everything
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy

import lit_opt.commands.fit
from lit_opt import Recipe
from lit_opt.cli import main
from lit_opt.commands.closing_report import ClosingReport
from lit_opt.commands.generate_configs import TABLE, config_text
from lit_opt.commands.generate_configs import main as generate
from lit_opt.explain.recipe_yaml import flow, recipe_section
from lit_opt.explain.shipped_configs import CONFIGS, shipped_configs
from lit_opt.recipes import get_recipe, list_recipes
from lit_opt.resolve import RunFacts, resolve
from lit_opt.resolve.overrides import FIELDS, find_problems
from lit_opt.schedules import factor
from lit_opt.workloads import ImageClassifier, LanguageModel

torch.set_num_threads(1)
NAMES = sorted(TABLE)


def uncommented(text):
    """Every setting of the recipe section set: the file as it is after removing one `# ` from its lines."""
    head, _, section = text.partition("\nrecipe:\n")
    return f"{head}\nrecipe:\n" + re.sub(r"^  # ", "  ", section, flags=re.MULTILINE)


def test_the_shipped_files_are_those_of_the_table():
    files = [file for file in CONFIGS.rglob("*") if file.is_file()]
    found = sorted(file.relative_to(CONFIGS).with_suffix("").as_posix() for file in files)
    assert found == NAMES == list(shipped_configs())
    assert len(found) == len(TABLE) >= 2
    assert {recipe for recipe, _ in TABLE.values()} <= set(list_recipes())


def test_the_generator_writes_what_is_shipped(tmp_path, capsys):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "gone.yaml").write_text("recipe: {name: llm}")
    assert generate(tmp_path) == 0
    written = {file.relative_to(tmp_path).as_posix(): file.read_text() for file in tmp_path.rglob("*.yaml")}
    shipped = {f"{name}.yaml": path.read_text() for name, path in shipped_configs().items()}
    assert written == shipped, "run `make configs`"


@pytest.mark.parametrize("name", list_recipes())
def test_uncommenting_everything_changes_nothing(name):
    spec = get_recipe(name)
    facts = RunFacts(total_steps=1000, global_batch=4096, parameter_count=10_000_000)
    text = uncommented("\n" + "\n".join(recipe_section(spec, facts=facts)))
    section = yaml.safe_load(text)["recipe"]
    assert list(section) == ["name", *FIELDS, "existing", "on_resume", "on_nonfinite"]
    assert set(section) == set(inspect.signature(Recipe).parameters)
    overrides = {key: section[key] for key in FIELDS}
    assert find_problems(spec, {k: v for k, v in overrides.items() if v is not None}) == []
    with_all, plain = resolve(spec, overrides, facts).as_dict(), resolve(spec, {}, facts).as_dict()
    for origins in (with_all, plain):
        del origins["origins"]
    assert with_all == plain
    assert sum(value is not None for value in overrides.values()) >= 8


@pytest.mark.parametrize("name", list_recipes())
def test_each_line_says_why(name):
    text = " ".join(line.replace("##", "") for line in recipe_section(get_recipe(name)))
    flat = " ".join(text.split())
    missing = [path for path, v in get_recipe(name).items() if " ".join(v.source.split()) not in flat]
    assert [path for path in missing if not path.startswith(("hints", "no_decay", "parts"))] == []


def test_a_users_value_is_set_and_not_commented():
    lines = recipe_section(get_recipe("llm"), {"lr": 1e-3, "decay": {"final": 0.0}})
    assert "  lr: 1.0e-3" in lines and "  decay: {final: 0.0}" in lines and "  # clip: 1.0" in lines
    assert any("outside" in line or "yours" in line or "never rescaled" in line for line in lines)


@pytest.mark.parametrize(
    "x", [3e-4, 1e-8, 2.5e-4, 0.1, 0.0, 1.0, 31.2, 1e6, 123456789.0, -1.5e-5, 524288, True, (0.9, 0.95), None]
)
def test_flow_is_read_back_as_it_was(x):
    read = yaml.safe_load(flow(x))
    assert read == (list(x) if isinstance(x, tuple) else x)
    assert type(read) is (list if isinstance(x, tuple) else type(x))


@pytest.mark.parametrize("name", NAMES)
def test_uncommented_configs_go_through_the_parser(name, tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    file.write_text(uncommented(config_text(name)))
    assert main(["fit", "--config", str(file), "--print_config"]) == 0
    section = yaml.safe_load(capsys.readouterr().out)["recipe"]
    written = yaml.safe_load(file.read_text())["recipe"]
    for key, value in written.items():
        if isinstance(value, dict):
            given = {k: v for k, v in value.items() if v is not None}
            assert {k: v for k, v in section[key].items() if v is not None} == given
        else:
            assert section[key] == value, key


@pytest.fixture
def watched(monkeypatch):
    """The reports of the runs; with a short text sample, since each byte costs a forward pass."""
    reports = []

    class Watched(ClosingReport):
        def __init__(self, *args):
            super().__init__(*args)
            reports.append(self)

    whole = LanguageModel.sample
    monkeypatch.setattr(LanguageModel, "sample", lambda self, prompt="", n_bytes=4: whole(self, prompt, 4))
    monkeypatch.setattr(lit_opt.commands.fit, "ClosingReport", Watched)
    return reports


# Of the configs of one workload the first Muon one is enough; the others differ in numbers that other tests read.
_SLOW = (
    *("llm/muon_rms", "llm/normuon", "cnn/muon", "vit/muon", "large_batch/lamb", "large_batch/control"),
    *("llm/finetune", "vit/finetune", "diffusion/finetune", "cnn/adamw", "vit/lamb", "vit/sam"),
    *("llm/adafactor", "llm/adamw_8bit", "diffusion/adafactor", "diffusion/adamw_8bit", "llm/shampoo", "llm/splus"),
)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in _SLOW else n for n in NAMES])
def test_each_config_trains_validates_and_resumes(name, tmp_path, monkeypatch, capsys, watched):
    monkeypatch.chdir(tmp_path)
    short = ["--trainer.limit_val_batches=1", "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
    assert main(["fit", "--config", name, *short, "--trainer.max_steps=2", "--trainer.val_check_interval=2"]) == 0
    out = capsys.readouterr().out
    run = tmp_path / "runs" / name / "version_0"
    assert re.search(r"Before training: .*val_loss \d\.\d{4}", out)
    assert re.search(r"After training:  .*val_loss \d\.\d{4}", out)
    assert f"Picture of the run: runs/{name}/version_0/run.png" in out
    assert (run / "run.png").stat().st_size > 10_000
    assert yaml.safe_load((run / "config.yaml").read_text())["recipe"]["name"] == TABLE[name][0]
    last = run / "checkpoints" / "last.ckpt"
    assert "Checkpoint: " in out and last.is_file()

    # The picture shows the rates that the steps used, not those that the scheduler has set for the next.
    trained = [row for row in watched[0].history.rows if "train_loss" in row]
    scheduler = watched[0].trainer.lr_scheduler_configs[0].scheduler
    schedule, peak = scheduler.schedule, max(scheduler.peaks)
    assert [row["step"] for row in trained] == [1, 2]
    for row in trained:
        (rate,) = [value for key, value in row.items() if key.startswith("lr-")]
        assert rate == pytest.approx(peak * factor(schedule, int(row["step"]) - 1))

    # What the config says of the run is true, so an uncommented learning rate is the one that was used.
    trainer, facts = watched[0].trainer, TABLE[name][1].facts
    recipe = next(c for c in trainer.callbacks if isinstance(c, Recipe))
    assert recipe.resolved is not None
    known = {k: v for k, v in dataclasses.asdict(facts).items() if v is not None and k != "total_steps"}
    assert known.items() <= dataclasses.asdict(recipe.resolved.facts).items()
    settings = TABLE[name][1].trainer
    steps = settings.get("max_steps") or settings["max_epochs"] * len(watched[0].data.train_dataloader())
    assert facts.total_steps == steps
    lines = re.findall(r"^  (?:# )?lr: ([^ ]*)", config_text(name), re.MULTILINE)
    shown = float(lines[0])
    assert recipe.resolved.lr == pytest.approx(shown, rel=1e-12)

    assert main(["validate", "--config", name, *short, f"--ckpt_path={last}"]) == 0
    assert main(["fit", "--config", name, *short, "--trainer.max_steps=3", f"--ckpt_path={last}"]) == 0
    out = capsys.readouterr().out
    assert "Before training" not in out and "After training" in out
    assert watched[1].trainer.global_step == 3


def test_the_report_does_not_change_the_run(tmp_path, monkeypatch, watched):
    monkeypatch.chdir(tmp_path)
    short = ["--trainer.limit_val_batches=1", "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
    model = ["--model.init_args.width=0.125"]
    assert main(["fit", "--config", "cnn", *short, *model, "--trainer.max_steps=2"]) == 0
    with_report = [p.detach().clone() for p in watched[0].model.parameters()]

    class Silent(ClosingReport):
        def __init__(self, *args):
            super().__init__(*args)
            self.active = False
            watched.append(self)

    monkeypatch.setattr(lit_opt.commands.fit, "ClosingReport", Silent)
    seed_everything(1, verbose=False)
    assert main(["fit", "--config", "cnn", *short, *model, "--trainer.max_steps=2"]) == 0
    assert all(torch.equal(a, b) for a, b in zip(with_report, watched[1].model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("world_size", "strategy", "active"), [(1, None, True), (2, DDPStrategy(), True), (2, FSDPStrategy(), False)]
)
def test_who_gets_a_report(world_size, strategy, active):
    trainer = SimpleNamespace(world_size=world_size, strategy=strategy, fast_dev_run=False)
    data = {"datamodule": object()}
    workload = ImageClassifier(width=0.125)
    assert ClosingReport(trainer, workload, data).active is active  # type: ignore[arg-type]
    assert not ClosingReport(trainer, workload, {}).active  # type: ignore[arg-type]
    assert not ClosingReport(trainer, BoringModel(), data).active  # type: ignore[arg-type]
