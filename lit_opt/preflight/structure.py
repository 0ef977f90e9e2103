"""What can be seen in a module without running it: where images, text or sound come in, what goes out, what is between.

Everything is read from the types, shapes and ties of its layers. Names are second evidence, kept apart in `named`: of the
signature of `forward`, of classes and of buffers. Shapes are those of unsharded modules; the meta device will do.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from lit_opt.param_groups.ends import find_ends
from lit_opt.param_groups.roles import type_name
from lit_opt.param_groups.snapshot import ParamSnapshot, clean_name, snapshot_parameters
from lit_opt.preflight.layers import (
    Layer,
    all_layers,
    attention_layers,
    conditioned_blocks,
    is_conv,
    is_outside,
    is_patching,
    reads_images,
    reads_sound,
    redraws,
    returns_input,
    within,
)

# Below it an embedding is a table of classes, columns or places.
_VOCABULARY = 30

_TIME_ARGUMENTS = {"timestep", "timesteps", "t", "sigma", "sigmas", "time", "times", "noise_labels"}
_TIME_CLASS = re.compile(r"Time(?:step)?s?_?(?:Emb|Proj|MLP|Text)|GaussianFourier")
_TIME_PATH = re.compile(
    r"(?:^|[._])(?:time|timesteps?|t)_?(?:emb|embed|embedder|embedding|mlp|proj|block)", re.IGNORECASE
)


@dataclass(frozen=True, kw_only=True)
class Structure:
    """The evidence that `choose` weighs.

    Args:
        parameters: All numbers.
        frozen: Share of them that is not trained.
        adapters: Tensors of LoRA and its relatives.
        kernels: Share of the weights of layers that lies in convolutions with a kernel above 1.
        image: Where images come in: a path, or "".
        patches: The image is cut into patches by a convolution whose kernel is its stride.
        sound: A first convolution in one dimension: its path, or "".
        volumes: Whether images come in as volumes (video).
        vocabulary: Rows of the token embedding, 0 for none.
        text_head: "tied", "untied" or "": a layer with one output for each token.
        text_trained: Whether that layer is trained, and not the frozen end of a text encoder.
        generates: The model says that it continues text.
        attention: Number of attention layers.
        attention_share: Share of the weights of layers in them.
        batch_norms: Number of batch norms.
        layer_norms: Number of other norms.
        heads: Path -> outputs of the last layers that are linear.
        dense_heads: Path -> outputs of the last layers that are convolutions.
        upsamples: Transposed convolutions.
        returns_input: Outputs are as many as inputs, or twice as many: the two layers in words, or "".
        redraws: The same for a layer that reads images, at any place after it.
        conditioned: Repeated blocks of convolutions that each hold one linear layer, as denoisers do for the time.
        noise_schedule: Buffers of a noise schedule.
        named: Names that speak of a diffusion time.
        scalars: Free-standing trainable numbers, such as a temperature.
        trained_before: Whether the weights are no longer those of an initialisation; None where they cannot be seen.
        blocks: Whether blocks are repeated.

    Example:
        >>> read_structure(nn.Linear(3, 1)).image
        ''
    """

    parameters: int
    frozen: float
    adapters: int
    kernels: float
    image: str
    patches: bool
    sound: str
    volumes: bool
    vocabulary: int
    text_head: str
    text_trained: bool
    generates: bool
    attention: int
    attention_share: float
    batch_norms: int
    layer_norms: int
    heads: Mapping[str, int]
    dense_heads: Mapping[str, int]
    upsamples: int
    returns_input: str
    redraws: str
    conditioned: int
    noise_schedule: tuple[str, ...]
    named: tuple[str, ...]
    scalars: int
    trained_before: bool | None
    blocks: bool


def read_structure(module: nn.Module) -> Structure:
    """Collect the evidence.

    Args:
        module: Whole and unsharded; on the meta device it cannot be seen whether weights were trained before.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 10))
        >>> seen = read_structure(net)
        >>> seen.image, seen.batch_norms, dict(seen.heads), seen.attention
        ('0', 1, {'3': 10}, 0)
    """
    snapshot = snapshot_parameters(module)
    modules = {clean_name(path): child for path, child in module.named_modules(remove_duplicate=False)}
    layers = list(all_layers(modules))
    numbers = sum(layer.numbers for layer in layers) or 1
    total = sum(math.prod(info.shape) for info in snapshot.parameters)
    trained = sum(math.prod(info.shape) for info in snapshot.parameters if info.trainable)
    first = next((layer for layer in layers if isinstance(layer.module, nn.modules.conv._ConvNd)), None)
    images = [layer for layer in layers if reads_images(layer)]
    vocabulary, text_head, text_trained = _text(snapshot, layers)
    attention = list(attention_layers(modules))
    inside = [layer for layer in layers if any(within(layer.path, path) for path in attention)]
    heads, dense = _heads(modules, layers)
    batch_norms = sum(isinstance(child, nn.modules.batchnorm._NormBase) for child in dict.fromkeys(modules.values()))
    return Structure(
        parameters=total,
        frozen=1 - trained / total if total else 0.0,
        adapters=sum(info.role == "adapter" for info in snapshot.parameters),
        kernels=sum(layer.numbers for layer in layers if layer.kernel > 1) / numbers,
        image=images[0].path if images else "",
        patches=any(is_patching(layer) for layer in images),
        sound=first.path if first is not None and reads_sound(first) and not images else "",
        volumes=any(isinstance(layer.module, nn.Conv3d) for layer in images),
        vocabulary=vocabulary,
        text_head=text_head,
        text_trained=text_trained,
        generates=_says_it_generates(modules),
        attention=len(attention),
        attention_share=sum(layer.numbers for layer in inside) / numbers,
        batch_norms=batch_norms,
        layer_norms=max(0, sum(info.role == "norm" for info in snapshot.parameters) - batch_norms),
        heads=heads,
        dense_heads=dense,
        upsamples=sum(isinstance(child, nn.modules.conv._ConvTransposeNd) for child in modules.values()),
        returns_input=returns_input(layers),
        redraws=redraws(layers, images),
        conditioned=conditioned_blocks(modules),
        noise_schedule=tuple(
            name for name, _ in module.named_buffers() if re.search(r"alphas?_(?:cumprod|bar)|sqrt_.*alpha", name)
        ),
        named=tuple(_time_names(modules)),
        scalars=sum(
            info.trainable and math.prod(info.shape) == 1 and info.role != "bias" for info in snapshot.parameters
        ),
        trained_before=_trained_before(module, snapshot),
        blocks=snapshot.last_layer is not None,
    )


def _text(snapshot: ParamSnapshot, layers: list[Layer]) -> tuple[int, str, bool]:
    """Rows of the embedding that a head belongs to, else of the largest; how the head is tied; whether it is trained."""
    tables = [
        i for i in snapshot.parameters if i.role == "embedding" and len(i.shape) == 2 and i.shape[0] >= _VOCABULARY
    ]
    linear = {f"{layer.path}.weight".lstrip("."): layer for layer in layers if layer.kernel == 1}
    for info in tables:
        if any(name in linear for name in (info.name, *info.aliases)):
            return info.shape[0], "tied", info.trainable
    for info in tables:
        heads = [x for x in linear.values() if x.writes == info.shape[0] != x.reads]
        if heads:
            return info.shape[0], "untied", any(head.trained for head in heads)
    return max((info.shape[0] for info in tables), default=0), "", False


def _heads(modules: Mapping[str, nn.Module], layers: list[Layer]) -> tuple[dict[str, int], dict[str, int]]:
    """Last layers: linear ones, and convolutions."""
    by_weight = {f"{layer.path}.weight".lstrip("."): layer for layer in layers}
    found = [by_weight[name] for name in find_ends(modules).heads if name in by_weight]
    # Two layers at the end that read the same and do not follow one another are two outputs.
    outer = [layer for layer in layers if is_outside(layer)][-2:]
    if len(outer) == 2 and outer[0].reads == outer[1].reads != outer[0].writes and outer[1] in found:
        found = [outer[0], *found]
    linear = {layer.path: layer.writes for layer in found if layer.kernel == 1 and not is_conv(layer)}
    return linear, {layer.path: layer.writes for layer in found if is_conv(layer)}


def _time_names(modules: Mapping[str, nn.Module]) -> Iterator[str]:
    for path, child in modules.items():
        if not any(parameter.requires_grad for parameter in child.parameters()):
            continue
        arguments = _TIME_ARGUMENTS & set(_arguments(child))
        if arguments and path.count(".") < 2:
            yield f"{type_name(child)}.forward takes {', '.join(sorted(arguments))}"
        if _TIME_CLASS.search(type_name(child)) or _TIME_PATH.search(path):
            yield f"{path or 'the module'} ({type_name(child)})"
            return


def _arguments(module: nn.Module) -> list[str]:
    try:
        return list(inspect.signature(module.forward).parameters)
    except (TypeError, ValueError):
        return []


def _says_it_generates(modules: Mapping[str, nn.Module]) -> bool:
    for child in modules.values():
        says = getattr(child, "can_generate", None)
        try:
            if callable(says) and says():
                return True
        except Exception:  # somebody else's code; its silence is no evidence
            continue
    return False


def _trained_before(module: nn.Module, snapshot: ParamSnapshot) -> bool | None:
    """Gains of norms start constant; after a step of training they are not."""
    gains = {info.name for info in snapshot.parameters if info.role == "norm" and math.prod(info.shape) > 1}
    values = [p.detach() for name, p in module.named_parameters() if clean_name(name) in gains]
    if not values or any(value.is_meta for value in values):
        return None
    return any(bool((value.flatten() != value.flatten()[0]).any()) for value in values)
