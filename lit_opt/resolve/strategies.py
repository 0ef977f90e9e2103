"""Which recipe runs under which strategy and precision, and what to use where one does not: the one place that says so.

The callbacks refuse a run by these rules, and `lit-opt list --strategies` prints them beside what tests have run.
"""

from __future__ import annotations

from dataclasses import dataclass

from lit_opt.optim.registry import row_of
from lit_opt.optim.schema import OptimizerRow
from lit_opt.resolve.resolved import ResolvedRecipe

PRECISIONS = ("32-true", "bf16-mixed", "bf16-true", "16-mixed")


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """A way to spread a run over devices.

    Args:
        title: Few letters, for the head of a column.
        name: Lightning's class.
        typed: What a user writes.
        missing: What the machines that ran the tests lack, where a cell was not run.

    Example:
        >>> STRATEGIES["fsdp2"].title
        'FSDP2'
    """

    title: str
    name: str
    typed: str
    missing: str


_GPU = "CUDA devices: Lightning runs DeepSpeed on nothing else"
_TORCHAO = "torchao (extra lowbit), which sharded 8-bit states need"
_TIME = "time: `make tables` was not run to its end"

STRATEGIES = {
    "single": Strategy(title="one", name="SingleDeviceStrategy", typed="devices=1", missing=""),
    "ddp": Strategy(title="DDP", name="DDPStrategy", typed="strategy='ddp'", missing=""),
    "ddp_spawn": Strategy(
        title="spawn", name="DDPStrategy", typed="strategy='ddp_spawn'", missing="time: it is DDP with another launcher"
    ),
    "fsdp1": Strategy(title="FSDP1", name="FSDPStrategy", typed="strategy='fsdp'", missing=""),
    "fsdp2": Strategy(
        title="FSDP2", name="ModelParallelStrategy", typed="ModelParallelStrategy, fully_shard", missing=_TIME
    ),
    "hsdp": Strategy(
        title="HSDP",
        name="ModelParallelStrategy",
        typed="ModelParallelStrategy, fully_shard on a 2D mesh",
        missing=_TIME,
    ),
    "tp": Strategy(
        title="TP", name="ModelParallelStrategy", typed="ModelParallelStrategy, parallelize_module", missing=_TIME
    ),
    "zero1": Strategy(title="ZeRO1", name="DeepSpeedStrategy", typed="strategy='deepspeed_stage_1'", missing=_GPU),
    "zero2": Strategy(title="ZeRO2", name="DeepSpeedStrategy", typed="strategy='deepspeed_stage_2'", missing=_GPU),
    "zero3": Strategy(title="ZeRO3", name="DeepSpeedStrategy", typed="strategy='deepspeed_stage_3'", missing=_GPU),
    "xla": Strategy(
        title="XLA", name="XLAStrategy", typed="accelerator='tpu'", missing="a TPU, or time for `make test-xla`"
    ),
}

# What weights become before the optimizer sees them. Not listed in the table: FSDP of XLA.
FLAT = {
    "fsdp1": "flat shards (FSDP1)",
    "xla_fsdp": "flat shards (FSDP of XLA)",
    "zero1": "flat shards (ZeRO stage 1)",
    "zero2": "flat shards (ZeRO stage 2)",
    "zero3": "flat shards (ZeRO stage 3)",
}
_DEEPSPEED = ("zero0", "zero1", "zero2", "zero3")
_WHOLE = ("single", "ddp", "ddp_spawn")
_MODEL_PARALLEL = ("fsdp2", "hsdp", "tp")


def refusals(resolved: ResolvedRecipe, strategy: str, precision: str, *, optimizer: bool = True) -> list[str]:
    """Why a recipe cannot run so, each reason with its remedy; empty where it can.

    What depends on more than strategy and precision (accumulation, manual optimization) is not asked here.

    Args:
        resolved: The recipe with its overrides.
        strategy: Key of `STRATEGIES`; "zero0" is DeepSpeed without ZeRO, "other" one that is not known.
        precision: Lightning's word. Only "16-mixed" (a gradient scaler) and "bf16-true" make a difference.
        optimizer: Whether the recipe's optimizer is used, not one of the module's own.

    Example:
        >>> from lit_opt.recipes import get_recipe
        >>> from lit_opt.resolve import preview
        >>> refusals(preview(get_recipe("llm")), "fsdp1", "bf16-mixed")
        []
        >>> print(refusals(preview(get_recipe("llm/muon")), "fsdp1", "bf16-mixed")[0])
        optimizer: muon orthogonalises whole matrices, and this strategy makes them flat shards (FSDP1), in which rows \
and columns are lost. Use ModelParallelStrategy (FSDP2) or DDP, or a recipe with AdamW.
    """
    problems = []
    row = row_of(resolved.optimizer, resolved.hyperparameters) if isinstance(resolved.optimizer, str) else None
    if optimizer and row is not None:
        problems += shard_problems(row, FLAT.get(strategy, ""))
        problems += _demands(row, strategy, scaled=precision == "16-mixed")
        problems += _low_bit(row, strategy)
    if resolved.clip is not None and resolved.clip.kind == "value" and strategy in _DEEPSPEED:
        problems.append(
            "clip: DeepSpeed clips by the global norm only, and kind='value' was given. Give Recipe(..., clip=1.0)."
        )
    averages = resolved.ema is not None or (row is not None and row.averages_itself)
    averaging = averaging_problem(strategy, precision) if averages else ""
    if averaging:
        problems.append(f"EMA: {averaging}, {WITHOUT_AVERAGES}.")
    return problems


def lightning_refuses(strategy: str, precision: str) -> str:
    """Why Lightning itself does not run a precision under a strategy, with the remedy; "" where it does.

    Example:
        >>> lightning_refuses("fsdp2", "16-mixed")
        "precision: Lightning's ModelParallelStrategy knows no '16-mixed'. Use 'bf16-mixed' or '32-true'."
    """
    if strategy in _MODEL_PARALLEL and precision == "16-mixed":
        return "precision: Lightning's ModelParallelStrategy knows no '16-mixed'. Use 'bf16-mixed' or '32-true'."
    if strategy == "xla" and precision.endswith("mixed"):
        return f"precision: Lightning knows no {precision!r} on XLA. Use 'bf16-true' or '32-true'."
    return ""


def missing(resolved: ResolvedRecipe, strategy: str) -> str:
    """What the machines that ran the tests lack, where a recipe that is not refused was not run.

    Example:
        >>> from lit_opt.recipes import get_recipe
        >>> from lit_opt.resolve import preview
        >>> missing(preview(get_recipe("llm/adamw_8bit")), "fsdp2")
        'torchao (extra lowbit), which sharded 8-bit states need'
    """
    row = row_of(resolved.optimizer, resolved.hyperparameters) if isinstance(resolved.optimizer, str) else None
    if strategy in _MODEL_PARALLEL and row is not None and not row.exact:
        return _TORCHAO
    return STRATEGIES[strategy].missing


def shard_problems(row: OptimizerRow, where: str) -> list[str]:
    """Why an optimizer that reads whole tensors cannot work where weights have become something else.

    Args:
        row: Of the optimizer.
        where: What they have become, such as "flat shards (FSDP1)"; "" where they are whole.

    Example:
        >>> from lit_opt.optim import get_row
        >>> shard_problems(get_row("adamw"), "flat shards")
        []
    """
    use = "Use ModelParallelStrategy (FSDP2) or DDP, or a recipe with AdamW."
    if not where:
        return []
    if row.matrix:
        does = "orthogonalises" if "orthogonalize" in row.hyperparameters else "works on"
        return [
            f"optimizer: {row.name} {does} whole matrices, and this strategy makes them {where}, in "
            f"which rows and columns are lost. {use}"
        ]
    if row.of_whole:
        return [
            f"optimizer: {row.name} takes {row.of_whole}, and this strategy makes weights {where}, of which each "
            f"process sees a part, so that the result would not be that of one device. {use}"
        ]
    return []


WITHOUT_AVERAGES = "or an optimizer without averages of its own and Recipe(..., ema=False)"


def averaging_problem(strategy: str, precision: str = "32-true") -> str:
    """Why weights cannot be averaged under a strategy and a precision; "" where they can.

    Example:
        >>> averaging_problem("ddp"), averaging_problem("xla")
        ('', '')
        >>> averaging_problem("xla", "bf16-true")[-23:]
        "Use precision='32-true'"
    """
    if strategy == "xla" and precision == "bf16-true":
        # Lightning sets XLA_USE_BF16 (lightning 2.6, torch_xla 2.9): tensors say float32 and hold bfloat16.
        return (
            "under bf16-true XLA keeps every float32 tensor in bfloat16, in which averages stand still. Use "
            "precision='32-true'"
        )
    if strategy not in (*_DEEPSPEED, "xla_fsdp"):
        return ""
    return (
        f"under {_name(strategy)} the weights are flattened or held by the engine and cannot be averaged "
        "by name. Use ModelParallelStrategy (FSDP2) or DDP"
    )


def _name(strategy: str) -> str:
    if strategy in STRATEGIES:
        return STRATEGIES[strategy].name
    return {"xla_fsdp": "XLAFSDPStrategy", "zero0": "DeepSpeedStrategy"}.get(strategy, "this strategy")


def _demands(row: OptimizerRow, strategy: str, scaled: bool) -> list[str]:
    problems = []
    if row.needs_closure and scaled:
        problems.append(
            f"optimizer: {row.name} needs a closure, and Lightning steps without one under 16-mixed (GradScaler). Use "
            "Trainer(precision='bf16-mixed') or '32-true'."
        )
    where = FLAT.get(strategy, "DeepSpeed's engine" if strategy in _DEEPSPEED else "")
    if row.needs_closure and where:
        problems.append(
            f"optimizer: {row.name} needs the norm over all weights and a second pass, which cannot be had from {where}. "
            "Use DDP or ModelParallelStrategy (FSDP2)."
        )
    if (row.needs_module or row.exchanges) and strategy not in _WHOLE:
        problems.append(
            f"optimizer: {row.name} needs whole parameters in every process, and {_name(strategy)} shards them or "
            "steps by itself. Use strategy='ddp' or one device, or Recipe(..., optimizer='adamw')."
        )
    if (row.needs_module or row.exchanges) and scaled:
        why = "would skip different steps in different processes" if row.exchanges else "sees scaled gradients"
        problems.append(
            f"optimizer: {row.name} {why} under precision='16-mixed' (a GradScaler). Use 'bf16-mixed' or '32-true'."
        )
    return problems


def _low_bit(row: OptimizerRow, strategy: str) -> list[str]:
    if row.exact or strategy not in ("fsdp1", "xla_fsdp", "xla"):
        return []
    if strategy == "xla":
        return [f"optimizer: {row.name} has no kernels for XLA. Use a recipe with AdamW or Adafactor."]
    return [
        f"optimizer: {row.name} keeps its moments in blocks, which FSDP1 cannot put together for a checkpoint. Use "
        "ModelParallelStrategy (FSDP2) or DDP, or a recipe with AdamW."
    ]
