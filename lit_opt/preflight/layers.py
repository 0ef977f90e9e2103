"""The layers of a module as plain facts, and what their sizes say: images in, attention, an output like the input."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from lit_opt.param_groups.roles import type_name

# Images have one to four channels, and so do the latents of most image models.
_IMAGE_CHANNELS = 4
_ATTENTION_CLASS = re.compile(r"(?<!Channel)(?<!Spatial)(?<!Local)(?:Attention|Attn)(?:\d|V\d|Block|Subblock|Core)?$")


@dataclass(frozen=True)
class Layer:
    """A layer with a weight matrix or kernel.

    Args:
        path: Clean dotted path.
        module: Itself.
        reads: Features or channels that come in.
        writes: Those that go out.
        kernel: Largest side of its kernel; 1 for a linear layer.
        numbers: Size of its weight.
        trained: Whether the weight is.

    Example:
        >>> layer = next(all_layers({"fc": nn.Linear(3, 5)}))
        >>> layer.path, layer.reads, layer.writes, layer.kernel
        ('fc', 3, 5, 1)
    """

    path: str
    module: nn.Module
    reads: int
    writes: int
    kernel: int
    numbers: int
    trained: bool


def all_layers(modules: Mapping[str, nn.Module]) -> Iterator[Layer]:
    """Linear layers and convolutions in the module's own order, each once.

    Args:
        modules: Clean path -> module.

    Example:
        >>> [layer.path for layer in all_layers(dict(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).named_modules()))]
        ['0']
    """
    seen: set[int] = set()
    for path, child in modules.items():
        weight = getattr(child, "weight", None)
        if id(child) in seen or not isinstance(weight, torch.Tensor):
            continue
        shape = tuple(weight.shape)
        numbers, trained = math.prod(shape), bool(weight.requires_grad)
        if isinstance(child, nn.modules.conv._ConvNd):
            seen.add(id(child))
            kernel = max(child.kernel_size)
            yield Layer(path, child, child.in_channels, child.out_channels, kernel, numbers, trained)
        elif isinstance(child, nn.Linear) or (type(child).__name__ == "Conv1D" and len(shape) == 2):
            seen.add(id(child))
            writes, reads = shape if isinstance(child, nn.Linear) else shape[::-1]  # GPT-2 stores it transposed
            yield Layer(path, child, reads, writes, 1, numbers, trained)


def reads_images(layer: Layer) -> bool:
    """Whether it is a convolution in two or three dimensions over one to four channels.

    Example:
        >>> layers = list(all_layers(dict(nn.Sequential(nn.Conv2d(3, 8, 3)).named_modules())))
        >>> reads_images(layers[0])
        True
    """
    conv = layer.module
    if not isinstance(conv, nn.Conv2d | nn.Conv3d) or layer.kernel == 1:
        return False
    return conv.in_channels <= _IMAGE_CHANNELS and conv.out_channels > _IMAGE_CHANNELS


def reads_sound(layer: Layer) -> bool:
    """A convolution in one dimension over all channels; state-space models have one for each channel.

    Example:
        >>> layers = list(all_layers(dict(nn.Sequential(nn.Conv1d(80, 8, 3)).named_modules())))
        >>> reads_sound(layers[0])
        True
    """
    return isinstance(layer.module, nn.Conv1d) and (layer.module.groups == 1 or layer.reads == 1)


def is_patching(layer: Layer) -> bool:
    """Whether an image is cut into patches by it: the kernel is the stride.

    Example:
        >>> layers = list(all_layers(dict(nn.Sequential(nn.Conv2d(3, 8, 4, stride=4)).named_modules())))
        >>> is_patching(layers[0])
        True
    """
    conv = layer.module
    assert isinstance(conv, nn.modules.conv._ConvNd)
    return layer.kernel >= 2 and tuple(conv.kernel_size[-2:]) == tuple(conv.stride[-2:])


def is_conv(layer: Layer) -> bool:
    """Whether it is a convolution, of any dimension.

    Example:
        >>> layers = list(all_layers(dict(nn.Sequential(nn.Linear(3, 8)).named_modules())))
        >>> is_conv(layers[0])
        False
    """
    return isinstance(layer.module, nn.modules.conv._ConvNd)


def is_outside(layer: Layer) -> bool:
    """Whether it is in no numbered block.

    Example:
        >>> layers = list(all_layers(dict(nn.ModuleDict({"blocks": nn.Sequential(nn.Sequential(nn.Linear(3, 8)))}).named_modules())))
        >>> is_outside(layers[0])
        False
    """
    return not re.search(r"(?:^|[._])\d+\.", layer.path)


def within(path: str, outer: str) -> bool:
    """Whether a path is another one or below it.

    Example:
        >>> within("a.b", "a"), within("ab", "a"), within("a", "")
        (True, False, True)
    """
    return not outer or path == outer or path.startswith(f"{outer}.")


def attention_layers(modules: Mapping[str, nn.Module]) -> Iterator[str]:
    """Paths of attention layers, the outermost of each: by their layers, or by their class.

    Example:
        >>> list(attention_layers({"attn": nn.MultiheadAttention(8, 2)}))
        ['attn']
    """
    found: list[str] = []
    for path, child in modules.items():
        if any(within(path, other) for other in found):
            continue
        by_class = bool(_ATTENTION_CLASS.search(type_name(child))) and any(True for _ in child.parameters())
        if isinstance(child, nn.MultiheadAttention) or _is_attention(child) or by_class:
            found.append(path)
            yield path


def _is_attention(module: nn.Module) -> bool:
    """Query, key and value: three projections of one input, two of them alike; or one that is three times as wide."""
    shapes = []
    for child in module.children():
        if isinstance(child, nn.Linear) or (isinstance(child, nn.Conv2d) and child.kernel_size == (1, 1)):
            writes, reads = child.weight.shape[:2]
            shapes.append((writes, reads, isinstance(child, nn.Linear)))
    fused = any(w == 3 * r and (r, r) in [(a, b) for a, b, _ in shapes] for w, r, _ in shapes)
    linear = [(w, r) for w, r, is_linear in shapes if is_linear]
    alike = any(
        sum(r == reads for _, r in linear) >= 3 and sum(shape == (w, reads) for shape in linear) >= 2
        for w, reads in linear
    )
    return fused or alike


def returns_input(layers: list[Layer]) -> str:
    """Whether the last layer gives as many channels as one outside of the blocks reads, for each pixel of a patch.

    Example:
        >>> net = nn.ModuleDict({"first": nn.Conv2d(3, 8, 3), "last": nn.Conv2d(8, 3, 3)})
        >>> returns_input(list(all_layers(dict(net.named_modules()))))
        'first reads 3, last writes 3'
    """
    outer = [layer for layer in layers if layer.trained and is_outside(layer)] or layers
    # The order is that of registration: the layers for the time may come after the last convolution.
    ends = {outer[-1].path: outer[-1]} if outer else {}
    ends |= {layer.path: layer for layer in [layer for layer in outer if is_conv(layer)][-1:]}
    for last in ends.values():
        for first in outer[: outer.index(last)]:
            if last.writes in _sizes(first, last) and first.writes > first.reads:
                return _pair(first, last)
    return ""


def redraws(layers: list[Layer], images: list[Layer]) -> str:
    """Whether a layer gives back the channels of an image.

    ViT-B cuts images into patches of as many numbers as it is wide, so there only the last layer counts.

    Example:
        >>> net = nn.ModuleDict({"eye": nn.Conv2d(3, 8, 3), "hand": nn.Conv2d(8, 3, 3), "more": nn.Conv2d(8, 8, 1)})
        >>> layers = list(all_layers(dict(net.named_modules())))
        >>> redraws(layers, layers[:1])
        'eye reads 3, hand writes 3'
    """
    for a in images:
        last = layers if _sizes(a, layers[-1])[0] != a.writes else layers[-1:]
        for b in last:
            if b.writes == _sizes(a, b)[0] and b is not a and is_outside(b):
                return _pair(a, b)
    return ""


def _sizes(reads: Layer, writes: Layer) -> tuple[int, int]:
    """What a layer writes that gives back what another reads: that much, or also a variance."""
    area = 1
    if is_conv(reads) and not is_conv(writes) and is_patching(reads):
        assert isinstance(reads.module, nn.modules.conv._ConvNd)
        area = math.prod(reads.module.kernel_size)
    return reads.reads * area, 2 * reads.reads * area


def _pair(reads: Layer, writes: Layer) -> str:
    return f"{reads.path} reads {reads.reads}, {writes.path} writes {writes.writes}"


def conditioned_blocks(modules: Mapping[str, nn.Module]) -> int:
    """How many blocks of one class have two convolutions or more and exactly one linear layer.

    Example:
        >>> block = lambda: nn.ModuleList([nn.Conv2d(8, 8, 3), nn.Linear(4, 8), nn.Conv2d(8, 8, 3)])
        >>> conditioned_blocks({"a": block(), "b": block()})
        2
    """
    kinds: Counter[type[nn.Module]] = Counter()
    for child in dict.fromkeys(modules.values()):
        direct = [
            part
            for inner in child.children()
            for part in (inner.children() if type(inner) is nn.Sequential else (inner,))
        ]
        convolutions = sum(isinstance(part, nn.modules.conv._ConvNd) for part in direct)
        if convolutions >= 2 and sum(isinstance(part, nn.Linear) for part in direct) == 1:
            kinds[type(child)] += 1
    return max(kinds.values(), default=0)
