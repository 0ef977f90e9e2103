"""After a resume, the batches and random draws of the uninterrupted run.

Lightning hands the loaders their saved positions when it sets them up. A recipe needs the loaders earlier, in
`configure_optimizers`, to know the horizon (so does any call of `estimated_stepping_batches`), and the positions are
then never handed over. And a loader draws from the global generators when it is iterated: at the end of an epoch that
draw comes after the checkpoint, in the middle of one it came before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Replay:
    """Puts loaders and random states in place once, at the moment that fits where the checkpoint was written.

    Args:
        trainer: A Trainer that has loaded a checkpoint.
        restore_rng: Sets the random states of the checkpoint.
    """

    def __init__(self, trainer: Any, restore_rng: Callable[[], None]) -> None:
        self._trainer, self._restore_rng = trainer, restore_rng
        self._done = False

    def is_mid_epoch(self) -> bool:
        """Whether the checkpoint was written between two batches of one epoch."""
        seen = self._trainer.fit_loop.epoch_loop.batch_progress.current.ready
        return bool(0 < seen < self._trainer.num_training_batches)

    def train_start(self) -> None:
        """Before the first epoch: in the middle of one, its iterator was made before the checkpoint."""
        loop = self._trainer.fit_loop
        if self.is_mid_epoch():
            self._iterate()
            self._finish()
        elif getattr(loop, "restarted_mid_epoch", False) and _is_counted(loop):
            # Written after an epoch's last batch: Lightning goes on with the next one and calls no epoch hook.
            self._finish()
            self._iterate()

    def epoch_start(self) -> None:
        """At the start of an epoch: its iterator was made after the checkpoint."""
        if self._done:
            return
        self._finish()
        loop = self._trainer.fit_loop
        resuming = getattr(loop, "is_resuming", False) or loop.epoch_loop.restarting
        if self._trainer.current_epoch == 0 or resuming:
            self._iterate()
        else:  # Lightning itself makes the iterator, right after this.
            self._load_loaders()

    def _iterate(self) -> None:
        self._load_loaders()
        iter(self._trainer.fit_loop._data_fetcher)

    def _load_loaders(self) -> None:
        loop = self._trainer.fit_loop
        if loop._combined_loader_states_to_load:
            loop._combined_loader._load_state_dicts(loop._combined_loader_states_to_load)
            loop._combined_loader_states_to_load = []

    def _finish(self) -> None:
        self._done = True
        self._restore_rng()


def _is_counted(loop: Any) -> bool:
    """Whether Lightning counts the epoch of the checkpoint as processed."""
    return bool(loop.epoch_progress.current.processed == loop.epoch_progress.current.ready)
