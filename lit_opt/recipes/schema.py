"""The shape of a recipe: plain frozen data, no torch, no lightning.

A recipe is made of `Value`s. A value is not a float: it carries its unit, the range to start in, what
practice does, and where the number was read. `lit_opt.resolve` turns a recipe and the facts of a run into
floats.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field, fields, is_dataclass
from typing import Any

from lit_opt.recipes.frozen import FrozenMapping

Number = float | int | str | bool | tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Value:
    """One number of a recipe, with everything needed to judge it.

    Args:
        number: The number itself (or a word, or a tuple such as betas).
        unit: What it counts, in words ("per step at 256 images", "fraction of the run").
        range: Lowest and highest starting value of the field guide, or None where it gives none.
        common_practice: What well-known codebases do, also where they differ from `number`.
        source: Where it was read (repository and path, or paper id).

    Example:
        >>> lr = Value(3e-4, unit="per step", range=(1e-4, 6e-4), common_practice="3e-4", source="torchtitan")
        >>> lr.number, lr.judge(1e-3)
        (0.0003, 'outside 0.0001 .. 0.0006')
    """

    number: Number
    _: KW_ONLY
    unit: str
    range: tuple[float, float] | None = None
    common_practice: str
    source: str

    def judge(self, number: object = None) -> str:
        """Say in words whether `number` (default: the value's own) lies in the range; "" without a range."""
        x = self.number if number is None else number
        if self.range is None or isinstance(x, bool) or not isinstance(x, int | float):
            return ""
        low, high = self.range
        return f"{'inside' if low <= x <= high else 'outside'} {low:g} .. {high:g}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Scaling:
    """How a learning rate follows the batch.

    Args:
        rule: "none", "linear", "sqrt", or "linear_then_sqrt" (linear up to `limit`, sqrt above it).
        reference_batch: The batch that the base learning rate belongs to.
        batch_unit: "samples" or "tokens".
        limit: For linear_then_sqrt the batch where the rule changes; for the others the batch above which the
            learning rate stays.
        down: Whether the rate also falls below the reference batch. It never falls below the low end of the
            learning rate's range.
    """

    rule: Value
    reference_batch: Value
    batch_unit: str
    limit: Value | None = None
    down: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class LearningRate:
    """A peak learning rate, the batch it belongs to and what it depends on.

    Args:
        base: The peak at the reference batch.
        scaling: How it follows the batch.
        by_parameters: Rows (largest count of trainable non-embedding parameters, value) that replace `base`.
        by_batch: Rows (largest global batch, value) that replace `base` and its scaling.
    """

    base: Value
    scaling: Scaling
    by_parameters: tuple[tuple[float, Value], ...] = ()
    by_batch: tuple[tuple[float, Value], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Warmup:
    """Linear warmup: its length as a fraction of the run, capped at `max_steps`, from `start` times the peak."""

    length: Value
    start: Value
    max_steps: Value | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Decay:
    """What the learning rate does after the warmup; fields that its `kind` does not use are None."""

    kind: Value
    final: Value | None = None
    power: Value | None = None
    milestones: Value | None = None
    gamma: Value | None = None
    cooldown: Value | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class DecaySpec:
    """What a user may say about the decay; None keeps the recipe's value.

    Args:
        kind: "cosine", "linear", "polynomial", "step", "constant" or "wsd" (warmup, stable, decay).
        final: Learning rate at the end of the run, as a fraction of the peak; not for "step" and "constant".
        power: Exponent of "polynomial".
        milestones: Fractions of the run at which "step" multiplies by `gamma`.
        gamma: Factor of "step".
        cooldown: Length of the last phase of "wsd": a float below 1 is a fraction of the run, a whole number
            counts optimizer steps.

    Example:
        >>> DecaySpec(kind="wsd", cooldown=500).final is None
        True
    """

    kind: str | None = None
    final: float | None = None
    power: float | None = None
    milestones: tuple[float, ...] | None = None
    gamma: float | None = None
    cooldown: float | int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipSpec:
    """Gradient clipping: the global norm ("norm") or each entry ("value") is limited to `limit`.

    Args:
        limit: Largest norm, or largest absolute entry.
        kind: "norm" or "value".

    Example:
        >>> ClipSpec(limit=0.5, kind="value")
        ClipSpec(limit=0.5, kind='value')
    """

    limit: float
    kind: str = "norm"


@dataclass(frozen=True, kw_only=True, slots=True)
class EMASpec:
    """Averaged weights: `shadow <- d shadow + (1 - d) weights` after each optimizer step, or their mean (SWA).

    Args:
        decay: The final d, per optimizer step; with warmup min(d, (1 + n) / (10 + n)). Not for "swa".
        warmup: See decay.
        start_step: Optimizer step at which averaging begins.
        checkpoint: What the checkpoint's `state_dict` holds: "raw" weights (the averages lie beside them) or "ema".
        offload: Keep the averages in CPU memory.
        kind: "ema", or "swa": the mean of the weights at start_step and after every `every` steps.
        every: See kind.
        buffers: Average floating-point buffers (batch norm's statistics) as well.

    Example:
        >>> EMASpec(kind="swa", start_step=7_500, every=100, buffers=True).checkpoint
        'raw'
    """

    decay: float = 0.9999
    warmup: bool = True
    start_step: int = 0
    checkpoint: str = "raw"
    offload: bool = False
    kind: str = "ema"
    every: int = 1
    buffers: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupRule:
    """A user's rule for parameters whose name matches; the first rule that matches wins.

    Args:
        match: Glob over the parameter's dotted name, such as "backbone.*" or "*.head.weight".
        lr_scale: Multiplies the learning rate.
        weight_decay: Replaces the weight decay.
        algorithm: Registry name of the optimizer that takes it, under a matrix method.
        split_sizes: Under a matrix method, outputs of the parts of a fused weight, each orthogonalised on its own:
            (768, 256, 256) for grouped queries, or "qkv" for three equal parts, whatever the width.
        num_heads: Under a matrix method, the number of equal row blocks, each orthogonalised on its own: 12 for a query
            weight with 12 heads, 36 for a fused one. Splits change the algorithm; none is ever made unasked.

    Example:
        >>> GroupRule(match="backbone.*", lr_scale=0.1).weight_decay is None
        True
        >>> GroupRule(match="*.qkv.weight", split_sizes="qkv").num_heads is None
        True
    """

    match: str
    lr_scale: float | None = None
    weight_decay: float | None = None
    algorithm: str | None = None
    split_sizes: tuple[int, ...] | str | None = None
    num_heads: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class PartSpec:
    """A part of a model with a learning rate of its own.

    Args:
        match: Glob, or several, over the parameter's dotted name, such as "*.bridge.*". None uses what is known of
            LLaVA, Qwen-VL, SmolVLM, PaliGemma and CLIP, see `lit_opt.param_groups.parts`.
        lr_scale: Multiplies the learning rate; None keeps the recipe's number.

    Example:
        >>> PartSpec(match="*.bridge.*").lr_scale is None
        True
    """

    match: str | tuple[str, ...] | None = None
    lr_scale: float | None = None


@dataclass(frozen=True, kw_only=True)
class RecipeSpec:
    """A setting's starting recipe as data.

    Args:
        name: What a user types: "llm", "large_batch/lars".
        setting: The registry's key: "llm", "vlm", "vit", "cnn", "diffusion", "large_batch".
        summary: One line.
        deviate: When something else is the better choice.
        optimizer: Registry name.
        lr: Peak learning rate.
        weight_decay: torch's unit: multiplied by the learning rate.
        hyperparameters: The optimizer's other keywords (betas, eps, momentum, ...).
        fallback: lr, betas, eps and weight_decay of AdamW for what a matrix optimizer leaves. Where its units are
            AdamW's, lr and weight_decay are the matrices' own and are not given here.
        no_decay: Roles of parameters that are not decayed, see `lit_opt.param_groups`.
        warmup: Linear warmup.
        decay: The schedule after it.
        clip: Global gradient norm limit; 0 is off.
        ema: Decay of averaged weights; 0 is off.
        layer_decay: Factor per layer below the head, or None.
        parts: Learning-rate multipliers of a model's parts (vlm).
        finetunes: Starts from trained weights; see `registry_key`.
        trains: "all", or "adapters": LoRA and its relatives only, always with AdamW.
        moderate_batch: Largest batch at which plain SGD or AdamW does as well (large_batch), or None.
        hints: What a callback cannot set: precision, label smoothing, memory format.

    Example:
        >>> from lit_opt.recipes import get_recipe
        >>> cnn = get_recipe("cnn")
        >>> cnn.lr.base.number, cnn.lr.scaling.reference_batch.number, cnn.hyperparameters["momentum"].number
        (0.1, 256, 0.9)
    """

    name: str
    setting: str
    summary: str
    deviate: str
    optimizer: Value
    lr: LearningRate
    weight_decay: Value
    hyperparameters: Mapping[str, Value]
    no_decay: Value
    warmup: Warmup
    decay: Decay
    clip: Value
    ema: Value
    layer_decay: Value | None = None
    parts: Mapping[str, Value] = field(default_factory=dict)
    finetunes: bool = False
    trains: str = "all"
    moderate_batch: Value | None = None
    hints: Mapping[str, Value] = field(default_factory=dict)
    fallback: Mapping[str, Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("hyperparameters", "parts", "hints", "fallback"):
            object.__setattr__(self, name, FrozenMapping(getattr(self, name)))

    @property
    def registry_key(self) -> str:
        """Where a registry row has another optimizer's values for this recipe.

        Rates for training from scratch are far too high for fine-tuning, so those are not looked up under the setting.

        Example:
            >>> from lit_opt.recipes import get_recipe
            >>> get_recipe("llm").registry_key, get_recipe("llm/lora").registry_key
            ('llm', 'llm/finetune')
        """
        return f"{self.setting}/finetune" if self.finetunes else self.setting

    def items(self) -> Iterator[tuple[str, Value]]:
        """Walk all values as (path, Value), such as ("lr.base", Value(...))."""
        yield from _walk("", self)

    def values(self) -> Iterator[Value]:
        """Walk all values.

        Example:
            >>> from lit_opt.recipes import get_recipe
            >>> all(value.source for value in get_recipe("llm").values())
            True
        """
        for _, value in self.items():
            yield value


def _walk(path: str, node: object) -> Iterator[tuple[str, Value]]:
    if isinstance(node, Value):
        yield path, node
        return
    children: list[tuple[str, object]] = []
    if is_dataclass(node):
        children = [(f.name, getattr(node, f.name)) for f in fields(node)]
    elif isinstance(node, Mapping):
        children = [(str(key), item) for key, item in node.items()]
    elif isinstance(node, tuple):
        children = [(f"up_to_{row[0]:g}", row[1]) for row in node]
    for name, child in children:
        yield from _walk(f"{path}.{name}" if path else name, child)
