"""`lit-opt compare`: a fair comparison of recipes on the model and the data of a config."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule

from lit_opt.commands.config_files import config_contents, expand_configs
from lit_opt.commands.from_config import built, parse_config
from lit_opt.commands.trainer_section import kept_trainer, left_out
from lit_opt.comparison.compare import compare, run_comparison, write_report
from lit_opt.comparison.ledger import Ledger
from lit_opt.comparison.stages import progress_of
from lit_opt.errors import RecipeError
from lit_opt.explain.shipped_configs import shipped_configs
from lit_opt.recipes import list_recipes

_SECTIONS = {"model": LightningModule, "data": LightningDataModule}


@dataclass(frozen=True)
class FromConfig:
    """A factory that other processes can be sent: it builds a section of a config, with the seed where it takes one.

    Args:
        section: "model" or "data".
        args: Of the config.
    """

    section: str
    args: tuple[str, ...]

    def __call__(self, seed: int) -> Any:
        """Build it."""
        config = copy.deepcopy(_parsed(self.args))
        arguments = config[self.section].get("init_args")
        if arguments is not None and "seed" in arguments:
            arguments["seed"] = seed
        return built(_SECTIONS[self.section], self.section, config)

    @property
    def label(self) -> str:
        """Class and arguments: what the protocol holds."""
        section = _parsed(self.args)[self.section].as_dict()
        given = {k: v for k, v in (section.get("init_args") or {}).items() if k != "seed"}
        return f"{section['class_path']}({', '.join(f'{k}={v!r}' for k, v in sorted(given.items()))})"


@lru_cache(maxsize=8)
def _parsed(args: tuple[str, ...]) -> Any:
    return parse_config(args, verb="compare")


def run_compare(options: Mapping[str, Any], args: Sequence[str]) -> int:
    """Run `lit-opt compare`.

    Args:
        options: Of `lit_opt.commands.compare_options`.
        args: The other arguments, those of the config.

    Returns:
        0.

    Raises:
        RecipeError: Whatever the user can mend, in one message.
    """
    missing = [name for name in ("config", "arms", "budget_steps") if options[name] is None]
    if missing:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in missing)
        raise RecipeError(
            [f"{names}: needed. Type: lit-opt compare --config llm --arms llm,llm/muon --budget-steps 400 --dry-run."]
        )
    config_args = (f"--config={found_config(options['config'])}", *args)
    config = _parsed(config_args)
    if config.get("model") is None:
        raise RecipeError(["model: the config names none. Add a section `model:` with class_path and init_args."])
    metric, mode = monitored(config)
    if options["metric"] is not None:
        metric, mode = options["metric"], (mode if options["metric"] == metric else None)
    numbers = {
        name: options[name]
        for name in ("trials", "seeds", "eval_every", "studies", "extend", "seed", "workers", "decades", "timeout")
        if options[name] is not None
    }
    defaults = {name: p.default for name, p in inspect.signature(compare).parameters.items()}
    given = defaults | dict(
        make_module=FromConfig("model", config_args),
        make_datamodule=FromConfig("data", config_args) if config.get("data") is not None else None,
        arms=read_arms(options["arms"], options["config"], config),
        horizons=_shares(options.get("horizons")),
        budget_steps=options["budget_steps"],
        baseline=options["baseline"],
        metric=metric,
        mode=options["mode"] or mode,
        readout=options["readout"],
        out=options["out"],
        trainer=kept_trainer(config),
        dry_run=options["dry_run"],
        **numbers,
    )
    if words := left_out(config):
        print(words, flush=True)
    # From another folder a worker finds the same files.
    found = {"config": found_config(options["config"]), "arms": _found_arms(options["arms"])}
    kept = {name: value for name, value in options.items() if name != "out"}  # the ledger lies in it
    run_comparison(given, {"options": {**kept, **found}, "args": list(args)})
    return 0


def run_worker(out: str) -> int:
    """Join the comparison of a folder, as its first command does.

    Raises:
        RecipeError: It was not begun by a command.
    """
    folder = Path(out)
    if not folder.is_dir():
        raise RecipeError([f"out: {folder}: no such folder. `lit-opt compare --config ...` begins a comparison."])
    _refuse_a_sweep(folder)
    command = progress_of(Ledger(folder).read()).opened["command"]
    if command is None:
        raise RecipeError(
            [
                f"out: {folder}: this comparison was begun in Python, so how its model is made is not known here. Call "
                "lit_opt.compare(...) with the same arguments and out=: it joins."
            ]
        )
    return run_compare(command["options"] | {"out": out, "workers": 1}, command["args"])


def run_report(out: str) -> int:
    """Write the report of a folder anew."""
    _refuse_a_sweep(Path(out))
    write_report(out)
    return 0


def _refuse_a_sweep(folder: Path) -> None:
    opened = Ledger(folder).read().of("opened") if folder.is_dir() else iter(())
    if any("tuned" in event["request"] for _, event in opened):
        raise RecipeError(
            [f"out: {folder} holds a sweep. The same `lit-opt sweep` command resumes it, joins it and shows its table."]
        )


def read_arms(text: str, base: str, config: Any) -> dict[str, dict[str, Any]]:
    """The arms of the option: title -> keywords of `Recipe`.

    Args:
        text: Of the option, separated by commas.
        base: The option --config.
        config: What it holds.

    Raises:
        RecipeError: A title twice, or a file without a recipe.
    """
    own = config.get("recipe")
    arms: dict[str, dict[str, Any]] = {}
    for item in (part.strip() for part in text.split(",") if part.strip()):
        title, _, rest = item.partition("=")
        what = rest or title
        is_file = _is_file(what)
        name = title if rest else Path(what).stem if is_file else what
        if name in arms:
            raise RecipeError([f"arms: {name!r} is there twice. Give titles: --arms first={what},second={what}."])
        if is_file:
            arms[name] = _section(what, config)
        elif own is not None and own["name"] == what:
            arms[name] = given_values(own)
        elif base in shipped_configs() and what in shipped_configs() and what in list_recipes():
            arms[name] = _section(what, config)
        else:
            arms[name] = {"name": what}
    return arms


def _section(config: str, base: Any) -> dict[str, Any]:
    """The recipe of a config, its given values alone. Where it names no model, the base's stands in, for the parser."""
    file = f"--config={found_config(config)}"
    modelless = not any("model" in content for content in config_contents(expand_configs(["fit", file])))
    model = base.get("model") if modelless else None
    others = [] if model is None else [f"--model={json.dumps(model.as_dict(), default=str)}"]
    parsed = parse_config((file, *others), verb="compare")
    if parsed.get("recipe") is None:
        raise RecipeError([f"arms: {config} has no section `recipe:`. Add one, such as `recipe: {{name: llm}}`."])
    return given_values(parsed["recipe"])


def given_values(recipe: Any) -> dict[str, Any]:
    """What the section `recipe:` of a config says."""
    return {key: value for key, value in recipe.as_dict().items() if value is not None}


def _is_file(arm: str) -> bool:
    return Path(arm).suffix in (".yaml", ".yml")


def found_config(config: str) -> str:
    """A path that holds from any folder, or the name of a shipped config."""
    return str(Path(config).resolve()) if Path(config).is_file() else config


def _found_arms(text: str) -> str:
    """The option --arms with paths that hold from any folder; its titles stay."""
    parts = []
    for item in (part.strip() for part in text.split(",") if part.strip()):
        title, equals, rest = item.partition("=")
        what = rest if equals else title
        what = found_config(what) if _is_file(what) else what
        parts.append(f"{title}={what}" if equals else what)
    return ",".join(parts)


def _shares(text: str | None) -> list[float] | None:
    """The option --horizons as numbers.

    Raises:
        RecipeError: Something in it is no number.
    """
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise RecipeError(
            [f"horizons: {text!r} is not allowed; give shares of --budget-steps with commas, such as 0.5,0.7,1.0."]
        ) from None


def monitored(config: Any) -> tuple[str | None, str | None]:
    """What a checkpoint callback of the config watches."""
    callbacks = config["trainer"].get("callbacks") or []
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        arguments = callback.get("init_args") if hasattr(callback, "get") else None
        if arguments is not None and arguments.get("monitor"):
            return arguments["monitor"], arguments.get("mode")
    return None, None
