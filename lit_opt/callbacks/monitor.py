"""`OptimizerMonitor`: what the optimizer does, to any of Lightning's loggers, with one read of the device a logged step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Literal

import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.optim import Optimizer

from lit_opt.averaging.shards import local
from lit_opt.callbacks.clipping import gradient_norm
from lit_opt.callbacks.ema import EMA
from lit_opt.callbacks.facts import data_parallel_size, flat_shards, loader_batch_size
from lit_opt.callbacks.monitor_run import index_of, logged_steps, norm_limit, recipe_clipping
from lit_opt.callbacks.reading import Reading, effective_rank, lamb_direction, later, ratio, sampled, whole_update
from lit_opt.errors import RecipeError

SAMPLE = 4


class OptimizerMonitor(Callback):
    """Logs what the optimizer does. It changes no bit of the run, with or without a `Recipe`.

    Every `every_n_steps` optimizer steps, under "optim/" ("optim/0/", "optim/1/" for several optimizers):

    - `grad_norm`, `grad_norm_clipped`: norm of all gradients before and after clipping. Under manual optimization
      without a Recipe's clipping, before is what arrives at `optimizer.step`.
    - `clipped_share`: share of steps that were clipped since the start of this fit: of all steps where a Recipe clips,
      whose norm costs nothing, else of the logged ones.
    - `skipped_steps`: steps that the gradient scaler left out since the start of this fit.
    - `<group>/lr`, `<group>/weight_decay`: as the step used them.
    - `<group>/update_to_weight`: norm of the update over norm of the weights, decay included. About 1e-3 is common
      for AdamW early in a run, and 1e-2 is large.
    - `<group>/effective_rank`: spread of one matrix's update over directions, 0 to 1; see `reading.effective_rank`.
    - `trust_ratio_min`, `trust_ratio_max`: of timm's LARS and LAMB, over the sampled weights.
    - `ema_distance`: norm of weights minus averages over norm of the weights, where there are averages.
    - `steps_per_second`, `samples_per_second`: since the last logged step, validation left out.

    What it costs: on a logged step copies of the sampled weights (at most 4 tensors a group, freed in the same step; of all
    weights with `weights="all"`), one product of a matrix with itself a group, and one read of the device. On other
    steps nothing but a comparison where a Recipe clips. 3 to 7 % of a step in small models when every step is logged
    (`benchmarks/results/optimizer_monitor.md`).

    Not measured: gradient norms under DeepSpeed and FSDP1 without a Recipe's clipping; what lies in FSDP1's flat shards
    is this process's part. Not run on a GPU so far.

    Args:
        every_n_steps: Optimizer steps between logged ones; by default the Trainer's `log_every_n_steps`.
        weights: "sample" or "all": the weights of each group that are compared before and after the step.

    Raises:
        RecipeError: An argument is out of range.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lit_opt import Recipe
        >>> monitor = OptimizerMonitor(every_n_steps=1)
        >>> quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
        >>> Trainer(max_steps=2, callbacks=[Recipe("cnn", batch_size=256), monitor], accelerator="cpu", **quiet).fit(BoringModel())
        >>> monitor.latest["optim/decay/lr"], monitor.latest["optim/skipped_steps"]
        (0.05, 0.0)
    """

    def __init__(self, every_n_steps: int | None = None, *, weights: Literal["sample", "all"] = "sample") -> None:
        problems = []
        if every_n_steps is not None and (isinstance(every_n_steps, bool) or not isinstance(every_n_steps, int)):
            problems.append(f"OptimizerMonitor: every_n_steps={every_n_steps!r} is no whole number.")
        elif every_n_steps is not None and every_n_steps < 1:
            problems.append(f"OptimizerMonitor: every_n_steps={every_n_steps}: at least 1 is needed.")
        if weights not in ("sample", "all"):
            problems.append(f"OptimizerMonitor: weights={weights!r} is unknown. Known: 'sample', 'all'.")
        if problems:
            raise RecipeError(problems)
        self.every_n_steps = every_n_steps
        self.weights = weights
        self.latest: dict[str, float] = {}
        """What was logged last."""
        self._forget()

    def _forget(self) -> None:
        self._began: dict[int, dict[Tensor, Tensor]] = {}  # optimizer -> weights before its step
        self._rates: dict[int, list[tuple[Any, Any]]] = {}
        self._norms: dict[int, Tensor | None] = {}
        self._clipped_norms: dict[int, Tensor | None] = {}
        self._trust: dict[int, list[tuple[dict[str, Any], Tensor, Tensor]]] = {}
        self._stepped: set[int] = set()
        self._due = False
        self._steps = self._counted = self._skipped = 0
        self._clipped: Tensor | None = None
        self._clock, self._at = time.perf_counter(), 0
        self._paused = 0.0
        self._take_off: list[Callable[[], None]] = []

    # ---- Lightning's hooks

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Listen to the steps of every optimizer."""
        self._close()
        for index, optimizer in enumerate(trainer.optimizers):
            handle = optimizer.register_step_post_hook(
                lambda *_, index=index: self._has_stepped(trainer, pl_module, index)
            )
            self._take_off.append(handle.remove)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Before the gradients are clipped: note what the step begins with, where it is to be logged."""
        every = self.every_n_steps or trainer.log_every_n_steps
        self._due = bool(every) and (logged_steps(trainer) + 1) % every == 0
        index = index_of(trainer, optimizer)
        self._began[index] = {}
        if not self._due:
            return
        if recipe_clipping(trainer) is None:
            self._norms[index] = self._gradient_norm(trainer, optimizer)
        self._rates[index] = [(g["lr"], g.get("weight_decay", 0.0)) for g in optimizer.param_groups]
        count = None if self.weights == "all" else SAMPLE
        for group in optimizer.param_groups:
            for p in sampled(group["params"], count):
                self._began[index][p] = local(p).detach().clone()
                if type(optimizer).__name__ == "Lars" and (group["weight_decay"] or group["always_adapt"]):
                    norm = torch.linalg.vector_norm(local(p.grad).float())  # type: ignore[arg-type]
                    self._trust.setdefault(index, []).append((group, p, norm))

    def _has_stepped(self, trainer: Any, module: Any, index: int) -> None:
        self._stepped.add(index)
        if self._due and norm_limit(trainer, module) is None:
            optimizer = trainer.optimizers[index]
            # LARS and Nesterov momentum write into the gradients.
            spoiled = type(optimizer).__name__ == "Lars" or any(g.get("nesterov") for g in optimizer.param_groups)
            self._clipped_norms[index] = None if spoiled else self._gradient_norm(trainer, optimizer)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count, and log where it is due. Micro-batches of an accumulation pass by."""
        if not self._began:
            return
        self._steps += 1
        self._skipped += len(self._began.keys() - self._stepped)
        self._count_clipped(trainer, pl_module)
        if self._due:
            self._log(trainer, pl_module)
        for noted in (self._began, self._rates, self._norms, self._clipped_norms, self._trust):
            noted.clear()
        self._stepped, self._due = set(), False

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Stop the clock."""
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Let the clock go on."""
        self._clock += time.perf_counter() - self._paused

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Leave the optimizers as they were."""
        self._close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave the optimizers as they were."""
        self._close()

    def _close(self) -> None:
        for take_off in self._take_off:
            take_off()
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles carry the settings; what was noted belongs to one run."""
        return {"every_n_steps": self.every_n_steps, "weights": self.weights, "latest": dict(self.latest)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    # ---- measuring

    def _gradient_norm(self, trainer: Any, optimizer: Any) -> Tensor | None:
        if flat_shards(trainer):
            return None
        norm = gradient_norm(p for group in optimizer.param_groups for p in group["params"])
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if norm is not None and scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            norm = norm / scaler._scale.to(norm.device)  # a fused step unscales the gradients itself
        return norm

    def _count_clipped(self, trainer: Any, module: Any) -> None:
        """Add up on the device, so that nobody waits."""
        known = recipe_clipping(trainer)
        if known is not None:
            self._norms = dict.fromkeys(self._began, known[1])
        limit = norm_limit(trainer, module)
        for norm in self._norms.values():
            if norm is not None and limit is not None:
                self._counted += 1
                over = (norm > limit).float()
                self._clipped = over if self._clipped is None else self._clipped + over

    def _log(self, trainer: Any, module: Any) -> None:
        reading = Reading()
        # What becomes of the values, once they are read: name -> function of them.
        shown: dict[str, Callable[[list[float]], float]] = {}
        for index, optimizer in enumerate(trainer.optimizers):
            if index in self._began:
                prefix = f"optim/{index}/" if len(trainer.optimizers) > 1 else "optim/"
                self._add_norms(prefix, index, norm_limit(trainer, module), reading, shown)
                self._add_groups(prefix, index, optimizer, reading, shown)
        if self._clipped is not None:
            clipped, counted = reading.add(self._clipped), self._counted
            shown["optim/clipped_share"] = lambda v: v[clipped] / counted
        self._add_ema(trainer, reading, shown)
        values = reading.read()
        self.latest = {name: float(of(values)) for name, of in shown.items()}
        self.latest |= {"optim/skipped_steps": float(self._skipped), **self._throughput(trainer)}
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.log_metrics(self.latest, step=logged_steps(trainer))

    def _add_norms(self, prefix: str, index: int, limit: float | None, reading: Reading, shown: dict[str, Any]) -> None:
        norm, after = self._norms.get(index), self._clipped_norms.get(index)
        if norm is not None:
            place = reading.add(norm)
            shown[f"{prefix}grad_norm"] = lambda v: v[place]
            if limit is not None:
                # As torch clips: by limit / (norm + 1e-6), and by nothing below 1.
                shown[f"{prefix}grad_norm_clipped"] = lambda v: v[place] * min(1.0, limit / (v[place] + 1e-6))
        if after is not None:
            clipped = reading.add(after)
            shown[f"{prefix}grad_norm_clipped"] = lambda v: v[clipped]

    def _add_groups(
        self, prefix: str, index: int, optimizer: Optimizer, reading: Reading, shown: dict[str, Any]
    ) -> None:
        ratios: list[Callable[[list[float]], float]] = []
        for i, (group, rates) in enumerate(zip(optimizer.param_groups, self._rates[index], strict=True)):
            name = f"{prefix}{group.get('name', i)}"
            for word, rate in zip(("lr", "weight_decay"), rates, strict=True):
                shown[f"{name}/{word}"] = later(rate, reading)
            sizes, changes, spread = [], [], None
            for p in group["params"]:
                before = self._began[index].get(p)
                if before is None or index not in self._stepped:
                    continue
                change = local(p).detach() - before
                sizes.append(reading.add_square(before, p))
                changes.append(reading.add_square(change, p))
                if spread is None and (p.ndim == 2 or p.ndim > 3) and min(p.shape[0], p[0].numel()) > 1:
                    spread = reading.add(effective_rank(whole_update(change, p)))
                if type(optimizer).__name__ == "Lamb":
                    ratios += self._lamb(group, optimizer.state[p], p, before, changes[-1], rates[0], reading)
            if sizes:
                shown[f"{name}/update_to_weight"] = ratio(changes, sizes)
            if spread is not None:
                shown[f"{name}/effective_rank"] = lambda v, place=spread: v[place]
        ratios += self._lars(index, reading, shown.get(f"{prefix}grad_norm"), shown.get(f"{prefix}grad_norm_clipped"))
        if ratios:
            shown[f"{prefix}trust_ratio_min"] = lambda v: min(of(v) for of in ratios)
            shown[f"{prefix}trust_ratio_max"] = lambda v: max(of(v) for of in ratios)

    def _lamb(
        self, group: Any, state: Any, p: Tensor, before: Tensor, changed: int, lr: Any, reading: Reading
    ) -> list[Callable[[list[float]], float]]:
        """|update| = lr x ratio x |direction|."""
        direction = lamb_direction(group, state, before)
        if direction is None or isinstance(lr, Tensor) or not lr:
            return []
        place = reading.add_square(direction, p)
        return [lambda v: math.sqrt(v[changed] / v[place]) / lr if v[place] else math.nan]

    def _lars(self, index: int, reading: Reading, norm: Any, clipped: Any) -> list[Callable[[list[float]], float]]:
        """trust_coeff |w| / (|g| + wd |w| + eps), with the clipped gradient; 1 where either norm is 0."""
        found: list[Callable[[list[float]], float]] = []
        for group, p, gradient in self._trust.get(index, ()):
            if group["trust_clip"]:
                continue
            g, w = reading.add_square(gradient, p), reading.add_square(self._began[index][p], p)

            def of(v: list[float], g: int = g, w: int = w, group: Any = group) -> float:
                share = clipped(v) / norm(v) if clipped and norm and norm(v) else 1.0
                size, slope = math.sqrt(v[w]), math.sqrt(v[g]) * share
                adapted = group["trust_coeff"] * size / (slope + group["weight_decay"] * size + group["eps"])
                return float(adapted) if size and slope else 1.0

            found.append(of)
        return found

    def _add_ema(self, trainer: Any, reading: Reading, shown: dict[str, Any]) -> None:
        """Where the averages lie on the device of the weights; others would have to be copied there."""
        owners = [c if isinstance(c, EMA) else getattr(c, "ema", None) for c in trainer.callbacks]
        averages = next((o._averages for o in owners if isinstance(o, EMA) and o._averages is not None), None)
        if averages is None:
            return
        wanted = {p for noted in self._began.values() for p in noted}
        distances, sizes = [], []
        for entry in averages.entries.values():
            p = entry.parameter
            if p in wanted and entry.shadow.device == local(p).device:
                distances.append(reading.add_square(local(p).detach() - entry.shadow, p))
                sizes.append(reading.add_square(local(p).detach(), p))
        if sizes:
            shown["optim/ema_distance"] = ratio(distances, sizes)

    def _throughput(self, trainer: Any) -> dict[str, float]:
        now = time.perf_counter()
        steps, seconds = self._steps - self._at, now - self._clock
        self._at, self._clock = self._steps, now
        rate = steps / seconds if seconds > 0 else math.nan
        size = loader_batch_size(trainer.train_dataloader)
        if size is None:
            return {"optim/steps_per_second": rate}
        samples = size * trainer.accumulate_grad_batches * data_parallel_size(trainer)
        return {"optim/steps_per_second": rate, "optim/samples_per_second": rate * samples}
