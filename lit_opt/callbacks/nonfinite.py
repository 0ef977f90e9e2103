"""Losses and gradients that are not finite (nan, inf): what becomes of the step.

`LightningModule.optimizer_step` runs the closure inside `optimizer.step`, so the gradients of a step can be looked at,
and the step be left out, before any optimizer has touched its state: an exception leaves the closure, and is caught
around the strategy's step. This holds for every optimizer that calls its closure first, which torch's, timm's and all of
ours do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from lit_opt.averaging.shards import local
from lit_opt.callbacks.facts import is_deepspeed
from lit_opt.errors import RecipeError
from lit_opt.optim import get_row

POLICIES = ("raise", "skip", "ignore")
# A GradScaler that starts at 65536 is at 1/16 then, and any other run that has not moved for so long is broken.
MAX_IN_A_ROW = 20
_SAID_ONE_BY_ONE = 10


class StepSkipped(Exception):
    """Leaves the closure of a step that is left out; never seen outside."""


@dataclass(slots=True)
class _Look:
    """One look at the gradients: whether any process found something, the loss, and the norm of each gradient."""

    step: int
    sizes: Tensor
    parameters: list[Tensor]
    ready: Any = None


class FiniteSteps:
    """Looks at loss and gradients before each step, and raises, skips or does nothing.

    The host reads one small tensor each step under "skip", under a GradScaler (which reads its own flag there) and on the
    CPU. Under "raise" on an accelerator nothing waits for the step that is being queued: on CUDA the figures are copied
    without blocking and read one step later, elsewhere every `log_every_n_steps`; and everywhere before a validation, before
    a checkpoint and at the end of the run. Processes agree by one all-reduce of a flag.

    A GradScaler skips steps by itself, as many as it takes to find its scale, so that "raise" does not raise there; its
    gradients alone decide. Both count, and both end with an error after `MAX_IN_A_ROW` steps in a row.

    Args:
        recipe: Its `on_nonfinite` decides.
        trainer: A Trainer inside `fit`.
        module: Its LightningModule.
    """

    def __init__(self, recipe: Any, trainer: Any, module: Any) -> None:
        self.recipe, self.trainer, self.module = recipe, trainer, module
        self.policy: str = recipe.on_nonfinite
        self.skipped = self.in_a_row = 0
        self._losses: list[Tensor] = []
        self._pending: deque[_Look] = deque()
        self._skipped_now = ""

    @property
    def scaler(self) -> Any:
        """The GradScaler of the run, or None."""
        return getattr(self.trainer.precision_plugin, "scaler", None)

    def state(self) -> dict[str, int]:
        """The counts, for checkpoints."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load(self, state: Mapping[str, int]) -> None:
        """Continue the counts of a checkpoint."""
        self.skipped, self.in_a_row = int(state.get("skipped", 0)), int(state.get("in_a_row", 0))

    def problems(self, optimizer: Any) -> list[str]:
        """Why steps cannot be left out, in words.

        Args:
            optimizer: Registry name or class of the recipe's optimizer.
        """
        if self.policy != "skip":
            return []
        if is_deepspeed(self.trainer):
            why = "DeepSpeed steps by itself"
        elif isinstance(optimizer, type) and issubclass(optimizer, torch.optim.LBFGS):
            why = "LBFGS moves the weights between its evaluations"
        elif isinstance(optimizer, str) and get_row(optimizer).exchanges:
            why = f"{optimizer} keeps what processes exchanged in the backward pass"
        else:
            return []
        return [f"on_nonfinite: {why}, so that a step cannot be left out. Give Recipe(..., on_nonfinite='raise')."]

    def note_loss(self, loss: Tensor) -> None:
        """Remember a loss that is about to be differentiated; one for each micro-batch of a step."""
        if self.policy != "ignore" and self.scaler is None:
            self._losses.append(loss.detach().abs().float())

    def step(self, take: Callable[[], Any]) -> Any:
        """Take a step; returns what it returned, None where it was left out.

        Raises:
            RecipeError: What `look` raises, or too many steps in a row were left out.
        """
        if self.policy == "ignore":
            return take()
        name = self.module._current_fx_name
        self._skipped_now = ""
        try:
            result = take()
        except StepSkipped:
            result = None
            self.module._current_fx_name = name  # Lightning sets it back after a hook, and not after an exception
        self._count()
        return result

    def look(self, optimizer: Any) -> None:
        """Look at the gradients of a step, once they are complete and before they are clipped.

        Raises:
            StepSkipped: The step is to be left out.
            RecipeError: Something is not finite, under "raise".
        """
        losses, self._losses = self._losses, []
        # Lightning's tuners run the module with callbacks of their own, and expect it to diverge.
        if self.policy == "ignore" or self.recipe not in self.trainer.callbacks:
            return
        look = self._measure(optimizer, losses)
        if not (self.policy == "skip" or self.scaler is not None or _reads_at_once(look.sizes.device)):
            self._read_later(look)
            return
        found = self._found(look)
        if found and (self.policy == "skip" or self.scaler is not None):
            self._skipped_now = found
            if self.scaler is None:
                raise StepSkipped
        elif found:
            raise RecipeError([f"{found} {_REMEDY.format(weights='They')} {_ADVICE}"])

    def settle(self) -> None:
        """Wait for what has not been read yet.

        Raises:
            RecipeError: Something was not finite.
        """
        self._read()

    # ---- reading

    def _measure(self, optimizer: Any, losses: list[Tensor]) -> _Look:
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        device = parameters[0].device if parameters else self.trainer.strategy.root_device
        with torch.no_grad():
            norms = _sizes([_values(p.grad) for p in parameters])
            loss = sum(losses, start=torch.zeros(()))
            wide = torch.float64 if any(norm.dtype == torch.float64 for norm in norms) else torch.float32
            sizes = torch.stack([x.to(device=device, dtype=wide) for x in (loss, *norms)])
            worse = (~sizes.isfinite().all()).to(wide).reshape(1)
            if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
                dist.all_reduce(worse, op=dist.ReduceOp.MAX)
            sizes = torch.cat([worse, sizes])
        return _Look(step=self.trainer.global_step, sizes=sizes, parameters=parameters)

    def _read_later(self, look: _Look) -> None:
        if look.sizes.device.type == "cuda":
            copy = torch.empty_like(look.sizes, device="cpu", pin_memory=True)
            look.sizes = copy.copy_(look.sizes, non_blocking=True)
            look.ready = torch.cuda.Event()
            look.ready.record()
        self._pending.append(look)
        if look.ready is not None:
            # One step late, in all processes alike: a step's work is queued behind it, so the device does not run dry.
            self._read(but=1)
        elif look.step % max(1, self.trainer.log_every_n_steps) == 0:
            self._read()

    def _read(self, but: int = 0) -> None:
        while len(self._pending) > but:
            look = self._pending.popleft()
            if look.ready is not None:
                look.ready.synchronize()
            found = self._found(look)
            if found:
                self._pending.clear()
                raise RecipeError([f"{found} {_REMEDY.format(weights='The step was taken, so they')} {_ADVICE}"])

    def _found(self, look: _Look) -> str:
        """What is not finite, in words; "" if everything is."""
        worse, loss, *sizes = look.sizes.tolist()
        bad = [(p, size) for p, size in zip(look.parameters, sizes, strict=True) if not _is_finite(size)]
        if not bad and not worse and _is_finite(loss):
            return ""
        parts = []
        if bad:
            names = {id(p): name for name, p in self.module.named_parameters()}
            first = ", ".join(f"{names.get(id(p), 'unnamed')}: {size}" for p, size in bad[:3])
            more = ", ..." if len(bad) > 3 else ""
            parts.append(f"the gradients of {len(bad)} of {len(sizes)} parameters are not finite ({first}{more})")
        if not _is_finite(loss):
            parts.append(f"the loss is {loss}")
        return f"on_nonfinite: at step {look.step} " + (" and ".join(parts) or "another process has found one") + "."

    # ---- counting

    def _count(self) -> None:
        found, self._skipped_now = self._skipped_now, ""
        if not found:
            self.in_a_row = 0
            return
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        who = "The GradScaler" if self.scaler is not None else "on_nonfinite='skip'"
        if self.in_a_row > MAX_IN_A_ROW:
            raise RecipeError(
                [f"{found} {who} has left out {MAX_IN_A_ROW} steps in a row, and this is the next. {_ADVICE}"]
            )
        if self.trainer.is_global_zero:
            for logger in self.trainer.loggers:
                logger.log_metrics({"skipped_steps": float(self.skipped)}, step=self.trainer.global_step)
        if self.scaler is None and (self.skipped <= _SAID_ONE_BY_ONE or self.skipped % 100 == 0):
            rank_zero_warn(f"{found} The step is left out, number {self.skipped} of this run.")


_REMEDY = "{weights} would make the weights useless."
_ADVICE = (
    "Look at the batch and the loss (Trainer(detect_anomaly=True) names the operation), lower the learning rate "
    "(Recipe(..., lr=...)) or lengthen the warmup, and go on from the last checkpoint. To leave such steps out give "
    "Recipe(..., on_nonfinite='skip'); to go on regardless 'ignore'."
)


def _reads_at_once(device: torch.device) -> bool:
    """Whether the host has the tensor already."""
    return device.type == "cpu"


def _is_finite(x: float) -> bool:
    return x - x == 0


def _values(grad: Any) -> Tensor:
    grad = local(grad)
    return grad._values() if grad.is_sparse else grad


def _sizes(grads: list[Tensor]) -> list[Tensor]:
    """The norm of each in float32 (float64 for its own); one that overflows counts as not finite, as it does in Adam."""
    found: dict[int, Tensor] = {}
    for kind in {(grad.dtype, grad.device) for grad in grads}:
        places = [i for i, grad in enumerate(grads) if (grad.dtype, grad.device) == kind]
        same = [torch.view_as_real(grads[i]) if grads[i].is_complex() else grads[i] for i in places]
        half = torch.float32 if same[0].dtype in (torch.float16, torch.bfloat16) else None
        found |= dict(zip(places, torch._foreach_norm(same, 2, dtype=half), strict=True))
    return [found[i] for i in range(len(grads))]
