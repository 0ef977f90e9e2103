"""A data module that resumes exactly: where Lightning and the loaders of `loader.py` meet.

Lightning restores the state of a loader only from a checkpoint that was written inside an epoch (`FitLoop`
skips it unless the loop is `restarting`), but it restores a data module always. So the position is kept here
as well. Lightning 2.4 counts one micro-batch too few after a resume inside an epoch: the stream continues
exactly there too, but that epoch is one batch longer and an accumulation one shorter; 2.5 counts right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import Dataset

from lit_opt.errors import RecipeError
from lit_opt.workloads.loader import EvaluationLoader, ResumableLoader
from lit_opt.workloads.require import whole_number_problems


class ResumableDataModule(LightningDataModule):
    """A data module whose training batches continue exactly after a resume; say which data in `datasets`.

    Args:
        batch_size: Samples in a batch of one process, Lightning's convention: the global batch is this times
            the number of processes times `accumulate_grad_batches`.
        val_batch_size: The same for validation; by default `batch_size`.
        seed: Decides the order of the samples and their augmentation.
        num_workers: Worker processes of each loader.

    Raises:
        RecipeError: An argument is out of range.

    Example:
        >>> class Numbers(ResumableDataModule):
        ...     def datasets(self):
        ...         return range(100), range(100, 110)
        >>> data = Numbers(batch_size=10)
        >>> data.setup("fit")
        >>> len(data.train_dataloader()), len(data.val_dataloader())
        (10, 1)
    """

    def __init__(
        self, *, batch_size: int, val_batch_size: int | None = None, seed: int = 0, num_workers: int = 0
    ) -> None:
        super().__init__()
        sizes = {"batch_size": batch_size} | ({} if val_batch_size is None else {"val_batch_size": val_batch_size})
        problems = whole_number_problems(1, **sizes)
        problems += whole_number_problems(0, seed=seed, num_workers=num_workers)
        if problems:
            raise RecipeError(problems)
        self.batch_size = batch_size
        self.val_batch_size = batch_size if val_batch_size is None else val_batch_size
        self.seed = seed
        self.num_workers = num_workers
        self._datasets: tuple[Any, Any] | None = None
        self._train_loader: ResumableLoader | None = None
        self._restored: dict[str, int] = {}

    def datasets(self) -> tuple[Dataset[Any] | Sequence[Any], Dataset[Any] | Sequence[Any]]:
        """The training and the validation data; called once, in every process."""
        raise NotImplementedError(f"{type(self).__name__} must define datasets()")

    def setup(self, stage: str) -> None:
        """Load the data once. A new `fit` starts at the first batch, unless a checkpoint says otherwise."""
        if self._datasets is None:
            self._datasets = self.datasets()
        if stage == "fit":
            self._train_loader, self._restored = None, {}

    def train_dataloader(self) -> ResumableLoader:
        """The shuffled stream; where Lightning asks again within a run, it goes on from the same position.

        Raises:
            RecipeError: The Trainer has `overfit_batches`, which needs the same batches in every epoch.
        """
        overfit = getattr(self.trainer, "overfit_batches", 0)
        if overfit:
            raise RecipeError(
                [
                    f"overfit_batches={overfit}: this stream brings new batches in every epoch. Leave it out,"
                    " and let datasets() return a few samples instead."
                ]
            )
        state = self.state_dict()
        self._train_loader = ResumableLoader(
            self._loaded()[0],
            batch_size=self.batch_size,
            seed=self.seed,
            num_workers=self.num_workers,
            **self._share(),
        )
        self._train_loader.load_state_dict(state)
        return self._train_loader

    def val_dataloader(self) -> EvaluationLoader:
        """The validation data in order, each sample once over all processes."""
        return EvaluationLoader(
            self._loaded()[1], batch_size=self.val_batch_size, num_workers=self.num_workers, **self._share()
        )

    def state_dict(self) -> dict[str, int]:
        """The position in the training stream; Lightning stores it in every full checkpoint."""
        return self._restored if self._train_loader is None else self._train_loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue at a stored position."""
        self._restored = state_dict
        if self._train_loader is not None:
            self._train_loader.load_state_dict(state_dict)

    def _loaded(self) -> tuple[Any, Any]:
        if self._datasets is None:
            self._datasets = self.datasets()
        return self._datasets

    def _share(self) -> dict[str, int]:
        """Our part of the data. Not by world size: processes of one tensor-parallel group share batches."""
        sampler = self.trainer.distributed_sampler_kwargs if self.trainer is not None else None
        return {"rank": sampler["rank"], "world_size": sampler["num_replicas"]} if sampler else {}
