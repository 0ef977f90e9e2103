"""Where a run happens, read off the Trainer's arguments: devices, strategy, precision. No Trainer is built, so a
config for eight GPUs can be read on a laptop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_opt.errors import RecipeError, nearest

# What a strategy does with weights, gradients and states.
KINDS = {
    "single": "one device",
    "ddp": "every device holds everything (DDP)",
    "fsdp": "weights, gradients and states in flat shards (FSDP1)",
    "fsdp_grad_op": "gradients and states in flat shards, weights whole between forward and backward (FSDP1)",
    "fsdp2": "weights, gradients and states in shards along the first dimension (FSDP2)",
    "zero1": "optimizer states in shards (ZeRO 1)",
    "zero2": "gradients and optimizer states in shards (ZeRO 2)",
    "zero3": "weights, gradients and optimizer states in shards (ZeRO 3)",
    "other": "a strategy that is not estimated",
}

# Lightning's words and ours -> kind.
_WORDS = {
    "single_device": "single",
    "single_xla": "single",
    "ddp": "ddp",
    "ddp_spawn": "ddp",
    "ddp_fork": "ddp",
    "ddp_notebook": "ddp",
    "xla": "ddp",
    "fsdp": "fsdp",
    "fsdp_cpu_offload": "fsdp",
    "fsdp2": "fsdp2",
    "zero1": "zero1",
    "zero2": "zero2",
    "zero3": "zero3",
    "deepspeed": "zero2",
    "deepspeed_stage_1": "zero1",
    "deepspeed_stage_1_offload": "zero1",
    "deepspeed_stage_2": "zero2",
    "deepspeed_stage_2_offload": "zero2",
    "deepspeed_stage_3": "zero3",
    "deepspeed_stage_3_offload": "zero3",
    "deepspeed_stage_3_offload_nvme": "zero3",
}
_SINGLE_WORDS = ("single_device", "single_xla", "SingleDeviceStrategy", "SingleDeviceXLAStrategy")
_CLASSES = {
    "SingleDeviceStrategy": "single",
    "SingleDeviceXLAStrategy": "single",
    "DDPStrategy": "ddp",
    "XLAStrategy": "ddp",
    "FSDPStrategy": "fsdp",
    "ModelParallelStrategy": "fsdp2",
    "DeepSpeedStrategy": "zero2",
}
_FSDP1 = {
    "FULL_SHARD": "fsdp",
    "SHARD_GRAD_OP": "fsdp_grad_op",
    "NO_SHARD": "ddp",
    "HYBRID_SHARD": "other",
    "_HYBRID_SHARD_ZERO2": "other",
}
_PRECISION = {
    "16": "16-mixed",
    "bf16": "bf16-mixed",
    "32": "32-true",
    "64": "64-true",
}
PRECISIONS = ("32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "64-true")


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a run happens.

    Args:
        kind: Key of `KINDS`.
        strategy: Its name.
        devices: Processes over all nodes.
        data_parallel: Processes that see different data.
        tensor_parallel: Processes that share one copy of a layer.
        precision: One of Lightning's words.
        offload: What lies in CPU memory: "" for nothing, "state" for the optimizer's, "all" for weights and gradients
            as well.
        bucket_view: DDP's gradients lie in its buckets (`gradient_as_bucket_view`), not beside them.
        notes: What was assumed, in sentences.

    Example:
        >>> read_placement({"devices": 4, "strategy": "deepspeed_stage_3"}).kind
        'zero3'
    """

    kind: str = "single"
    strategy: str = "auto"
    devices: int = 1
    data_parallel: int = 1
    tensor_parallel: int = 1
    precision: str = "32-true"
    offload: str = ""
    bucket_view: bool = False
    notes: tuple[str, ...] = ()


def read_placement(trainer: Mapping[str, Any]) -> Placement:
    """Devices, strategy and precision of a Trainer's arguments.

    Args:
        trainer: The arguments by name, as in the section `trainer:` of a config; classes as dicts with "class_path"
            and "init_args". Missing ones have Lightning's defaults.

    Raises:
        RecipeError: Arguments that no Trainer takes.

    Example:
        >>> section = {"devices": 8, "strategy": {"class_path": "lightning.pytorch.strategies.ModelParallelStrategy",
        ...     "init_args": {"data_parallel_size": 4, "tensor_parallel_size": 2}}}
        >>> place = read_placement(section)
        >>> place.kind, place.devices, place.data_parallel, place.tensor_parallel
        ('fsdp2', 8, 4, 2)
    """
    notes: list[str] = []
    nodes = _whole("num_nodes", trainer.get("num_nodes") or 1)
    word, options = _strategy(trainer.get("strategy") or "auto")
    kind = _kind(word, options)
    per_node = 1 if word in _SINGLE_WORDS else _devices(trainer, notes)
    devices = nodes * per_node
    if word == "auto" and devices > 1:
        kind = "ddp"
    sizes = (devices, 1)
    if word == "ModelParallelStrategy":
        sizes = _parallel_sizes(options, nodes, per_node)
    if kind == "other":
        notes.append(f"strategy: {word} is not known here; its processes are taken to see different data.")
    return Placement(
        kind=kind,
        strategy=word,
        devices=devices,
        data_parallel=sizes[0],
        tensor_parallel=sizes[1],
        precision=_precision(trainer.get("precision")),
        offload=_offloads(word, options),
        bucket_view=bool(options.get("gradient_as_bucket_view")),
        notes=tuple(notes),
    )


def _strategy(given: Any) -> tuple[str, Mapping[str, Any]]:
    """A registered name or the class's name, and its arguments."""
    if isinstance(given, str):
        word = given.removesuffix("_find_unused_parameters_true").removesuffix("_find_unused_parameters_false")
        known = ("auto", *_WORDS)
        if word not in known:
            # Strategies of other packages are registered by name as well.
            from lightning.pytorch.strategies import StrategyRegistry

            if word not in StrategyRegistry:
                raise RecipeError(
                    [f"strategy: {given!r} is unknown.{nearest(given, known)} Known: {', '.join(known)}."]
                )
        return word, {}
    if isinstance(given, Mapping) and "class_path" in given:
        options = (given.get("init_args") or {}) | (given.get("dict_kwargs") or {})
        return str(given["class_path"]).rpartition(".")[2], options
    raise RecipeError(
        [
            f"strategy: {type(given).__name__} cannot be read before a run. Give a name ({', '.join(_WORDS)}) or "
            "{'class_path': ..., 'init_args': {...}}."
        ]
    )


def _kind(word: str, options: Mapping[str, Any]) -> str:
    if word == "auto":
        return "single"
    if word == "FSDPStrategy":
        sharding = options.get("sharding_strategy", "FULL_SHARD")
        return _FSDP1.get(str(getattr(sharding, "name", sharding)).upper(), "other")
    if word == "DeepSpeedStrategy":
        stage = options.get("stage", 2)
        return (
            {0: "ddp", 1: "zero1", 2: "zero2", 3: "zero3"}.get(stage, "other") if not options.get("config") else "other"
        )
    return _WORDS.get(word) or _CLASSES.get(word, "other")


def _offloads(word: str, options: Mapping[str, Any]) -> str:
    if word == "fsdp_cpu_offload" or options.get("cpu_offload") or options.get("offload_parameters"):
        return "all"
    if "_offload" in word:
        return "all" if "stage_3" in word else "state"
    return "state" if options.get("offload_optimizer") else ""


def _devices(trainer: Mapping[str, Any], notes: list[str]) -> int:
    """Processes of one node."""
    given = trainer.get("devices", "auto")
    if given in ("auto", None, -1, "-1"):
        if trainer.get("accelerator") != "cpu":
            notes.append(f"devices: {given!r} counts as 1 here; the real run takes all that its machine has.")
        return 1
    if isinstance(given, str) and "," in given:
        return len([part for part in given.split(",") if part.strip()])
    if isinstance(given, Sequence) and not isinstance(given, str):
        return len(given)
    return _whole("devices", given)


def _whole(name: str, given: Any) -> int:
    try:
        number = int(given)
    except (TypeError, ValueError):
        number = 0
    if number < 1:
        raise RecipeError([f"{name}: {given!r} is not allowed; give a whole number above 0."])
    return number


def _parallel_sizes(options: Mapping[str, Any], nodes: int, per_node: int) -> tuple[int, int]:
    data, tensor = options.get("data_parallel_size", "auto"), options.get("tensor_parallel_size", "auto")
    sizes = (nodes if data == "auto" else int(data), per_node if tensor == "auto" else int(tensor))
    if sizes[0] * sizes[1] != nodes * per_node:
        raise RecipeError(
            [
                f"strategy: data_parallel_size {sizes[0]} x tensor_parallel_size {sizes[1]} is not the number of devices "
                f"({nodes} x {per_node}). Give sizes whose product it is."
            ]
        )
    return sizes


def _precision(given: Any) -> str:
    word = "32-true" if given is None else _PRECISION.get(str(given), str(given))
    if word in PRECISIONS or word.startswith("transformer-engine"):
        return word
    raise RecipeError([f"precision: {given!r} is unknown.{nearest(given, PRECISIONS)} Known: {', '.join(PRECISIONS)}."])
