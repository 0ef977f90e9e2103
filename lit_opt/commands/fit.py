"""`lit-opt fit | validate | test | predict`: Lightning's CLI with a `recipe:` section, and clear errors.

Loads torch and lightning, so `lit_opt.cli` imports it only for these verbs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from jsonargparse import DefaultHelpFormatter
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lit_opt.callbacks.recipe import Recipe
from lit_opt.commands.closing_report import ClosingReport
from lit_opt.commands.config_files import check_checkpoint
from lit_opt.commands.fit_errors import parse_problems
from lit_opt.commands.last_checkpoint import find_last
from lit_opt.errors import RecipeError

SEED = 0

USAGE = "lit-opt {verb} --config NAME_OR_FILE [--recipe.FIELD=VALUE] [--trainer.FIELD=VALUE] ..."

EXAMPLES = """\
{does} A config is a YAML file or the name of a shipped one; arguments win over it.

examples:
  lit-opt {verb} --config llm
  lit-opt {verb} --config mine.yaml --recipe.lr=1e-3 --trainer.max_steps=500
  lit-opt {verb} --config llm --ckpt_path=last
  lit-opt {verb} --config llm --ckpt_path=path/to/last.ckpt
  lit-opt {verb} --config llm --print_config
  lit-opt {verb} --recipe.name=cnn --model=my_package.MyModel --data=my_package.MyData"""

VERBS = {
    "fit": "Train with a recipe.",
    "validate": "Validate; the config is that of fit.",
    "test": "Test; the config is that of fit.",
    "predict": "Predict; the config is that of fit.",
}


class _Formatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """jsonargparse's help, with our examples left in their lines."""


class RecipeCLI(LightningCLI):
    """Lightning's CLI; the `recipe` section becomes a callback, and what is wrong is one `RecipeError`."""

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The section `recipe:` with every argument of `lit_opt.Recipe`, first in the help; then Lightning's."""
        parser.add_lightning_class_args(Recipe, "recipe")
        super().add_core_arguments_to_parser(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and say what is wrong in one message; then look at the checkpoint, before anything is built."""
        verb = args[0]
        known = list(self._subcommand_parsers[verb]._option_string_actions)
        try:
            self.config = parser.parse_args(args)
        except argparse.ArgumentError as error:
            raise RecipeError(parse_problems(error.message, verb, known, args)) from None
        Recipe(**self.config[verb]["recipe"].as_dict())  # its own checks, before anything else is built
        if self.config[verb].get("ckpt_path") == "last":
            self.config[verb]["ckpt_path"] = find_last(self.config[verb]["trainer"])
        check_checkpoint(self.config[verb].get("ckpt_path"))
        if "weights_only" in self.config[verb] and self.config[verb]["weights_only"] is None:
            # Lightning's default runs the code of a checkpoint that comes by http.
            self.config[verb]["weights_only"] = True

    def _parse_ckpt_path(self) -> None:
        # Recent versions of Lightning take the model's arguments from the checkpoint.
        inherited = getattr(super(), "_parse_ckpt_path", None)
        try:
            if inherited is not None:
                inherited()
        except argparse.ArgumentError as error:
            raise RecipeError(
                [
                    f"ckpt_path: the model's arguments in the checkpoint do not fit this model ({error.message}). "
                    "Give the checkpoint of a run with the same model."
                ]
            ) from None

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The Trainer; what it refuses is the user's to mend."""
        try:
            return super().instantiate_trainer(**kwargs)
        except (ValueError, TypeError) as error:
            if isinstance(error, RecipeError):
                raise
            raise RecipeError([f"trainer: {error}{_remedy(str(error))}"]) from error

    def fit(self, model: Any, **kwargs: Any) -> None:
        """Train; the package's own workloads are validated before and after, and report what was learned."""
        report = ClosingReport(self.trainer, model, kwargs)
        report.before()
        self.trainer.fit(model, **kwargs)
        report.after()


def run(args: Sequence[str]) -> int:
    """Run `fit`, `validate`, `test` or `predict`.

    Args:
        args: The verb and its arguments; configs as paths (`lit_opt.commands.config_files.expand_configs`).

    Returns:
        0.

    Raises:
        RecipeError: Whatever the user can mend, in one message.
        KeyboardInterrupt: Ctrl-C, after Lightning has shut down.
    """
    quiet: dict[str, Any] = {"exit_on_error": False, "allow_abbrev": False}
    described = {
        verb: {
            "usage": USAGE.format(verb=verb),
            "description": EXAMPLES.format(verb=verb, does=does),
            **quiet,
        }
        for verb, does in VERBS.items()
    }
    try:
        RecipeCLI(
            args=list(args),
            auto_configure_optimizers=False,
            seed_everything_default=SEED,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"prog": "lit-opt", "formatter_class": _Formatter, **quiet, **described},
        )
    except MisconfigurationException as error:
        raise RecipeError([f"Lightning: {error}{_remedy(str(error))}"]) from error
    except ValueError as error:
        # The parser wraps what a class refuses in its __init__.
        raise recipe_error_in(error) or error from None
    except RuntimeError as error:
        if str(error).startswith("Error(s) in loading state_dict"):
            raise RecipeError([f"ckpt_path: the checkpoint is of another model. {error}"]) from error
        raise
    except SystemExit as stop:
        # Lightning turns Ctrl-C into exit code 1 after its shutdown.
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    return 0


# Part of a message of Lightning's -> what to type.
_REMEDIES = {
    "gpu backend": "Give --trainer.accelerator=auto, which takes what this machine has, or cpu.",
    "train_dataloader": "Give --data=my_package.MyData, or a section `data:` in the config.",
    "val_dataloader": "Give --data=my_package.MyData, or a section `data:` in the config.",
    "invalid strategy": (
        "Give --trainer.strategy=auto, ddp, fsdp or lightning.pytorch.strategies.ModelParallelStrategy (FSDP2); "
        "`lit-opt list --strategies` shows which recipe runs where."
    ),
    "invalid accelerator": "Give --trainer.accelerator=auto.",
    "should be an int": "Give --trainer.devices=1, or auto.",
}


def _remedy(message: str) -> str:
    found = [remedy for part, remedy in _REMEDIES.items() if part in message]
    return f"{'' if message.rstrip().endswith(('.', '!')) else '.'} {found[0]}" if found else ""


def recipe_error_in(error: BaseException | None) -> RecipeError | None:
    """The message of ours that another library's exception wraps, or None."""
    while error is not None and not isinstance(error, RecipeError):
        error = error.__cause__ or error.__context__
    return error
