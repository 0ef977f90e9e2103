"""What a comparison is made of: its protocol, and one record for each finished run. Plain data: no torch, no lightning.

The runner writes runs to the ledger, the results are computed from protocol and runs alone: so a report can be written
anew, years later, from the ledger.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Stage = Literal["tune", "confirm", "horizon"]
# "done" has a finite final metric. "diverged" and "oom" are results of the arm and count as the worst there is.
# "crashed" and "timeout" are the machine's fault: repeated with the same seed, then counted as a miss.
State = Literal["done", "diverged", "oom", "crashed", "timeout"]
Readout = Literal["raw", "averages"]


@dataclass(frozen=True)
class Arm:
    """One competitor: a recipe under a name, the values it starts from, and its box of values to tune.

    Attributes:
        name: What the report calls it.
        recipe: The recipe's name.
        overrides: Keywords of `Recipe` beyond the name.
        start: The values it has untuned, e.g. `{"lr": 6e-4, "weight_decay": 0.1}`.
        box: For each tuned value its lowest and its highest; both positive, searched on a logarithmic scale.
        readout: The weights that decide: as trained, or averaged.
        units: What the numbers in `start` mean where arms differ, e.g. `{"lr": "Muon's units"}`.
    """

    name: str
    recipe: str
    overrides: dict[str, object]
    start: dict[str, float]
    box: dict[str, tuple[float, float]]
    readout: Readout = "raw"
    units: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Protocol:
    """All that was decided before the first run; its hash stands in every line of the ledger.

    Attributes:
        arms: The competitors.
        baseline: Name of the arm that the others are compared with.
        metric: The logged name that is compared.
        mode: "min" if lower is better.
        budget_steps: Optimizer steps of every run.
        eval_steps: After which steps each run is evaluated, from 0 (before training) to `budget_steps`.
        trials: Points of the search for each arm, the same number for all.
        seeds: Fresh seeds of the confirmation.
        studies: How often search and confirmation are repeated, with other points and seeds.
        target_share: Share of the baseline's drop (first evaluation to final) that is the target.
        seed: Of the comparison: points, seeds and order follow from it.
        extend: How often the search is widened where an arm's best point stands on the edge of its box.
        horizons: Steps of the shorter runs, each with a schedule of its own length, from which the samples to the target
            are read. None: there are none.
        settings: All else that was fixed, as plain data: model, data, Trainer, threads, versions, samples a step.
    """

    arms: tuple[Arm, ...]
    baseline: str
    metric: str
    mode: Literal["min", "max"]
    budget_steps: int
    eval_steps: tuple[int, ...]
    trials: int
    seeds: int
    studies: int = 1
    target_share: float = 0.98
    seed: int = 0
    extend: int = 0
    horizons: tuple[int, ...] = ()
    settings: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Reading:
    """One evaluation in a run.

    Attributes:
        step: Optimizer steps done.
        samples: Samples (or tokens) seen in training.
        flops: Floating-point operations of training so far, model and optimizer.
        seconds: Seconds of training so far, without evaluation; nan where the clock was not fair.
        metric: The metric's value.
    """

    step: int
    samples: int
    flops: float
    seconds: float
    metric: float


@dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
        key: Hash of arm, values, seed, stage and protocol; the same work has the same key.
        stage: "tune" for the search, "confirm" for the fresh seeds, "horizon" for the same seeds and a shorter budget.
        study: Number of the study, from 0.
        arm: Name of the arm.
        point: Number of the point in the search; in the confirmation, that of the chosen point.
        seed: Seed of weights, data and noise.
        values: The tuned values of this run.
        state: How it ended.
        readings: For each readout the evaluations in their order; at least that of the arm. Empty if it never got there.
        lines: Numbers of the ledger's lines that it was read from, from 1.
        facts: What the contract compares and the report shows: parameters, peak bytes, milliseconds a step, hashes.
        steps: Its budget where that is not the protocol's: of a shorter horizon.
    """

    key: str
    stage: Stage
    study: int
    arm: str
    point: int
    seed: int
    values: dict[str, float]
    state: State
    readings: dict[Readout, tuple[Reading, ...]]
    lines: tuple[int, ...] = ()
    facts: dict[str, object] = field(default_factory=dict)
    steps: int | None = None
