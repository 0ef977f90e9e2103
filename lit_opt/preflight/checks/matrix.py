"""Muon and its family: units, what they are given, and shards."""

from __future__ import annotations

from collections.abc import Iterator

from lit_opt.callbacks.facts import is_flattened
from lit_opt.optim.matrix.scale import FORMULAS, HIGHEST_ADAMW, LOWEST_MUON, UNITS, update_rms
from lit_opt.param_groups.snapshot import ParamInfo
from lit_opt.preflight.evidence import Evidence, Group
from lit_opt.preflight.finding import Check, Finding, some, tensors
from lit_opt.preflight.methods import PRECONDITIONED

# A recipe refuses below LOWEST_MUON. torch.optim.Muon's own default lies just there, 1e-3 with scale 'original'.
_LEAST_OF_MUON = 2 * LOWEST_MUON


def wrong_units(group: Group) -> str:
    """Whether a matrix method's updates are far too "long" or too "short" for the scale they have; "" if neither.

    Example:
        >>> from lit_opt.preflight.methods import Method
        >>> muon = Method(name="muon", kind="matrix")
        >>> wrong_units(Group(optimizer=0, index=0, label="", method=muon, lr=3e-4, weight_decay=0.1, scale="original"))
        'short'
    """
    if group.scale not in UNITS or group.lr <= 0:
        return ""
    if UNITS[group.scale] == "AdamW":
        return "long" if group.lr >= HIGHEST_ADAMW else ""
    return "short" if group.lr <= _LEAST_OF_MUON else ""


def _units(e: Evidence) -> Iterator[Finding]:
    """A learning rate of one unit system with the scale of the other."""
    groups = [group for group in e.groups if group.method.kind == "matrix" and group.members and group.scale in UNITS]
    for group in groups:
        if wrong_units(group):
            yield _mixed(group, wrong_units(group) == "long")
            break
    if len({UNITS[group.scale] for group in groups}) > 1:
        yield Finding(
            id="muon-units",
            level="warning",
            message="Groups of one optimizer are in different unit systems.",
            evidence=", ".join(f"{group.label}: scale {group.scale!r}, lr {group.lr:g}" for group in groups[:3]),
            why="One schedule and one sweep then move two kinds of numbers.",
            source="KellerJordan/Muon muon.py and arXiv:2502.16982: one system each",
            fix="One scale for all groups, with the rates of its system.",
        )
    yield from _fallback_rate(e, groups)


def _mixed(group: Group, large: bool) -> Finding:
    rows, cols = _shape(group)
    rms = update_rms(group.lr, group.scale, rows, cols)
    usual = update_rms(3e-4, "match_rms_adamw", rows, cols) if large else update_rms(0.02, group.scale, rows, cols)
    theirs = "0.02 belongs to scale 'original'" if large else "1e-3 and 0.1 belong to scale 'match_rms_adamw'"
    return Finding(
        id="muon-units",
        level="error" if large else "warning" if group.weight_decay >= 0.05 else "note",
        message="The learning rate is in Muon's own units, and the scale takes AdamW's."
        if large
        else "The learning rate is in AdamW's units, and the scale takes Muon's own.",
        evidence=f"{group.label}: lr {group.lr:g}, weight_decay {group.weight_decay:g}, scale {group.scale!r} "
        f"({FORMULAS[group.scale]}); an update has an RMS of {rms:.1e} at {rows} x {cols}, against {usual:.1e} "
        f"for {'lr 3e-4' if large else 'lr 0.02'}",
        why=f"{theirs}. Mixed, the update is {max(rms / usual, usual / rms):.0f} times too "
        f"{'long' if large else 'short'}. "
        + ("timm's Muon defaults are this mixture." if large else "torch.optim.Muon's defaults are this mixture."),
        source="KellerJordan/Muon README.md (0.02), MoonshotAI/Moonlight toy_train.py (0.2 sqrt(max), AdamW's rates)",
        fix="lr=3e-4 and weight_decay=0.1 with adjust_lr_fn='match_rms_adamw', or lr=0.02 and weight_decay=0.01 with "
        "'original'; Recipe('llm/muon') and Recipe('llm/muon_rms') are the two.",
    )


def _shape(group: Group) -> tuple[int, int]:
    """The largest matrix of a group, for an example."""
    shapes = [info.shape for info in group.members if len(info.shape) >= 2]
    if not shapes:
        return 1024, 1024
    rows, *rest = max(shapes, key=lambda shape: shape[0] * shape[1])
    cols = 1
    for n in rest:
        cols *= n
    return rows, cols


def _fallback_rate(e: Evidence, groups: list[Group]) -> Iterator[Finding]:
    for matrix in groups:
        for group in e.groups:
            beside = group.method.kind == "adam" and group.optimizer == matrix.optimizer and group.members
            if beside and group.lr == matrix.lr >= HIGHEST_ADAMW:
                yield Finding(
                    id="muon-units",
                    level="error",
                    message="AdamW takes what Muon leaves at Muon's own learning rate.",
                    evidence=f"{group.label}: lr {group.lr:g} for {tensors(len(group.members))}, such as "
                    f"{group.members[0].name!r}; {matrix.label}: lr {matrix.lr:g}",
                    why="0.02 is thirty to a hundred times AdamW's rate for embeddings, heads and norms. timm's Muon gives "
                    "its AdamW part the same lr unless fallback_lr_scale is set.",
                    source="KellerJordan/Muon README.md (3e-4 beside 0.02); timm/optim/muon.py fallback_lr_scale",
                    fix="timm: fallback_lr_scale=0.015 (3e-4 beside 0.02); by groups: an own lr for the AdamW group.",
                )
                return


def _on_ends(e: Evidence) -> Iterator[Finding]:
    """Embeddings, heads and adapters under a matrix method."""
    found: dict[str, list[ParamInfo]] = {}
    for group in e.groups:
        if group.method.kind != "matrix" or group.method.name in PRECONDITIONED:
            continue
        for info in group.members:
            kind = _end(info)
            if kind and info.name not in group.frozen:
                found.setdefault(kind, []).append(info)
    if not found:
        return
    names = [info.name for infos in found.values() for info in infos]
    yield Finding(
        id="muon-on-ends",
        level="note" if set(found) == {"first layers"} else "warning",
        message=f"Muon orthogonalises {', '.join(found)}.",
        evidence=f"{tensors(len(names))}: {some(names)}",
        why="Orthogonalising assumes that a matrix maps one hidden space to another. The rows of an embedding or a head are "
        "tokens or classes, most with no gradient in a step, and the two factors of an adapter are one matrix together.",
        source="KellerJordan/Muon README.md (embeddings, heads and first layers to AdamW), MoonshotAI/Moonlight toy_train.py",
        fix='Recipe("llm/muon") routes by role. By hand: groups with AdamW for them (timm: use_fallback=True; '
        "KellerJordan/Muon: use_muon=False).",
    )


def _end(info: ParamInfo) -> str:
    if info.role in ("embedding", "position", "token"):
        return "embeddings"
    if info.role == "adapter":
        return "adapters"
    if info.matrix.left.startswith("head"):
        return "heads"
    return "first layers" if info.matrix.left.startswith("stem") else ""


def _on_shards(e: Evidence) -> Iterator[Finding]:
    """A matrix method where no process holds a whole matrix."""
    groups = [group for group in e.groups if group.method.kind == "matrix"]
    where = e.trainer.flat if e.trainer is not None else ""
    if not where and is_flattened(e.module):
        where = "flat shards"
    if not groups or not where:
        return
    yield Finding(
        id="muon-on-shards",
        level="error",
        message=f"{groups[0].method.name} needs whole matrices, and the strategy makes them {where}.",
        evidence=f"{groups[0].label}: {tensors(sum(len(g.members) + len(g.strangers) for g in groups))}",
        why="Rows and columns are lost in a flat shard: the method fails, or takes every tensor for a vector and runs AdamW.",
        source="pytorch FSDP1 FlatParameter; KellerJordan/Muon#11, verl-SpeCo#91",
        fix="ModelParallelStrategy (FSDP2) or DDP with lit_opt's matrix methods; or AdamW.",
    )


CHECKS = (
    Check(id="muon-units", looks_for="mixed unit systems of Muon", find=_units),
    Check(id="muon-on-ends", looks_for="Muon on embeddings, heads or adapters", find=_on_ends),
    Check(id="muon-on-shards", looks_for="matrix methods on flat shards (FSDP1, ZeRO)", find=_on_shards),
)
