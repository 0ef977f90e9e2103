"""Weight decay: on what, in which unit, and whether it can do anything in this run."""

from __future__ import annotations

import math
from collections.abc import Iterator

from lit_opt.param_groups.roles import ROLES
from lit_opt.preflight.evidence import Evidence, Group, numel
from lit_opt.preflight.finding import Check, Finding, percent, some, tensors
from lit_opt.preflight.methods import unwrap

_SMALL = ("norm", "bias", "vector", "scale", "ssm")
_TABLES = ("embedding", "position", "token")
# A decay of this size is CNN practice in L2 units, where norms are often decayed too.
_L2_SIZED = 1e-3
_TORCH_DEFAULT = 0.01
_DIVIDED = {
    "llm": "Practice is divided: nanoGPT, Megatron and the Hugging Face Trainer exclude them, litgpt, torchtitan and OLMo do "
    "not.",
    "diffusion": "Practice is divided: diffusers decays all of a model by 1e-2 or 1e-6, DiT and SiT decay nothing at all.",
    "vit": "Practice is divided: MAE and BEiT exclude them in fine-tuning, SGD recipes do not.",
}


def _groups_fix(e: Evidence) -> str:
    if not e.key:
        return (
            "Two groups: weight_decay=0 for norms, biases, vectors and tables, and the decay for the rest. A Recipe makes "
            "them; `lit-opt list` has one for each setting."
        )
    return (
        f'Recipe("{e.key}") makes the groups. By hand: lit_opt.param_groups.group_parameters(self, "{e.key}")'
        ".for_optimizer(self.named_parameters()) gives them to any optimizer."
    )


def _decay_on_norms(e: Evidence) -> Iterator[Finding]:
    """Norm gains, biases and other vectors that are decayed."""
    found = [(group, info) for group, info in e.decayed() if info.role in _SMALL]
    if not found:
        return
    roles: dict[str, int] = {}
    for _, info in found:
        roles[info.role] = roles.get(info.role, 0) + 1
    what = ", ".join(f"{count:,} {_plural(role, count)}" for role, count in roles.items())
    decays = sorted({group.weight_decay for group, _ in found})
    tiny = max(decays) <= _L2_SIZED
    spared = [info for group in e.groups if group.weight_decay == 0 for info in group.members if info.role in _SMALL]
    divided = e.base in ("llm", "vlm", "diffusion") or e.finetunes
    yield Finding(
        id="decay-on-norms",
        level="note" if tiny or (divided and not spared) else "warning",
        message=f"Weight decay acts on {what}"
        + (f", although {tensors(len(spared))} of these kinds are excluded from it." if spared else "."),
        evidence=f"weight_decay {' and '.join(f'{d:g}' for d in decays)} on {tensors(len(found))}, such as "
        f"{some([info.name for _, info in found])}",
        why="It pulls gains and biases to zero, where weights are merely kept small: it saves no capacity and can unbalance "
        "layers. "
        + (
            "The rule that excludes them misses some."
            if spared and not tiny
            else "In L2 units of this size torchvision and mmpretrain decay them as well, so little may change."
            if tiny
            else _DIVIDED.get(e.base, _DIVIDED["llm"])
            if divided
            else "timm, big_vision, open_clip, Swin and ConvNeXt exclude them."
        ),
        source="nanoGPT model.py:263, timm/optim/_param_groups.py:19, open_clip optim.py:60; arXiv:1812.01187 section 3.1",
        fix=_groups_fix(e),
    )


def _plural(role: str, count: int) -> str:
    word = ROLES[role]
    return word if count == 1 else f"{word}es" if word.endswith("s") else f"{word}s"


def _decay_on_embeddings(e: Evidence) -> Iterator[Finding]:
    """Tables of tokens and positions that are decayed."""
    found = [info for _, info in e.decayed() if info.role in _TABLES and not info.listed]
    if not found:
        return
    numbers, total = sum(map(numel, found)), sum(numel(info) for _, info in e.decayed())
    yield Finding(
        id="decay-on-embeddings",
        level="note",
        message=f"Weight decay acts on {' and '.join(sorted({_plural(info.role, 2) for info in found}))}.",
        evidence=f"{tensors(len(found))} with {percent(numbers / total)} of the decayed numbers: "
        f"{some([info.name for info in found])}",
        why="Rows of rare tokens get a gradient now and then and decay at every step. Practice is divided: OLMo and SmolLM3 "
        "exclude them, nanoGPT and the Hugging Face Trainer do not.",
        source="OLMo-core optim/config.py:106, SmolLM3 stage1_8T.yaml; nanoGPT model.py:263",
        fix=_groups_fix(e),
    )


def _decay_on_listed(e: Evidence) -> Iterator[Finding]:
    """Parameters that the model itself lists in `no_weight_decay()`."""
    found = [(group, info) for group, info in e.decayed() if info.listed and info.role not in _SMALL]
    if not found:
        return
    mild = max(group.weight_decay for group, _ in found) <= _L2_SIZED
    names = [info.name for _, info in found]
    yield Finding(
        id="decay-on-listed",
        level="note" if mild else "warning",
        message=f"Weight decay acts on what {found[0][1].listed} excludes.",
        evidence=f"{tensors(len(found))}: {some(names)}",
        why="The model's authors trained it without decay on these. They have two or three dimensions, so a rule by "
        "dimensions misses them.",
        source="timm/optim/_param_groups.py:19 and vision_transformer.py no_weight_decay()",
        fix=_groups_fix(e)
        + " timm's param_groups_weight_decay(model, weight_decay, no_weight_decay_list=model.no_weight_decay()) does it too.",
    )


def _adam_with_l2(e: Evidence) -> Iterator[Finding]:
    """Adam's weight decay in the gradient, with a number that belongs to decoupled decay."""
    for group in e.groups:
        if group.method.kind != "adam" or group.method.decay != "l2" or group.weight_decay <= 0 or not group.members:
            continue
        yield Finding(
            id="adam-l2",
            level="warning" if group.weight_decay > _L2_SIZED else "note",
            message=f"{group.label} adds weight decay to the gradient (L2), where Adam divides it away.",
            evidence=f"weight_decay={group.weight_decay:g}; weights with large gradients are decayed least",
            why="In Adam the decay goes through the division by the second moment, so it depends on the gradient and not on "
            "weight_decay alone. Numbers such as 0.01 to 0.1 were published for AdamW.",
            source="arXiv:1711.05101 (decoupled weight decay); torch.optim.Adam",
            fix=f"torch.optim.AdamW(..., weight_decay={group.weight_decay:g}) with the number of your source in AdamW's unit, "
            "or weight_decay=0.",
        )
        return


def _decay_unset(e: Evidence) -> Iterator[Finding]:
    """AdamW's weight decay that nobody chose."""
    if e.recipe is not None:
        return
    for index, optimizer in enumerate(e.optimizers):
        inner = unwrap(optimizer)
        groups = [group for group in e.groups if group.optimizer == index]
        default = inner.defaults.get("weight_decay")
        at_default = all(group.weight_decay == _TORCH_DEFAULT == default for group in groups)
        if not (at_default and type(inner).__name__ == "AdamW" and type(inner).__module__.startswith("torch.")):
            continue
        if e.code.known and e.code.mentions("weight_decay"):
            continue
        unset = e.code.known and e.code.mentions("AdamW")
        practice = None if e.setting is None or e.finetunes else e.spec.weight_decay
        differs = practice is not None and practice.number != _TORCH_DEFAULT
        said = f" Practice here is {practice.common_practice}." if practice is not None else ""
        yield Finding(
            id="decay-unset",
            level="warning" if unset and differs else "note",
            message="AdamW's weight_decay is not given, so torch's default acts."
            if unset
            else "AdamW's weight_decay equals torch's default; it may never have been chosen.",
            evidence=f"weight_decay={_TORCH_DEFAULT:g} in {len(groups)} group{'s' * (len(groups) != 1)}"
            + (", and the module's code never names weight_decay" if unset else ""),
            why=f"The default is a number of torch, not of a recipe, and torch.optim.Adam's is 0.{said}",
            source="torch.optim.AdamW; "
            + (practice.source if practice is not None else "nanoVLM train.py:249 is a case of it"),
            fix=f"AdamW(..., weight_decay={practice.number:g})"
            if differs and practice
            else "AdamW(..., weight_decay=...) with the number of your recipe, or 0.",
        )


def _decay_on_nothing(e: Evidence) -> Iterator[Finding]:
    """A weight decay that reaches no matrix."""
    if not any(group.weight_decay > 0 for group in e.groups):
        return
    matrices = [info for group in e.groups for info in group.members if info.role in ("matrix", "adapter")]
    trained = [info for info in matrices if info.trainable]
    if not trained or any(info.role in ("matrix", "adapter") for _, info in e.decayed()):
        return
    decays = sorted({group.weight_decay for group in e.groups if group.weight_decay > 0})
    reached = [info.name for _, info in e.decayed()]
    flat = e.trainer is not None and bool(e.trainer.flat)
    yield Finding(
        id="decay-on-nothing",
        level="error",
        message="Weight decay is set and reaches no weight matrix.",
        evidence=f"weight_decay {' and '.join(f'{d:g}' for d in decays)} acts on "
        + (f"{some(reached)} only" if reached else "no tensor at all")
        + f"; {tensors(len(trained))} with dimensions for it, such as {trained[0].name!r}, are excluded",
        why="Under FSDP1 every parameter is flat, so a rule by dimensions takes all weights for biases and turns decay off "
        "without a word."
        if flat
        else "The two groups are swapped, or the rule that divides them matches nothing.",
        source="pytorch#101343, open_clip#358" if flat else "nanoGPT model.py:263",
        fix=_groups_fix(e) + (" It decides before sharding." if flat else ""),
    )


def _decay_too_weak(e: Evidence) -> Iterator[Finding]:
    """A decay whose half-life is longer than the run."""
    total = e.facts.total_steps
    if e.finetunes or not total:
        return
    strongest: tuple[float, Group] | None = None
    for group in e.groups:
        if group.weight_decay <= 0 or group.lr <= 0 or not any(i.role in ("matrix", "adapter") for i in group.members):
            continue
        rate = group.lr * group.weight_decay * _memory(group)
        if group.method.decay in ("decoupled", "l2") and group.method.kind != "layerwise":
            strongest = max(strongest or (0.0, group), (rate, group), key=lambda pair: pair[0])
    if strongest is None or (strongest[1].method.kind == "adam" and strongest[1].method.decay == "l2"):
        return
    rate, group = strongest
    half_life = math.log(2) / rate
    if half_life <= total:
        return
    mean = _mean_share(e, group)
    unit = "lr x weight_decay" if _memory(group) == 1 else "lr x weight_decay / (1 - momentum)"
    yield Finding(
        id="decay-too-weak",
        level="note",
        message="Weight decay does next to nothing in a run of this length.",
        evidence=f"{unit} = {rate:.2g} a step: half of a weight in {half_life:,.0f} steps, the run has {total:,}; "
        f"{percent(1 - math.exp(-rate * mean * total))} in all",
        why="Whatever weight_decay is set to within its range, a short run will look the same: it cannot be tuned here, and a "
        "number copied from a long run has no effect.",
        source="arithmetic; arXiv:2405.13698 for the time scale 1 / (lr x weight_decay)",
        fix="Nothing, if the run is a test of a longer one; otherwise do not spend runs on tuning weight_decay.",
    )


def _memory(group: Group) -> float:
    """How much longer L2 in a momentum buffer acts than one step."""
    momentum = group.options.get("momentum") or 0.0
    return 1 / (1 - momentum) if group.method.name == "sgd" and 0 <= momentum < 1 else 1.0


def _mean_share(e: Evidence, group: Group) -> float:
    shape = next((curve.shape() for curve in e.curves if curve.optimizer == group.optimizer), [])
    return sum(shape) / len(shape) if shape else 1.0


CHECKS = (
    Check(id="decay-on-norms", looks_for="decay on norms, biases and other vectors", find=_decay_on_norms),
    Check(id="decay-on-embeddings", looks_for="decay on embeddings and position tables", find=_decay_on_embeddings),
    Check(id="decay-on-listed", looks_for="decay on what the model excludes itself", find=_decay_on_listed),
    Check(id="adam-l2", looks_for="Adam with L2 where decoupled decay was meant", find=_adam_with_l2),
    Check(id="decay-unset", looks_for="weight decay left at torch's default", find=_decay_unset),
    Check(id="decay-on-nothing", looks_for="a decay that reaches no matrix", find=_decay_on_nothing, needs=("groups",)),
    Check(
        id="decay-too-weak", looks_for="a decay half-life longer than the run", find=_decay_too_weak, needs=("horizon",)
    ),
)
