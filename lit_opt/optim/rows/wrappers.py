"""Optimizers around another one: SAM, ASAM, Lookahead. Ours: no provider is right under Lightning and FSDP2."""

from __future__ import annotations

from lit_opt.optim.schema import OptimizerRow
from lit_opt.optim.state import Scratch, kept, nothing
from lit_opt.recipes.common import SAM_RHO
from lit_opt.recipes.schema import Value

# SGD where the papers used it, AdamW where the setting's own recipe has it.
_BASES = {"": "sgd", "llm": "adamw", "vlm": "adamw", "vit": "adamw", "diffusion": "adamw"}

_RHO_ASAM = Value(
    0.5,
    unit="radius of the neighbourhood, in units of the weights",
    common_practice="0.5; CIFAR-100 1.0; 2.0 in davda54/sam",
    source="arXiv:2102.11600; SamsungLabs/ASAM",
)

ROWS = (
    OptimizerRow(
        name="sam",
        state=nothing,
        scratch=Scratch(throughout=1.0, largest=2.0),
        factory="lit_opt.optim.sam:SAM",
        provider="lit_opt",
        summary="SAM: the gradient at the worst point nearby, around any base; a step costs two",
        rule="e = rho g(w) / |g(w)|; the base steps from w with g(w + e)",
        source="arXiv:2010.01412; written anew, since providers want the gradient before the step, which Lightning does "
        "not give",
        evidence="published (arXiv:2010.01412, arXiv:2106.01548); open source",
        hyperparameters={"base": "sgd", "rho": 0.05},
        wraps=_BASES,
        own_values={"rho": SAM_RHO},
        needs_closure=True,
    ),
    OptimizerRow(
        name="asam",
        state=nothing,
        scratch=Scratch(throughout=1.0, largest=4.0),
        factory="lit_opt.optim.sam:ASAM",
        provider="lit_opt",
        summary="ASAM: SAM in a neighbourhood that follows the scale of the weights; a step costs two",
        rule="T = |w| + eta; e = rho T^2 g(w) / |T g(w)|; the base steps from w with g(w + e)",
        source="arXiv:2102.11600; SamsungLabs/ASAM",
        evidence="small scale; open source",
        hyperparameters={"base": "sgd", "rho": 0.5, "eta": 0.01, "adaptive": "weights"},
        choices={"adaptive": ("weights", "all")},
        wraps=_BASES,
        own_values={"rho": _RHO_ASAM},
        needs_closure=True,
    ),
    OptimizerRow(
        name="lookahead",
        state=kept("slow"),
        factory="lit_opt.optim.lookahead:Lookahead",
        provider="lit_opt",
        summary="Lookahead: slow weights that follow the fast ones of any base",
        rule="every k steps of the base: slow <- slow + alpha (w - slow); w <- slow",
        source="arXiv:1907.08610 algorithm 1; timm's starts at the first sync, pytorch_optimizer's fails on DTensors",
        evidence="small scale; open source",
        hyperparameters={"base": "sgd", "k": 5, "alpha": 0.5},
        wraps=_BASES,
        group_state=("lookahead_steps",),
    ),
)
