"""`lit-opt sweep`: tune on the small model of a config, and write the large model's recipe as YAML."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_opt.commands.compare import FromConfig, found_config, given_values, monitored
from lit_opt.commands.from_config import parse_config
from lit_opt.commands.sweep_recipe import Carried, large_model, origin, refuse_untransferable, small_model
from lit_opt.commands.trainer_section import kept_trainer, left_out
from lit_opt.comparison.sweep import read_sweep, sweep
from lit_opt.comparison.sweep_plot import draw_sweep
from lit_opt.comparison.sweep_result import Found, sweep_sentences, sweep_table, sweep_title
from lit_opt.errors import RecipeError

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
    missing = [name for name in ("config", "param", "budget_steps") if options[name] in (None, [])]
    if missing:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in missing)
        raise RecipeError([f"{names}: needed. Type: {_EXAMPLE}."])
    config_args = (f"--config={found_config(options['config'])}", *args)
    config = parse_config(config_args, verb="sweep")
    base = small_model(config)
    metric, mode = monitored(config)
    if options["metric"] is not None:
        metric, mode = options["metric"], (mode if options["metric"] == metric else None)

    def given(name: str, default: float) -> Any:
        return default if options[name] is None else options[name]

    if words := left_out(config):
        print(words, flush=True)
    task, request = read_sweep(
        {
            "make_module": FromConfig("model", config_args),
            "make_datamodule": FromConfig("data", config_args) if config.get("data") is not None else None,
            "recipe": given_values(config["recipe"]),
            "params": options["param"],
            "budget_steps": options["budget_steps"],
            "trials": given("trials", 9 if len(set(options["param"])) == 1 else 16),
            "seeds": given("seeds", 3),
            "extend": given("extend", 0),
            "workers": given("workers", 1),
            "seed": 0,
            "decades": given("decades", 2.0),
            "metric": metric,
            "mode": options["mode"] or mode,
            "trainer": kept_trainer(config),
        }
    )
    rules = {name: options[name] for name in ("depth", "batch", "horizon") if options[name]}
    name, keywords = task.recipes[request.baseline]
    carried = Carried(options["config"], base, name, keywords, rules, large_model(options["target"]))
    folder = Path(options["out"])
    found = sweep(
        task,
        request,
        folder,
        extend=given("extend", 0),
        workers=given("workers", 1),
        dry_run=options["dry_run"],
        check=lambda protocol: refuse_untransferable(carried, protocol, config_args),
    )
    if found is None:
        return 0
    width = None if sys.stdout.isatty() else 100
    show("", sweep_title(found), sweep_table(found), "", *sweep_sentences(found), width=width)
    if found.best is not None:
        print(_drawn(found, folder / "sweep.png"))
    if found.chosen is None or found.edges:
        show("", _why_nothing(found), width=width)
        return 1
    path = folder / NAME
    path.write_text(carried.yaml(found.protocol, found.chosen.values, origin(found, carried)), encoding="utf-8")
    show("", *_next(path, carried), width=width)
    return 0


def _drawn(found: Found, path: Path) -> str:
    try:
        return f"The picture is {draw_sweep(found, path)}."
    except RecipeError as error:  # an optional package; the numbers are in the table
        return f"There is no picture: {error.problems[0]}"


def _why_nothing(found: Found) -> str:
    if found.chosen is None:
        return "No recipe was written."
    return (
        "No recipe was written: what stands at an edge is not tuned. The same command with --extend "
        f"{found.rounds + 1} tries points beyond it, and keeps all that is done."
    )


def _next(path: Path, carried: Carried) -> list[str]:
    if carried.large is None:
        lines = [
            f"The recipe is {path}. Paste its section `recipe:` into the large model's config, or give both:",
            f"  lit-opt plan --config large.yaml --config {path}",
        ]
    else:
        lines = [
            f"The large model's config with this recipe is {path}. Rates of each group, and the run:",
            f"  lit-opt plan --config {path}",
            f"  lit-opt fit --config {path}",
        ]
    if carried.left_out():
        lines.append(
            f"Left out of {carried.large and carried.large.name}'s own recipe: {', '.join(carried.left_out())}."
        )
    return [*lines, "The rules assume initial weights that follow the width: lit_opt.scale_initial makes them so."]
