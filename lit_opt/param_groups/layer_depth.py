"""How deep a parameter lies below the head, for layer-wise learning-rate decay (arXiv:2106.08254, BEiT).

Layer 0 is the stem with the embeddings, the i-th repeated block is layer i + 1, what comes after the blocks is the
last layer. A timm model says this itself through `group_matcher`. Elsewhere the outermost ModuleLists (and
Sequentials) of repeated blocks are counted. Stacks under one parent follow one another (a ResNet's stages); stacks
under different parents are towers side by side (text and image, encoder and decoder), aligned at the head.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from torch import nn

_CONTAINERS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)
_STEM_ROLES = {"embedding", "position", "token"}
# Some models register the head before the blocks, so its usual names count as well as its place.
_HEAD = re.compile(r"(?:^|[._])(?:heads?|classifier|score|logits|final|ln_f|norm_f)(?:[._]|$)")


@dataclass
class _Tower:
    ids: dict[str, int]
    head: int


def layer_ids(modules: Mapping[str, nn.Module], roles: Mapping[str, str]) -> dict[str, int] | None:
    """Layer id of every parameter, or None where no repeated blocks can be found.

    Args:
        modules: Clean path -> module, in the module's own order, the root as "".
        roles: Clean parameter name -> role, in the module's own order.

    Returns:
        Parameter name -> layer id; the largest is the head's.

    Example:
        >>> from torch import nn
        >>> block = lambda: nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> class Net(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.stem, self.head = nn.Linear(2, 2), nn.Linear(2, 2)
        ...         self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(2, 1, 2) for _ in range(2))
        >>> net = Net()
        >>> ids = layer_ids(dict(net.named_modules()), {name: "matrix" for name, _ in net.named_parameters()})
        >>> ids["stem.weight"], ids["blocks.1.norm1.bias"], ids["head.weight"]
        (0, 2, 3)
    """
    towers = _timm_towers(modules, list(roles)) or _block_towers(modules, roles)
    if not towers:
        return None
    depth = max(tower.head for tower in towers)
    inside = {name: depth - tower.head + layer for tower in towers for name, layer in tower.ids.items()}
    ids = {}
    before = True
    for name, role in roles.items():
        before = before and name not in inside
        stem = role in _STEM_ROLES or (before and not _HEAD.search(name))
        ids[name] = inside.get(name, 0 if stem else depth)
    return ids


def _timm_towers(modules: Mapping[str, nn.Module], names: Sequence[str]) -> list[_Tower]:
    towers: dict[str, _Tower] = {}
    for path, module in modules.items():
        matcher: Any = getattr(module, "group_matcher", None)
        if not callable(matcher) or any(_inside(path, root) for root in towers):
            continue
        own = [name for name in names if _inside(name, path)]
        if not own:
            continue
        from timm.models import group_parameters

        # A name that nothing matches is sorted behind all others: the place of the head.
        head = "\n"
        relative = [name[len(path) + 1 :] if path else name for name in own]
        named = SimpleNamespace(named_parameters=lambda names=(*relative, head): ((name, name) for name in names))
        found = group_parameters(named, matcher(coarse=False), reverse=True)
        ids = {name: int(found[short]) for name, short in zip(own, relative, strict=True)}
        # timm's own numbering ends with the last parameter; one outside (a head of the user's) lies above it.
        towers[path] = _Tower(ids, max(ids.values()) if len(own) == len(names) else int(found[head]))
    return list(towers.values())


def _block_towers(modules: Mapping[str, nn.Module], roles: Mapping[str, str]) -> list[_Tower]:
    owned = _paths_with_parameters(roles)
    stacks: dict[str, list[str]] = {}
    counted: set[str] = set()
    for path, module in modules.items():
        # Only the outermost stack counts: the experts inside a block are no layers.
        if not isinstance(module, _CONTAINERS) or any(prefix in counted for prefix in [*_prefixes(path), path]):
            continue
        blocks = [f"{path}.{name}" if path else name for name, _ in module.named_children()]
        blocks = [block for block in blocks if block in owned]
        if _repeated([modules[block] for block in blocks]):
            stacks.setdefault(path.rpartition(".")[0], []).extend(blocks)
            counted.update(blocks)
    return [
        _number(blocks, _root(parent, [p for p in stacks if p != parent]), roles) for parent, blocks in stacks.items()
    ]


def _repeated(blocks: Sequence[nn.Module]) -> bool:
    """Whether these are blocks of a network: composite modules, at least two of one class."""
    composite = all(any(True for _ in block.children()) and not isinstance(block, _CONTAINERS) for block in blocks)
    return composite and max(Counter(type(block) for block in blocks).values(), default=0) > 1


def _root(parent: str, others: Sequence[str]) -> str:
    """The highest module that holds this tower and no other."""
    parts = parent.split(".") if parent else []
    for end in range(len(parts) + 1):
        root = ".".join(parts[:end])
        if not any(_inside(other, root) for other in others):
            return root
    return parent


def _number(blocks: Sequence[str], root: str, roles: Mapping[str, str]) -> _Tower:
    number = {block: i + 1 for i, block in enumerate(blocks)}
    head = len(blocks) + 1
    ids: dict[str, int] = {}
    current = 0
    for name, role in roles.items():
        if not _inside(name, root):
            continue
        block = next((b for b in _prefixes(name) if b in number), None)
        if block is not None:
            ids[name] = current = number[block]
        elif role in _STEM_ROLES:
            ids[name] = 0
        elif current == len(blocks) or _HEAD.search(name):
            ids[name] = head
        else:
            ids[name] = current
    return _Tower(ids, head)


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def _paths_with_parameters(roles: Mapping[str, str]) -> set[str]:
    return {prefix for name in roles for prefix in _prefixes(name)}


def _inside(path: str, root: str) -> bool:
    return not root or path == root or path.startswith(root + ".")
