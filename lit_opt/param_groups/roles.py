"""What a parameter is: a norm's gain, a bias, an embedding, a matrix ... and why we think so.

The owner's type decides first, the parameter's own name and dimensions only where the owner says nothing (a
free-standing `nn.Parameter`). Names alone are a poor guide: a Linear may be called `norm`, and
`MultiheadAttention.in_proj_bias` does not end in ".bias".

Who excludes what elsewhere was read in nanoGPT model.py (number of dimensions), timm/optim/_param_groups.py
(dimensions, suffix, names that the model lists), transformers/trainer.py (type and name) and OLMo-core
optim/config.py (globs). Here the type comes first, because the other rules each miss a documented case.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import nn

# Role -> what a user reads. "matrix" and "adapter" are decayed, the others are what RecipeSpec.no_decay lists.
ROLES: Mapping[str, str] = {
    "bias": "bias",
    "norm": "norm gain",
    "embedding": "embedding",
    "position": "position embedding",
    "token": "learned token",
    "scale": "scale",
    "ssm": "state-space parameter",
    "vector": "vector",
    "matrix": "matrix",
    "adapter": "adapter matrix",
}

_TORCH_NORMS = (
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    nn.modules.batchnorm._NormBase,
)
_TORCH_LAYERS = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd)

# "...Norm" and the endings of its relatives (LayerNorm2d, GroupNormAct, RMSNormGated, EvoNorm2dB0, LayerNorm1P).
# NormedLinear, NormMlpClassifierHead and NormalCell do not match.
_NORM_CLASS = re.compile(
    r"(?:norm|norms|grn|globalresponsenorm)"
    r"(?:_?(?:\d+[dp]?|act|activation|fp32|nobias|gated|exp|tlu|perhead|perchannel|zero|single|continuous|[bs]\d+a?))*$",
    re.IGNORECASE,
)
# Words that make a class a layer with a weight matrix, also beside "Norm" (LinearNorm, ConvNorm, WeightNorm).
_LAYER_CLASS = re.compile(r"Linear|Conv(?!Ne[xX]t)|Dense|Weight|Spectral|Proj|LoRA")
_EMBEDDING_CLASS = re.compile(r"Embeddings?(?:Table|Bag|s)?$")
_POSITION_CLASS = re.compile(r"Pos(?:ition|itional)?(?:Emb|Enc|Bias)|Rel(?:ative)?Pos|RotaryEmb|RoPE|Rope")

# Leaf names of a module's own gain; other names of a "...Norm" class count only if they are vectors.
_GAINS = {"weight", "gain", "gamma", "scale", "g", "beta", "alpha"}

_BIAS = re.compile(r"(?:^|_)bias(?:es)?(?:_[uv])?$")
_POSITION = re.compile(
    r"(?:^|_)(?:pos|posit\w*?|rpb|rpe|ape|pe|wpe|relative_attention_bias|attention_biases)(?:_|\d|$)"
    r"|pos_?emb|(?:width|height|emb)_rel"
)
_NOT_A_TABLE = re.compile(r"(?:^|_)(?:proj|projection|kernel|conv|mlp|linear|weight|matrix)(?:_|$)")
_TOKEN = re.compile(
    r"(?:^|_)(?:tokens?|registers?|latents?|cls|queries)\d?$"
    r"|(?:cls|class)_emb|query_emb|query_tok|masked_spec_embed|mask_emb|image_newline"
)
_TABLE = re.compile(r"(?:^|_)(?:emb|embs|embed|embeds|embedding|embeddings|codevectors|codebook)\d?(?:_table)?$")
# Names that say "scale" whatever the shape ...
_SCALE = re.compile(r"^gammas?(?:_?\w+)?$|layer_?scale|logit_scale|scale_shift_table|^ls\d$")
# ... and names that say so for a vector only.
_VECTOR_SCALE = re.compile(
    r"(?:^|_)(?:scales?|scaling|temperature|temp|tau|alpha|beta|gain|gate|lambda\w*|gamma)\d?(?:_\w)?$"
)
_SSM = re.compile(r"^(?:A_logs?|dt_bias|A_b_log|D_b|time_(?:decay|first|faaaa|mix\w*|maa\w*))$")
# Only beside an A_log, since a single letter says nothing.
_SSM_BESIDE_A = {"D", "Ds"}
_ADAPTER = re.compile(
    r"^(?:lora_(?:a|b|down|up|embedding_a|embedding_b)|hada_w\d\w*|lokr_w\d\w*|vera_[ab]|loha_\w+)$", re.I
)


def decide_role(path: str, owner: nn.Module, shape: Sequence[int], parents: Mapping[str, nn.Module]) -> tuple[str, str]:
    """The role of one parameter and a clause that says why.

    Args:
        path: Clean dotted name.
        owner: The module that holds it.
        shape: Its full, unsharded shape.
        parents: Clean path -> module, to look through torch's parametrizations.

    Returns:
        A key of `ROLES`, and words such as "weight of Linear".

    Example:
        >>> from torch import nn
        >>> decide_role("head.norm.weight", nn.Linear(4, 1), (1, 4), {})
        ('matrix', 'weight of Linear')
    """
    parts = path.split(".")
    if any(_ADAPTER.match(part) for part in parts) and parts[-1] != "bias":
        return "adapter", "adapter (LoRA) matrix"
    leaf = _leaf(parts, owner)
    if type(owner).__name__ == "ParametrizationList":
        # X.parametrizations.weight.original is X.weight; weight_norm stores magnitude and direction.
        magnitude = parts[-1] == "original0" and any(type(p).__name__ == "_WeightNorm" for p in owner.children())
        leaf, owner = parts[-2], real_owner(parts, owner, parents)
        if magnitude:
            return "scale", f"magnitude of {leaf} (weight_norm of {type_name(owner)})"
    elif leaf.endswith(("_g", "_v")) and {leaf[:-2] + "_g", leaf[:-2] + "_v"} <= owner._parameters.keys():
        leaf, magnitude = leaf[:-2], leaf.endswith("_g")
        if magnitude:
            return "scale", f"magnitude of {leaf} (weight_norm of {type_name(owner)})"
    elif leaf.endswith("_orig"):
        leaf = leaf.removesuffix("_orig")  # spectral_norm and pruning keep the weight under this name.
    return _by_owner(parts, leaf, owner, shape) or _free_standing(leaf, owner, shape)


def real_owner(parts: list[str], owner: nn.Module, parents: Mapping[str, nn.Module]) -> nn.Module:
    """The layer that a parameter belongs to, seen through torch's parametrizations.

    Example:
        >>> from torch import nn
        >>> layer = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
        >>> modules = dict(layer.named_modules())
        >>> type_name(real_owner("parametrizations.weight.original1".split("."), layer.parametrizations.weight, modules))
        'Linear'
    """
    if type(owner).__name__ != "ParametrizationList":
        return owner
    return parents.get(".".join(parts[:-3]), owner)


def _by_owner(parts: list[str], leaf: str, owner: nn.Module, shape: Sequence[int]) -> tuple[str, str] | None:
    kind = type_name(owner)
    if isinstance(owner, nn.MultiheadAttention):
        return ("bias", f"bias of {kind}") if "bias" in leaf else ("matrix", f"{leaf} of {kind}")
    if isinstance(owner, nn.RNNBase | nn.RNNCellBase):
        return ("bias", f"bias of {kind}") if leaf.startswith("bias") else ("matrix", f"{leaf} of {kind}")
    if isinstance(owner, _TORCH_NORMS) and (leaf == "bias" or leaf in _GAINS or _is_vector(shape)):
        return ("bias", f"bias of {kind}") if leaf == "bias" else ("norm", f"norm gain ({kind})")
    if isinstance(owner, _TORCH_LAYERS) and leaf == "weight":
        return "matrix", f"weight of {kind}"
    if isinstance(owner, nn.Embedding | nn.EmbeddingBag) and leaf == "weight":
        held_as = parts[-2] if len(parts) > 1 else ""
        if _POSITION.search(held_as) or _POSITION_CLASS.search(kind):
            return "position", f"position embedding ({kind})"
        return "embedding", f"embedding table ({kind})"
    if _BIAS.search(leaf) and not _POSITION.search(leaf) and not _SSM.match(leaf):
        return "bias", f"bias of {kind}"
    if _LAYER_CLASS.search(kind):
        if leaf in ("weight", "kernel") and sum(n > 1 for n in shape) > 0 and len(shape) > 1:
            return "matrix", f"{leaf} of {kind}"
        return None
    if _NORM_CLASS.search(kind) and (leaf in _GAINS or _is_vector(shape)):
        return "norm", f"norm gain ({kind})"
    if _POSITION_CLASS.search(kind) and not _NOT_A_TABLE.search(leaf):
        return "position", f"position embedding ({leaf} of {kind})"
    if _EMBEDDING_CLASS.search(kind) and "Patch" not in kind and leaf == "weight":
        return "embedding", f"embedding table ({kind})"
    return None


def _free_standing(leaf: str, owner: nn.Module, shape: Sequence[int]) -> tuple[str, str]:
    of = f"{leaf} of {type_name(owner)}"
    if _SSM.match(leaf) or (leaf in _SSM_BESIDE_A and any(n.startswith("A_log") for n in owner._parameters)):
        return "ssm", f"state-space parameter ({of})"
    if not _NOT_A_TABLE.search(leaf):
        if _POSITION.search(leaf):
            return "position", f"position embedding ({of})"
        if _TOKEN.search(leaf):
            return "token", f"learned token ({of})"
        if _TABLE.search(leaf):
            return "embedding", f"embedding ({of})"
        if _SCALE.search(leaf) or (_is_vector(shape) and _VECTOR_SCALE.search(leaf)):
            return "scale", f"scale ({of})"
    if _is_vector(shape):
        return "vector", f"free-standing vector ({of})"
    return "matrix", f"free-standing matrix with {len(shape)} dimensions ({of})"


def _leaf(parts: list[str], owner: nn.Module) -> str:
    """The parameter's own name; the list's name for an entry of a ParameterList or ParameterDict."""
    if isinstance(owner, nn.ParameterList | nn.ParameterDict) and len(parts) > 1:
        return parts[-2] if parts[-1].isdigit() else f"{parts[-2]}_{parts[-1]}"
    return parts[-1]


def _is_vector(shape: Sequence[int]) -> bool:
    return sum(n > 1 for n in shape) <= 1


def type_name(owner: nn.Module) -> str:
    """The class's name, without the subclass that torch's parametrize (ParametrizedLinear) or FSDP2 makes (FSDPLinear)."""
    name = type(owner).__name__
    for base in type(owner).__mro__[1:3]:
        if name in (f"Parametrized{base.__name__}", f"FSDP{base.__name__}"):
            return base.__name__
    return name
