"""Method cards: what an optimizer or a recipe is, its values and limits, as Markdown pages. No torch.

Every line follows from a registry row, a recipe, or a table that tests or benchmarks wrote. What has no source there is
left out. `python -m lit_opt.commands.generate_cards` (`make cards`) writes docs/cards.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_opt.explain.formats import entry_tables, markdown_cell
from lit_opt.explain.strategies import Cell, without_place
from lit_opt.explain.values import explain, short
from lit_opt.optim.registry import get_row, row_of
from lit_opt.optim.schema import REQUIRED, OptimizerRow
from lit_opt.recipes import get_recipe, list_recipes
from lit_opt.recipes.schema import RecipeSpec, Value
from lit_opt.resolve import preview
from lit_opt.resolve.strategies import PRECISIONS, STRATEGIES, refusals

_BYTES = {"": 4.0, "float32": 4.0, "bfloat16": 2.0, "uint8": 1.0}
_SHAPE = (1024, 1024)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Rows about a method in one file of benchmarks.

    Args:
        file: Its path below benchmarks.
        title: Its heading.
        head: The line with the names of the columns, and the line below it.
        rows: The lines about the method.

    Example:
        >>> Evidence(file="results/muon_step.md", title="One Muon step").file
        'results/muon_step.md'
    """

    file: str
    title: str
    head: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()


def optimizer_card(
    row: OptimizerRow, capabilities: Mapping[str, str], notes: Sequence[str], evidence: Sequence[Evidence]
) -> str:
    """The page of one optimizer.

    Args:
        row: From `lit_opt.optim.get_row`.
        capabilities: Column -> word, of its line in docs/methods.md.
        notes: The notes below that table that its words point to.
        evidence: What was measured of it.

    Example:
        >>> optimizer_card(get_row("lion"), {"resume": "yes"}, [], []).splitlines()[0]
        '# lion'
    """
    lines = [
        f"# {row.name}",
        "",
        f"{row.summary}.",
        "",
        *_facts(row),
        "",
        "## When to choose it",
        "",
        *_recipes_with(row),
    ]
    lines += ["", "## Keywords", "", *_keywords(row), "", "## Starting values", "", *_published(row)]
    lines += ["", "## State", "", *state_lines(row), "", "## What it can do", ""]
    lines += [
        "As the tests saw it on a CPU; [the columns](../../methods.md).",
        "",
        *_pairs("test", "seen", capabilities.items()),
    ]
    lines += ["", *notes] if notes else []
    apart = _apart(row)
    lines += ["", "## What it does not go together with", "", *apart] if apart else []
    return "\n".join([*lines, "", "## Evidence", "", f"Elsewhere: {row.evidence}.", "", *_links(evidence), ""])


def recipe_card(spec: RecipeSpec, cells: Iterable[Cell], configs: Sequence[str], evidence: Sequence[Evidence]) -> str:
    """The page of one recipe.

    Args:
        spec: From `lit_opt.recipes.get_recipe`.
        cells: Its cells of `lit_opt.explain.strategies.strategy_cells`.
        configs: Names of shipped configs.
        evidence: What was measured of it.

    Example:
        >>> recipe_card(get_recipe("llm"), [], ["llm"], []).splitlines()[2]
        'Language-model pretraining with AdamW, warmup, cosine decay and clipping.'
    """
    row = row_of(str(spec.optimizer.number), {key: value.number for key, value in spec.hyperparameters.items()})
    same = [name for name in list_recipes() if get_recipe(name).setting == spec.setting and name != spec.name]
    lines = [
        f"# {spec.name}",
        "",
        f"{spec.summary}.",
        "",
        "```python",
        f'Trainer(callbacks=[Recipe("{spec.name}")])',
        "```",
    ]
    lines += ["", f"```console\nlit-opt fit --config {spec.name}\n```"] if spec.name in configs else []
    lines += ["", "## When to choose another", "", f"- {spec.deviate}."]
    if spec.moderate_batch is not None:
        batch = spec.moderate_batch
        lines += [f"- The batch is at most {short(batch.number)} {batch.unit} (source: {batch.source})."]
    lines += [f"- Others of this setting: {', '.join(f'[{name}]({_file(name)})' for name in same)}."] if same else []
    lines += ["", f"Optimizer: [{row.name}](../optimizers/{row.name}.md), {row.rule}."]
    lines += ["", "## Values", *(line.replace("## ", "### ", 1) for line in entry_tables(explain(spec)))]
    lines += ["", "## State", "", *state_lines(row, {k: v.number for k, v in spec.hyperparameters.items()})]
    return "\n".join(
        [*lines, "", "## Where it runs", "", *_where(cells), "", "## Evidence", "", *_quoted(evidence), ""]
    )


def optimizer_index(rows: Iterable[OptimizerRow]) -> str:
    """The page that lists the optimizers.

    Args:
        rows: All of them.

    Example:
        >>> optimizer_index([get_row("sgd")]).splitlines()[-1]
        '| [sgd](sgd.md) | SGD with Polyak momentum (heavy ball) | 4 | torch |'
    """
    lines = [
        "# Optimizers",
        "",
        "Bytes of state a parameter: of a 1024 x 1024 float32 weight; those around another",
        "",
    ]
    lines[2] += " optimizer have AdamW's, or their own default's, with them."
    lines += ["| name | what it is | bytes of state | from |", "| --- | --- | --- | --- |"]
    for row in sorted(rows, key=lambda row: row.name):
        cells = (f"[{row.name}]({row.name}.md)", row.summary, _per_parameter(get_row(row.name)), row.provider)
        lines.append("| " + " | ".join(markdown_cell(cell) for cell in cells) + " |")
    return "\n".join([*lines, ""])


def recipe_index() -> str:
    """The page that lists the recipes.

    Example:
        >>> "| [llm](llm.md) | adamw |" in recipe_index()
        True
    """
    lines = ["# Recipes", "", "| name | optimizer | what it is | when to choose another |", "| --- | --- | --- | --- |"]
    for name in list_recipes():
        spec = get_recipe(name)
        cells = (f"[{name}]({_file(name)})", str(spec.optimizer.number), spec.summary, spec.deviate)
        lines.append("| " + " | ".join(markdown_cell(cell) for cell in cells) + " |")
    return "\n".join([*lines, ""])


def state_lines(row: OptimizerRow, hyperparameters: Mapping[str, Any] | None = None) -> list[str]:
    """What it keeps of a 1024 x 1024 weight in float32, buffer by buffer.

    Args:
        row: From `get_row`.
        hyperparameters: Where they are not the defaults.

    Example:
        >>> state_lines(get_row("lion"))[0]
        '4 bytes a parameter, for a 1024 x 1024 float32 weight.'
    """
    buffers = row.state(_SHAPE, {**row.hyperparameters, **(hyperparameters or {}), "algorithm": _inner(row)})
    around = f", {row.hyperparameters['base']} inside" if row.wraps else ""
    lines = [f"{_per_parameter(row, hyperparameters)} bytes a parameter, for a 1024 x 1024 float32 weight{around}."]
    if buffers:
        lines += ["", "| buffer | numbers | dtype |", "| --- | --- | --- |"]
        lines += [f"| `{b.name}` | {b.numbers:,} | {b.dtype or 'of the weight'} |" for b in buffers]
    if row.matrix:
        lines += ["", "What it leaves to AdamW (embeddings, heads, norms, vectors) has AdamW's 8 bytes."]
    return lines


def _per_parameter(row: OptimizerRow, hyperparameters: Mapping[str, Any] | None = None) -> str:
    buffers = row.state(_SHAPE, {**row.hyperparameters, **(hyperparameters or {}), "algorithm": _inner(row)})
    return f"{sum(b.numbers * _BYTES[b.dtype] for b in buffers) / (_SHAPE[0] * _SHAPE[1]):.3g}"


def _inner(row: OptimizerRow) -> str:
    return str(row.hyperparameters["base"]) if row.wraps else row.name


def _facts(row: OptimizerRow) -> list[str]:
    install = f"`pip install 'lit-opt[{row.extra}]'`" if row.extra else ""
    facts = (("Update", f"`{row.rule}`"), ("Class", f"`{row.factory}`"), ("Needs", install), ("Source", row.source))
    return [f"- **{name}**: {text}" for name, text in facts if text]


def _recipes_with(row: OptimizerRow) -> list[str]:
    specs = [get_recipe(name) for name in list_recipes() if get_recipe(name).optimizer.number == row.name]
    lines = [f"- [{s.name}](../recipes/{_file(s.name)}): {s.summary}. Instead: {s.deviate}." for s in specs]
    if not lines:
        lines = ["No recipe starts from it."]
    values = [setting for setting in row.settings if setting not in {spec.setting for spec in specs}]
    if values:
        lines += ["", f'In other recipes, `Recipe(..., optimizer="{row.name}")` has values for: {", ".join(values)}.']
    elif not row.settings:
        lines += ["", "It has no published starting values here: a recipe with it asks for `lr` and `weight_decay`."]
    return lines


def _keywords(row: OptimizerRow) -> list[str]:
    def allowed(key: str) -> str:
        low = row.limits.get(key)
        return ", ".join(row.choices.get(key, ())) or (_bounds(*low) if low else "")

    lines = ["| keyword | default | allowed |", "| --- | --- | --- |"]
    for key, value in row.hyperparameters.items():
        default = "has to be given" if value is REQUIRED else short(value)
        lines.append("| " + " | ".join(markdown_cell(c) for c in (f"`{key}`", default, allowed(key))) + " |")
    if row.fixed:
        lines += ["", f"Always set: {', '.join(f'`{key}={short(value)}`' for key, value in row.fixed.items())}."]
    return lines


def _bounds(low: float, high: float) -> str:
    return f"{low:g} or more" if high == math.inf else f"from {low:g} to below {high:g}"


def _published(row: OptimizerRow) -> list[str]:
    if not row.settings:
        return ["None is published."]
    head = "| setting | value | number | range | unit | practice | source |"
    lines = [head, "| --- | --- | --- | --- | --- | --- | --- |"]
    for setting, p in row.settings.items():
        values: dict[str, Value] = {"lr": p.lr, "weight_decay": p.weight_decay, **p.hyperparameters}
        for name, v in values.items():
            span = f"{short(v.range[0])} .. {short(v.range[1])}" if v.range else ""
            cells = (setting, f"`{name}`", short(v.number), span, v.unit, v.common_practice, v.source)
            lines.append("| " + " | ".join(markdown_cell(cell) for cell in cells) + " |")
    return lines


def _apart(row: OptimizerRow) -> list[str]:
    """What the rules of the package refuse, or take over, because of this row."""
    asked: dict[str, Any] = {"optimizer": row.name, "lr": 1e-3, "weight_decay": 0.0}
    needed = {key: 1 for key, value in row.hyperparameters.items() if value is REQUIRED and key != "lr"}
    resolved = preview(get_recipe("cnn"), asked | ({"optimizer_kwargs": needed} if needed else {}))
    reasons: dict[str, list[str]] = {}
    for key, strategy in STRATEGIES.items():
        for reason in refusals(resolved, key, "32-true"):
            without = without_place(reason.removeprefix("optimizer: "))
            reasons.setdefault(without, []).append(strategy.title)
    lines = [f"- **{', '.join(titles)}**: {reason}" for reason, titles in reasons.items()]
    flags = (
        (row.needs_closure, "**16-mixed, accumulation, manual optimization**: a step evaluates the model a second time."),
        (row.averages_itself, "**`ema=` and a decaying rate**: it averages the weights itself, and validates on its averages."),
        (row.clips_itself, "**`clip=`** is rarely needed: it limits the gradient or the update itself."),
        (row.needs_module, "`build` outside a recipe needs `module=`: it watches the layers."),
        (row.exchanges, "**Another communication hook of DDP**: it brings its own, and results depend on the number of processes."),
        (not row.exact, "**Comparisons bit for bit with other precisions**: its state is coarser than the weights."),
    )  # fmt: skip
    return lines + [f"- {text}" for flag, text in flags if flag]


def _where(cells: Iterable[Cell]) -> list[str]:
    rows: dict[str, list[Cell]] = {}
    for cell in cells:
        rows.setdefault(cell.strategy, []).append(cell)
    words = {"tested": "tested", "contract": "not run", "refused": "refused"}
    lines = [f"| strategy | {' | '.join(PRECISIONS)} |", "| --- |" + " --- |" * len(PRECISIONS)]
    lines += [f"| {STRATEGIES[key].title} | {' | '.join(words[c.status] for c in row)} |" for key, row in rows.items()]
    reasons = dict.fromkeys(
        without_place(why) for row in rows.values() for c in row for why in c.why if c.status == "refused"
    )
    legend = '"not run" works by contract. [What was tested](../../strategies.md), on CPU processes; nothing was run on a GPU.'
    return [*lines, "", legend, *(["", *(f"- {reason}" for reason in reasons)] if reasons else [])]


def _links(evidence: Sequence[Evidence]) -> list[str]:
    links = [f"- [{e.title}](../../../benchmarks/{e.file})" for e in evidence]
    return ["Ours, losses included:", "", *links] if links else ["None of ours."]


def _quoted(evidence: Sequence[Evidence]) -> list[str]:
    if not evidence:
        return ["None of ours."]
    lines = []
    for e in evidence:
        lines += [f"[{e.title}](../../../benchmarks/{e.file}):", "", *e.head, *e.rows, ""]
    return lines[:-1]


def _pairs(first: str, second: str, pairs: Iterable[tuple[str, str]]) -> list[str]:
    return [f"| {first} | {second} |", "| --- | --- |", *(f"| {key} | {word} |" for key, word in pairs)]


def _file(recipe: str) -> str:
    return recipe.replace("/", "-") + ".md"
