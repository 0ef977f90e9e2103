"""The contract of a fair comparison: what must be equal between arms, and what may not change once it has begun.

Each check reads what the runs and the ledger say of themselves, and names who broke what. A broken contract leaves no
verdict (lit_opt.comparison.verdicts).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lit_opt.comparison.codec import canonical, digest
from lit_opt.comparison.ledger import Lines
from lit_opt.comparison.measures import target_level
from lit_opt.comparison.records import Protocol, Run
from lit_opt.comparison.stages import Progress

Violation = dict[str, Any]

# Fact -> (rule, what differs). Equal between all runs of a seed: the arm has done nothing yet, or must not matter.
_IN_A_SEED = {
    "structure_hash": ("model", "layers or their options, such as dropout,"),
    "init_hash": ("initial weights", "initial weights"),
    "trainable_hash": ("frozen parameters", "trainable parameters"),
    "first_loss": ("first loss", "loss of the first batch, before any step,"),
}
# Equal between all runs.
_EVERYWHERE = {
    "parameters": ("parameters", "number of parameters"),
    "trainable_parameters": ("frozen parameters", "number of trainable parameters"),
    "samples_per_step": ("batch size", "samples a step"),
    "accumulation": ("accumulation", "batches a step"),
    "precision": ("precision", "precision"),
    "eval_steps": ("evaluations", "evaluated steps"),
    "threads": ("threads", "threads"),
    "device": ("device", "device"),
    "versions": ("versions", "package versions"),
}
# An unfinished run has these only in part, and one with a shorter budget has its own.
_WHEN_DONE = ("samples_per_step", "eval_steps")


def check(protocol: Protocol, runs: Sequence[Run]) -> list[Violation]:
    """What the runs say of themselves, compared with the baseline's and with the protocol.

    Args:
        protocol: With the boxes and trials that were in force.
        runs: All finished ones.

    Returns:
        Mappings with "rule", "arms" (none: all are concerned) and "text", one for each rule and arm.

    Example:
        >>> from lit_opt.comparison.records import Arm
        >>> arms = tuple(Arm(name, "cnn", {}, {"lr": 0.1}, {}) for name in "ab")
        >>> protocol = Protocol(arms, "a", "val_loss", "min", 4, (0, 4), 1, 1)
        >>> facts = {"a": {"precision": "32-true"}, "b": {"precision": "bf16-mixed"}}
        >>> runs = [Run(n, "tune", 0, n, 0, 0, {"lr": 0.1}, "done", {"raw": ()}, (), facts[n]) for n in "ab"]
        >>> check(protocol, runs)[0]["text"]
        'precision: 32-true in a, bf16-mixed in b (run b)'
    """
    found: list[Violation] = []
    for fact, (rule, what) in _EVERYWHERE.items():
        if fact not in _WHEN_DONE:
            found += _differing(protocol, runs, fact, rule, what, "")
            continue
        done = [run for run in runs if run.state == "done"]
        for steps in sorted({run.steps or protocol.budget_steps for run in done}):
            same = [run for run in done if (run.steps or protocol.budget_steps) == steps]
            found += _differing(protocol, same, fact, rule, what, "")
    for fact, (rule, what) in _IN_A_SEED.items():
        for seed in sorted({run.seed for run in runs}):
            found += _differing(protocol, [r for r in runs if r.seed == seed], fact, rule, what, f" of seed {seed}")
    found += _batches(protocol, runs)
    found += _passes(protocol, runs)
    found += _readouts(protocol, runs)
    found += _seeds(runs)
    found += _trials(protocol, runs)
    found += _steps(protocol, runs)
    return _once_each(found)


def check_ledger(reading: Lines, progress: Progress) -> list[Violation]:
    """What the ledger says: that nobody has changed it, nor protocol or target after the start.

    Args:
        reading: The lines.
        progress: What they come to.

    Example:
        >>> check_ledger.__name__  # needs a ledger; tests/comparison/test_contract.py plants what it finds
        'check_ledger'
    """
    found = [_violation("ledger", (), f"ledger: {text}") for text in reading.problems]
    opened = [number for number, _ in reading.of("opened")]
    others = sorted(
        {number for number, event in reading.events if event.get("protocol_hash") != progress.protocol_hash}
        - set(opened)
    )
    if len(opened) > 1 or others:
        found.append(
            _violation(
                "protocol",
                (),
                f"protocol: it was changed after the start; line {min(opened[1:] + others)} belongs to another one",
            )
        )
    return found + _target(reading, progress)


def _target(reading: Lines, progress: Progress) -> list[Violation]:
    targets = list(reading.of("target"))
    if not targets:
        return []
    line, event = targets[0]
    found = []
    level = target_level(progress.effective, list(progress.runs.values()))
    if len(targets) > 1 or canonical(level) != canonical(event["level"]):
        text = f"target: {event['level']} was frozen in line {line}; the baseline's runs give {level}"
        if len(targets) > 1:
            text = f"target: it was set again in line {targets[1][0]}, after {event['level']} in line {line}"
        found.append(_violation("target", (), text))
    early = [
        (number, event["arm"])
        for number, event in reading.of("started")
        if number < line and event["stage"] == "confirm" and event["arm"] != progress.protocol.baseline
    ]
    if early:
        number, arm = early[0]
        text = f"target: frozen in line {line}, after {arm} was confirmed (line {number})"
        found.append(_violation("target", (arm,), text))
    return found


def _differing(protocol: Protocol, runs: Iterable[Run], fact: str, rule: str, what: str, where: str) -> list[Violation]:
    """Runs whose fact is not that of the baseline's first run."""
    known = [run for run in runs if run.facts.get(fact) is not None]
    known.sort(key=lambda run: (run.arm != protocol.baseline, run.stage == "confirm", run.study, run.point, run.seed))
    if not known:
        return []
    first = known[0]
    same = _same_loss if fact == "first_loss" else _same
    return [
        _violation(
            rule,
            (run.arm,),
            f"{what.rstrip(',')}{where}: {_short(first, fact)} in {first.arm}, {_short(run, fact)} in {run.arm} (run {run.key})"
            if first.arm != run.arm
            else f"{what.rstrip(',')}{where}: {_short(first, fact)} and {_short(run, fact)} in runs {first.key} and {run.key} "
            f"of {run.arm}",
        )
        for run in known[1:]
        if not same(first, run, fact)
    ]


def _same(one: Run, other: Run, fact: str) -> bool:
    return canonical(one.facts[fact]) == canonical(other.facts[fact])


def _same_loss(one: Run, other: Run, fact: str) -> bool:
    """Exact on the CPU; elsewhere sums may be taken in another order."""
    a, b = one.facts[fact], other.facts[fact]
    assert isinstance(a, float) and isinstance(b, float)
    exact = str(one.facts.get("device", "cpu")).startswith("cpu")
    return a == b if exact else abs(a - b) <= 1e-3 * max(abs(a), abs(b))


def _batches(protocol: Protocol, runs: Sequence[Run]) -> list[Violation]:
    found = []
    for seed in sorted({run.seed for run in runs}):
        seen: dict[str, tuple[str, Run]] = {}
        ordered = sorted((r for r in runs if r.seed == seed), key=lambda r: r.arm != protocol.baseline)
        for run in ordered:
            hashes = run.facts.get("batch_hashes")
            assert hashes is None or isinstance(hashes, dict)
            for step, value in (hashes or {}).items():
                before, first = seen.setdefault(step, (value, run))
                if before != value:
                    text = f"batches of seed {seed}: up to step {step}, {run.arm} has seen others than {first.arm} (run {run.key})"
                    found.append(_violation("batches", (run.arm,), text))
                    break
    return found


def _passes(protocol: Protocol, runs: Sequence[Run]) -> list[Violation]:
    declared = protocol.settings.get("passes", {})
    assert isinstance(declared, dict)
    return [
        _violation(
            "passes",
            (run.arm,),
            f"passes: {run.arm} takes {run.facts['passes_per_step']} forward and backward passes a batch, and "
            f"{declared.get(run.arm, 1)} were declared (run {run.key})",
        )
        for run in runs
        if run.state == "done"
        and run.facts.get("passes_per_step", declared.get(run.arm, 1)) != declared.get(run.arm, 1)
    ]


def _readouts(protocol: Protocol, runs: Sequence[Run]) -> list[Violation]:
    expected = next(arm.readout for arm in protocol.arms if arm.name == protocol.baseline)
    declared = {arm.name: arm.readout for arm in protocol.arms}
    found = [
        _violation(
            "readout",
            (name,),
            f"readout: {name} is read by its {_weights(own)}, the baseline by its {_weights(expected)}",
        )
        for name, own in declared.items()
        if own != expected
    ]
    return found + [
        _violation(
            "readout",
            (run.arm,),
            f"readout: run {run.key} of {run.arm} was read by its {_weights(next(iter(run.readings)))}, "
            f"and {_weights(expected)} were agreed",
        )
        for run in runs
        if run.readings and expected not in run.readings
    ]


def _weights(readout: str) -> str:
    return "averages" if readout == "averages" else "raw weights"


def _seeds(runs: Sequence[Run]) -> list[Violation]:
    tuned = {(run.arm, run.seed) for run in runs if run.stage == "tune"}
    again = sorted({(run.arm, run.seed) for run in runs if run.stage == "confirm"} & tuned)
    return [
        _violation("seeds", (arm,), f"seeds: {arm} was confirmed with seed {seed}, on which it was tuned")
        for arm, seed in again
    ]


def _trials(protocol: Protocol, runs: Sequence[Run]) -> list[Violation]:
    tried = Counter((run.study, run.arm) for run in runs if run.stage == "tune")
    return [
        _violation(
            "trials", (arm,), f"trials: {arm} had {count} trials in study {study}, and {protocol.trials} were agreed"
        )
        for (study, arm), count in sorted(tried.items())
        if count > protocol.trials
    ]


def _steps(protocol: Protocol, runs: Sequence[Run]) -> list[Violation]:
    """Evaluations of a finished run: those of the protocol, that before training aside, which a module may leave out."""
    found = []
    for run in runs:
        wanted = [step for step in protocol.eval_steps if 0 < step <= (run.steps or protocol.budget_steps)]
        steps = [r.step for readings in run.readings.values() for r in readings if r.step]
        if run.state == "done" and steps != wanted:
            text = f"evaluations: {run.arm} was evaluated after steps {_few(steps)}, and {_few(wanted)} were agreed (run {run.key})"
            found.append(_violation("evaluations", (run.arm,), text))
    return found


def _few(steps: Sequence[int]) -> str:
    shown = [str(step) for step in steps]
    return ", ".join(shown if len(shown) < 7 else [*shown[:3], "...", *shown[-2:]]) or "none"


def _short(run: Run, fact: str) -> str:
    value = run.facts[fact]
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


def _violation(rule: str, arms: Sequence[str], text: str) -> Violation:
    return {"rule": rule, "arms": list(arms), "text": text}


def _once_each(violations: Sequence[Violation]) -> list[Violation]:
    """The first of each rule and arm, with the number of the others."""
    key: Callable[[Violation], str] = lambda one: digest([one["rule"], one["arms"]])  # noqa: E731
    counts = Counter(map(key, violations))
    first: dict[str, Violation] = {}
    for one in violations:
        first.setdefault(key(one), one)
    return [
        one if counts[name] == 1 else {**one, "text": f"{one['text']}; {counts[name] - 1} more such"}
        for name, one in first.items()
    ]
