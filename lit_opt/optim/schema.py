"""The shape of a registry row: plain frozen data, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lit_opt.optim.state import Scratch, StateOf
from lit_opt.recipes.schema import Value

# Default of a hyperparameter that has to be given.
REQUIRED = "required"


@dataclass(frozen=True, kw_only=True)
class Published:
    """Starting values of one optimizer in one setting, as somebody published them.

    Args:
        lr: Peak learning rate; its unit names the batch that it belongs to.
        weight_decay: In the optimizer's own unit, which the Value states.
        reference_batch: Global batch of `lr`, or None where the source gives none.
        rule: How `lr` follows the batch. "none" where no rule is published.
        batch_unit: What `reference_batch` counts.
        hyperparameters: The optimizer's other keywords.

    Example:
        >>> from lit_opt.optim import get_row
        >>> cnn = get_row("sgd").settings["cnn"]
        >>> cnn.lr.number, cnn.reference_batch, cnn.rule
        (0.1, 256, 'linear')
    """

    lr: Value
    weight_decay: Value
    reference_batch: int | None
    rule: Literal["linear", "sqrt", "none"]
    batch_unit: Literal["samples", "tokens"] = "samples"
    hyperparameters: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class OptimizerRow:
    """What the package knows of an optimizer.

    Args:
        name: What a user types.
        factory: "module:name" of the torch.optim.Optimizer class.
        provider: Library that the class comes from.
        summary: One line.
        rule: The update in symbols (g gradient, m and v moments, w weights, lr, wd).
        source: Paper id and where the code was checked.
        evidence: The field guide's evidence label.
        hyperparameters: Keyword -> default (REQUIRED where there is none). These and no others are accepted.
        state: What it keeps of a parameter, see `lit_opt.optim.state`; a test compares it with a real step.
        scratch: What a step needs beside it, None where it was not measured or differs from step to step. A matrix
            method's batches are counted from its plan, not here.
        fixed: Keywords that are always passed and cannot be set; they close traps of the provider.
        decayed_group: Group options of decayed groups that differ from those of excluded ones.
        excluded_group: Group options of groups that are excluded from decay.
        global_only: Hyperparameters that the class reads once for all groups; a group cannot set them.
        settings: Setting -> published starting values. Where none is published there is no entry.
        fused: The class has a `fused` option that is correct and wins where all tensors are on one CPU or CUDA
            device.
        clips_itself: The optimizer limits the gradient or the update itself, with its defaults.
        choices: Keyword -> the words that it takes; None as well where that is the default.
        limits: Keyword -> (lowest, first number that is too high), where they are not the usual ones.
        matrix: It treats weights as matrices: embeddings, heads, norms and vectors belong to groups with
            "algorithm" "adamw" (lr, betas, eps, weight_decay), and `build` takes `fallback` for these.
        units: For a matrix method without a `scale`: "AdamW" where it takes AdamW's rates, so that what it leaves to
            AdamW has its own; "" where AdamW's are apart.
        role_options: Role of a parameter (`lit_opt.param_groups.roles`, and "head") -> options of the group of its own
            that a recipe gives such parameters. A matrix method takes them, and leaves every other role to AdamW.
        group_options: What says how the tensors of a group are read; accepted by groups and by `build`.
        of_whole: What it reads of a whole tensor beside its numbers, in words; "" for a rule of each number alone. Such
            a rule is another one on flat shards (FSDP1, ZeRO).
        needs_module: It watches the layers of the module: `build` needs `module`, and the class has `attach(module)` and
            `remove_hooks()`.
        exchanges: It has processes exchange something else than averaged gradients: the class has
            `register(ddp_module)`, to be called before the first backward pass.
        extra: The extra of this package that brings the provider; "" where it is always there.
        averages_itself: It validates on averages of its own (`train()` and `eval()` of the optimizer swap them), and its
            rate stays constant after the warmup.
        wraps: For an optimizer around another one: setting -> the base that it takes by default, "" for any other. What
            the base has, it has as well; `registry.get_row` puts the two together.
        own_values: For such a one, published values of its own keywords, in every setting of the base.
        needs_closure: A step evaluates the model itself.
        exact: Its state has the precision of the weights, so that rounding alone stands between it and its rule.
        compiles: Its step is compiled for each shape at first (torch.compile), which takes tens of seconds on a CPU.
        group_state: What the class counts in its groups: a resume keeps it, as all other state.
    """

    name: str
    factory: str
    provider: str
    summary: str
    rule: str
    source: str
    evidence: str
    hyperparameters: Mapping[str, Any]
    state: StateOf
    scratch: Scratch | None = field(default_factory=Scratch)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    decayed_group: Mapping[str, Any] = field(default_factory=dict)
    excluded_group: Mapping[str, Any] = field(default_factory=dict)
    global_only: tuple[str, ...] = ()
    settings: Mapping[str, Published] = field(default_factory=dict)
    fused: bool = False
    clips_itself: bool = False
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    limits: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    matrix: bool = False
    units: str = ""
    role_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    group_options: tuple[str, ...] = ()
    of_whole: str = ""
    needs_module: bool = False
    exchanges: bool = False
    extra: str = ""
    averages_itself: bool = False
    wraps: Mapping[str, str] = field(default_factory=dict)
    own_values: Mapping[str, Value] = field(default_factory=dict)
    needs_closure: bool = False
    group_state: tuple[str, ...] = ()
    exact: bool = True
    compiles: bool = False
