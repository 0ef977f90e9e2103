"""From the outcome of a sweep to the large model's recipe: what of the small model's is carried over, and why it is so."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lit_opt.commands.config_files import expand_configs
from lit_opt.commands.from_config import load_project
from lit_opt.commands.plan import plan_config
from lit_opt.commands.sweep_yaml import put_recipe, recipe_text, writable
from lit_opt.comparison.codec import digest, protocol_to_dict
from lit_opt.comparison.records import Protocol
from lit_opt.comparison.sweep_result import Found, spans
from lit_opt.comparison.task import overrides_at
from lit_opt.errors import RecipeError
from lit_opt.param_groups import group_parameters
from lit_opt.param_groups.base import settle_base
from lit_opt.recipes import get_recipe
from lit_opt.resolve import preview
from lit_opt.transfer.spec import make_transfer

# Of a recipe's section, what belongs to a run and not to what was tuned: it is the large model's own.
OF_THE_RUN = ("batch_size", "batch_tokens", "total_steps", "existing", "on_resume", "on_nonfinite")


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


@dataclass(frozen=True)
class Carried:
    """What goes from the small model to the large one, whatever the tuned values are.

    Args:
        config: Of the small model, as it was typed.
        base: The small model: class_path and init_args.
        name: Of its recipe.
        keywords: Of its recipe.
        rules: depth, batch and horizon of the transfer, where they are asked for.
        large: The large model's config, or None.
    """

    config: str
    base: dict[str, Any]
    name: str
    keywords: dict[str, Any]
    rules: dict[str, Any]
    large: Large | None

    def recipe(self, protocol: Protocol, values: Mapping[str, float]) -> dict[str, Any]:
        """The section `recipe:` at some values."""
        (arm,) = protocol.arms
        fallback: Any = protocol.settings.get("fallback", {})
        at = overrides_at(arm, self.keywords, values, fallback.get(arm.name, {}))
        first = ("optimizer", "lr", "weight_decay", "fallback")
        ordered = {key: at[key] for key in (*first, *at) if key in at and key not in OF_THE_RUN}
        own = {key: value for key, value in (self.large.recipe if self.large else {}).items() if key in OF_THE_RUN}
        transfer = {"base": self.base, **self.rules}
        if "batch" in self.rules or "horizon" in self.rules:  # a horizon is counted in samples
            transfer["base_batch_size"] = batch_of(protocol)
        if "horizon" in self.rules:
            transfer["base_total_steps"] = protocol.budget_steps
        recipe = {"name": arm.recipe, **ordered, **own, "transfer": transfer}
        return {key: writable(value, f"recipe.{key}") for key, value in recipe.items()}

    def yaml(self, protocol: Protocol, values: Mapping[str, float], said: Sequence[str] = ()) -> str:
        """The large model's config with that section, or the section alone."""
        (arm,) = protocol.arms
        notes = {
            name: "tuned on the small model" if name in arm.box else "as on the small model, not tuned"
            for name in arm.start
        }
        section = recipe_text(self.recipe(protocol, values), said, notes)
        return section if self.large is None else put_recipe(self.large.text, section)

    def left_out(self) -> list[str]:
        """What the large model's own section said, and the written one does not say."""
        if self.large is None:
            return []
        said = {key: value for key, value in self.large.recipe.items() if value is not None}
        tuned = ("name", "lr", "weight_decay", *OF_THE_RUN)
        other = [f"name {said['name']}"] if said.get("name", self.name) != self.name else []
        kept = {key: writable(value, key) for key, value in self.keywords.items()}
        return other + [key for key, value in said.items() if key not in tuned and kept.get(key) != value]


def small_model(config: Any) -> dict[str, Any]:
    """The model of a config as `transfer.base`.

    Raises:
        RecipeError: There is no recipe, or a transfer already.
    """
    if config.get("recipe") is None:
        raise RecipeError(["recipe: the config has no section `recipe:`. Add one, such as `recipe: {name: llm}`."])
    if config["recipe"].get("transfer") is not None:
        raise RecipeError(
            ["recipe.transfer: values are tuned on the small model as they are, and the sweep writes it. Leave it out."]
        )
    section = config["model"].as_dict()
    arguments = writable(section.get("init_args") or {}, "model.init_args")
    return {"class_path": section["class_path"], "init_args": arguments}


def large_model(target: str | None) -> Large | None:
    """Read the large model's config.

    Raises:
        RecipeError: It cannot be read, or has its recipe elsewhere than in its section.
    """
    if target is None:
        return None
    try:
        path = Path(expand_configs(["fit", f"--config={target}"])[1].removeprefix("--config="))
    except RecipeError as error:
        raise RecipeError([text.replace("config:", "target:", 1) for text in error.problems]) from None
    text = path.read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    callbacks = (content.get("trainer") or {}).get("callbacks") or []
    problems = []
    if content.get("model") is None:
        problems.append(f"target: {target} has no section `model:`. Give the config of the large model.")
    if any(str(one.get("class_path")).endswith("Recipe") for one in callbacks if isinstance(one, Mapping)):
        problems.append(
            f"target: {target} has its recipe among trainer.callbacks. Move it to a section `recipe:` of its own."
        )
    if problems:
        raise RecipeError(problems)
    return Large(target, text, dict(content.get("recipe") or {}))


def refuse_untransferable(carried: Carried, protocol: Protocol, config_args: Sequence[str]) -> None:
    """Let `plan` look at the large model; without one, at the small model as if it were the large one.

    Args:
        carried: From the small model to the large one.
        protocol: Of the sweep.
        config_args: Of the small model's config.

    Raises:
        RecipeError: The optimizer has no rule, the models differ in more than size, a rule lacks a fact.
    """
    start = protocol.arms[0].start
    if carried.large is not None:
        try:
            with tempfile.TemporaryDirectory() as folder:
                draft = Path(folder, "draft.yaml")
                draft.write_text(carried.yaml(protocol, start), encoding="utf-8")
                plan_config([f"--config={draft}"], {})
        except RecipeError as error:
            raise RecipeError([f"target: {text}" for text in error.problems]) from error
        return
    recipe = carried.recipe(protocol, start)
    model = load_project(config_args, verb="sweep", meta=True).model
    values = {key: value for key, value in recipe.items() if key not in ("name", *OF_THE_RUN)}
    asked = settle_base(make_transfer({"base": recipe["transfer"]["base"]}), model)
    group_parameters(model, preview(get_recipe(recipe["name"]), {**values, "transfer": asked}))


def origin(found: Found, carried: Carried) -> list[str]:
    """The comment above the section: where its values come from.

    Args:
        found: With a chosen point.
        carried: From the small model to the large one.
    """
    protocol, chosen = found.protocol, found.chosen
    assert chosen is not None
    values = ", ".join(f"{name} {chosen.values[name]:.4g}" for name in found.tuned)
    lines = [
        f"Written by `lit-opt sweep`. Tuned on the small model ({carried.config}): {values},",
        f"{'the best' if chosen is found.best else 'inside the box, as good as the best'} of {len(found.points)} points, "
        f"{protocol.metric} {chosen.mean:.5g} after {protocol.budget_steps:,} steps of {batch_of(protocol)} samples,",
        f"mean of {protocol.seeds} {'seed' if protocol.seeds == 1 else 'seeds'}. Every run: ledger.jsonl beside this file, "
        f"protocol {digest(protocol_to_dict(protocol))}.",
    ]
    if len(found.valley()) > 1:
        lines.append(f"As good within 1 % or seed noise: {spans(found)}.")
    lines.append(
        "The values are the small model's: `transfer` carries them over. `lit-opt plan` shows each group's rate."
    )
    if carried.left_out():
        lines.append(f"Left out of the section that stood here: {', '.join(carried.left_out())}.")
    return lines


def batch_of(protocol: Protocol) -> int:
    """Samples of a step of the sweep."""
    return round(float(str(protocol.settings["samples_per_step"])))
