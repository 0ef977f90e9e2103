"""`lit-opt sweep`: tune on the small model of a config, and write the large model's recipe as YAML."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lit_opt.commands.compare import FromConfig, found_config, given_values, kept_trainer, monitored
from lit_opt.commands.fit_errors import expand_configs
from lit_opt.commands.from_config import load_project, parse_config
from lit_opt.commands.plan import plan_config
from lit_opt.commands.sweep_yaml import OF_THE_RUN, put_recipe, recipe_text, writable
from lit_opt.comparison.codec import digest, protocol_to_dict
from lit_opt.comparison.records import Protocol
from lit_opt.comparison.sweep import read_sweep, sweep
from lit_opt.comparison.sweep_plot import draw_sweep
from lit_opt.comparison.sweep_result import Found, sweep_sentences, sweep_table
from lit_opt.comparison.task import overrides_at
from lit_opt.errors import RecipeError
from lit_opt.param_groups import group_parameters
from lit_opt.param_groups.base import settle_base
from lit_opt.recipes import get_recipe
from lit_opt.resolve import preview
from lit_opt.transfer.spec import make_transfer

NAME = "transferred.yaml"
_EXAMPLE = "lit-opt sweep --config small.yaml --param lr --budget-steps 400 --dry-run"


def run_sweep(options: Mapping[str, Any], args: Sequence[str], show: Callable[..., None]) -> int:
    """Run `lit-opt sweep`.

    Args:
        options: Of `lit_opt.commands.sweep_options`.
        args: The other arguments, those of the config.
        show: (renderables, width=) -> None.

    Returns:
        0; 1 where nothing was written, since the best stands at an edge or every point failed.

    Raises:
        RecipeError: Whatever the user can mend, in one message.
    """
    missing = [f"--{name.replace('_', '-')}" for name in ("config", "param", "budget_steps") if not options[name]]
    if missing and options["budget_steps"] != 0:
        raise RecipeError([f"{', '.join(missing)}: needed. Type: {_EXAMPLE}."])
    config_args = (f"--config={found_config(options['config'])}", *args)
    config = parse_config(config_args, verb="sweep")
    small = _small(config)
    metric, mode = monitored(config)
    if options["metric"] is not None:
        metric, mode = options["metric"], (mode if options["metric"] == metric else None)
    both = len(set(options["param"])) > 1
    task, request = read_sweep(
        {
            "make_module": FromConfig("model", config_args),
            "make_datamodule": FromConfig("data", config_args) if config.get("data") is not None else None,
            "recipe": given_values(config["recipe"]),
            "params": options["param"],
            "budget_steps": options["budget_steps"],
            "trials": _or(options["trials"], 16 if both else 9),
            "seeds": _or(options["seeds"], 3),
            "extend": _or(options["extend"], 0),
            "workers": _or(options["workers"], 1),
            "seed": 0,
            "decades": _or(options["decades"], 2.0),
            "metric": metric,
            "mode": options["mode"] or mode,
            "trainer": kept_trainer(config),
        }
    )
    keywords = task.recipes[request.baseline][1]
    large = _large(options["target"])

    def written(protocol: Protocol, values: Mapping[str, float], said: Sequence[str]) -> tuple[str, dict[str, Any]]:
        recipe = _recipe(protocol, keywords, values, _transfer(small, options, protocol), large)
        notes = {
            name: "tuned on the small model" if name in request.tuned else "as on the small model, not tuned"
            for name in protocol.arms[0].start
        }
        section = recipe_text(recipe, said, notes)
        return (section if large is None else put_recipe(large.text, section)), recipe

    def check(protocol: Protocol) -> None:
        text, recipe = written(protocol, protocol.arms[0].start, ())
        _refuse_untransferable(text if large is not None else None, recipe, config_args)

    folder = Path(options["out"])
    found = sweep(
        task,
        request,
        folder,
        extend=_or(options["extend"], 0),
        workers=_or(options["workers"], 1),
        dry_run=options["dry_run"],
        check=check,
    )
    if found is None:
        return 0
    width = None if sys.stdout.isatty() else 100
    show("", sweep_table(found), "", *sweep_sentences(found), width=width)
    if found.best is not None:
        print(f"The curve is {_drawn(found, folder / 'sweep.png')}.")
    if found.chosen is None or found.edges:
        print(_why_nothing(found))
        return 1
    said = _origin(found, options, large, keywords)
    text, _ = written(found.protocol, found.chosen.values, said)
    path = folder / NAME
    path.write_text(text, encoding="utf-8")
    show("", *_next(path, options, large, found, keywords), width=width)
    return 0


@dataclass(frozen=True)
class Large:
    """The large model's config.

    Args:
        name: As it was typed.
        text: YAML.
        recipe: Its section `recipe:`, {} where it has none.
    """

    name: str
    text: str
    recipe: dict[str, Any]


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _small(config: Any) -> dict[str, Any]:
    """The small model as `transfer.base`."""
    problems = []
    if config.get("model") is None:
        problems.append("model: the config names none. Add a section `model:` with class_path and init_args.")
    if config.get("recipe") is None:
        problems.append("recipe: the config has no section `recipe:`. Add one, such as `recipe: {name: llm}`.")
    elif config["recipe"].get("transfer") is not None:
        problems.append(
            "recipe.transfer: values are tuned on the small model as they are, and the sweep writes the transfer. Leave it out."
        )
    if problems:
        raise RecipeError(problems)
    section = config["model"].as_dict()
    return {
        "class_path": section["class_path"],
        "init_args": writable(section.get("init_args") or {}, "model.init_args"),
    }


def _large(target: str | None) -> Large | None:
    if target is None:
        return None
    path = Path(expand_configs(["fit", f"--config={target}"])[1].removeprefix("--config="))
    text = path.read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    callbacks = (content.get("trainer") or {}).get("callbacks") or []
    if any("lit_opt" in str(one) and "Recipe" in str(one) for one in callbacks if isinstance(one, Mapping)):
        raise RecipeError(
            [f"target: {target} has its recipe among trainer.callbacks. Move it to a section `recipe:` of its own."]
        )
    if content.get("model") is None:
        raise RecipeError([f"target: {target} has no section `model:`. Give the config of the large model."])
    return Large(target, text, dict(content.get("recipe") or {}))


def _transfer(small: Mapping[str, Any], options: Mapping[str, Any], protocol: Protocol) -> dict[str, Any]:
    transfer: dict[str, Any] = {"base": dict(small)}
    if options["depth"]:
        transfer["depth"] = True
    for name in ("batch", "horizon"):
        if options[name] is not None:
            transfer[name] = options[name]
            # A horizon is counted in samples.
            transfer["base_batch_size"] = _batch(protocol)
    if options["horizon"] is not None:
        transfer["base_total_steps"] = protocol.budget_steps
    return transfer


def _batch(protocol: Protocol) -> int:
    return round(float(str(protocol.settings["samples_per_step"])))


def _recipe(
    protocol: Protocol,
    keywords: Mapping[str, Any],
    values: Mapping[str, float],
    transfer: Mapping[str, Any],
    large: Large | None,
) -> dict[str, Any]:
    """The section `recipe:` of the large model: the small one's at the chosen values, and what belongs to its run."""
    (arm,) = protocol.arms
    fallback: Any = protocol.settings.get("fallback", {})
    tuned = overrides_at(arm, keywords, values, fallback.get(arm.name, {}))
    first = ("optimizer", "lr", "weight_decay", "fallback")
    ordered = {key: tuned[key] for key in (*first, *tuned) if key in tuned and key not in OF_THE_RUN}
    own = {key: value for key, value in (large.recipe if large else {}).items() if key in OF_THE_RUN}
    recipe = {"name": arm.recipe, **ordered, **own, "transfer": dict(transfer)}
    return {key: writable(value, f"recipe.{key}") for key, value in recipe.items()}


def _refuse_untransferable(target: str | None, recipe: Mapping[str, Any], config_args: Sequence[str]) -> None:
    """Let `plan` look at the large model with this recipe; without one at the small model, as if it were the large one."""
    try:
        if target is not None:
            with tempfile.TemporaryDirectory() as folder:
                draft = Path(folder, NAME)
                draft.write_text(target, encoding="utf-8")
                plan_config([f"--config={draft}"], {})
            return
        model = load_project(config_args, verb="sweep", meta=True).model
        asked = settle_base(make_transfer({"base": recipe["transfer"]["base"]}), model)
        values = {key: value for key, value in recipe.items() if key not in ("name", *OF_THE_RUN)}
        group_parameters(model, preview(get_recipe(recipe["name"]), {**values, "transfer": asked}))
    except RecipeError as error:
        where = "target: " if target is not None else ""
        raise RecipeError([f"{where}{text}" for text in error.problems]) from error


def _drawn(found: Found, path: Path) -> str:
    try:
        return str(draw_sweep(found, path))
    except RecipeError as error:  # an optional package; the numbers are in the table
        return f"not drawn: {error.problems[0].removesuffix('.')}"


def _why_nothing(found: Found) -> str:
    if found.chosen is None:
        return "No recipe was written."
    names = " and ".join(found.edges)
    more = found.rounds + 1
    return (
        f"No recipe was written, since {names} is not tuned yet. The same command with --extend {more} adds points beyond the "
        "edge, and keeps all that is done."
    )


def _origin(found: Found, options: Mapping[str, Any], large: Large | None, keywords: Mapping[str, Any]) -> list[str]:
    """The comment above the section: where its values come from."""
    protocol, chosen = found.protocol, found.chosen
    assert chosen is not None
    values = ", ".join(f"{name} {chosen.values[name]:.4g}" for name in found.tuned)
    lines = [
        f"Written by `lit-opt sweep`. Tuned on the small model ({options['config']}): {values},",
        f"{'the best' if chosen is found.best else 'inside the box, as good as the best'} of {len(found.points)} points, "
        f"{protocol.metric} {chosen.mean:.5g} after {protocol.budget_steps:,} steps of {_batch(protocol)} samples,",
        f"mean of {protocol.seeds} {'seed' if protocol.seeds == 1 else 'seeds'}. Every run: ledger.jsonl beside this file, "
        f"protocol {digest(protocol_to_dict(protocol))}.",
    ]
    valley = found.valley()
    if len(valley) > 1:
        spans = [
            f"{name} {min(p.values[name] for p in valley):.4g} to {max(p.values[name] for p in valley):.4g}"
            for name in found.tuned
        ]
        lines.append(f"As good within 1 % or seed noise: {', '.join(spans)}.")
    lines.append(
        "The values are the small model's: `transfer` carries them over. `lit-opt plan` shows each group's rate."
    )
    left_out = _left_out(large, keywords)
    if left_out:
        lines.append(f"Left out of {large.name if large else ''}'s own section: {', '.join(left_out)}.")
    return lines


def _left_out(large: Large | None, keywords: Mapping[str, Any]) -> list[str]:
    """What the large model's own section said, and the written one does not say."""
    if large is None:
        return []
    ours = ("name", "lr", "weight_decay", "transfer", *OF_THE_RUN)
    return [
        key
        for key, value in large.recipe.items()
        if key not in ours and value is not None and writable(keywords.get(key), key) != value
    ]


def _next(
    path: Path, options: Mapping[str, Any], large: Large | None, found: Found, keywords: Mapping[str, Any]
) -> list[str]:
    lines = []
    if large is None:
        lines += [
            f"The recipe is {path}: paste its section `recipe:` into the large model's config, or give both:",
            f"  lit-opt plan --config large.yaml --config {path}",
        ]
    else:
        lines += [
            f"The large model's config with this recipe is {path}.",
            f"  lit-opt plan --config {path}    rates of each group",
            f"  lit-opt fit --config {path}",
        ]
        left_out = _left_out(large, keywords)
        if left_out:
            lines.append(f"Left out of {large.name}'s own recipe section: {', '.join(left_out)}.")
    lines.append("The rules assume initial weights that follow the width: see lit_opt.scale_initial.")
    return lines
