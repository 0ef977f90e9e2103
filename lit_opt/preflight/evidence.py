"""What is known of a run before it begins: everything that a check may look at, as frozen data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from lit_opt.optim.registry import OptimizerRow, get_row, list_optimizers
from lit_opt.param_groups import ParamSnapshot
from lit_opt.param_groups.snapshot import ParamInfo
from lit_opt.preflight.curve import Curve
from lit_opt.preflight.methods import Method
from lit_opt.preflight.source import Code
from lit_opt.recipes import get_recipe
from lit_opt.recipes.schema import RecipeSpec
from lit_opt.resolve.resolved import ResolvedRecipe, RunFacts


@dataclass(frozen=True, kw_only=True)
class Group:
    """Tensors of one optimizer that are treated alike.

    A matrix optimizer's group whose vectors go to AdamW makes two of these.

    Args:
        optimizer: Index of the optimizer.
        index: Of the group in it.
        label: For messages: "AdamW group 0 ('decay')".
        method: The rule that acts on these tensors.
        lr: Highest rate in the run.
        weight_decay: As the optimizer has it.
        scale: Length of a matrix update, a key of `lit_opt.optim.matrix.scale.UNITS`; "" for other methods.
        options: The group's other options.
        members: Its parameters.
        frozen: Names of those that need no gradient.
        strangers: Shapes of its tensors that are no parameters of the module.
        repeated: Names that it holds more than once.

    Example:
        >>> group = Group(optimizer=0, index=0, label="SGD", method=Method(name="sgd"), lr=0.1, weight_decay=0.0)
        >>> group.size
        0
    """

    optimizer: int
    index: int
    label: str
    method: Method
    lr: float
    weight_decay: float
    scale: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    members: tuple[ParamInfo, ...] = ()
    frozen: tuple[str, ...] = ()
    strangers: tuple[tuple[int, ...], ...] = ()
    repeated: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Trainable numbers in it."""
        return sum(numel(info) for info in self.members if info.name not in self.frozen)

    @property
    def betas(self) -> tuple[float, ...]:
        """Decay of the moments, () where it has none."""
        betas = self.options.get("betas")
        return tuple(float(b) for b in betas) if isinstance(betas, tuple | list) else ()


@dataclass(frozen=True, kw_only=True)
class Averaging:
    """Averaged weights that somebody keeps.

    Args:
        what: For messages: "EMA(decay=0.9999)".
        decay: Per update, None where it is not an exponential average or cannot be read.
        warmup: The decay rises as min(decay, (1 + n) / (10 + n)) or more slowly.
        every: Optimizer steps an update.
        start: Optimizer step of the first update.
        evaluated: Whether evaluation uses it; None where that cannot be told.

    Example:
        >>> Averaging(what="EMA", decay=0.999).every
        1
    """

    what: str
    decay: float | None = None
    warmup: bool = False
    every: int = 1
    start: int = 0
    evaluated: bool | None = None


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """What the Trainer was given. Words are Lightning's.

    Args:
        clip: Limit of the gradients, 0 for none; the recipe's where there is one.
        clip_by: Who clips, for messages.
        own_clipping: The module has its own `configure_gradient_clipping`, whose limit is not known.
        accumulation: Batches an optimizer step.
        precision: Such as "bf16-mixed".
        accelerator: "cpu", "cuda", ...
        strategy: Class name or word.
        flat: What the strategy makes of parameters, "" where they keep their shape.
        automatic: Lightning optimizes; otherwise the module does by hand.
        validates: There is a validation loop that runs.

    Example:
        >>> TrainerSettings().precision
        '32-true'
    """

    clip: float = 0.0
    clip_by: str = "Trainer(gradient_clip_val)"
    own_clipping: bool = False
    accumulation: int = 1
    precision: str = "32-true"
    accelerator: str = "cpu"
    strategy: str = ""
    flat: str = ""
    automatic: bool = True
    validates: bool = True


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything that the checks look at; made by `lit_opt.preflight.collect`.

    Args:
        module: The live module; no check changes it.
        snapshot: Its parameters and their roles.
        optimizers: As built.
        groups: Who gets what.
        curves: The learning rates of each optimizer.
        facts: Horizon, batch, steps of an epoch.
        trainer: The Trainer's settings, None outside of one.
        averages: Averaged weights that are kept, None where nobody could look.
        setting: Key such as "llm" or "vit/finetune", None where it is not known.
        recipe: The resolved recipe, where there is one.
        code: What the module's own code says.
        missing: What is not known and why: key of `Check.needs` -> a clause.

    Example:
        >>> from torch import nn
        >>> Evidence(module=nn.Linear(1, 1), snapshot=ParamSnapshot(())).key
        ''
    """

    module: nn.Module = field(repr=False)
    snapshot: ParamSnapshot = field(repr=False)
    optimizers: tuple[Any, ...] = ()
    groups: tuple[Group, ...] = ()
    curves: tuple[Curve, ...] = ()
    facts: RunFacts = field(default_factory=RunFacts)
    trainer: TrainerSettings | None = None
    averages: tuple[Averaging, ...] | None = None
    setting: str | None = None
    recipe: ResolvedRecipe | None = None
    code: Code = field(default_factory=Code)
    missing: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The setting, "" where it is not known."""
        return self.setting or ""

    @property
    def base(self) -> str:
        """The setting without "/finetune"."""
        return self.key.partition("/")[0]

    @property
    def finetunes(self) -> bool:
        """Starts from trained weights."""
        return "/" in self.key

    @property
    def spec(self) -> RecipeSpec:
        """The package's recipe of the setting."""
        return get_recipe(self.key)

    def row(self, method: Method) -> OptimizerRow | None:
        """Registry row of a method, None where there is none."""
        return get_row(method.name) if method.name in list_optimizers() else None

    def decayed(self) -> Iterator[tuple[Group, ParamInfo]]:
        """Each trainable parameter that is decayed, with its group."""
        for group in self.groups:
            if group.weight_decay > 0:
                for info in group.members:
                    if info.name not in group.frozen:
                        yield group, info

    def largest(self, *kinds: str) -> Group | None:
        """The group with the most numbers among methods of these kinds."""
        found = [group for group in self.groups if group.method.kind in kinds and group.size]
        return max(found, key=lambda group: group.size, default=None)


def numel(info: ParamInfo) -> int:
    """Numbers of one parameter.

    Example:
        >>> numel(ParamInfo(name="w", shape=(2, 3), owner="Linear", role="matrix", why="", trainable=True))
        6
    """
    count = 1
    for n in info.shape:
        count *= n
    return count
