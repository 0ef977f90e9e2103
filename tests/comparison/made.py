"""Hand-made protocols and runs: curves of chosen shape and noise, without any training."""

import hashlib
import math
from typing import Any

import numpy as np

from lit_opt.comparison.records import Arm, Protocol, Reading, Run

STEPS = 200
EVERY = 10
BOX = {"lr": (1e-4, 1e-2), "weight_decay": (0.01, 1.0)}


def protocol(names=("adamw", "muon", "soap"), **changes):
    arms = tuple(Arm(name, f"llm/{name}", {}, {"lr": 1e-3, "weight_decay": 0.1}, dict(BOX)) for name in names)
    evaluations = tuple(range(0, STEPS + 1, EVERY))
    keywords: dict[str, Any] = {"metric": "val_loss", "mode": "min", "trials": 16, "seeds": 8} | changes
    return Protocol(arms, names[0], budget_steps=STEPS, eval_steps=evaluations, **keywords)


def made_run(
    arm,
    stage="confirm",
    *,
    study=0,
    point=3,
    seed=1,
    values=None,
    speed=1.0,
    floor=2.0,
    state="done",
    until=STEPS,
    sign=1,
    ms=10.0,
    line=1,
    timed=True,
    **facts,
):
    """A curve that falls from 6 to `floor`, `speed` times as fast as the common one."""
    values = {"lr": 1e-3, "weight_decay": 0.1} if values is None else values
    readings = []
    for step in range(0, until + 1, EVERY):
        metric = floor + (6 - floor) * math.exp(-6 * speed * step / STEPS)
        seconds = ms * step / 1000 if timed else math.nan
        readings.append(Reading(step, step * 64, step * 1e9, seconds, sign * metric))
    key = hashlib.sha256(repr((arm, stage, study, point, seed, sorted(values.items()))).encode()).hexdigest()[:16]
    told = {"ms_per_step": ms, "peak_bytes": 50_000_000, "parameters": 123_456, "decay": "cosine"} | facts
    return Run(key, stage, study, arm, point, seed, values, state, {"raw": tuple(readings)}, (line, line + 1), told)


def search(arm, *, trials=16, study=0, best=3, rng=None, failed=(), **keywords):
    """Points over the box, one of which (well inside) is the best."""
    rng = rng or np.random.default_rng(trials)
    found = []
    for point in range(trials):
        u, v = (0.5, 0.5) if point in (0, best) else rng.uniform(0.02, 0.98, 2)
        if point == best:
            u, v = 0.55, 0.45
        values = {"lr": 1e-4 * 100**u, "weight_decay": 0.01 * 100**v}
        floor = 2.0 + 2 * (u - 0.55) ** 2 + 0.3 * (v - 0.45) ** 2
        state, until = ("diverged", 50) if point in failed else ("done", STEPS)
        one = made_run(
            arm,
            "tune",
            study=study,
            point=point,
            seed=0,
            values=values,
            floor=floor,
            state=state,
            until=until,
            **keywords,
        )
        found.append(one)
    return found


def confirmation(arm, floors, *, study=0, best=3, first_seed=101, **keywords):
    """One run a floor, paired over arms by its place."""
    values = {"lr": 1e-4 * 100**0.55, "weight_decay": 0.01 * 100**0.45}
    return [
        made_run(arm, study=study, point=best, seed=first_seed + i, values=values, floor=floor, line=10 + i, **keywords)
        for i, floor in enumerate(floors)
    ]


def comparison(shifts=(0.0, -0.1, 0.0), *, seeds=8, sd=0.03, rho=0.5, rng=0, speeds=None, **changes):
    """A whole comparison: protocol and runs, with normal finals that share a part over seeds."""
    plan = protocol(("adamw", "muon", "soap", "shampoo", "scion")[: len(shifts)], seeds=seeds, **changes)
    random = np.random.default_rng(rng)
    common = random.normal(size=seeds)
    runs = []
    for i, (arm, shift) in enumerate(zip(plan.arms, shifts, strict=True)):
        own = random.normal(size=seeds)
        floors = 2.0 + shift + sd * (math.sqrt(rho) * common + math.sqrt(1 - rho) * own)
        more = {"ms": 10.0 + 3 * i, "speed": (speeds or [1.0] * len(shifts))[i]}
        runs += search(arm.name, **more) + confirmation(arm.name, floors, **more)
    return plan, runs
