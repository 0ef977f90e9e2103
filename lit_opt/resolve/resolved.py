"""What a run is resolved to: facts in, floats with their provenance out. Plain frozen data, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lit_opt.recipes.schema import ClipSpec, EMASpec, GroupRule, Value
from lit_opt.schedules import Schedule
from lit_opt.transfer.spec import Transfer


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What is known of a run. None is unknown; what a recipe needs and does not know, it asks for.

    Args:
        total_steps: Optimizer steps of the whole run (not of the remainder after a resume).
        global_batch: Samples an optimizer step: loader x accumulation x data-parallel size.
        loader_batch: Samples a batch of one process's loader.
        accumulation: Batches of the loader an optimizer step.
        tokens_per_batch: Tokens an optimizer step.
        data_parallel_size: Processes that see different data.
        parameter_count: Trainable parameters without the embeddings.
        steps_per_epoch: Optimizer steps an epoch, for a warmup given in epochs.

    Example:
        >>> RunFacts(total_steps=1000).global_batch is None
        True
    """

    total_steps: int | None = None
    global_batch: int | None = None
    tokens_per_batch: int | None = None
    data_parallel_size: int | None = None
    parameter_count: int | None = None
    steps_per_epoch: float | None = None
    loader_batch: int | None = None
    accumulation: int | None = None


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a resolved value comes from.

    Args:
        number: What the run uses.
        origin: "recipe", "yours", "registry" (the optimizer's own published value) or "default" (of the
            optimizer, or of a kind of decay that is not the recipe's).
        note: Arithmetic or remark, such as "0.1 at 256 samples x 2 (linear) at 512".
        value: The published value it is, or takes the place of, with unit, range, practice and source.

    Example:
        >>> Provenance(number=0.05, origin="yours").value is None
        True
    """

    number: Any
    origin: str
    note: str = ""
    value: Value | None = None


@dataclass(frozen=True, kw_only=True)
class ResolvedRecipe:
    """A recipe for one run: floats, and for each of them where it comes from.

    Args:
        name: The recipe's name.
        setting: Its setting.
        optimizer: Registry name, or the user's optimizer class.
        lr: Peak learning rate.
        weight_decay: torch's unit: multiplied by the learning rate.
        hyperparameters: All other keywords of the optimizer.
        no_decay: Roles that are not decayed.
        schedule: The learning rate's shape; None in a preview whose horizon is unknown.
        clip: Gradient clipping, or None.
        ema: Averaging of weights, or None.
        groups: The user's rules.
        layer_decay: Factor per layer below the head, or None.
        fallback: Keywords of AdamW for what a matrix optimizer leaves.
        parts: Learning-rate multipliers of a model's parts.
        part_globs: Where the user says that parts lie; the others are found by known names.
        trains: "all" or "adapters".
        transfer: What the sizes of a small model change for each parameter, or None.
        hints: What a callback cannot set.
        notes: Sentences for the log, such as how the global batch comes about.
        facts: The facts it was resolved with.
        provenance: Where each number comes from: "lr", "weight_decay", the keywords of the optimizer, "warmup",
            "decay.final", "clip", "ema", "parts.projector", "hints.precision", ...

    Example:
        >>> from lit_opt.recipes import get_recipe
        >>> from lit_opt.resolve import preview
        >>> preview(get_recipe("cnn"), {"lr": 0.05}).provenance["lr"].origin
        'yours'
    """

    name: str
    setting: str
    optimizer: str | type
    lr: float
    weight_decay: float
    hyperparameters: dict[str, Any]
    no_decay: tuple[str, ...]
    schedule: Schedule | None
    clip: ClipSpec | None
    ema: EMASpec | None
    groups: tuple[GroupRule, ...] = ()
    layer_decay: float | None = None
    fallback: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, float] = field(default_factory=dict)
    part_globs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    trains: str = "all"
    transfer: Transfer | None = None
    hints: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    facts: RunFacts = field(default_factory=RunFacts)
    provenance: dict[str, Provenance] = field(default_factory=dict)

    @property
    def optimizer_name(self) -> str:
        """Registry name, or the class's dotted name."""
        if isinstance(self.optimizer, str):
            return self.optimizer
        return f"{self.optimizer.__module__}.{self.optimizer.__qualname__}"

    def as_dict(self) -> dict[str, Any]:
        """All values as plain numbers, strings, lists and dictionaries: for checkpoints, loggers and JSON."""
        plain = {
            "name": self.name,
            "setting": self.setting,
            "optimizer": self.optimizer_name,
            "lr": self.lr,
            "weight_decay": self.weight_decay,
            "hyperparameters": self.hyperparameters,
            "no_decay": self.no_decay,
            "schedule": asdict(self.schedule) if self.schedule else None,
            "clip": asdict(self.clip) if self.clip else None,
            "ema": asdict(self.ema) if self.ema else None,
            "groups": [asdict(rule) for rule in self.groups],
            "layer_decay": self.layer_decay,
            "fallback": self.fallback,
            "parts": self.parts,
            "part_globs": self.part_globs,
            "transfer": self.transfer.as_dict() if self.transfer else None,
            "facts": asdict(self.facts),
            "origins": {key: p.origin for key, p in self.provenance.items()},
        }
        return {key: _plain(value) for key, value in plain.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    # Whatever a user's own optimizer takes: JSON and torch.load(weights_only=True) know plain types only.
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)
