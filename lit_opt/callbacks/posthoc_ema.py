"""`PostHocEMA`: keep snapshots from which averages of any length are put together after training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from lit_opt.averaging import Averages
from lit_opt.averaging.posthoc import PATTERN, power_decay, power_gamma, write_snapshot
from lit_opt.averaging.shards import clean_name, gathered, reshard
from lit_opt.callbacks.ema_checks import optimizer_problems, strategy_problem
from lit_opt.callbacks.ema_support import follow_module
from lit_opt.errors import RecipeError

KEY = "lit_opt_posthoc_ema"


class PostHocEMA(Callback):
    """Two power-function averages of the weights, written to a folder every so many steps.

    After training `lit_opt.averaging.reconstruct(folder, sigma_rel=0.08)` gives the weights that an average of that
    length would have, at any step with a snapshot, so the length need not be chosen before. The average of length
    sigma_rel has most of its weight in the last 2 sigma_rel of the run so far.

    It never touches the model: validation uses whatever the model holds, also the averages of an `EMA` beside it. Two
    averages in float32 (or wider) are kept in memory, and each snapshot holds both: 8 bytes a parameter. On a
    random walk with drift, 16 snapshots leave an error below 2 % of the distance to the last weights for lengths from
    0.03 to 0.25, and below 0.2 % from 0.05 to 0.15 (8 snapshots: ten times as much).

    Only real optimizer steps count. A resume is exact: the averages lie in the checkpoint (not with save_weights_only),
    and snapshots after the resumed step are written anew. FSDP2 and DDP are supported, FSDP1 and DeepSpeed refused.

    Args:
        folder: Where snapshots are written, by one process. A new run needs a folder without any.
        every: Optimizer steps from one snapshot to the next; the last step always has one.
        sigma_rel: Lengths to keep, as fractions of the run so far: two of them span the others.
        offload: Keep the averages in CPU memory.

    Raises:
        RecipeError: An argument out of bounds; at the start of `fit`, a folder with another run's snapshots, or a strategy
            or an optimizer that cannot be averaged.

    Source: https://arxiv.org/abs/2312.02696, section 3 and appendix C.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[PostHocEMA("snapshots", every=1000)], accelerator="cpu", logger=False)
    """

    def __init__(
        self, folder: str | Path, *, every: int, sigma_rel: Sequence[float] = (0.05, 0.10), offload: bool = False
    ) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise RecipeError([f"PostHocEMA: every={every!r} is not a number of optimizer steps from 1 up."])
        if len(set(sigma_rel)) < 2:
            raise RecipeError(
                [f"PostHocEMA: sigma_rel={sigma_rel!r}: at least two lengths are needed, such as 0.05, 0.10."]
            )
        self.folder = Path(folder)
        self.every = every
        self.gammas = {float(length): power_gamma(length) for length in sigma_rel}
        self.offload = offload
        self.steps = 0
        """Real optimizer steps so far."""
        self._tracks: dict[float, Averages] = {}
        self._loaded: dict[str, Any] | None = None
        self._stepped = False
        self._written = 0
        self._take_off: list[Callable[[], None]] = []

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse strategies under which weights have no names."""
        flat = strategy_problem(trainer, shards=False) if stage == "fit" else ""
        if flat:
            raise RecipeError([f"PostHocEMA: {flat}, or remove it."])

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Take note of the averages; the module may not be wrapped or loaded yet."""
        self._loaded = checkpoint.get(KEY)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin, or continue from a checkpoint."""
        problems = optimizer_problems(trainer)
        if problems:
            raise RecipeError(problems)
        loaded, self._loaded = self._loaded, None
        continued = bool(self._tracks) and self._module() is pl_module and trainer.global_step
        if not continued:
            self._tracks, self.steps, self._written = {}, 0, 0
        if loaded is not None:
            self._restore(pl_module, loaded)
        elif not continued:
            if any(self.folder.glob(PATTERN)):
                raise RecipeError(
                    [
                        f"PostHocEMA: {str(self.folder)!r} holds snapshots of another run. Give a new folder, or empty it."
                    ]
                )
            if trainer.global_step:
                rank_zero_info("PostHocEMA: the checkpoint has no averages; they start here, at step 1 of their own.")
            self._tracks = {length: Averages(pl_module, self.offload) for length in self.gammas}
        self._stepped = False
        for optimizer in trainer.optimizers:
            self._take_off.append(optimizer.register_step_post_hook(self._on_step).remove)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Take in parameters that were unfrozen."""
        for averages in self._tracks.values():
            follow_module(averages)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Average, if an optimizer stepped; write a snapshot when it is due."""
        self._update()
        if self.steps and self.steps % self.every == 0 and self._written != self.steps:
            self._snapshot(trainer, pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Write the last snapshot."""
        if self.steps and self._written != self.steps:
            self._snapshot(trainer, pl_module)
        rank_zero_info(
            f"PostHocEMA: averages of {self.steps} steps, lengths {', '.join(map(str, self.gammas))}. For any other: "
            f"lit_opt.averaging.reconstruct({str(self.folder)!r}, sigma_rel=...)."
        )

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Put the averages into the checkpoint; sharded ones are gathered by all processes."""
        if not self._tracks:
            return
        self._update()
        tracks = {length: self._whole(averages) for length, averages in self._tracks.items()}
        checkpoint[KEY] = {"steps": self.steps, "tracks": tracks}

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Take the hooks off the optimizers."""
        self._detach()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Take the hooks off the optimizers; Lightning calls no teardown after an exception."""
        self._detach()

    def _module(self) -> Any:
        return next(iter(self._tracks.values())).module

    def _on_step(self, optimizer: Any, args: object, kwargs: object) -> None:
        overflow = getattr(optimizer, "found_inf", None)
        self._stepped |= overflow is None or not bool(overflow)

    def _update(self) -> None:
        if not self._stepped:
            return
        self._stepped = False
        self.steps += 1
        for length, averages in self._tracks.items():
            averages.update(power_decay(self.steps, self.gammas[length]))

    def _restore(self, module: Any, loaded: dict[str, Any]) -> None:
        if set(loaded["tracks"]) != set(self.gammas):
            raise RecipeError(
                [
                    f"PostHocEMA: the checkpoint has averages of lengths {sorted(loaded['tracks'])}, and sigma_rel is "
                    f"{sorted(self.gammas)}. Give those of the checkpoint."
                ]
            )
        self.steps = self._written = loaded["steps"]
        for length in self.gammas:
            self._tracks[length] = Averages(module, self.offload)
            missing = self._tracks[length].load(loaded["tracks"][length])
            if missing:
                rank_zero_info(
                    f"PostHocEMA: the checkpoint has no average of {', '.join(missing[:3])}; it starts anew."
                )

    def _snapshot(self, trainer: Any, module: Any) -> None:
        tracks = {length: self._whole(averages) for length, averages in self._tracks.items()}
        averaged = next(iter(tracks.values())).keys()
        reshard(module)
        with torch.no_grad():
            rest = {
                clean_name(name): gathered(value.detach())
                for name, value in module.state_dict().items()
                if isinstance(value, Tensor) and clean_name(name) not in averaged
            }
        if trainer.is_global_zero:
            write_snapshot(self.folder, self.steps, tracks, rest)
        self._written = self.steps

    def _whole(self, averages: Averages) -> dict[str, Tensor]:
        return {name: averages.whole(name) for name in averages.entries}

    def _detach(self) -> None:
        while self._take_off:
            self._take_off.pop()()
