"""`lit-opt plan --config my.yaml`: what a recipe will do to the model of a config, without training it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console

from lit_opt.commands.from_config import load_project
from lit_opt.errors import RecipeError
from lit_opt.explain.formats import to_json
from lit_opt.preflight.facts import foresee, input_of_a_sample, tokens_of_a_sample
from lit_opt.preflight.plan import Plan, make_plan
from lit_opt.preflight.plan_text import plan_text
from lit_opt.resolve.resolved import RunFacts

_WHAT_TO_TYPE = (
    "config: nothing is given. Type `lit-opt plan --config llm` (a shipped config), `lit-opt plan --config mine.yaml`, "
    'or in Python: print(Recipe("llm").plan(module, batch_size=256, total_steps=10_000)).'
)


def plan_config(args: Sequence[str], options: Mapping[str, Any]) -> Plan:
    """The plan of a config.

    Args:
        args: Of the config, as `lit-opt fit` takes them.
        options: batch_size, batch_tokens, total_steps, devices, num_nodes, strategy, precision; they win over the
            config where they are not None.

    Raises:
        RecipeError: Whatever the user can mend, in one message.
    """
    if not args:
        raise RecipeError([_WHAT_TO_TYPE])
    project = load_project(args, verb="plan", meta=True)
    assert project.recipe is not None
    trainer = project.trainer | {
        key: options[key] for key in ("devices", "num_nodes", "strategy", "precision") if options.get(key) is not None
    }
    overrides = project.recipe.overrides | {
        key: options[key] for key in ("batch_size", "batch_tokens", "total_steps") if options.get(key) is not None
    }
    foreseen = foresee(trainer, project.model, project.datamodule)
    notes = [*project.notes, *foreseen.notes]
    facts = foreseen.run
    example = getattr(project.model, "example_input_array", None)
    if project.recipe.spec.setting in ("llm", "vlm") and "batch_tokens" not in overrides:
        facts = _with_tokens(facts, overrides.get("batch_size"), foreseen.training_data, notes)
    elif example is None:
        example = input_of_a_sample(foreseen.training_data)
    return make_plan(
        project.recipe.spec,
        overrides,
        project.model,
        facts,
        foreseen.placement,
        notes=tuple(dict.fromkeys(notes)),
        example=example,
        cuda=trainer.get("accelerator") != "cpu",
    )


def _with_tokens(facts: RunFacts, given_batch: int | None, loader: Any, notes: list[str]) -> RunFacts:
    """The tokens of a step, where one sample tells how many it has."""
    batch, each = given_batch or facts.global_batch, tokens_of_a_sample(loader)
    if batch is None or each is None:
        return facts
    notes.append(f"tokens: {each:,} a sample, the length of the first one; --batch-tokens sets the tokens of a step.")
    return replace(facts, tokens_per_batch=batch * each)


def print_plan(options: dict[str, Any], args: Sequence[str], show: Callable[..., None]) -> None:
    """Print the plan of a config in the form that is asked for.

    Args:
        options: Of `lit_opt.commands.plan_options`.
        args: The other arguments, those of the config.
        show: (renderable, width=) -> None.
    """
    configs = [f"--config={name}" for name in options["config"] or ()]
    plan = plan_config([*configs, *args], options)
    if options["plot"] is not None:
        print(f"The learning rates are in {plan.plot(options['plot'])}.", file=sys.stderr)
    if options["format"] == "json":
        print(to_json(plan.as_dict()))
    elif options["format"] == "markdown":
        print(plan.markdown(rows=options["rows"]))
    else:
        width = None if sys.stdout.isatty() else 100
        columns = Console(width=None if "COLUMNS" in os.environ else width).width
        show(plan_text(plan, rows=options["rows"], width=columns), width=width)
