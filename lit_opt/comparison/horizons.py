"""Shorter runs whose schedules are fitted to their length: what is asked for, and what may be.

Under a schedule that decays to the end of the budget, every arm crosses a target near the end, whatever its speed. So the
samples, compute and time to a target are read from runs that were to be shorter: each winner is trained again with
budgets shortened to some shares, and the shortest run whose end reaches the target counts. The confirmation is the run of
the whole budget.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lit_opt.callbacks.recipe import Recipe
from lit_opt.comparison.arms import Named
from lit_opt.errors import RecipeError
from lit_opt.resolve import RunFacts, preview


def horizon_steps(shares: Any, budget_steps: int, eval_every: int) -> tuple[tuple[int, ...], list[str]]:
    """From shares of the budget to the steps of the shorter runs.

    Args:
        shares: As the user gave them; 1.0 is the confirmation itself and may be among them. None: no horizons.
        budget_steps: Of the confirmation.
        eval_every: Steps between evaluations.

    Returns:
        The steps, in order and without the whole budget, and the problems.

    Example:
        >>> horizon_steps([0.5, 0.75, 1.0], 200, 50)
        ((100, 150), [])
        >>> horizon_steps([0.55], 200, 50)[1][0]
        'horizons: 0.55 of 200 steps is 110, no whole number of evaluations (one every 50 steps). Give 0.5 or 0.75, or another eval_every.'
    """
    if shares is None:
        return (), []
    if isinstance(shares, str) or not isinstance(shares, Sequence) or not shares:
        return (), [f"horizons: {shares!r} is not allowed; give shares of budget_steps, such as 0.5,0.7,1.0."]
    problems, found = [], []
    for share in shares:
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            problems.append(f"horizons: {share!r} is not allowed; give shares of budget_steps above 0 and up to 1.")
            continue
        steps = share * budget_steps
        if abs(steps / eval_every - round(steps / eval_every)) > 1e-6:
            near = [
                n * eval_every / budget_steps for n in (math.floor(steps / eval_every), math.ceil(steps / eval_every))
            ]
            allowed = " or ".join(f"{one:.6g}" for one in near if one > 0)
            problems.append(
                f"horizons: {share:g} of {budget_steps:,} steps is {steps:g}, no whole number of evaluations (one every "
                f"{eval_every:,} steps). Give {allowed}, or another eval_every."
            )
            continue
        found.append(round(steps))
    if len(set(found)) < len(found):
        problems.append(f"horizons: {', '.join(map(str, shares))}: one is there twice. Leave it out.")
    if not problems and set(found) == {budget_steps}:
        problems.append("horizons: 1 alone is the confirmation itself. Add shorter ones, such as 0.5,0.7,1.0.")
    return tuple(sorted(steps for steps in set(found) if steps < budget_steps)), problems


def refuse_without_warmup(
    arms: Named, horizons: Sequence[int], budget_steps: int, steps_per_epoch: float | None
) -> None:
    """Refuse horizons at which an arm would lose its warmup, or at which its warmup does not fit.

    Args:
        arms: Name -> (recipe, keywords).
        horizons: Steps of the shorter runs.
        budget_steps: Of the confirmation.
        steps_per_epoch: For a warmup in epochs; None where it is unknown.

    Raises:
        RecipeError: One line for each arm and horizon.

    Example:
        >>> refuse_without_warmup({"a": ("llm", {"warmup": 30})}, (20,), 200, None)
        Traceback (most recent call last):
            ...
        lit_opt.errors.RecipeError: horizons: a at 20 steps: warmup: 30 steps are as long as the run or longer (20 steps); give a shorter warmup= or a longer run.
        >>> refuse_without_warmup({"a": ("llm", {"warmup": 0.02})}, (20,), 200, None)
        Traceback (most recent call last):
            ...
        lit_opt.errors.RecipeError: horizons: a at 20 steps: no step of warmup is left, where 200 steps have 4. Give a longer horizon, more budget_steps, or warmup= to the arm.
    """
    problems = []
    for name, (recipe, keywords) in arms.items():
        whole = _warmup_steps(recipe, keywords, budget_steps, steps_per_epoch)
        for steps in horizons:
            try:
                left = _warmup_steps(recipe, keywords, steps, steps_per_epoch)
            except RecipeError as error:
                problems += [f"horizons: {name} at {steps:,} steps: {text}" for text in error.problems]
                continue
            if whole and not left:
                problems.append(
                    f"horizons: {name} at {steps:,} steps: no step of warmup is left, where {budget_steps:,} steps have {whole:,}. "
                    "Give a longer horizon, more budget_steps, or warmup= to the arm."
                )
    if problems:
        raise RecipeError(problems)


def _warmup_steps(recipe: str, keywords: Mapping[str, Any], steps: int, steps_per_epoch: float | None) -> int:
    facts = RunFacts(total_steps=steps, steps_per_epoch=steps_per_epoch)
    schedule = preview(Recipe(recipe).spec, keywords, facts).schedule
    return schedule.warmup_steps if schedule is not None else 0
