"""Learning rates, decay, moments: the numbers themselves, beside what is published for the setting."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lit_opt.param_groups.parts import match_parts
from lit_opt.preflight.checks.matrix import wrong_units
from lit_opt.preflight.evidence import Evidence, Group
from lit_opt.preflight.finding import SETTINGS, Check, Finding
from lit_opt.preflight.methods import ADAMW
from lit_opt.recipes.schema import Value
from lit_opt.resolve.lr import batch_rule
from lit_opt.resolve.plain import is_number
from lit_opt.scaling import batch_factor

# Ranges are starting points: a value slightly beside one is not worth a line, one ten times beside it is.
_SLACK = 1.3
_FAR = 10.0
_SCALE_KEYS = ("lr_scale", "lr_mult", "lr_multiplier")
_NO_DIFFERENCE = {"name", "lr", "initial_lr", "param_names", "max_lr", "min_lr", *_SCALE_KEYS}


def _lr_range(e: Evidence) -> Iterator[Finding]:
    """A peak rate outside of the published starting range."""
    group = e.largest("adam", "sgd", "matrix")
    if group is None or group.lr <= 0 or wrong_units(group):
        return
    lr = max((g.lr for g in e.groups if g.method == group.method and g.size), default=group.lr)
    lr = lr if len({g.lr for g in e.groups if g.size}) > 2 and e.base != "vlm" else group.lr
    if e.recipe is not None:
        lr = e.recipe.lr
    found = _published(e, group)
    if found is None or found.range is None:
        return
    rule = batch_rule(e.spec, e.row(group.method))
    base, words = lr, ""
    batch = e.facts.global_batch
    if rule is not None and rule.unit == "samples":
        if batch is None:
            return
        if batch > rule.reference:
            base = lr / batch_factor(batch, rule.reference, rule.rule, rule.limit)
            words = (
                f", which is {base:.3g} at {rule.reference:,} ({rule.rule.replace('_', ' ')}; the batch is {batch:,})"
            )
    yield from _judged(group, lr, base, found, words)


def _judged(group: Group, lr: float, base: float, value: Value, words: str) -> Iterator[Finding]:
    assert value.range is not None
    low, high = value.range
    if not low / _SLACK <= base <= high * _SLACK:
        yield _out(group, lr, base, value.range, value.common_practice, value.source, words)


def _out(
    group: Group, lr: float, base: float, allowed: tuple[float, float], practice: str, source: str, words: str
) -> Finding:
    low, high = allowed
    times = base / high if base > high else low / base
    return Finding(
        id="lr-range",
        level="warning" if times > _FAR * 1.01 else "note",
        message=f"The peak learning rate lies {'above' if base > high else 'below'} the range to start in.",
        evidence=f"{group.label}: lr {lr:.3g}{words}; range {low:g} .. {high:g}, {times:.1f} times beside it",
        why=f"Practice: {practice}. A value beside the range may be right for an unusual model or batch; ten times beside "
        "it is usually a number of another optimizer.",
        source=source,
        fix=f"Start within {low:g} .. {high:g}" + (" at that batch" if words else "") + ", and tune from there.",
    )


def _sgd_rate(e: Evidence) -> Iterator[Finding]:
    """A rate of SGD given to Adam."""
    group = e.largest("adam")
    if group is None or group.lr < 0.1 or any(other.method.kind == "matrix" for other in e.groups):
        return
    yield Finding(
        id="lr-of-sgd",
        level="warning",
        message="Adam runs at a learning rate of SGD.",
        evidence=f"{group.label}: lr {group.lr:g}; each weight moves by about that much a step",
        why="Adam divides by the gradient's size, so its rate is the step itself. Published rates are 1e-5 to 1e-2.",
        source="arXiv:1412.6980 section 2.1 (the step is bounded by lr)",
        fix="lr=1e-3 or below; `lit-opt explain llm` and `lit-opt explain vit` show published ones.",
    )


def _published(e: Evidence, group: Group) -> Value | None:
    """The setting's own rate for this method, with its range."""
    if e.setting is None:
        return None
    # In AdamW's units a matrix method takes AdamW's rates.
    method = ADAMW if group.scale == "match_rms_adamw" else group.method
    row = e.row(method)
    if e.spec.optimizer.number == method.name:
        return e.spec.lr.base
    own = row.settings.get(e.key) if row is not None else None
    return own.lr if own is not None else None


def _decay_range(e: Evidence) -> Iterator[Finding]:
    """A weight decay outside of the published range."""
    group = e.largest("adam", "sgd")
    if group is None or any(other.method.kind == "matrix" for other in e.groups):
        return
    decay = max(g.weight_decay for g in e.groups if g.method == group.method)
    row = e.row(group.method)
    value = e.spec.weight_decay if e.spec.optimizer.number == group.method.name else None
    own = row.settings.get(e.key) if row is not None else None
    value = value or (own.weight_decay if own is not None else None)
    if value is None or value.range is None:
        return
    low, high = value.range
    if low / _SLACK <= decay <= high * _SLACK:
        return
    if decay == 0:
        beside, level = "no decay at all", "note"
    else:
        times = decay / high if decay > high else low / decay
        beside, level = f"{times:.1f} times beside it", "warning" if times >= _FAR else "note"
    other = (
        "big_vision and SGD recipes write such numbers in units that are not multiplied by AdamW's lr."
        if 0 < decay < low and group.method.kind == "adam"
        else "Decays of 0.01 and more are AdamW's, times lr; SGD's is L2 in the gradient."
        if decay > high and group.method.kind == "sgd"
        else "A range to start in, not a law."
    )
    yield Finding(
        id="decay-range",
        level=level,  # type: ignore[arg-type]
        message=f"weight_decay lies {'above' if decay > high else 'below'} the range to start in.",
        evidence=f"{group.label}: weight_decay {decay:g}; range {low:g} .. {high:g}, {beside}",
        why=f"{other} Practice: {value.common_practice}.",
        source=value.source,
        fix=f"weight_decay={value.number:g}, in {group.method.name}'s unit ({value.unit}).",
    )


def _beta2_llm(e: Evidence) -> Iterator[Finding]:
    """Adam's slow second moment for a language model."""
    slow = [group for group in e.groups if group.method.kind == "adam" and len(group.betas) == 2 and group.size]
    slow = [group for group in slow if group.betas[1] >= 0.999]
    if not slow:
        return
    beta2 = max(group.betas[1] for group in slow)
    value = e.spec.hyperparameters["betas"]
    yield Finding(
        id="beta2-llm",
        level="warning",
        message="Adam's beta2 is torch's default, made for vision; language models use 0.95.",
        evidence=f"{slow[0].label}: betas {slow[0].betas}; the second moment averages over "
        f"{1 / (1 - beta2):,.0f} steps, with 0.95 over 20",
        why="A slow second moment does not see a sudden large gradient for hundreds of steps: that is where loss spikes come "
        "from.",
        source=value.source,
        fix="betas=(0.9, 0.95)",
    )


def _momentum_missing(e: Evidence) -> Iterator[Finding]:
    """SGD without momentum."""
    group = e.largest("sgd")
    if group is None or group.options.get("momentum", 0.9) != 0:
        return
    yield Finding(
        id="momentum-missing",
        level="warning",
        message="SGD runs without momentum: torch's default is 0.",
        evidence=f"{group.label}: momentum 0, lr {group.lr:g}",
        why="Every published CNN recipe has momentum 0.9; without it the same rate is a tenth of the step.",
        source="torchvision references/classification/train.py, mmpretrain imagenet_bs256.py; torch.optim.SGD",
        fix="torch.optim.SGD(..., momentum=0.9)",
    )


def _scale_ignored(e: Evidence) -> Iterator[Finding]:
    """Multipliers in the groups that no scheduler applies."""
    for index, curve in enumerate(e.curves):
        groups = {g.index: g for g in e.groups if g.optimizer == index and g.members}
        for key in _SCALE_KEYS:
            scales = {i: float(g.options[key]) for i, g in groups.items() if is_number(g.options.get(key))}
            if len(set(scales.values())) < 2 or "writes group" in curve.unknown:
                continue
            first = max(scales, key=scales.__getitem__)
            last = min(scales, key=scales.__getitem__)
            asked, got = scales[last] / scales[first], curve.peaks[last] / (curve.peaks[first] or 1.0)
            if abs(got - asked) <= 0.05 * asked or got < 0.99:
                continue
            yield Finding(
                id="lr-scale-ignored",
                level="error",
                message=f"The groups carry {key}, and nothing applies it: all have the same learning rate.",
                evidence=f"{key} from {scales[last]:.3g} to {scales[first]:.3g}, rates {curve.peaks[last]:.3g} and "
                f"{curve.peaks[first]:.3g} under {curve.scheduler or 'no scheduler'}",
                why="Only timm's schedulers multiply by lr_scale; torch's and transformers' do not know it, so layer decay is off.",
                source="timm/scheduler/scheduler.py update_groups; timm#2532",
                fix=f'for group in groups: group["lr"] = lr * group.pop("{key}"), before the optimizer is made; or '
                "Recipe(..., layer_decay=0.75).",
            )


def _equal_rates(e: Evidence) -> Iterator[Finding]:
    """Groups that were made to differ, and do not."""
    for index, curve in enumerate(e.curves):
        groups = [g for g in e.groups if g.optimizer == index and g.members]
        twins = [(a, b) for i, a in enumerate(groups) for b in groups[i + 1 :] if _same(a, b)]
        if not twins or any(is_number(g.options.get(key)) for g in groups for key in _SCALE_KEYS):
            continue
        flattened = curve.scheduler in ("OneCycleLR", "CyclicLR")
        a, b = twins[0]
        yield Finding(
            id="equal-rates",
            level="warning" if flattened else "note",
            message=f"{a.label} and {b.label} are alike in everything, so the division has no effect.",
            evidence=f"both lr {a.lr:.3g} and weight_decay {a.weight_decay:g}; {len(a.members)} and {len(b.members)} tensors, "
            f"such as {a.members[0].name!r} and {b.members[0].name!r}",
            why=f"{curve.scheduler}(max_lr=one number) gives every group the same peak, whatever lr the groups were made with."
            if flattened
            else "Groups are made to give tensors different rates or decays.",
            source="torch.optim.lr_scheduler.OneCycleLR: max_lr may be a list" if flattened else "torch.optim",
            fix=f"{curve.scheduler}(max_lr=[g['lr'] for g in optimizer.param_groups])"
            if flattened
            else "Give one of them its own lr, or make one group.",
        )
    yield from _parts(e)
    yield from _layers(e)


def _parts(e: Evidence) -> Iterator[Finding]:
    if e.base != "vlm" or e.recipe is not None:
        return
    numbers = {part: float(value.number) for part, value in e.spec.parts.items()}  # type: ignore[arg-type]
    part_of = match_parts(e.snapshot, numbers, {}).of
    rates: dict[str, float] = {}
    for group in e.groups:
        for info in group.members:
            if info.name in part_of and info.name not in group.frozen:
                rates[part_of[info.name]] = group.lr
    if len(rates) < 2 or "projector" not in rates or len(set(rates.values())) > 1:
        return
    yield Finding(
        id="equal-rates",
        level="note",
        message="Projector, vision tower and language model have one learning rate.",
        evidence=", ".join(f"{part} {lr:.3g}" for part, lr in sorted(rates.items())),
        why="The projector is new and the others are trained: nanoVLM gives it a hundred times their rate, LLaVA trains it "
        "alone at first. LLaVA's second stage has one rate for all.",
        source=e.spec.parts["projector"].source,
        fix='Recipe("vlm") has a rate for each part.',
    )


def _layers(e: Evidence) -> Iterator[Finding]:
    rates = {group.lr for group in e.groups if group.size}
    trained = {info.layer for group in e.groups for info in group.members if info.name not in group.frozen}
    scaled = any(key in group.options for group in e.groups for key in _SCALE_KEYS)
    if e.key != "vit/finetune" or scaled or len(rates) > 1 or len(trained) < 3 or e.snapshot.last_layer is None:
        return
    yield Finding(
        id="equal-rates",
        level="note",
        message="All layers are fine-tuned at one learning rate: there is no layer decay.",
        evidence=f"lr {rates.pop():.3g} in {len(trained)} layers; with 0.75 the first layer would get "
        f"{0.75**e.snapshot.last_layer:.2g} of it",
        why="Early layers are general and need little change. MAE and BEiT lose accuracy without layer decay.",
        source="MAE FINETUNE.md and util/lr_decay.py (0.65 and 0.75)",
        fix='Recipe("vit/finetune"), or Recipe(..., layer_decay=0.75).',
    )


def _same(a: Group, b: Group) -> bool:
    """Alike in options, and not the two halves of one division by roles or by mesh."""
    if a.method != b.method or a.lr != b.lr or a.weight_decay != b.weight_decay or a.index == b.index:
        return False
    if _plain(a.options) != _plain(b.options):
        return False
    names = [str(g.options.get("name", "")).partition("/")[0] for g in (a, b)]
    if names[0] and names[0] == names[1]:
        return False
    return bool({i.role for i in a.members} & {i.role for i in b.members})


def _plain(options: Mapping[str, Any]) -> dict[str, str]:
    return {key: repr(value) for key, value in options.items() if key not in _NO_DIFFERENCE}


CHECKS = (
    Check(id="lr-range", looks_for="a learning rate outside its range", find=_lr_range, settings=SETTINGS),
    Check(id="lr-of-sgd", looks_for="Adam at a rate of SGD", find=_sgd_rate),
    Check(
        id="decay-range",
        looks_for="a weight decay outside its range",
        find=_decay_range,
        settings=("llm", "vlm", "vit", "cnn", "large_batch"),
    ),
    Check(id="beta2-llm", looks_for="beta2 0.999 for a language model", find=_beta2_llm, settings=("llm",)),
    Check(
        id="momentum-missing", looks_for="SGD without momentum", find=_momentum_missing, settings=("cnn", "large_batch")
    ),
    Check(id="lr-scale-ignored", looks_for="multipliers that the scheduler ignores", find=_scale_ignored),
    Check(id="equal-rates", looks_for="equal rates where ratios were meant", find=_equal_rates),
)
