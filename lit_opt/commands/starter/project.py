"""One row of `lit-opt new`: which workload, what is taken of its source, and what the project says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lit_opt.commands.generate_configs import Workload
from lit_opt.commands.starter.source import Source


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """How the test of a fine-tuning project makes a model to begin with.

    Args:
        recipe: What it is trained by.
        arguments: Of the recipe.
        save: Code that saves `model` at `folder`.
        load: Code that makes the model to be fine-tuned.
        model: Arguments of the model that is saved.
        renamed: (new, old) parts of the names of weights in the fine-tuned model.
    """

    recipe: str
    arguments: Mapping[str, Any]
    save: str
    load: str
    model: Mapping[str, Any] = field(default_factory=dict)
    renamed: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Project:
    """One row of `lit-opt new`.

    Args:
        line: What it is, for the list.
        recipe: Its recipe.
        work: The shipped config's workload, whose classes become `model.X` and `data.Y`.
        model: What model.py is made of.
        data: What data.py is made of.
        small_model: Arguments of the model in the project's test.
        small_data: Arguments of the data in the project's test.
        steps: Training steps of the test.
        falls_to: Share of the first validation loss that the last one has to be below.
        test_recipe: Arguments of the recipe in the test.
        test_trainer: Arguments of the Trainer in the test.
        shapes: Lines of the test of shapes, which have `model` and `batch`.
        pretrain: How the test makes a model to fine-tune.
        own_data: For the README: what to change to use one's own data.
        own_model: For the README: what to change next.
    """

    line: str
    recipe: str
    work: Workload
    model: Source
    data: tuple[Source, ...]
    small_model: Mapping[str, Any]
    small_data: Mapping[str, Any]
    steps: int
    falls_to: float
    test_recipe: Mapping[str, Any]
    shapes: tuple[str, ...]
    own_data: str
    own_model: str
    test_trainer: Mapping[str, Any] = field(default_factory=dict)
    pretrain: Pretraining | None = None

    @property
    def model_class(self) -> str:
        """Name of the class in model.py."""
        return self.work.model.rpartition(".")[2]

    @property
    def data_class(self) -> str:
        """Name of the class in data.py."""
        return self.work.data.rpartition(".")[2]
