"""What a checkpoint holds of a recipe, and what happens when it differs from the one given."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch
import torch.distributed as dist

from lit_opt import __version__
from lit_opt.callbacks.checkpoint_format import FORMAT
from lit_opt.errors import RecipeError
from lit_opt.resolve.resolved import ResolvedRecipe
from lit_opt.schedules import FIELDS_OF_KIND

KEY = "lit_opt"

# The horizon is a fact of the run: extending it is not another recipe, and these may follow from it.
_FACTS = ("total_steps", "warmup_steps", "milestones", "cooldown_steps")
_COMPARED = (
    "name", "optimizer", "lr", "weight_decay", "hyperparameters", "schedule", "clip", "ema", "layer_decay",
    "fallback", "groups", "parts", "part_globs", "transfer",
)  # fmt: skip


def pack(
    resolved: ResolvedRecipe, groups: list[dict[str, Any]], *, full: bool, steps: Mapping[str, int]
) -> dict[str, Any]:
    """The recipe's part of a checkpoint, loadable with `weights_only=True`.

    Args:
        resolved: The recipe of the run.
        groups: Name and parameter names of each group.
        steps: Counts of `FiniteSteps`.
        full: Also the random states of each process; collective, so call it on every rank.
    """
    packed: dict[str, Any] = {
        "format": FORMAT,
        "version": __version__,
        "recipe": resolved.as_dict(),
        "groups": groups,
        "steps": dict(steps),
    }
    if full:
        packed["rng"] = _all_rng_states()
    return packed


def differences(saved: Mapping[str, Any], resolved: ResolvedRecipe) -> tuple[list[str], list[str]]:
    """What differs between a checkpoint's recipe and the one given.

    Returns:
        Sentences on settings (another recipe), and sentences on facts (another horizon).
    """
    now = resolved.as_dict()
    settings: list[str] = []
    facts: list[str] = []
    extended = (saved.get("schedule") or {}).get("total_steps") != (now.get("schedule") or {}).get("total_steps")
    for key in _COMPARED:
        old, new = saved.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            for name in sorted({*old, *new}):
                if old.get(name) != new.get(name):
                    line = f"{key}.{name}: {_show(old.get(name))} in the checkpoint, {_show(new.get(name))} now"
                    (facts if extended and key == "schedule" and name in _FACTS else settings).append(line)
        elif old != new:
            settings.append(f"{key}: {_show(old)} in the checkpoint, {_show(new)} now")
    return settings, facts


def refusal(settings: list[str]) -> str:
    """The message for a checkpoint of another recipe."""
    lines = "".join(f"\n    {line}" for line in settings)
    return (
        f"on_resume: the checkpoint was written with another recipe:{lines}\n  Give on_resume='checkpoint' to go on with "
        "the checkpoint's values, on_resume='config' to go on with these, or the recipe that it was written with."
    )


def as_overrides(saved: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and overrides that resolve to the checkpoint's numbers again, whatever the run's batch is now.

    Args:
        saved: `ResolvedRecipe.as_dict()` of the checkpoint.
        given: The overrides given now: facts such as total_steps, and an optimizer class, come from them.
    """
    schedule = saved["schedule"]
    hyperparameters = dict(saved["hyperparameters"])
    total = schedule["total_steps"]
    used = FIELDS_OF_KIND[schedule["kind"]]
    decay: dict[str, Any] = {
        key: schedule[key] for key in ("kind", "final", "power", "gamma") if key == "kind" or key in used
    }
    if "milestones" in used and total:
        decay["milestones"] = tuple(m / total for m in schedule["milestones"])
    if "cooldown" in used and schedule["cooldown_steps"]:
        decay["cooldown"] = schedule["cooldown_steps"]
    overrides = {key: given[key] for key in ("batch_size", "batch_tokens", "total_steps") if key in given}
    overrides |= {
        "optimizer": given.get("optimizer") if isinstance(given.get("optimizer"), type) else saved["optimizer"],
        "lr": saved["lr"],
        "weight_decay": saved["weight_decay"],
        "warmup": schedule["warmup_steps"],
        "decay": decay,
        "clip": saved["clip"] or 0.0,
        "ema": saved["ema"] or False,
        "groups": saved["groups"],
        "layer_decay": saved["layer_decay"],
    }
    for key in ("betas", "momentum"):
        if key in hyperparameters:
            overrides[key] = hyperparameters.pop(key)
    overrides["optimizer_kwargs"] = hyperparameters
    if saved["fallback"]:
        overrides["fallback"] = saved["fallback"]
    if saved["parts"]:
        globs = saved["part_globs"]
        overrides["parts"] = {k: {"lr_scale": x, "match": globs.get(k)} for k, x in saved["parts"].items()}
    if saved.get("transfer"):
        # Batch and horizon are in the numbers already.
        overrides["transfer"] = saved["transfer"]
    return saved["name"], {key: value for key, value in overrides.items() if value is not None}


def named_as_checkpoints(resolved: ResolvedRecipe) -> ResolvedRecipe:
    """Name the checkpoint where the overrides that reproduce it would pass for the user's own."""
    origins = {
        key: replace(p, origin="checkpoint") if p.origin == "yours" else p for key, p in resolved.provenance.items()
    }
    return replace(resolved, provenance=origins)


def data_are_exact(trainer: Any) -> bool:
    """Whether every training loader can restore its position (Lightning's stateful protocol)."""
    loaders = trainer.fit_loop._combined_loader
    return loaders is not None and all(
        hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict") for loader in loaders.flattened
    )


def check_optimizer(saved: Mapping[str, Any], resolved: ResolvedRecipe) -> None:
    """Refuse another optimizer, also under on_resume="config": torch loads its state without a word.

    Raises:
        RecipeError: With both names and the remedy.
    """
    if saved["optimizer"] != resolved.optimizer_name:
        raise RecipeError(
            [
                f"optimizer: the checkpoint holds the state of {saved['optimizer']!r}, which {resolved.optimizer_name!r} "
                "cannot continue. Load its weights alone (module.load_state_dict(torch.load(path)['state_dict'])) and "
                "start a new fit without ckpt_path."
            ]
        )


def check_groups(saved: list[Mapping[str, Any]], groups: list[dict[str, Any]]) -> None:
    """Refuse a checkpoint whose parameters lie in other groups: torch matches state by position, silently.

    Raises:
        RecipeError: With the first difference and the remedy.
    """
    old = [((g["name"], g["algorithm"]), list(g["params"])) for g in saved]
    new = [((g["name"], g["algorithm"]), list(g["params"])) for g in groups]
    if old == new:
        return
    before = {p: place for place, params in old for p in params}
    after = {p: place for place, params in new for p in params}
    gone, added = [p for p in before if p not in after], [p for p in after if p not in before]
    moved = [p for p in before if p in after and before[p] != after[p]]
    parts = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for names, what in (
            (gone, "only in the checkpoint"),
            (added, "only in the model"),
            (moved, "in another group or with another algorithm"),
        )
        if names
    ] or ["the same parameters in another order"]
    raise RecipeError(
        [
            f"checkpoint: its optimizer state belongs to other parameter groups: {'; '.join(parts)}. The state would be "
            "attached to the wrong parameters. Use the model and recipe it was trained with, or load its weights alone "
            "(module.load_state_dict(torch.load(path)['state_dict'])) and start a new fit without ckpt_path."
        ]
    )


def check_foreign(checkpoint: Mapping[str, Any], groups: list[dict[str, Any]]) -> None:
    """Refuse a checkpoint without a recipe whose optimizer state does not fit the groups.

    Raises:
        RecipeError: With the sizes of both and the remedy.
    """
    states = checkpoint.get("optimizer_states") or []
    sizes = [len(g["params"]) for s in states for g in s.get("param_groups", [])]
    ours = [len(g["params"]) for g in groups]
    if sizes != ours:
        raise RecipeError(
            [
                f"checkpoint: it was not written with a recipe, and its optimizer has groups of {sizes} parameters where "
                f"this recipe has {ours}. Load its weights alone (module.load_state_dict(torch.load(path)['state_dict'])) "
                "and start a new fit without ckpt_path, or keep its optimizer with Recipe(..., existing='keep')."
            ]
        )


def restore_rng(packed: Mapping[str, Any]) -> bool:
    """Set the random states of python, numpy and torch; False where the number of processes differs."""
    states = packed.get("rng") or []
    if len(states) != _world_size():
        return False
    state = states[_rank()]
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    torch.set_rng_state(state["torch"])
    if "numpy" in state:
        import numpy as np

        kind, keys, position, has_gauss, cached = state["numpy"]
        np.random.set_state((kind, np.asarray(keys, dtype=np.uint32), position, has_gauss, cached))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    return True


def _rng_state() -> dict[str, Any]:
    version, internal, gauss = random.getstate()
    state: dict[str, Any] = {"python": [version, list(internal), gauss], "torch": torch.get_rng_state()}
    if find_spec("numpy"):
        import numpy as np

        kind, keys, position, has_gauss, cached = np.random.get_state()
        state["numpy"] = [str(kind), [int(k) for k in keys], int(position), int(has_gauss), float(cached)]
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _all_rng_states() -> list[dict[str, Any]]:
    if _world_size() == 1:
        return [_rng_state()]
    states: list[Any] = [None] * _world_size()
    dist.all_gather_object(states, _rng_state())
    return states


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def _show(x: object) -> str:
    if isinstance(x, Mapping) and "base" in x:
        x = x["base"]  # a transfer, where the other has none
    if isinstance(x, Mapping) and "shapes" in x:
        return f"{x['name']} with {', '.join(f'{k} {v}' for k, v in list(x['shapes'].items())[:3])}, ..."
    return f"{x:g}" if isinstance(x, float) else repr(x)
