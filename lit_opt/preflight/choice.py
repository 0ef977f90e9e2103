"""The proposal, and what changes it beside the architecture: trained weights, adapters, the batch, the size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lit_opt.preflight.structure import Structure
from lit_opt.recipes import get_recipe
from lit_opt.resolve import RunFacts

# Up to here our own runs wanted a larger rate than the published ones: benchmarks/results/recipe_vs_default.md.
_TINY = 5_000_000


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A proposal.

    Args:
        recipe: Name such as "llm" or "large_batch/lars"; "" where unsure.
        confidence: "high", "medium", "low" or "unsure".
        reasons: What was seen, in sentences, the strongest first.
        alternatives: (recipe, when it is the better one).
        overrides: Arguments of `Recipe` that belong to the proposal.
        asks: What the run has to say for the recipe's values.

    Example:
        >>> Choice(recipe="cnn", confidence="high", reasons=("It is one.",)).setting
        'cnn'
    """

    recipe: str
    confidence: str
    reasons: tuple[str, ...]
    alternatives: tuple[tuple[str, str], ...] = ()
    overrides: Mapping[str, Any] = field(default_factory=dict)
    asks: tuple[str, ...] = ()

    @property
    def setting(self) -> str:
        """The recipe's setting; "" where unsure."""
        return get_recipe(self.recipe).setting if self.recipe else ""


def unsure(*reasons: str, alternatives: tuple[tuple[str, str], ...] = ()) -> Choice:
    """No proposal.

    Example:
        >>> unsure("Nothing is known here.").confidence
        'unsure'
    """
    return Choice(recipe="", confidence="unsure", reasons=reasons, alternatives=alternatives)


def refine(choice: Choice, structure: Structure, facts: RunFacts) -> Choice:
    """The variant for trained weights, for adapters and for a large batch, and what is missing.

    Args:
        choice: By the architecture.
        structure: Of the module.
        facts: Of the run.

    Example:
        >>> from torch import nn
        >>> from lit_opt.preflight.structure import read_structure
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 10))
        >>> cnn = Choice(recipe="cnn", confidence="high", reasons=())
        >>> refine(cnn, read_structure(net), RunFacts(global_batch=32_768)).recipe
        'large_batch/lars'
    """
    choice = _fine_tuned(choice, structure)
    return _ask(_tiny(_by_batch(choice, facts), facts), facts) if choice.recipe else choice


_TUNED = {"llm": "llm/finetune", "vit": "vit/finetune", "diffusion": "diffusion/finetune"}


def _fine_tuned(choice: Choice, s: Structure) -> Choice:
    """The variant for weights that have been trained before, where that can be seen."""
    if s.adapters:
        found = f"{s.adapters} adapter matrices (LoRA) beside {s.frozen:.0%} of frozen numbers."
        if choice.recipe in ("llm", "llm/finetune"):
            return replace(choice, recipe="llm/lora", reasons=(*choice.reasons, found), alternatives=())
        return unsure(
            *choice.reasons,
            f"{found} For adapters there is a recipe for language models alone (llm/lora).",
            alternatives=(("llm/lora", "for its rate, 3e-4, which is published for language models"),),
        )
    tuned = _TUNED.get(choice.recipe)
    if s.trained_before or (s.frozen > 0.05 and choice.recipe != "vlm"):
        why = (
            "The gains of its norms are no longer constant, so the weights have been trained before."
            if s.trained_before
            else f"{s.frozen:.0%} of its numbers are frozen, which makes sense for pretrained weights."
        )
        if tuned is None:
            return replace(choice, reasons=(*choice.reasons, why))
        weaker = {"high": "medium"}.get(choice.confidence, choice.confidence)
        back = (choice.recipe, "if it is trained from scratch, or this is a run to be continued")
        return replace(choice, recipe=tuned, confidence=weaker, reasons=(*choice.reasons, why), alternatives=(back,))
    if choice.recipe == "vlm" and s.trained_before is False:
        note = "Its weights are fresh, and the recipe's rates are for pretrained parts: from scratch they are low."
        return replace(choice, reasons=(*choice.reasons, note))
    if tuned and s.trained_before is None:
        note = f"Whether the weights are pretrained cannot be seen here; if they are, take {tuned}."
        return replace(choice, reasons=(*choice.reasons, note))
    return choice


def _by_batch(choice: Choice, facts: RunFacts) -> Choice:
    """Above the moderate batch of the large_batch recipes, those."""
    large = {"cnn": "large_batch/lars", "vit": "large_batch/lamb"}.get(choice.recipe)
    moderate = get_recipe("large_batch/lars").moderate_batch
    if large is None or moderate is None or facts.global_batch is None:
        return choice
    limit = int(moderate.number)  # type: ignore[arg-type]
    if facts.global_batch <= limit:
        return choice
    return replace(
        choice,
        recipe=large,
        confidence={"high": "medium"}.get(choice.confidence, choice.confidence),
        reasons=(*choice.reasons, f"The batch of {facts.global_batch:,} is above {limit:,} ({moderate.source})."),
        alternatives=(("large_batch/control" if large.endswith("lars") else choice.recipe, get_recipe(large).deviate),),
    )


def _tiny(choice: Choice, facts: RunFacts) -> Choice:
    """The published rates come from models of millions of numbers and more."""
    if (
        facts.parameter_count is None
        or facts.parameter_count > _TINY
        or choice.recipe not in ("llm", "vit", "diffusion")
    ):
        return choice
    note = (
        f"For a model this small the published rates are low: `lit-opt new {choice.recipe}` shows a larger one, with what "
        "it was measured to bring."
    )
    return replace(choice, reasons=(*choice.reasons, note))


def _ask(choice: Choice, facts: RunFacts) -> Choice:
    scaling = get_recipe(choice.recipe).lr.scaling
    if "lr" in choice.overrides or (scaling.rule.number == "none" and not get_recipe(choice.recipe).lr.by_batch):
        return choice
    known = facts.tokens_per_batch if scaling.batch_unit == "tokens" else facts.global_batch
    if known is not None or (scaling.batch_unit == "tokens" and facts.global_batch is None):
        return choice
    word = "batch_tokens" if scaling.batch_unit == "tokens" else "batch_size"
    ask = f"{word}: the rate belongs to a batch; without it the one for {scaling.reference_batch.number:,} is used."
    return replace(choice, asks=(ask,))
