"""Which tensors the optimizers hold: all that are trained, each once, and none that are not."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lit_opt.param_groups.snapshot import ParamInfo
from lit_opt.preflight.evidence import Evidence, Group, numel
from lit_opt.preflight.finding import Check, Finding, percent, some, tensors

# Copies that follow another network and are not optimized on purpose.
_FOLLOWERS = re.compile(
    r"(?:^|[._])(?:teacher|target|ema|momentum|frozen|old|reference|ref|key_encoder|lpips|vgg)", re.I
)


def _parameters_missing(e: Evidence) -> Iterator[Finding]:
    """Trainable parameters that no optimizer has."""
    held = {info.name for group in e.groups for info in group.members}
    trainable = [info for info in e.snapshot.parameters if info.trainable]
    absent = [info for info in trainable if info.name not in held]
    if not absent or not e.optimizers:
        return
    owners = {_owner(name) for name in held}
    torn = [info for info in absent if _owner(info.name) in owners]
    followers = [info for info in absent if _FOLLOWERS.search(info.name)]
    shown = torn or absent
    share = sum(map(numel, absent)) / max(1, sum(map(numel, trainable)))
    yield Finding(
        id="parameters-missing",
        level="error" if torn else "note" if len(followers) == len(absent) else "warning",
        message=f"{tensors(len(absent))} that need a gradient {'is' if len(absent) == 1 else 'are'} in no optimizer and will "
        "never change.",
        evidence=f"{percent(share)} of the trainable numbers, such as {some(_names(shown))}"
        + (f"; other tensors of {_owner(torn[0].name) or 'the module'!r} are in" if torn else ""),
        why="Lightning says nothing about it: their gradients are computed, kept in memory and never used.",
        source="torch.optim; timm#2712 is a case (a token that a list of names forgot)",
        fix="Pass self.parameters() or groups that cover all of it; set requires_grad_(False) on what is meant to stay.",
    )


def _parameters_twice(e: Evidence) -> Iterator[Finding]:
    """Tensors that are stepped more than once."""
    repeated = [name for group in e.groups for name in group.repeated]
    if repeated:
        yield Finding(
            id="parameters-twice",
            level="error",
            message=f"A group holds {tensors(len(repeated))} more than once.",
            evidence=some(repeated),
            why="Each step moves them once for each time they are listed, with a state that two updates share.",
            source="torch.optim.Optimizer.add_param_group warns of it",
            fix="Pass each parameter once; named_parameters() does that for tied weights, lists put together by hand do not.",
        )
    holders: dict[str, set[int]] = {}
    for group in e.groups:
        for info in group.members:
            holders.setdefault(info.name, set()).add(group.optimizer)
    shared = [name for name, where in holders.items() if len(where) > 1]
    if shared:
        yield Finding(
            id="parameters-twice",
            level="warning",
            message=f"{tensors(len(shared))} {'is' if len(shared) == 1 else 'are'} in more than one optimizer.",
            evidence=some(shared),
            why="Two optimizers move them with two states and two schedules; clipping and decay act twice.",
            source="Lightning's multiple optimizers: one set of parameters each",
            fix="Give each optimizer the parameters of its own part, such as self.generator.parameters().",
        )


def _parameters_frozen(e: Evidence) -> Iterator[Finding]:
    """Tensors in an optimizer that need no gradient."""
    frozen = [name for group in e.groups for name in group.frozen if group.size]
    if not frozen:
        return
    yield Finding(
        id="parameters-frozen",
        level="note",
        message=f"{tensors(len(frozen))} in the optimizer {'is' if len(frozen) == 1 else 'are'} frozen.",
        evidence=some(frozen),
        why="They are skipped as long as they have no gradient. Unfrozen later, they get the group's full rate and decay at "
        "once; and a list of groups that counts them says more than is trained.",
        source="torch.optim; Lightning BaseFinetuning adds a group when it unfreezes",
        fix="[p for p in self.parameters() if p.requires_grad]",
    )


def _parameters_unknown(e: Evidence) -> Iterator[Finding]:
    """Tensors in an optimizer that the module does not have."""
    strangers = [(group, shape) for group in e.groups for shape in group.strangers]
    if not strangers or (e.trainer is not None and e.trainer.flat):
        return
    held = {info.name for group in e.groups for info in group.members}
    absent = [info for info in e.snapshot.parameters if info.trainable and info.name not in held]
    shapes = ", ".join(" x ".join(map(str, shape)) or "a scalar" for _, shape in strangers[:3])
    yield Finding(
        id="parameters-unknown",
        level="error" if absent else "warning",
        message=f"The optimizer holds {tensors(len(strangers))} that {'is' if len(strangers) == 1 else 'are'} no parameter of "
        "the module.",
        evidence=f"{strangers[0][0].label}: {shapes}"
        + (f"; while {some(_names(absent))} are in none" if absent else ""),
        why="They are not in the checkpoint and not moved to the device. Where the module's own are missing as well, the "
        "optimizer was made for another copy of it.",
        source="Lightning: parameters belong to the module, optimizers are made in configure_optimizers",
        fix="Make the optimizer in configure_optimizers from self.parameters(), and keep losses with weights as self.loss.",
    )


def _dead_group(e: Evidence) -> Iterator[Finding]:
    """A group that does nothing."""
    for group in e.groups:
        reason, level = _dead(e, group)
        if not reason:
            continue
        yield Finding(
            id="dead-group",
            level="warning" if level else "note",
            message=f"{group.label} does nothing: {reason}.",
            evidence=f"{tensors(len(group.members))}, peak lr {group.lr:g}, weight_decay {group.weight_decay:g}",
            why="Whatever rule made this group was meant to catch something.",
            source="torchtitan optimizer.py:203 refuses such a pattern",
            fix="Look at the names the rule matches: lit_opt.param_groups.group_parameters(...).rows() lists them with reasons.",
        )


def _dead(e: Evidence, group: Group) -> tuple[str, bool]:
    """Why a group does nothing, and whether that is worth a warning."""
    if not group.members and not group.strangers:
        return "it is empty", group.weight_decay > 0 or bool(group.options.get("name"))
    if group.members and len(group.frozen) == len(group.members):
        return "all its tensors are frozen", True
    curve = e.curves[group.optimizer]
    if group.lr == 0 and not curve.unknown:
        return "its learning rate is 0 throughout the run", True
    return "", False


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def _names(infos: list[ParamInfo]) -> list[str]:
    return [info.name for info in infos]


CHECKS = (
    Check(id="parameters-missing", looks_for="parameters in no optimizer", find=_parameters_missing, needs=("groups",)),
    Check(id="parameters-twice", looks_for="parameters in twice", find=_parameters_twice),
    Check(id="parameters-frozen", looks_for="frozen parameters in an optimizer", find=_parameters_frozen),
    Check(id="parameters-unknown", looks_for="tensors that the module does not have", find=_parameters_unknown),
    Check(id="dead-group", looks_for="groups that do nothing", find=_dead_group, needs=("groups",)),
)
