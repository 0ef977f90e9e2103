"""The user's `GroupRule`s on the parameters of a module: what each matches, and what it cannot do there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from lit_opt.errors import nearest
from lit_opt.param_groups.matrices import matrix_shape
from lit_opt.param_groups.snapshot import ParamInfo, ParamSnapshot, matching, such_as
from lit_opt.recipes.schema import GroupRule


def match_rules(
    snapshot: ParamSnapshot, rules: Iterable[GroupRule]
) -> tuple[dict[str, tuple[int, GroupRule]], list[str]]:
    """Name -> the first rule that matches it, and one sentence for each rule without effect."""
    taken: dict[str, tuple[int, GroupRule]] = {}
    problems = []
    for index, rule in enumerate(rules):
        found = matching(rule.match, snapshot.parameters)
        trainable = [info.name for info in found if info.trainable]
        fresh = [name for name in trainable if name not in taken]
        taken.update(dict.fromkeys(fresh, (index, rule)))
        if fresh:
            continue
        start = f"groups: rule {rule.match!r}"
        if trainable:
            earlier = sorted({taken[name][1].match for name in trainable})
            problems.append(f"{start} never applies: {', '.join(map(repr, earlier))} comes first. Put it before.")
        elif found:
            problems.append(f"{start} matches only frozen parameters, such as {found[0].name!r}. Unfreeze them first.")
        else:
            names = [name for info in snapshot.parameters for name in (info.name, *info.aliases)]
            problems.append(f"{start} matches no parameter.{nearest(rule.match, names) or such_as(names)}")
    return taken, problems


def rule_labels(rules: Iterable[GroupRule]) -> list[str]:
    """A short, unique text for each rule; some loggers refuse "*" in a metric's name.

    Example:
        >>> rule_labels([GroupRule(match="backbone.*"), GroupRule(match="*"), GroupRule(match="backbone")])
        ['backbone', 'rule_1', 'backbone_2']
    """
    labels: list[str] = []
    for index, rule in enumerate(rules):
        label = re.sub(r"[^\w./-]+", "", rule.match).strip("./-") or f"rule_{index}"
        while label in labels or label == "adamw":  # the name of the groups that a matrix method leaves
            label += f"_{index}"
        labels.append(label)
    return labels


def misplaced(trainable: Iterable[ParamInfo], rules: Mapping[str, tuple[int, GroupRule]], method: str) -> list[str]:
    """One sentence for each rule that gives a matrix method what it cannot take."""
    wrong: dict[int, tuple[GroupRule, list[ParamInfo]]] = {}
    for info in trainable:
        index, rule = rules.get(info.name, (-1, None))
        if rule is not None and rule.algorithm == method and (not info.matrix.layout or info.role == "adapter"):
            wrong.setdefault(index, (rule, []))[1].append(info)
    return [
        f"groups: rule {rule.match!r} gives {method} {len(infos)} that it does not take, such as {infos[0].name!r} "
        f"({infos[0].matrix.left}, {' x '.join(map(str, infos[0].shape)) or 'scalar'}). Make the glob narrower, such as "
        f"'*.weight', or put a rule with algorithm='adamw' before it."
        for rule, infos in wrong.values()
    ]


def unsplittable(trainable: Iterable[ParamInfo], rules: Mapping[str, tuple[int, GroupRule]], method: str) -> list[str]:
    """One sentence for each matrix that a rule cannot split, and for each splitting rule that meets no matrix."""
    problems: list[str] = []
    meets: dict[int, tuple[GroupRule, bool]] = {}
    for info in trainable:
        index, rule = rules.get(info.name, (-1, None))
        if rule is None or not (rule.split_sizes or rule.num_heads):
            continue
        takes = rule.algorithm == method or not info.matrix.left
        meets[index] = (rule, takes or meets.get(index, (rule, False))[1])
        if takes and (wrong := _split_problem(info, rule)):
            shape = " x ".join(map(str, info.shape))
            problems.append(f"groups: rule {rule.match!r} and {info.name!r} ({shape}): {wrong}")
    return problems + [
        f"groups: rule {rule.match!r} splits matrices, and those it matches all go to AdamW. Remove split_sizes= and "
        f"num_heads=, or correct the glob."
        for rule, met in meets.values()
        if not met
    ]


def _split_problem(info: ParamInfo, rule: GroupRule) -> str:
    if info.matrix.layout.startswith("experts") or info.matrix.count > 1:
        return "its experts or groups are matrices of their own already. Make the glob narrower."
    outputs, sizes = matrix_shape(info.shape, info.matrix.layout, 1)[1], row_blocks(info, rule)
    if sum(sizes) == outputs:
        return ""
    if rule.num_heads:
        return f"num_heads: {rule.num_heads} does not divide its {outputs} outputs."
    if rule.split_sizes == "qkv":
        return f"split_sizes: its {outputs} outputs are not three equal parts; give the three numbers."
    return f"split_sizes: {list(sizes)} has a sum of {sum(sizes)}, and it has {outputs} outputs."


def row_blocks(info: ParamInfo, rule: GroupRule) -> tuple[int, ...]:
    """Outputs of each part that a rule makes."""
    outputs = matrix_shape(info.shape, info.matrix.layout, 1)[1]
    if isinstance(rule.split_sizes, tuple):
        return rule.split_sizes
    count = rule.num_heads or 3
    return (outputs // count,) * count


def blocks_in_words(info: ParamInfo, rule: GroupRule) -> str:
    """The parts that a rule makes of a matrix, for the reason of a row."""
    sizes = row_blocks(info, rule)
    equal = len(set(sizes)) == 1
    return f"{len(sizes)} parts of {sizes[0]} rows" if equal else f"parts of {', '.join(map(str, sizes))} rows"
