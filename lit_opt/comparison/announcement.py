"""What a comparison will cost, before it starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from lit_opt.comparison.ranks import devices_of
from lit_opt.comparison.records import Protocol
from lit_opt.comparison.stages import budgets, total_runs


@dataclass(frozen=True)
class Announcement:
    """Runs, samples and hours.

    Attributes:
        protocol: Of the comparison.
        estimate: Arm -> seconds that a run is expected to take.
        workers: Processes.
        folder: Of the ledger.
        evaluating: Share of the time that evaluations take.
        resumed: The folder holds the beginning of it.

    Example:
        >>> from lit_opt.comparison.records import Arm
        >>> arms = tuple(Arm(name, "cnn", {}, {"lr": 0.1}, {}) for name in "ab")
        >>> protocol = Protocol(arms, "a", "val_loss", "min", 100, (0, 50, 100), 16, 6, settings={"samples_per_step": 8})
        >>> Announcement(protocol, {"a": 2.0, "b": 3.0}, 1, "out").numbers()["hours"]
        0.031
    """

    protocol: Protocol
    estimate: Mapping[str, float]
    workers: int
    folder: str
    evaluating: float = 0.0
    resumed: bool = False

    def numbers(self) -> dict[str, Any]:
        """As plain data."""
        protocol = self.protocol
        runs = total_runs(protocol)
        each = float(str(protocol.settings.get("samples_per_step", 0)))
        per_arm = budgets(protocol)
        seconds = per_arm * sum(self.estimate.values()) / self.workers
        steps = round(per_arm * len(protocol.arms) * protocol.budget_steps)
        return {
            "runs": runs,
            "steps": steps,
            "samples": round(steps * each),
            "hours": round(seconds / 3600, 3),
            "seconds_per_run": {name: round(value, 3) for name, value in self.estimate.items()},
        }

    def text(self) -> str:
        """For the terminal."""
        p, numbers = self.protocol, self.numbers()
        better = "lower" if p.mode == "min" else "higher"
        box = "" if p.trials > 1 else ", published starts, untuned"
        shorter = p.studies * p.seeds * len(p.horizons) * len(p.arms)
        lines = [
            f"{len(p.arms)} arms, {p.baseline} is the baseline; {p.metric} decides, {better} is better.",
            f"Search: {p.trials} {_points(p.trials)} an arm{box}; confirmation: {p.seeds} fresh seeds an arm"
            + (f"; {p.studies} studies." if p.studies > 1 else "."),
            *(f"  {arm.name}: {_start(arm.start, arm.box)}" for arm in p.arms),
            *(
                [
                    f"Horizons: {shorter} shorter runs of {_listed(p.horizons)} steps, each with a schedule of its length."
                ]
                if p.horizons
                else []
            ),
            f"{numbers['runs']} runs of {p.budget_steps:,} steps with {len(p.eval_steps)} evaluations each, "
            f"{numbers['samples']:,} samples."
            if not p.horizons
            else f"{numbers['runs']} runs with evaluations every {p.eval_steps[1] - p.eval_steps[0]:,} steps, "
            f"{numbers['samples']:,} samples.",
            f"Estimated from a few timed steps of each arm: {duration(numbers['hours'] * 3600)}"
            + (f" with {self.workers} workers, times are then left out." if self.workers > 1 else "."),
        ]
        if (devices := devices_of(cast(Mapping[str, Any], p.settings.get("trainer") or {}))) > 1:
            lines.append(f"Each run on {devices} devices, in {devices} new processes; their start comes to the time.")
        if self.evaluating > 0.3:
            lines.append(
                f"Evaluations are {self.evaluating:.0%} of it; fewer of them, or less validation data, would save most."
            )
        if p.extend:
            lines.append(f"Up to {p.extend} rounds of half as many points more, should a best point stand at the edge.")
        many = [arm.name for arm in p.arms if _passes(p, arm.name) > 1]
        if many:
            lines.append(
                f"{', '.join(many)}: more than one forward and backward pass a step; the operations count them all."
            )
        if self.resumed:
            lines.append(f"{self.folder} holds the beginning; what is done is kept.")
        return "\n".join(lines)

    def show(self) -> None:
        """Print it."""
        print(self.text(), flush=True)


def duration(seconds: float) -> str:
    """Seconds in words.

    Example:
        >>> duration(42), duration(600), duration(8000)
        ('42 s', '10 min', '2.2 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _listed(steps: Sequence[int]) -> str:
    return " and ".join(filter(None, [", ".join(f"{n:,}" for n in steps[:-1]), f"{steps[-1]:,}"]))


def _points(count: int) -> str:
    return "point" if count == 1 else "points"


def _start(start: Mapping[str, float], box: Mapping[str, tuple[float, float]]) -> str:
    return ", ".join(
        f"{name} {value:.3g}" + (f" ({box[name][0]:.3g} to {box[name][1]:.3g})" if name in box else "")
        for name, value in start.items()
    )


def _passes(protocol: Protocol, arm: str) -> float:
    passes = protocol.settings.get("passes", {})
    return float(passes.get(arm, 1)) if isinstance(passes, dict) else 1.0
