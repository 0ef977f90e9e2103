"""What the orthogonalisation costs beside the model, for one line at the start of a run."""

from __future__ import annotations

import torch
from torch.optim import Optimizer

from lit_opt.optim.matrix.plan import make_plan


def orthogonalization_share(optimizer: Optimizer, tokens: int) -> float:
    """Estimated part of a training step's floating-point operations that goes into orthogonalisation.

    A model takes about 6 operations for each parameter and token (or image patch) of a step. The estimate is of
    operations by the standard iteration, not of time: a small batch on a fast GPU feels it more.

    Args:
        optimizer: One of Muon, NorMuon, MarsM, Teon.
        tokens: Tokens of all processes in one optimizer step. Processes that share the work divide it.

    Returns:
        Between 0 and 1.

    Example:
        >>> import torch
        >>> from lit_opt.optim import Muon
        >>> weights = [torch.nn.Parameter(torch.zeros(768, 768)) for _ in range(4)]
        >>> f"{orthogonalization_share(Muon(weights, lr=0.02), tokens=4096):.0%}"
        '48%'
    """
    # Shapes alone: looking at the parts of sharded tensors would make processes talk.
    groups = [
        group | {"params": [torch.empty(p.shape, dtype=p.dtype, device="meta") for p in group["params"]]}
        for group in optimizer.param_groups
    ]
    params = [param for group in groups for param in group["params"]]
    matrices = [
        [] if group["algorithm"] == "adamw" else [p for p in group["params"] if p.ndim > 1 and p.numel()]
        for group in groups
    ]
    plan = make_plan(groups, matrices, ("orthogonalize", "ns_steps", "ns_dtype"))
    own = sum(chunk.flops for chunk in plan)
    model = 6 * tokens * sum(param.numel() for param in params)
    return own / (own + model) if own else 0.0
