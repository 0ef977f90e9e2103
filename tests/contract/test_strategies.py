"""Every recipe under every strategy and precision that a CPU runs, against one process; and the table that says so.

`make tables` notes in lit_opt/explain/strategies.json what passed here and writes docs/strategies.md; without it the
tests fail where the two disagree. The runs are in strategy_runs.py: Lightning starts processes by running a script again.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

from lit_opt import Recipe
from lit_opt.explain.strategies import PRECISIONS, RECORD, strategies_markdown, strategy_cells
from lit_opt.optim.registry import row_of
from lit_opt.recipes import get_recipe, list_recipes
from lit_opt.resolve import preview
from lit_opt.resolve.strategies import STRATEGIES, lightning_refuses, refusals
from tests.callbacks.modules import trainer
from tests.contract.record import Record, distance, recorded
from tests.contract.spawned import Halves, OwnMemory
from tests.contract.strategy_runs import PROCESSES, quick
from tests.contract.tiny import BATCH, STEPS, Tiny
from tests.processes import launch

ROOT = Path(__file__).parents[2]
# In low precision every rounding counts. Orthogonalisation takes the small singular values of a gradient, which are
# rounding there, for as good as the large ones: of matrix methods only the losses agree (design, decision 10).
LOOSE, LOOSE_MATRIX, LOSSES = 0.2, 1.0, 0.02


@pytest.fixture(scope="module", params=["some", pytest.param("all", marks=pytest.mark.slow)])
def folder(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Where runs in 1, 2 and 4 processes write what they saw: some of them, or all."""
    return tmp_path_factory.mktemp(request.param)


@pytest.fixture(scope="module")
def record(request: pytest.FixtureRequest) -> Iterator[Record]:
    """What passes is noted here; with --write-tables (and -m slow, for all cells) the file is written at the end."""
    record = Record()
    yield record
    if request.config.getoption("--write-tables"):
        assert request.config.getoption("-m") == "slow", "type `make tables`"
        record.write({"torch": torch.__version__.split("+")[0], "lightning": lightning.__version__})
        (ROOT / "docs" / "strategies.md").write_text(strategies_markdown())


def results(folder: Path, kind: str, precision: str) -> list[dict[str, Any]]:
    """What each process has seen: recipe -> run. One launch is for all that takes so many processes."""
    where = folder / f"{PROCESSES[kind]}{'-quick' if folder.name.startswith('some') else ''}"
    if not where.exists():
        where.mkdir()
        result = launch("tests.contract.strategy_runs", where)
        assert result.returncode == 0, result.stderr[-6000:]
    files = sorted(where.glob(f"{kind}.*.pt"))
    assert len(files) == PROCESSES[kind]
    return [torch.load(file, weights_only=False)[precision] for file in files]


CELLS = [
    pytest.param(kind, precision, id=f"{kind}-{precision}")
    for kind in PROCESSES
    for precision in PRECISIONS
    if not lightning_refuses(kind, precision)
]


@pytest.mark.parametrize(("kind", "precision"), CELLS)
def test_every_recipe_is_as_in_one_process(kind: str, precision: str, folder: Path, record: Record) -> None:
    """Refused as the rules say, or the same groups, norms and weights; and nothing else than the table has."""
    ranks, alone = results(folder, kind, precision), results(folder, "single", precision)[0]
    assert list(ranks[0]) == list_recipes() or list(ranks[0]) == quick(kind, precision)
    passed = []
    for name in ranks[0]:
        planned = preview(get_recipe(name))
        expected = refusals(planned, kind, precision)
        runs = [rank[name] for rank in ranks]
        for run in runs:
            assert "error" not in run, f"{name}: {run['error']}"
        if expected:
            for run in runs:
                assert all(reason in run.get("refused", "") for reason in expected), (name, run)
            continue
        if any("torchao" in run.get("refused", "") for run in runs):
            assert isinstance(planned.optimizer, str) and not row_of(planned.optimizer, {}).exact
            continue  # by contract here
        assert all("straight" in run for run in runs), (name, runs)
        check(name, kind, precision, [run["straight"] for run in runs], alone[name]["straight"])
        assert precision != "32-true" or folder.name.startswith("some") or "resumed" in runs[0], name
        if precision == "32-true" and "resumed" in runs[0]:
            for run in runs:
                assert run["resumed"]["step"] == STEPS
                for key, weight in run["straight"]["weights"].items():
                    assert torch.equal(run["resumed"]["weights"][key], weight), (name, key)
        passed.append(name)
    record.note(kind, precision, passed)
    assert set(passed) == set(recorded(kind, precision, record)) & set(ranks[0]), "run `make tables`"


def check(name: str, kind: str, precision: str, runs: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    start = {key: p.detach() for key, p in Tiny(name).named_parameters()}
    planned = preview(get_recipe(name))
    assert isinstance(planned.optimizer, str)
    row = row_of(planned.optimizer, planned.hyperparameters)
    for run in runs:
        assert run["step"] == STEPS and run["rows"] == alone["rows"], name
        assert all(torch.isfinite(weight).all() for weight in run["weights"].values()), name
        for key, weight in runs[0]["weights"].items():
            assert torch.equal(run["weights"][key], weight), (name, key)
    assert distance(runs[0]["weights"], start, start) > 0, f"{name}: nothing has moved"
    if row.needs_closure and kind in ("ddp", "ddp_spawn"):
        return  # each process goes up by its own gradient
    # Their bases follow the gradients. Those of this small problem have fewer directions than the matrices, so that the
    # rounding of an all-reduce turns what is left of a basis; losses and norms agree.
    follows = 0.1 if row.name in ("aro", "soap", "splus") else 0.0
    low = precision != "32-true"
    near = 1e-3 if follows else 1e-5
    bound = (LOOSE_MATRIX if row.matrix else LOOSE) if low else 1e-3 if row.matrix else 1e-4
    for ours, theirs in zip(torch.tensor([run["losses"] for run in runs]).mean(0), alone["losses"], strict=True):
        assert float(ours) == pytest.approx(theirs, rel=LOSSES if low else near), name
    far = distance(runs[0]["weights"], alone["weights"], start)
    bound = max(bound, follows)
    assert far <= bound, f"{name}: {far:.1e} of the way from one process"
    assert len(runs[0]["norms"]) == len(alone["norms"]) == (STEPS if planned.clip else 0), name
    for ours, theirs in zip(runs[0]["norms"], alone["norms"], strict=True):
        assert ours == pytest.approx(theirs, rel=2e-2 if low else near), name


def test_ddp_spawn(folder: Path, record: Record) -> None:
    """Its launcher pickles Trainer, recipe and module into new processes, and brings the weights back."""
    names, method = ["diffusion"], "spawn"
    if folder.name.startswith("all"):
        # The same from a process that has imported what is needed; else each run imports it twice, for seconds.
        multiprocessing.set_forkserver_preload(["lightning.pytorch", "tests.contract.spawned", "timm.optim"])
        names, method = list_recipes(), "forkserver"
    alone = results(folder, "single", "32-true")[0]
    for name in names:
        module, recipe = Tiny(name), Recipe(name, batch_size=BATCH)
        strategy: Any = DDPStrategy(start_method=method, process_group_backend="gloo")  # type: ignore[arg-type]
        t = trainer(recipe, OwnMemory(), devices=2, strategy=strategy, max_steps=STEPS, use_distributed_sampler=False)
        t.fit(module, Halves())
        weights = {key: p.detach() for key, p in module.named_parameters() if p.requires_grad}
        start = {key: p.detach() for key, p in Tiny(name).named_parameters()}
        assert distance(weights, start, start) > 0
        if get_recipe(name).optimizer.number != "sam":
            assert distance(weights, alone[name]["straight"]["weights"], start) < 1e-3, name
    record.note("ddp_spawn", "32-true", names)
    assert set(names) == set(recorded("ddp_spawn", "32-true", record)) & set(names), "run `make tables`"


@pytest.mark.parametrize("strategy", ["fsdp2", "hsdp", "tp"])
def test_lightning_itself_refuses_what_the_table_says(strategy: str) -> None:
    assert lightning_refuses(strategy, "16-mixed") and not lightning_refuses(strategy, "bf16-mixed")
    with pytest.raises(ValueError, match="does not support"):
        trainer(devices=2, strategy=ModelParallelStrategy(), precision="16-mixed")


def test_lightning_refuses_mixed_precision_on_xla(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.plugins.precision import xla

    monkeypatch.setattr(xla, "_XLA_AVAILABLE", True)
    monkeypatch.setenv("XLA_USE_BF16", "")  # it is set, and put back afterwards
    for precision in PRECISIONS:
        refused = lightning_refuses("xla", precision)
        try:
            xla.XLAPrecision(precision)  # type: ignore[arg-type]
        except ValueError as error:
            assert refused and "is not supported in XLA" in str(error)
        else:
            assert not refused


def test_every_refusal_says_what_to_use_instead() -> None:
    for cell in strategy_cells():
        if cell.status == "refused":
            assert cell.why and all("Use " in why or "Give " in why for why in cell.why), cell
        assert cell.status != "contract" or cell.why[0], f"{cell}: nothing says why it was not run"


def test_the_record_has_nothing_that_is_refused_or_unknown() -> None:
    refused = {(c.strategy, c.precision, c.recipe) for c in strategy_cells() if c.status == "refused"}
    for strategy in STRATEGIES:
        for precision in PRECISIONS:
            for name in recorded(strategy, precision):
                assert name in list_recipes() and (strategy, precision, name) not in refused
    assert RECORD.read_text().endswith("}\n")


def test_the_page_is_what_the_table_says(request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--write-tables"):
        assert (ROOT / "docs" / "strategies.md").read_text() == strategies_markdown(), "run `make tables`"
