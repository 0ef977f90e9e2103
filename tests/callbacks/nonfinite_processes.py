"""Run by test_nonfinite_processes.py, in two processes: `python -m tests.callbacks.nonfinite_processes FOLDER`.

Under FSDP2 the gradient that is not finite lies in the shard of one process alone.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from lit_opt import Recipe
from lit_opt.errors import RecipeError
from tests.callbacks.modules import trainer
from tests.callbacks.processes import STEPS, Draws, Sharded, Share, make, rank

BAD = 2


class Spoils:
    """The last layer's bias has nan in the first element of its gradient, on the process that holds it."""

    def on_after_backward(self: Any) -> None:
        if self.trainer.global_step != BAD:
            return
        grad = self.net[3].bias.grad
        part = grad.to_local() if isinstance(grad, DTensor) else grad
        if rank() == 0:
            part[0] = float("nan")


class SpoiledDraws(Spoils, Draws):
    pass


class SpoiledSharded(Spoils, Sharded):
    pass


def fit(kind: str, policy: Any, optimizer: str) -> dict[str, Any]:
    _, how = make(kind)
    module = SpoiledSharded() if kind == "fsdp2" else SpoiledDraws()
    more: dict[str, Any] = {"optimizer_kwargs": {"ns_dtype": "float32"}} if optimizer == "muon" else {}
    recipe = Recipe(
        "llm", optimizer=optimizer, lr=1e-2, weight_decay=0.1, warmup=2, ema=0.9, on_nonfinite=policy, **more
    )
    t = trainer(recipe, devices=2, max_steps=STEPS, use_distributed_sampler=False, **how)
    message = ""
    try:
        t.fit(module, Share(rank(), 2))
    except RecipeError as error:
        message = str(error)
    whole = [p.full_tensor() if isinstance(p, DTensor) else p.detach() for p in module.parameters()]
    return {
        "message": message,
        "skipped": recipe.skipped_steps,
        "averaged": recipe.ema.steps if recipe.ema else None,
        "step": t.global_step,
        "weights": whole,
    }


if __name__ == "__main__":
    folder = Path(sys.argv[-1])
    results = {
        (kind, policy, optimizer): fit(kind, policy, optimizer)
        for kind, policy, optimizer in (
            ("ddp", "skip", "adamw"),
            ("ddp", "skip", "sam"),
            ("fsdp2", "skip", "adamw"),
            ("fsdp2", "skip", "muon"),
            ("ddp", "raise", "adamw"),
            ("fsdp2", "raise", "adamw"),
        )
    }
    torch.save(results, folder / f"{rank()}.pt")
