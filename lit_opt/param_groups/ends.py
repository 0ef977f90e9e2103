"""The ends of a network: the layers that read the data and those that give the result. Matrix methods leave both out.

A head is found through what the model says (`get_output_embeddings()` of transformers, `get_classifier()` of timm),
then through usual names outside of repeated blocks. A stem is a convolution that reads an image, the first layer of a
patch embedding or a stem, or the first convolution before all blocks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from lit_opt.param_groups.roles import type_name

_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
# Names of a head wherever they stand outside of numbered blocks.
_HEAD = re.compile(
    r"(?:^|_)(?:(?<!multi_)(?<!conv_)heads?(?:_dist)?|classifier|score|logits|predictor|predictions?|pred|unembed\w*|qa_outputs"
    r"|seq_relationship|conv_out|proj_out(?:_\d)?|final_layer|output_layer|out_layer|to_logits|lm_head)$",
)
# Names that other layers have as well: a head only if nothing with weights comes after.
_LAST = re.compile(r"(?:^|_)(?:fc|output|out|outputs|final|decoder|readout|last|linear|dense|proj)$", re.IGNORECASE)
_STEM = re.compile(r"(?:^|_)(?:patch_?embed\w*|patchify\w*|stem|conv_stem|conv_in|x_embedder)$", re.IGNORECASE)
_STEM_CLASS = re.compile(r"Patch\w*Embed|^(?:\w*Conv)?Stem", re.IGNORECASE)
# Images have one to four channels, and so do the latents of most image models.
_IMAGE_CHANNELS = 4


@dataclass(frozen=True, slots=True)
class Ends:
    """Parameter name -> why it is a head or a stem.

    Example:
        >>> Ends(heads={"fc.weight": "head (fc)"}, stems={}).heads["fc.weight"]
        'head (fc)'
    """

    heads: Mapping[str, str]
    stems: Mapping[str, str]


def find_ends(modules: Mapping[str, nn.Module]) -> Ends:
    """Find the first and last layers.

    Args:
        modules: Clean path -> module, in the module's own order, the root as "".

    Example:
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8, 10))
        >>> ends = find_ends(dict(net.named_modules()))
        >>> dict(ends.stems), dict(ends.heads)
        ({'0.weight': 'stem, it reads 3 channels'}, {'3.weight': 'head, the last layer'})
    """
    path_of: dict[int, str] = {}
    for path, module in modules.items():
        path_of.setdefault(id(module), path)
    return Ends(heads=_heads(modules, path_of), stems=_stems(modules))


def _heads(modules: Mapping[str, nn.Module], path_of: Mapping[int, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for module in list(modules.values()):
        for method in ("get_output_embeddings", "get_classifier"):
            for head in _declared(module, method):
                for path, _ in _layers_in(path_of.get(id(head)), modules):
                    found.setdefault(_weight(path), f"head ({type_name(module)}.{method}())")
    layers = [path for path, module in modules.items() if isinstance(module, _LAYERS)]
    named = [path for path in modules if _is_named_head(path, modules)]
    for path in named:
        inside = [name for name, _ in _layers_in(path, modules)]
        if inside and not any(other.startswith(f"{path}.") for other in named):
            found.setdefault(_weight(inside[-1]), f"head ({path})")
    if not found and layers:
        last = layers[-1]
        parts = last.split(".")
        in_block = any(map(str.isdigit, parts[:-1])) or _has_blocks(modules)
        if len(layers) > 1 and ((_LAST.search(parts[-1]) and not any(map(str.isdigit, parts))) or not in_block):
            found[_weight(last)] = "head, the last layer"
    return found


def _is_named_head(path: str, modules: Mapping[str, nn.Module]) -> bool:
    *above, name = path.split(".")
    if any(map(str.isdigit, above)):
        return False
    if name == "fc":
        parent = [layer for layer, _ in _layers_in(".".join(above), modules)]
        return parent[-1:] == [path]
    return bool(_HEAD.search(name))


def _declared(module: nn.Module, method: str) -> Iterator[nn.Module]:
    declare: Any = getattr(module, method, None)
    if not callable(declare):
        return
    try:
        result = declare()
    except (AttributeError, RuntimeError, TypeError):
        return  # transformers' backbones inherit the method without an answer
    for item in result if isinstance(result, tuple | list) else (result,):
        if isinstance(item, nn.Module):
            yield item


def _layers_in(path: str | None, modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    if path is None:
        return
    for name, module in modules.items():
        inside = not path or name == path or name.startswith(f"{path}.")
        if inside and isinstance(module, _LAYERS):
            yield name, module


def _stems(modules: Mapping[str, nn.Module]) -> dict[str, str]:
    found: dict[str, str] = {}
    first = True
    for path, module in modules.items():
        parts = path.split(".")
        if _STEM.search(parts[-1]) or _STEM_CLASS.search(type_name(module)):
            inside = next((p for p, _ in _layers_in(path, modules)), None)
            if inside is not None and not any(map(str.isdigit, parts)):
                found.setdefault(_weight(inside), f"stem, the first layer of {path or type_name(module)}")
        if not isinstance(module, nn.modules.conv._ConvNd) or isinstance(module, nn.modules.conv._ConvTransposeNd):
            continue
        if module.in_channels <= _IMAGE_CHANNELS and max(module.kernel_size) > 1:
            found[_weight(path)] = f"stem, it reads {module.in_channels} channel{'s' * (module.in_channels > 1)}"
        elif first and not any(map(str.isdigit, parts)):
            found.setdefault(_weight(path), "stem, the first convolution")
        first = False
    return found


def _has_blocks(modules: Mapping[str, nn.Module]) -> bool:
    """Whether blocks are repeated: a list with two composite modules of one class."""
    return any(
        isinstance(module, nn.ModuleList | nn.Sequential | nn.ModuleDict) and _repeats(module.children())
        for module in modules.values()
    )


def _repeats(children: Iterable[nn.Module]) -> bool:
    composite = [type(child) for child in children if any(True for _ in child.children())]
    return len(set(composite)) < len(composite)


def _weight(path: str) -> str:
    return f"{path}.weight" if path else "weight"
