"""From live objects to evidence: the module, its optimizers and schedulers as built, and what is known of the run.

Nothing is changed: no optimizer, scheduler or random state is touched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lit_opt.errors import RecipeError
from lit_opt.param_groups import ParamSnapshot, clean_name, snapshot_parameters
from lit_opt.param_groups.snapshot import ParamInfo
from lit_opt.preflight.averages import find_averages
from lit_opt.preflight.curve import Curve, constant, play
from lit_opt.preflight.evidence import Evidence, Group, TrainerSettings
from lit_opt.preflight.methods import ADAMW, Method, method_of, scale_of
from lit_opt.preflight.schedulers import is_timm
from lit_opt.preflight.source import Code, read_code
from lit_opt.recipes import get_recipe
from lit_opt.resolve.resolved import ResolvedRecipe, RunFacts


def collect(
    module: nn.Module,
    optimizers: Sequence[Any],
    schedulers: Sequence[Any] = (),
    *,
    facts: RunFacts | None = None,
    trainer: TrainerSettings | None = None,
    callbacks: Sequence[Any] | None = None,
    setting: str | None = None,
    recipe: ResolvedRecipe | None = None,
    snapshot: ParamSnapshot | None = None,
) -> Evidence:
    """Gather the evidence for `lit_opt.preflight.check.check`.

    Args:
        module: The module as it is trained.
        optimizers: torch optimizers, from any library.
        schedulers: With the attributes `scheduler`, `interval` and `frequency`, as Lightning's `LRSchedulerConfig`; or
            schedulers alone, which are stepped after each optimizer step.
        facts: Horizon, batch and steps of an epoch, as far as they are known.
        trainer: The Trainer's settings, None outside of one.
        callbacks: The Trainer's, None where nobody could look.
        setting: "llm", "vit/finetune", ... or a recipe's name, where there is no recipe to say it.
        recipe: What the run was resolved to.
        snapshot: Of the module before it was sharded; taken now if unset.

    Raises:
        RecipeError: Unknown setting; parameters that cannot be read (lazy ones, FSDP1 without original parameters).

    Example:
        >>> module = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        >>> evidence = collect(module, [torch.optim.AdamW(module.parameters(), lr=1e-3)], setting="llm")
        >>> [(group.label, group.lr, len(group.members)) for group in evidence.groups]
        [('AdamW group 0', 0.001, 4)]
        >>> sorted(evidence.missing)
        ['batch', 'horizon', 'trainer']
    """
    snapshot = snapshot or snapshot_parameters(module)
    facts = facts or RunFacts()
    code = read_code(module)
    curves = tuple(_curves(module, optimizers, schedulers, facts, trainer, code))
    groups = tuple(_groups(module, snapshot, optimizers, curves))
    key = setting_key(setting) if setting is not None else None
    if recipe is not None:
        key = get_recipe(recipe.name).registry_key
    return Evidence(
        module=module,
        snapshot=snapshot,
        optimizers=tuple(optimizers),
        groups=groups,
        curves=curves,
        facts=facts,
        trainer=trainer,
        averages=None if callbacks is None else find_averages(callbacks, module, code),
        setting=key,
        recipe=recipe,
        code=code,
        missing=dict(_missing(key, facts, trainer, callbacks, curves, groups)),
    )


def setting_key(setting: str) -> str:
    """A setting, or the setting of a recipe's name.

    Raises:
        RecipeError: Unknown; the message has the nearest name.

    Example:
        >>> setting_key("llm/lora"), setting_key("vit/muon")
        ('llm/finetune', 'vit')
    """
    try:
        return get_recipe(setting).registry_key
    except RecipeError as error:
        raise RecipeError([problem.replace("recipe:", "setting:", 1) for problem in error.problems]) from None


def _curves(
    module: nn.Module,
    optimizers: Sequence[Any],
    schedulers: Sequence[Any],
    facts: RunFacts,
    trainer: TrainerSettings | None,
    code: Code,
) -> Iterator[Curve]:
    by_hand = "the module writes group['lr'] itself" if code.sets_rates else ""
    if trainer is not None and not trainer.automatic:
        by_hand = by_hand or "under manual optimization the module steps its schedulers itself"
    own_step = "lr_scheduler_step" in code.methods
    for index, optimizer in enumerate(optimizers):
        mine = [s for s in schedulers if getattr(getattr(s, "scheduler", s), "optimizer", None) is optimizer]
        if by_hand or len(mine) > 1:
            peaks = tuple(float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups)
            why = by_hand or f"{len(mine)} schedulers act on it together"
            names = ", ".join(type(getattr(s, "scheduler", s)).__name__ for s in mine)
            yield Curve(optimizer=index, scheduler=names, peaks=peaks, bases=peaks, unknown=why)
            continue
        if not mine:
            yield constant(optimizer, index)
            continue
        scheduler = getattr(mine[0], "scheduler", mine[0])
        curve = play(
            scheduler,
            optimizer,
            index=index,
            interval=getattr(mine[0], "interval", "step"),
            frequency=getattr(mine[0], "frequency", 1),
            total_steps=facts.total_steps,
            steps_per_epoch=facts.steps_per_epoch,
            accumulation=facts.accumulation or 1,
            keep=[module, getattr(module, "_trainer", None)],
        )
        if own_step and not is_timm(scheduler) and not curve.unknown:
            why = "the module has its own lr_scheduler_step"
            curve = Curve(optimizer=index, scheduler=curve.scheduler, peaks=curve.peaks, bases=curve.bases, unknown=why)
        yield curve


def _groups(
    module: nn.Module, snapshot: ParamSnapshot, optimizers: Sequence[Any], curves: Sequence[Curve]
) -> Iterator[Group]:
    known = {name: info for info in snapshot.parameters for name in (info.name, *info.aliases)}
    named = module.named_parameters(remove_duplicate=False)
    info_of = {id(p): known[clean_name(name)] for name, p in named if clean_name(name) in known}
    for i, optimizer in enumerate(optimizers):
        who = type(optimizer).__name__ if len(optimizers) == 1 else f"optimizer {i} ({type(optimizer).__name__})"
        for g, group in enumerate(optimizer.param_groups):
            name = group.get("name")
            label = f"{who} group {g}" + (f" ({name!r})" if isinstance(name, str) else "")
            own = method_of(optimizer, group)
            taken, left = _routed(optimizer, group, own, info_of)
            lr, decay = curves[i].peaks[g], float(group.get("weight_decay") or 0.0)
            options = {key: value for key, value in group.items() if key != "params"}
            if taken or not left:
                scale = scale_of(optimizer, group) if own.kind == "matrix" else ""
                yield _group(i, g, label, own, lr, decay, scale, options, taken, info_of)
            if left:
                ratio = float(group.get("fallback_lr_ratio", group.get("fallback_lr_scale", 1.0)))
                beside = group.get("fallback_weight_decay")
                decay = decay if beside is None else float(beside)
                betas = {"betas": group["fallback_betas"]} if "fallback_betas" in group else {}
                label += ", its AdamW part" if taken else ""
                yield _group(i, g, label, ADAMW, lr * ratio, decay, "", options | betas, left, info_of)


def _group(
    i: int,
    g: int,
    label: str,
    method: Method,
    lr: float,
    decay: float,
    scale: str,
    options: Mapping[str, Any],
    held: Sequence[torch.Tensor],
    info_of: Mapping[int, ParamInfo],
) -> Group:
    members: dict[str, ParamInfo] = {}
    repeated, frozen = [], []
    for p in held:
        info = info_of.get(id(p))
        if info is None:
            continue
        if info.name in members:
            repeated.append(info.name)
        members[info.name] = info
        if not p.requires_grad:
            frozen.append(info.name)
    return Group(
        optimizer=i,
        index=g,
        label=label,
        method=method,
        lr=lr,
        weight_decay=decay,
        scale=scale,
        options=options,
        members=tuple(members.values()),
        frozen=tuple(dict.fromkeys(frozen)),
        strangers=tuple(tuple(p.shape) for p in held if id(p) not in info_of),
        repeated=tuple(repeated),
    )


def _routed(
    optimizer: Any, group: Mapping[str, Any], method: Method, info_of: Mapping[int, ParamInfo]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The tensors that the method itself takes, and those that it leaves to AdamW."""
    held = list(group["params"])
    if method.kind != "matrix":
        return held, []
    if group.get("algorithm") == "adamw" or group.get("use_fallback") or group.get("use_muon") is False:
        return [], held
    taken: list[torch.Tensor] = []
    left: list[torch.Tensor] = []
    for p in held:
        info = info_of.get(id(p))
        shape = info.shape if info is not None else tuple(p.shape)
        (taken if _is_taken(optimizer, p, shape) else left).append(p)
    return taken, left


def _is_taken(optimizer: Any, p: torch.Tensor, shape: Sequence[int]) -> bool:
    said = optimizer.state.get(p, {}).get("use_muon")
    if isinstance(said, bool | int):
        return bool(said)
    if type(optimizer).__module__.startswith("timm."):
        # timm.optim.muon._is_suitable_for_muon: at least two sides that are not 1, each 4 or more, 128 : 1 at most.
        sides = [n for n in shape if n > 1]
        if len(sides) < 2 or shape[0] == 1:
            return False
        rows, cols = sides[0], torch.Size(sides[1:]).numel()
        return min(sides[:2]) >= 4 and max(rows, cols) <= 128 * min(rows, cols)
    return len(shape) >= 2


def _missing(
    setting: str | None,
    facts: RunFacts,
    trainer: TrainerSettings | None,
    callbacks: Sequence[Any] | None,
    curves: Sequence[Curve],
    groups: Sequence[Group],
) -> Iterator[tuple[str, str]]:
    if setting is None:
        yield "setting", "the setting is not known"
    if facts.total_steps is None:
        yield "horizon", "the optimizer steps of the run are not known"
    if facts.global_batch is None:
        yield "batch", "the global batch is not known"
    if trainer is None:
        yield "trainer", "there is no Trainer to ask"
    if callbacks is None and trainer is not None:
        yield "averages", "the Trainer's callbacks are not known"
    unknown = [curve for curve in curves if curve.unknown]
    if unknown and len(unknown) == len(curves):
        yield "schedule", f"the learning-rate schedule cannot be foreseen: {unknown[0].unknown}"
    if any(group.strangers for group in groups) and not any(group.members for group in groups):
        yield "groups", "the optimizer holds none of the module's tensors, but copies or flat shards of them"
