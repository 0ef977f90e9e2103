"""`lit_opt.compare`: which optimizer is better on your own model, under a protocol that is fixed before the first run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, cast

from lit_opt.comparison.announcement import Announcement
from lit_opt.comparison.arms import ArmLike, Named, common_readout
from lit_opt.comparison.codec import digest, plain, protocol_to_dict
from lit_opt.comparison.contract import check, check_ledger
from lit_opt.comparison.facts import versions
from lit_opt.comparison.horizons import refuse_without_warmup
from lit_opt.comparison.ledger import Ledger, Lines
from lit_opt.comparison.metric import choose_metric
from lit_opt.comparison.points import box_around
from lit_opt.comparison.ranks import devices_of
from lit_opt.comparison.records import Arm, Protocol
from lit_opt.comparison.rehearsal import Rehearsed, rehearse, seconds_of_a_run, threads
from lit_opt.comparison.request import Request, changed, read_request
from lit_opt.comparison.stages import progress_of
from lit_opt.comparison.task import Factory, Task
from lit_opt.comparison.team import refuse_unsendable, run_workers
from lit_opt.comparison.worker import intact
from lit_opt.errors import RecipeError


def compare(
    make_module: Factory,
    make_datamodule: Factory | None = None,
    *,
    arms: Sequence[ArmLike] | Mapping[str, ArmLike],
    budget_steps: int,
    baseline: str | None = None,
    trials: int = 16,
    seeds: int | None = None,
    eval_every: int | None = None,
    metric: str | None = None,
    mode: Literal["min", "max"] | None = None,
    readout: Literal["raw", "averages"] | None = None,
    decades: float = 2.0,
    extend: int = 0,
    horizons: Sequence[float] | None = None,
    studies: int = 1,
    seed: int = 0,
    out: str | Path = "comparison",
    workers: int = 1,
    trainer: Mapping[str, Any] | None = None,
    timeout: float | None = None,
    dry_run: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Compare recipes on one model, fairly: equal trials, fresh seeds, a target that is fixed before the others are seen.

    Stage A tunes lr and weight decay of every arm on the same quasi-random points, with one seed; point 0 is the arm's
    published start. Stage B trains each winner anew on fresh seeds, the baseline first; the target is frozen from it, then
    the others follow in random blocks. Runs that selected are never reported. The same call resumes, and joins a
    comparison that another process works on; a call that says something else is refused. See docs/compare.md.

    The search is torch's scrambled Sobol sequence and not Optuna: an adaptive search depends on the order in which runs
    finish, so that workers and crashes would change results, and it helps one arm more than another.

    Args:
        make_module: `make_module(seed)` -> LightningModule; also without argument. Torch is seeded before.
        make_datamodule: `make_datamodule(seed)` -> LightningDataModule, or a pair (training loader, validation loader).
            None where the module has its loaders itself.
        arms: Names of recipes, `Recipe` objects, or a mapping from names to either or to keywords of `Recipe`.
        budget_steps: Optimizer steps of every run, and the horizon of its schedule.
        baseline: Name of the arm that the others are compared with; the first if unset.
        trials: Points of the search of each arm; 1 compares published starts, untuned.
        seeds: Fresh seeds of the confirmation; 6 for two arms, 8 for up to five, 10 beyond if unset.
        eval_every: Optimizer steps between evaluations; it divides budget_steps. About 20 evaluations if unset.
        metric: The name logged in validation that decides; "val_loss", or the only one, if unset.
        mode: "min" if lower is better; known from the name if unset.
        readout: "raw" turns averages off in every arm. Unset, all arms have to be read by the same weights.
        decades: Width of the box of each tuned value, around its published start.
        extend: Rounds in which the search of every arm is continued, and the box of arms whose best point is at its edge
            widened by a decade. At 0 such an arm gets no verdict.
        horizons: Shares of the budget, such as (0.5, 0.7, 1.0). Each winner is then also trained with budgets of these
            shares, the schedule fitted to each, on the confirmation's seeds: what the target takes is read from there.
        studies: How often search and confirmation are repeated, with other points and seeds.
        seed: Of the comparison.
        out: Folder of the ledger and the report.
        workers: Processes on this machine. With more than one, times are left out: they would not be fair.
        trainer: Keywords of the Trainer, such as `{"precision": "bf16-mixed"}`; with `{"devices": 2}` each run takes two, by DDP.
        timeout: Seconds after which a run is stopped; it is repeated twice and then counts as missed.
        dry_run: Announce runs, samples and hours; nothing is written.
        quiet: Print neither the announcement nor the progress.

    Returns:
        The results, as in results.json; of a dry run the announcement's numbers.

    Raises:
        RecipeError: All that is wrong with the arguments; what cannot be compared; a folder with another protocol.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel
        >>> class Model(BoringModel):
        ...     def validation_step(self, batch, batch_idx):
        ...         self.log("val_loss", self(batch).square().mean())
        >>> plan = compare(
        ...     Model, BoringDataModule, arms=["llm", "cnn"], budget_steps=20, trials=4, dry_run=True, quiet=True,
        ...     trainer={"accelerator": "cpu"},
        ... )
        >>> plan["runs"], plan["samples"]
        (20, 400)
    """
    return run_comparison(locals())


def run_comparison(given: Mapping[str, Any], command: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Do what `compare` does.

    Args:
        given: Its arguments.
        command: How it was begun, for workers elsewhere; stands in the ledger's first line.

    Returns:
        The results; of a dry run the announcement's numbers.

    Raises:
        RecipeError: As `compare`.

    Example:
        >>> run_comparison.__name__  # `compare` has an example
        'run_comparison'
    """
    task, named, request = read_request(given)
    folder, workers, quiet = Path(given["out"]), given["workers"], given["quiet"]
    if workers > 1:
        refuse_unsendable(task, f"workers={workers}")
    if (devices := devices_of(task.trainer)) > 1:
        refuse_unsendable(task, f"trainer: devices={devices}")
    ledger = Ledger(folder) if folder.exists() else None
    reading = intact(ledger.read(), folder) if ledger is not None else Lines((), (), (), "")
    opened = next((event for _, event in reading.of("opened")), None)
    if opened is not None:
        refuse_changed(opened["request"], request, folder)
        estimate = opened["estimate"]
        protocol = progress_of(reading).protocol
        evaluating = 0.0
    else:
        protocol, estimate, evaluating = open_protocol(task, named, request)
    announcement = Announcement(protocol, estimate, workers, str(folder), evaluating, resumed=opened is not None)
    if not quiet:
        announcement.show()
    if given["dry_run"]:
        return announcement.numbers()
    ledger = ledger or Ledger(folder)
    if opened is None:
        data = protocol_to_dict(protocol)
        content = {
            "protocol": data,
            "request": asdict(request),
            "estimate": estimate,
            "versions": versions(),
            "command": command,
        }
        began = ledger.append(
            "opened", {**content, "protocol_hash": digest(data)}, unless=lambda now: any(now.of("opened"))
        )
        if began is None:  # another process was faster
            refuse_changed(next(ledger.read().of("opened"))[1]["request"], request, folder)
    run_workers(folder, task, workers=workers, estimate=estimate, quiet=quiet)
    return write_report(folder, quiet=quiet)


def refuse_changed(opened: Mapping[str, Any], request: Request, folder: Path) -> None:
    """Refuse another protocol in the same folder.

    Raises:
        RecipeError: One line for each difference.

    Example:
        >>> refuse_changed.__name__  # tests/comparison/test_compare.py
        'refuse_changed'
    """
    differences = changed(opened, request)
    if differences:
        raise RecipeError(
            [
                f"out: {folder} holds another comparison, which cannot be changed once it has begun: {'; '.join(differences)}. "
                "Repeat the first command to resume it, or give another folder (--out)."
            ]
        )


def open_protocol(task: Task, named: Named, request: Request) -> tuple[Protocol, dict[str, float], float]:
    """Rehearse, and fix the protocol.

    Returns:
        The protocol, the seconds that a run of each arm is expected to take, and the share of evaluations in them.

    Raises:
        RecipeError: What cannot be compared.

    Example:
        >>> open_protocol.__name__  # tests/comparison/test_compare.py
        'open_protocol'
    """
    budget = request.budget_steps
    shown = rehearse(task, named, request.baseline, budget_steps=budget, metric=request.metric, seed=request.seed)
    base = shown[request.baseline]
    per_epoch = base.batches / int(task.trainer.get("accumulate_grad_batches", 1)) if base.batches else None
    refuse_without_warmup(named, request.horizons or (), budget, per_epoch)
    metric, mode = choose_metric(request.metric, request.mode, base.logged if request.metric else base.validated)
    readout = common_readout({name: one.averages for name, one in shown.items()}, request.readout)
    arms = tuple(
        Arm(
            name=name,
            recipe=recipe,
            overrides=plain(keywords),
            start=shown[name].start,
            box=box_around(shown[name].start, request.decades) if request.trials > 1 else {},
            readout=readout,
            units={"lr": shown[name].units},
        )
        for name, (recipe, keywords) in named.items()
    )
    eval_steps = tuple(range(0, budget + 1, request.eval_every))
    protocol = Protocol(
        arms=arms,
        baseline=request.baseline,
        metric=metric,
        mode=cast(Literal["min", "max"], mode),
        budget_steps=budget,
        eval_steps=eval_steps,
        trials=request.trials,
        seeds=request.seeds,
        studies=request.studies,
        seed=request.seed,
        extend=request.extend,
        horizons=request.horizons or (),
        settings=_settings(task, request, shown),
    )
    seconds = {name: seconds_of_a_run(one, base, budget, len(eval_steps)) for name, one in shown.items()}
    evaluating = len(shown) * len(eval_steps) * base.evaluation_seconds / max(sum(seconds.values()), 1e-9)
    return protocol, seconds, evaluating


def _settings(task: Task, request: Request, shown: Mapping[str, Rehearsed]) -> dict[str, Any]:
    base = shown[request.baseline]
    settings = {
        "module": request.module,
        "data": request.data,
        "trainer": request.trainer,
        "threads": threads(),
        "decades": request.decades,
        "timeout": request.timeout,
        "samples_per_step": base.facts["samples_per_step"],
        "parameters": base.facts["parameters"],
        "model_flops_per_pass": base.model_flops,
        "passes": {name: one.facts["passes_per_step"] for name, one in shown.items()},
        "fallback": {name: one.fallback for name, one in shown.items() if one.fallback},
    }
    cleaned = plain(settings)
    assert isinstance(cleaned, dict)
    return cleaned


def write_report(out: str | Path, *, quiet: bool = False) -> dict[str, Any]:
    """Compute the results of a folder from its ledger alone, and write the report: also of an unfinished comparison.

    Args:
        out: The folder.
        quiet: Print nothing.

    Returns:
        The results, as in results.json.

    Raises:
        RecipeError: There is no comparison in the folder.

    Example:
        >>> write_report("nothing-here")
        Traceback (most recent call last):
            ...
        lit_opt.errors.RecipeError: out: nothing-here: no such folder. `lit-opt compare --config ...` begins a comparison.
    """
    from lit_opt.comparison import report, results

    folder = Path(out)
    if not folder.is_dir():
        raise RecipeError([f"out: {folder}: no such folder. `lit-opt compare --config ...` begins a comparison."])
    ledger = Ledger(folder)
    reading = ledger.read()
    progress = progress_of(reading)
    runs = list(progress.runs.values())
    violations = [*check(progress.effective, runs), *check_ledger(reading, progress)]
    frozen = progress.target["level"] if progress.target is not None else None
    found = results.compute(progress.effective, runs, target=frozen, violations=violations)
    with ledger.locked():  # workers that end together would write into one file
        report.write(folder, progress.effective, runs, found)
    if not quiet:
        print((folder / "summary.md").read_text(encoding="utf-8").strip())
        print(f"\nThe report is {folder / 'report.html'}.")
    return found
