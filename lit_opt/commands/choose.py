"""`lit-opt choose`: a recipe for the model of a config, with the reasons and what to type next."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lit_opt.commands.from_config import Project, load_project
from lit_opt.explain.formats import to_json
from lit_opt.explain.recipe_yaml import flow
from lit_opt.explain.values import Entry, explain, short
from lit_opt.param_groups.snapshot import snapshot_parameters
from lit_opt.preflight.choose import Choice, choose
from lit_opt.preflight.facts import foresee
from lit_opt.recipes import get_recipe
from lit_opt.resolve import RunFacts

# Up to here a model is also built with its weights, to see whether they were trained before: 0.8 GB.
_SMALL = 200_000_000

_SHOWN = (
    *("optimizer", "lr", "weight_decay", "betas", "momentum", "warmup", "decay", "decay.final", "clip", "ema"),
    "layer_decay",
)


@dataclass(frozen=True, kw_only=True)
class _Answer:
    choice: Choice
    facts: RunFacts
    values: tuple[Entry, ...]
    configured: str
    own: tuple[str, ...]
    notes: tuple[str, ...]
    following: tuple[str, ...]


def choose_for(args: Sequence[str], *, form: str = "text") -> str | RenderableType:
    """The answer for a config.

    Args:
        args: `--config NAME_OR_FILE` and overrides, as `lit-opt fit` takes them; a recipe is not needed.
        form: "text" (a rich renderable) or "json".

    Raises:
        RecipeError: What is wrong with the config.
    """
    project = load_project(args, verb="choose", meta=True, recipe="optional")
    if project.on_meta and sum(p.numel() for p in project.model.parameters()) <= _SMALL:
        project = load_project(args, verb="choose", recipe="optional")
    answer = _answer(project, args)
    return _json(answer) if form == "json" else _text(answer)


def _answer(project: Project, args: Sequence[str]) -> _Answer:
    count = snapshot_parameters(project.model).parameter_count
    foreseen = foresee(project.trainer, project.model, project.datamodule, parameter_count=count)
    facts = foreseen.run
    given: Mapping[str, Any] = project.recipe.overrides if project.recipe is not None else {}
    # What the user has said of the run belongs to any recipe.
    facts = replace(
        facts,
        global_batch=given.get("batch_size") or facts.global_batch,
        tokens_per_batch=given.get("batch_tokens") or facts.tokens_per_batch,
        total_steps=given.get("total_steps") or facts.total_steps,
    )
    choice = choose(project.model, facts)
    values: tuple[Entry, ...] = ()
    if choice.recipe:
        entries = explain(get_recipe(choice.recipe), choice.overrides, facts)
        values = tuple(e for e in entries if e.name in _SHOWN or e.name.startswith("parts."))
    return _Answer(
        choice=choice,
        facts=facts,
        values=values,
        configured=project.recipe.spec.name if project.recipe is not None else "",
        own=tuple(given),
        notes=(*project.notes, *foreseen.notes),
        following=_following(choice, args),
    )


def _following(choice: Choice, args: Sequence[str]) -> tuple[str, ...]:
    """What to type next, with the user's own arguments."""
    config = shlex.join([arg for arg in args if not re.match(r"--recipe\.name\b", arg)])
    if not choice.recipe:
        near = [name for name, _ in choice.alternatives]
        return (f"lit-opt explain {near[0]}",) if near else ("lit-opt list",)
    own = "".join(
        f" {shlex.quote(f'--recipe.{key}={flow(value)}')}"
        for key, value in {"name": choice.recipe, **choice.overrides}.items()
    )
    return (f"lit-opt explain {choice.recipe}", f"lit-opt plan {config}{own}", f"lit-opt fit {config}{own}")


def _text(a: _Answer) -> RenderableType:
    c = a.choice
    parts: list[RenderableType] = []
    if c.recipe:
        parts.append(Text.assemble(("Proposal  ", "bold"), (c.recipe, "bold cyan"), f"  confidence: {c.confidence}"))
        parts.append(Text(f"          {get_recipe(c.recipe).summary}"))
    else:
        parts.append(Text.assemble(("No proposal", "bold"), "  I am not sure which setting this is."))
    if a.configured and a.configured != c.recipe:
        kept = f", whose own values ({', '.join(a.own)}) stay set: take them out" if a.own and c.recipe else ""
        parts.append(Text(f"          The config has {a.configured}{kept}.", style="yellow" if c.recipe else ""))
    parts += [Text(), Text("Why", style="bold underline"), *_listed([*c.reasons, _run(a.facts)])]
    if a.values:
        parts += [Text(), Text("Values at this run", style="bold underline"), _table(a)]
    if c.alternatives:
        parts += [Text(), Text("Otherwise", style="bold underline")]
        parts += _listed([f"{name}: {when}" for name, when in c.alternatives])
    if c.asks or a.notes:
        parts += [Text(), Text("Not known", style="bold underline"), *_listed([*c.asks, *a.notes])]
    parts += [Text(), Text("Next", style="bold underline"), *(_command(line) for line in a.following)]
    if not c.recipe:
        parts.append(_command("lit-opt plan ... --recipe.name=NAME     if you know better"))
    return Group(*parts)


def _command(line: str) -> Text:
    """In one line, to be copied, however long."""
    return Text(f"  {line}", no_wrap=True, overflow="ignore")


def _listed(sentences: Sequence[str]) -> list[RenderableType]:
    return [Padding(Text(sentence), (0, 0, 0, 2)) for sentence in sentences]


def _run(facts: RunFacts) -> str:
    known = {
        "steps": facts.total_steps,
        "samples a step": facts.global_batch,
        "trained numbers without embeddings": facts.parameter_count,
    }
    said = [f"{value:,} {name}" for name, value in known.items() if value is not None]
    return f"The run: {', '.join(said)}." if said else "Nothing is known of the run."


def _table(a: _Answer) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    for column in ({"style": "cyan", "no_wrap": True}, {"no_wrap": True}, {"no_wrap": True}, {"overflow": "fold"}):
        table.add_column(**column)
    for e in a.values:
        scope = f"{e.judgement} {short(e.range[0])} .. {short(e.range[1])}" if e.range and e.judgement else ""
        table.add_row(f"  {e.name}", short(e.number), scope, _because(e))
    return table


def _because(e: Entry) -> str:
    if e.origin == "yours":
        return f"of the proposal, instead of {short(e.default)}" if e.default is not None else "of the proposal"
    return "; ".join(part for part in (*e.notes[:1], e.source) if part)


def _json(a: _Answer) -> str:
    c = a.choice
    return to_json(
        {
            "recipe": c.recipe or None,
            "setting": c.setting or None,
            "confidence": c.confidence,
            "reasons": c.reasons,
            "alternatives": [{"recipe": name, "when": when} for name, when in c.alternatives],
            "overrides": _plain(c.overrides),
            "asks": c.asks,
            "configured": a.configured or None,
            "facts": {key: value for key, value in vars(a.facts).items() if value is not None},
            "values": [
                {
                    "name": e.name,
                    "number": e.number,
                    "unit": e.unit,
                    "range": e.range,
                    "source": e.source,
                    "origin": e.origin,
                }
                for e in a.values
            ],
            "notes": a.notes,
            "next": a.following,
        }
    )


def _plain(value: Any) -> Any:
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, Mapping) else value
