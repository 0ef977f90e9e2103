"""The callback of a run of a comparison: it reads the metric at the agreed steps, counts and times, and stops the diverged."""

from __future__ import annotations

import math
import random
import time
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lit_opt.callbacks.recipe import Recipe
from lit_opt.comparison.data_order import OrderedLoader, first_dimension
from lit_opt.comparison.facts import facts_before, text_hash
from lit_opt.comparison.metric import missing_metric
from lit_opt.comparison.ranks import gathered, place, refuse_same_batches
from lit_opt.comparison.records import Reading
from lit_opt.comparison.seeds import seed_all, seed_torch, stream, streams
from lit_opt.errors import RecipeError

# A run has diverged when its loss is that many times the first one for that share of the budget, or is not finite.
DIVERGED_FACTOR = 3.0
DIVERGED_SHARE = 0.05
# At the latest after so many steps the losses are looked at.
_LOOK = 100


class Diverged(Exception):
    """Leaves a run whose loss is not finite, or far above the first one for long.

    Example:
        >>> str(Diverged("the loss was not finite at step 3"))
        'the loss was not finite at step 3'
    """


class Enough(Exception):
    """Leaves a rehearsal.

    Example:
        >>> isinstance(Enough(), Exception)
        True
    """


class TimedOut(Exception):
    """Leaves a run that takes longer than it was given.

    Example:
        >>> str(TimedOut("stopped after 60 s at step 3"))
        'stopped after 60 s at step 3'
    """


class Observer(Callback):
    """Watches one run.

    Args:
        recipe: Of the run.
        metric: The logged name.
        budget_steps: Optimizer steps of the run.
        eval_steps: The steps after which it is evaluated.
        seed: Of the run.
        timeout: Seconds that the run may take.
        stop_after: For a rehearsal: optimizer steps after which it ends. It does not diverge: a run of the search may.
        evaluates_at_stop: It is evaluated then.

    Example:
        >>> from lit_opt import Recipe
        >>> Observer(Recipe("llm"), "val_loss", 10, (0, 5, 10), seed=1).readings
        []
    """

    # Lightning comes to every callback at each of these points of a step. What is None is not called and costs nothing.
    on_train_batch_start = on_before_zero_grad = None  # type: ignore[assignment]
    on_after_backward = on_before_optimizer_step = None  # type: ignore[assignment]

    def __init__(
        self,
        recipe: Recipe,
        metric: str,
        budget_steps: int,
        eval_steps: tuple[int, ...],
        *,
        seed: int,
        timeout: float = math.inf,
        stop_after: int | None = None,
        evaluates_at_stop: bool = False,
    ) -> None:
        self.recipe = recipe
        self.metric, self.budget_steps, self.eval_steps, self.seed = metric, budget_steps, eval_steps, seed
        self._evaluated, self._look = frozenset(eval_steps), max(1, min(_LOOK, budget_steps // 20))
        self.timeout, self.stop_after, self.evaluates_at_stop = timeout, stop_after, evaluates_at_stop
        self.loader: OrderedLoader | None = None
        self.device: torch.device | None = None
        self.batches_an_epoch: int | None = None
        self.before: dict[str, Any] = {}
        self.readings: list[Reading] = []
        self.batch_hashes: dict[str, str] = {}
        self.logged: set[str] = set()
        # Before the first validation: what training logs, which may be the same names.
        self.logged_in_training: set[str] | None = None
        self.model_flops, self.optimizer_flops = 0.0, 0.0
        self.samples = self.passes = self.batches = self.step = 0
        self.first_loss: float | None = None
        self.evaluation_seconds = 0.0
        self._seconds, self._timed = 0.0, 0
        self._since: float | None = None
        self._began = time.perf_counter()
        # Of the passes since the last look. Reading each at once would wait for the device, and on the CPU find cold caches.
        self._losses: list[Any] = []
        self._bad = 0.0
        self._initial: float | None = None
        self._evaluating = 0.0
        self._fresh = True
        self._noise = streams(seed, place().name("noise"), first=1)
        self._seed_of_noise = 0
        self._kept: tuple[Any, Any] | None = None

    # ---- training

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuse what would end some runs before others."""
        if trainer.early_stopping_callbacks:
            raise RecipeError([_early_stopping(type(pl_module).__name__)])

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Note what is there before the first step."""
        self.device = pl_module.device
        count = trainer.num_training_batches
        self.batches_an_epoch = int(count) if math.isfinite(count) else None
        self.before = facts_before(trainer, pl_module, self.recipe)
        self.optimizer_flops = self.before["optimizer_flops_per_step"] or 0.0

    def before_step(self) -> None:
        """Keep what the optimizer might change before a pass: the generators of Python and numpy.

        None of the registry's draws from these, so where it takes one pass a batch they stand as the loader left them.
        """
        named = self.recipe.run is not None and isinstance(self.recipe.run.resolved.optimizer, str)
        if not named or self.batches < 2 or self.passes > self.batches:
            self._kept = random.getstate(), np.random.get_state()

    def before_pass(self, batch: Any) -> None:
        """Count a new batch, and put the generators right: alike for all passes of a batch, as SAM has one dropout mask.

        Args:
            batch: What training_step gets.
        """
        if self._fresh:
            self._fresh = False
            self.samples += first_dimension(batch) * place().world
            self.batches += 1
            self._seed_of_noise = next(self._noise)
        self.passes += 1
        seed_torch(self._seed_of_noise)
        if self._kept is not None:
            random.setstate(self._kept[0])
            np.random.set_state(self._kept[1])

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        """Keep the loss for the next look."""
        # Elsewhere than on the CPU it may lie in memory that the next step writes to (CUDA graphs).
        self._losses.append(loss.detach() if loss.device.type == "cpu" else loss.detach().clone())

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Time the step, and look whether the run has diverged."""
        self._fresh, self._kept = True, None
        step = trainer.global_step
        if step == self.step:
            return  # accumulating
        self.step = step
        evaluates = step in self._evaluated
        looks = evaluates or step % self._look == 0 or self.first_loss is None
        if looks:
            self._look_at_losses(trainer)
        now = time.perf_counter()
        if self._since is not None:
            self._seconds += now - self._since
            self._timed += 1
        self._since = None if evaluates else now
        late = now - self._began > self.timeout
        if place().world > 1:  # all of them stop, or none
            late = looks and trainer.strategy.reduce_boolean_decision(late, all=False)
        if late:
            raise TimedOut(f"stopped after {now - self._began:.0f} s at step {self.step}")
        if self.stop_after is not None and self.step >= self.stop_after:
            if not self.evaluates_at_stop:
                raise Enough
            trainer.should_stop = True  # and Lightning validates

    def broken_by(self) -> str:
        """Which loss or gradient was not finite when something failed: a decomposition of such numbers raises. Else ''."""
        step = self.step + 1
        if any(not bool(torch.isfinite(loss).all()) for loss in self._losses):
            return f"the loss was not finite by step {step}"
        if self.recipe.optimizer is None:
            return ""
        params = (p for group in self.recipe.optimizer.param_groups for p in group["params"])
        grads = (p.grad for p in params if isinstance(p.grad, Tensor) and p.grad.layout == torch.strided)
        return "" if all(bool(torch.isfinite(g).all()) for g in grads) else f"a gradient was not finite at step {step}"

    def _look_at_losses(self, trainer: Any) -> None:
        """Compare the losses since the last look with the first one, as if each had been looked at."""
        losses: list[float] = []
        if self._losses:
            # Of all processes, which so come to the same end.
            losses = mean_of_all(torch.stack([loss.reshape(()) for loss in self._losses]), trainer).tolist()
        self._losses.clear()
        if self.device is not None and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        if losses and self._initial is None:
            self._initial = losses[0]
            # Lightning divides the loss by the accumulation.
            self.first_loss = self._initial * trainer.accumulate_grad_batches
        a_step = self.passes / self.step
        allowed = max(1.0, DIVERGED_SHARE * self.budget_steps * a_step)
        for number, loss in enumerate(losses, 1):
            fine = self._initial is None or self._initial <= 0 or loss <= DIVERGED_FACTOR * self._initial
            self._bad = math.inf if not math.isfinite(loss) else 0.0 if fine else self._bad + 1
            if self._bad >= allowed and self.stop_after is None:
                raise Diverged(self._why(allowed, self.step - int((len(losses) - number) / a_step)))

    def _why(self, allowed: float, step: int) -> str:
        if math.isinf(self._bad):
            return f"the loss was not finite at step {step}"
        return f"the loss was above {DIVERGED_FACTOR:g} times its first value for {allowed:.0f} batches, at step {step}"

    # ---- evaluation

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """The same random numbers in every evaluation of a seed."""
        self._evaluating = time.perf_counter()
        if self.logged_in_training is None:
            self.logged_in_training = set(trainer.callback_metrics)
        seed_all(stream(self.seed, "evaluation"))

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Read the metric. The clock goes on."""
        logged = trainer.callback_metrics
        self.logged |= set(logged)
        step = 0 if trainer.sanity_checking else trainer.global_step
        if self.metric in logged:
            self.readings.append(
                Reading(
                    step=step,
                    samples=self.samples if step else 0,
                    flops=self.passes * self.model_flops * place().world + step * self.optimizer_flops if step else 0.0,
                    # The first step warms up, and is taken to be as long as the others.
                    seconds=self._seconds * step / self._timed if self._timed else math.nan if step else 0.0,
                    metric=float(mean_of_all(logged[self.metric], trainer)),
                )
            )
        elif step and self.metric:
            raise RecipeError([missing_metric(self.metric, self.validated)])
        if self.loader is not None and step:
            digests = gathered(self.loader.digest())
            refuse_same_batches(digests)
            self.batch_hashes[str(step)] = digests[0] if len(digests) == 1 else text_hash(" ".join(digests))
        self.evaluation_seconds = time.perf_counter() - self._evaluating
        self._since = time.perf_counter() if step else None

    @property
    def validated(self) -> set[str]:
        """The names that came with validation; all where none is new there."""
        return self.logged - (self.logged_in_training or set()) or self.logged

    @property
    def seconds_per_step(self) -> float:
        """The mean, without evaluation and without the first step; nan where there was no other."""
        return self._seconds / self._timed if self._timed else math.nan


def mean_of_all(value: Any, trainer: Any) -> Any:
    """Over the processes of a run; a single one's value is left as it is.

    Example:
        >>> mean_of_all(torch.tensor(2.0), trainer=None)
        tensor(2.)
    """
    if place().world == 1:
        return value
    return trainer.strategy.reduce(
        torch.as_tensor(value, device=trainer.strategy.root_device).float(), reduce_op="mean"
    )


def _early_stopping(module: str) -> str:
    return (
        f"{module}: its configure_callbacks brings EarlyStopping, which would end some runs before others, and a comparison "
        "needs equal budgets. Leave it out: an argument of the module, such as early_stopping=False, could decide it."
    )
