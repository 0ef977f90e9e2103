"""From the arguments of a verb to the model, the data and the recipe of a config, without a Trainer.

`lit-opt plan` and `lit-opt check` read the configs of `lit-opt fit` on any machine: a config for eight GPUs works on a
laptop, since no Trainer is built. The parser and what it says of a mistake are those of `fit`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_helpers import is_overridden

from lit_opt.callbacks.recipe import Recipe
from lit_opt.commands.config_files import check_checkpoint, config_contents, expand_configs
from lit_opt.commands.fit import RecipeCLI, recipe_error_in
from lit_opt.commands.fit_errors import parse_problems
from lit_opt.errors import RecipeError

# Where a config may name the recipe as a callback.
_RECIPE_CLASSES = ("lit_opt.Recipe", "lit_opt.callbacks.recipe.Recipe")


@dataclass(frozen=True, kw_only=True)
class Project:
    """What a config says.

    Args:
        model: The LightningModule; its `configure_model` has been called.
        datamodule: Of the section `data:`, or None.
        recipe: Of the section `recipe:`, or of the Trainer's callbacks; None where there is none.
        trainer: The section `trainer:` with Lightning's defaults filled in: plain data, classes as dicts with
            "class_path" and "init_args". `lit_opt.preflight.facts.foresee` reads it.
        on_meta: The model has no memory: it lies on the meta device.
        section: The section `model:`, with "class_path" and "init_args".
        notes: What went otherwise than asked, in sentences.
    """

    model: LightningModule
    datamodule: LightningDataModule | None
    recipe: Recipe | None
    trainer: dict[str, Any]
    on_meta: bool = False
    section: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = field(default=())


def load_project(
    args: Sequence[str],
    *,
    verb: str,
    meta: bool = False,
    recipe: Literal["required", "optional"] = "required",
) -> Project:
    """Read a config and build what it names, except the Trainer.

    Args:
        args: Of the verb, without it: `--config NAME_OR_FILE` and overrides such as `--recipe.lr=1e-3`,
            `--trainer.max_steps=10`, `--model=...`, `--data=...`.
        verb: For messages: "See `lit-opt VERB --help`".
        meta: Build the model on the meta device, without memory; where that fails, on the CPU, with a note.
        recipe: "optional" also takes a config without a recipe.

    Raises:
        RecipeError: Whatever the user can mend, in one message, as from `lit-opt fit`.
    """
    expanded = expand_configs(["fit", *args], verb=verb)
    try:
        config = _ConfigCLI(expanded, verb=verb, with_recipe=_has_recipe(expanded, recipe)).config["fit"]
        trainer = config["trainer"].as_dict()
        # First, since the model may take long to build.
        ours = Recipe(**config["recipe"].as_dict()) if "recipe" in config else _recipe_among(trainer.get("callbacks"))
        notes: list[str] = []
        model, on_meta = _model(config, meta, notes)
        data = built(LightningDataModule, "data", config)
    except MisconfigurationException as error:
        raise RecipeError([f"Lightning: {error}"]) from error
    except ValueError as error:
        # The parser wraps what a class refuses in its __init__.
        raise recipe_error_in(error) or error from None
    section = config["model"].as_dict() if config.get("model") is not None else {}
    return Project(
        model=model,
        datamodule=data,
        recipe=ours,
        trainer=trainer,
        on_meta=on_meta,
        section=section,
        notes=tuple(notes),
    )


class _ConfigCLI(RecipeCLI):
    """The parser of `fit` alone: what it reads is in `config`, and nothing is built or run."""

    def __init__(self, args: list[str], *, verb: str, with_recipe: bool) -> None:
        self.verb, self.with_recipe = verb, with_recipe
        quiet: dict[str, Any] = {"exit_on_error": False, "allow_abbrev": False}
        super().__init__(
            args=args,
            auto_configure_optimizers=False,
            save_config_callback=None,
            parser_kwargs={"prog": "lit-opt", **quiet, "fit": quiet},
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {"fit": RecipeCLI.subcommands()["fit"]}

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        if self.with_recipe:
            super().add_core_arguments_to_parser(parser)
        else:
            super(RecipeCLI, self).add_core_arguments_to_parser(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        known = list(self._subcommand_parsers["fit"]._option_string_actions)
        try:
            self.config = parser.parse_args(args)
        except argparse.ArgumentError as error:
            problems = parse_problems(error.message, "fit", known, args)
            raise RecipeError(
                [text.replace("lit-opt fit --help", f"lit-opt {self.verb} --help") for text in problems]
            ) from None
        check_checkpoint(self.config["fit"].get("ckpt_path"))

    def _set_seed(self) -> None:
        """Nothing is trained."""

    def instantiate_classes(self) -> None:
        """`load_project` builds the model and the data."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing is run."""


def _has_recipe(args: Sequence[str], recipe: str) -> bool:
    """Whether the parser has to know a section `recipe:`."""
    contents = list(config_contents(args))
    if any(arg.startswith("--recipe") for arg in args) or any("recipe" in content for content in contents):
        return True
    among_callbacks = any(
        isinstance(entry, Mapping) and entry.get("class_path") in _RECIPE_CLASSES
        for content in contents
        for entry in _as_list((content.get("trainer") or {}).get("callbacks"))
    )
    return recipe == "required" and not among_callbacks


def _model(config: Namespace, meta: bool, notes: list[str]) -> tuple[LightningModule, bool]:
    """The model with its layers, and whether it is on the meta device."""
    if meta:
        try:
            return _with_layers(config, torch.device("meta")), True
        except Exception as error:  # somebody else's code: whatever fails on meta may work on the CPU
            if recipe_error_in(error) is not None:
                raise
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
            notes.append(f"model: it cannot be built on the meta device ({reason}), so it was built on the CPU.")
    return _with_layers(config, None), False


def _with_layers(config: Namespace, device: torch.device | None) -> LightningModule:
    with device or nullcontext():
        model: LightningModule = built(LightningModule, "model", config)
        if is_overridden("configure_model", model, LightningModule):
            model.configure_model()
    return model


def parse_config(args: Sequence[str], *, verb: str) -> Namespace:
    """Read a config, with or without a recipe, and build nothing.

    Args:
        args: Of the verb, without it.
        verb: For messages.

    Returns:
        The sections "trainer", "model", "data" and "recipe"; what the config does not name is None or missing.

    Raises:
        RecipeError: What is wrong with it, in one message.
    """
    expanded = expand_configs(["fit", *args], verb=verb)
    config: Namespace = _ConfigCLI(expanded, verb=verb, with_recipe=_has_recipe(expanded, "optional")).config["fit"]
    return config


def built(base: type, key: str, config: Namespace) -> Any:
    """The object that a section names, None where there is no such section.

    Args:
        base: Of its class.
        key: Of the section.
        config: With it.
    """
    if config.get(key) is None:
        return None
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_lightning_class_args(base, key, subclass_mode=True, required=False)
    return parser.instantiate_classes(Namespace({key: config[key]}))[key]


def _recipe_among(callbacks: Any) -> Recipe | None:
    for entry in _as_list(callbacks):
        if isinstance(entry, Mapping) and entry.get("class_path") in _RECIPE_CLASSES:
            return Recipe(**(entry.get("init_args") or {}))
    return None


def _as_list(given: Any) -> list[Any]:
    return [] if given is None else list(given) if isinstance(given, list | tuple) else [given]
