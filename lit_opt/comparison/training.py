"""Module and data of a run put into a Trainer whose batches, evaluations and end are those of the protocol."""

from __future__ import annotations

import functools
import logging
import signal
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_helpers import is_overridden

from lit_opt.callbacks.recipe import Recipe
from lit_opt.comparison.data_order import OrderedLoader, inject_generator
from lit_opt.comparison.observer import Observer
from lit_opt.comparison.ranks import place
from lit_opt.comparison.seeds import seed_all, stream
from lit_opt.comparison.task import Task, call_with_seed
from lit_opt.errors import RecipeError


@contextmanager
def quiet() -> Iterator[None]:
    """Lightning's log, and the warnings it gives anew in each run, are left out inside.

    Example:
        >>> with quiet():
        ...     warnings.warn("nobody sees this")
    """
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lit_opt")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def train(
    task: Task, recipe: Recipe, observer: Observer, seed: int, *, sanity: int = -1, callbacks: tuple[Any, ...] = ()
) -> None:
    """Build everything from a seed and fit; what is learned stands in the observer and the recipe.

    Args:
        task: How modules and data are made.
        recipe: Of this run.
        observer: Its steps and metric are the Trainer's.
        seed: Of the run.
        sanity: Validation batches before the training; -1 all.
        callbacks: More of them.

    Raises:
        RecipeError: The module or the data cannot be compared.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel
        >>> class Model(BoringModel):
        ...     def validation_step(self, batch, batch_idx):
        ...         self.log("val_loss", self(batch).square().mean())
        >>> task = Task(Model, BoringDataModule, {}, {"accelerator": "cpu"})
        >>> recipe = Recipe("llm", on_nonfinite="ignore")
        >>> train(task, recipe, observer := Observer(recipe, "val_loss", 4, (0, 2, 4), seed=1), 1)
        >>> [reading.step for reading in observer.readings]
        [0, 2, 4]
    """
    data, module = build(task, seed)
    order_batches(module, data, observer, seed)
    seed_noise(module, observer)
    accumulation = int(task.trainer.get("accumulate_grad_batches", 1))
    every = observer.eval_steps[1] - observer.eval_steps[0]
    # What a module writes beside the log, such as pictures, goes with the run: nothing is kept but the readings.
    with quiet(), _lightnings_words(), tempfile.TemporaryDirectory(prefix="lit-opt-compare-") as scratch:
        trainer = Trainer(
            **{
                "accelerator": "auto",
                "devices": 1,
                "default_root_dir": scratch,
                **task.trainer,
                **_on_ranks(task.trainer),
            },
            max_steps=observer.budget_steps,
            max_epochs=-1,
            val_check_interval=every * accumulation,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=sanity,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[recipe, observer, *callbacks],
        )
        if isinstance(data, tuple):
            trainer.fit(module, observer.loader, data[1])
        else:
            trainer.fit(module, datamodule=data)


def _on_ranks(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """What the Trainer of one of several processes is given besides."""
    if place().world == 1:
        return {}
    strategy = trainer.get("strategy", "auto")
    # Under SLURM and others Lightning would take the numbers of the processes from there.
    plugins = [*(trainer.get("plugins") or []), LightningEnvironment()]
    return {"strategy": "ddp" if strategy == "auto" else strategy, "plugins": plugins}


@contextmanager
def _lightnings_words() -> Iterator[None]:
    """What Lightning says of a configuration is the user's to mend; and Ctrl-C stays Ctrl-C."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stop:
        # Lightning ignores further interrupts from the first on, and exits with code 1 after its shutdown.
        if not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, before)
        raise KeyboardInterrupt from None
    except MisconfigurationException as error:
        raise RecipeError([f"Lightning: {error}"]) from error


def build(task: Task, seed: int) -> tuple[Any, LightningModule]:
    """Data and module of a seed.

    Raises:
        RecipeError: They cannot be compared; each reason with its remedy.

    Example:
        >>> build(Task(lambda: 3, None, {}), 0)
        Traceback (most recent call last):
            ...
        lit_opt.errors.RecipeError: make_module: it returned int, and a LightningModule is needed.
    """
    seed_all(stream(seed, "data"))
    data = call_with_seed(task.make_datamodule, seed) if task.make_datamodule is not None else None
    seed_all(stream(seed, "init"))
    module = call_with_seed(task.make_module, seed)
    problems = []
    if not isinstance(module, LightningModule):
        problems.append(f"make_module: it returned {type(module).__name__}, and a LightningModule is needed.")
    else:
        problems += _module_problems(module)
    if isinstance(data, list):
        data = tuple(data)
    fits = data is None or isinstance(data, LightningDataModule) or (isinstance(data, tuple) and len(data) == 2)
    if not fits:
        problems.append(
            f"make_datamodule: it returned {type(data).__name__}. Return a LightningDataModule, or a pair "
            "(training loader, validation loader); leave it out where the module has its loaders itself."
        )
    elif not problems:
        source = module if data is None else data
        hooks = () if isinstance(data, tuple) else ("train_dataloader", "val_dataloader")
        missing = [hook for hook in hooks if not is_overridden(hook, source)]
        if missing:
            problems.append(
                f"{type(source).__name__}: has no {' and no '.join(missing)}. A comparison trains on one and decides by the other."
            )
    if problems:
        raise RecipeError(problems)
    return data, module


def _module_problems(module: LightningModule) -> list[str]:
    name, problems = type(module).__name__, []
    if not module.automatic_optimization:
        problems.append(
            f"{name}: automatic_optimization is False (manual optimization), so the module steps by itself and the arms "
            "could not be told apart. Return the loss from training_step and leave automatic_optimization on; models with "
            "several losses and optimizers (GANs) cannot be compared here."
        )
    if not is_overridden("validation_step", module):
        problems.append(
            f"{name}: has no validation_step, and the arms are compared by what it logs. Add one with "
            "self.log('val_loss', loss)."
        )
    return problems


def order_batches(module: LightningModule, data: Any, observer: Observer, seed: int) -> None:
    """Make the loaders' order a function of the seed, and tell the observer where the training batches come from.

    Args:
        module: Has the loaders where there are no data.
        data: A data module, a pair of loaders, or None.
        observer: Its `loader` is set, at the latest when Lightning asks for the loader.
        seed: Of the run.

    Example:
        >>> order_batches.__name__  # what it does shows in a fit; see `train`
        'order_batches'
    """
    if isinstance(data, tuple):
        observer.loader = OrderedLoader(data[0], seed)
        _inject(data[1], seed)
        return
    source: Any = module if data is None else data
    train_loader, val_loader = source.train_dataloader, source.val_dataloader

    def train_dataloader() -> OrderedLoader:
        observer.loader = OrderedLoader(train_loader(), seed)
        return observer.loader

    def val_dataloader() -> Any:
        loaders = val_loader()
        _inject(loaders, seed)
        return loaders

    source.train_dataloader, source.val_dataloader = train_dataloader, val_dataloader


def seed_noise(module: LightningModule, observer: Observer) -> None:
    """Seed the model's noise inside the optimizer's step: it may draw numbers before it calls the closure.

    Args:
        module: Its training_step and optimizer_step are wrapped.
        observer: Knows the batch, and its seed.

    Example:
        >>> seed_noise.__name__  # what it does shows in a fit; see `train`
        'seed_noise'
    """
    one_pass, one_step = module.training_step, module.optimizer_step

    @functools.wraps(one_pass)
    def training_step(*args: Any, **kwargs: Any) -> Any:
        observer.before_pass(args[0] if args else None)
        return one_pass(*args, **kwargs)

    @functools.wraps(one_step)
    def optimizer_step(*args: Any, **kwargs: Any) -> Any:
        observer.before_step()
        return one_step(*args, **kwargs)

    module.training_step, module.optimizer_step = training_step, optimizer_step  # type: ignore[method-assign]


def _inject(loaders: Any, seed: int) -> None:
    inner = (
        loaders.values() if isinstance(loaders, dict) else loaders if isinstance(loaders, list | tuple) else [loaders]
    )
    for loader in inner:
        inject_generator(loader, stream(seed, "validation"))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the run did not fit into memory.

    Example:
        >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("shapes differ"))
        (True, False)
    """
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in words)
