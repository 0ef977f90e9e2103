"""What three other libraries would decay, for comparison. Each returns names of trainable parameters."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


def timm_decays(module: nn.Module) -> set[str]:
    """timm.optim.param_groups_weight_decay, with what the model lists."""
    from timm.optim import param_groups_weight_decay

    listed = module.no_weight_decay() if hasattr(module, "no_weight_decay") else ()  # type: ignore[operator]
    groups = param_groups_weight_decay(module, 0.1, no_weight_decay_list=listed)
    names = {id(p): n for n, p in module.named_parameters()}
    return {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}


def hf_trainer_decays(module: nn.Module) -> set[str]:
    """transformers.Trainer.get_decay_parameter_names."""
    from transformers import Trainer

    decayed = set(Trainer.get_decay_parameter_names(None, module))
    return {n for n, p in module.named_parameters() if p.requires_grad and n in decayed}


def ndim_decays(module: nn.Module) -> set[str]:
    """nanoGPT, MAE: two dimensions or more."""
    return {n for n, p in module.named_parameters() if p.requires_grad and p.ndim >= 2}


DECIDERS: dict[str, Callable[[nn.Module], set[str]]] = {
    "timm": timm_decays,
    "hf": hf_trainer_decays,
    "ndim": ndim_decays,
}
