"""What a recipe for adapters trains: LoRA matrices and the little that goes with them, and nothing else."""

from __future__ import annotations

import math
import re

from lit_opt.param_groups.snapshot import ParamInfo, ParamSnapshot

# What peft trains in full on purpose, because LoraConfig lists it (modules_to_save, trainable_token_indices).
_IN_FULL = re.compile(r"(?:^|\.)(?:modules_to_save|trainable_tokens_delta)(?:\.|$)")

# Large tensors of the model itself. Biases, norms and DoRA's magnitudes are small, and peft trains them on request.
_LARGE = ("matrix", "embedding", "position")


def check_adapters(snapshot: ParamSnapshot, recipe: str) -> tuple[list[str], list[str]]:
    """What is trained, in a sentence, and what is wrong with it.

    Args:
        snapshot: The module's parameters.
        recipe: Name of the recipe, for the messages.

    Returns:
        Notes for the log and problems.

    Example:
        >>> from torch import nn
        >>> from lit_opt.param_groups.snapshot import snapshot_parameters
        >>> check_adapters(snapshot_parameters(nn.Linear(2, 2)), "llm/lora")[1][0]
        "parameters: 'llm/lora' trains adapters, and the module has none (lora_A, lora_B). Wrap the model first: \
peft.get_peft_model(model, peft.LoraConfig(...)). To train all weights, use Recipe('llm/finetune')."
    """
    trainable = [info for info in snapshot.parameters if info.trainable]
    adapters = [info for info in snapshot.parameters if info.role == "adapter"]
    if not adapters:
        return [], [
            f"parameters: {recipe!r} trains adapters, and the module has none (lora_A, lora_B). Wrap the model first: "
            "peft.get_peft_model(model, peft.LoraConfig(...)). To train all weights, use Recipe('llm/finetune')."
        ]
    if not any(info.trainable for info in adapters):
        return [], [
            f"parameters: all {len(adapters)} adapter tensors are frozen, such as {adapters[0].name!r}. Load them with "
            "peft.PeftModel.from_pretrained(..., is_trainable=True), or set requires_grad=True on them."
        ]
    others = [info for info in trainable if info.role in _LARGE and not _IN_FULL.search(info.name)]
    if others:
        return [], [
            f"parameters: {recipe!r} trains adapters, and {len(others)} other matrices are trainable as well, such as "
            f"{others[0].name!r}. Freeze them (peft.get_peft_model does), list them in LoraConfig(modules_to_save=...), "
            "or use Recipe('llm/finetune')."
        ]
    beside = [info for info in trainable if info.role != "adapter"]
    frozen = [info for info in snapshot.parameters if not info.trainable]
    note = f"{recipe} trains {_count([i for i in adapters if i.trainable])} of adapters"
    note += f" and {_count(beside)} beside them ({', '.join(i.name for i in beside[:3])})" if beside else ""
    return [f"{note}; {_count(frozen)} are frozen."], []


def _count(infos: list[ParamInfo]) -> str:
    return f"{sum(math.prod(info.shape) for info in infos):,} numbers in {len(infos)} tensors"
