"""QK-clip (MuonClip, Kimi K2): keeps attention logits below a threshold by shrinking query and key weights.

Muon's updates let attention logits grow in long runs. After a step, each head whose largest logit S was above the
threshold gets its query weights times gamma^alpha and its key weights times gamma^(1 - alpha), gamma = threshold / S.
Source: arXiv:2507.20534; NVIDIA/Megatron-LM megatron/core/optimizer/qk_clip.py for grouped heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lit_opt.errors import RecipeError


@torch.no_grad()
def qk_clip_(query: Tensor, key: Tensor, max_logits: Tensor, *, threshold: float = 100.0, alpha: float = 0.5) -> Tensor:
    """Shrink the query and key weights of one attention layer, in place.

    Args:
        query: (heads x head_dim, width); its rows are ordered by head.
        key: (key heads x head_dim, width); fewer heads for grouped queries, each shared by consecutive query heads.
        max_logits: (heads,), the largest logit before the softmax of each query head, over the batch and, with several
            processes, over all of them. Heads that share a key take the largest.
        threshold: Logits above it are clipped.
        alpha: Share of the query.

    Returns:
        gamma of each key head, 1 where nothing was done.

    Raises:
        RecipeError: Shapes that do not fit, or a logit that is not finite; nothing is changed then.

    Example:
        >>> import torch
        >>> query, key = torch.ones(4, 2), torch.ones(4, 2)
        >>> qk_clip_(query, key, torch.tensor([50.0, 400.0]))
        tensor([1.0000, 0.2500])
        >>> query[:, 0]
        tensor([1.0000, 1.0000, 0.5000, 0.5000])
    """
    heads = max_logits.numel()
    problems = []
    if max_logits.ndim != 1 or not heads or query.size(0) % heads:
        problems.append(f"max_logits: shape {tuple(max_logits.shape)} does not fit query {tuple(query.shape)}.")
    elif key.size(0) % (query.size(0) // heads) or heads % (key.size(0) * heads // query.size(0)):
        problems.append(f"key: {key.size(0)} rows are no whole number of heads for query {tuple(query.shape)}.")
    elif not torch.isfinite(max_logits).all():
        problems.append("max_logits: not finite. Skip QK-clip on a skipped step.")
    if problems:
        raise RecipeError(problems)
    dim = query.size(0) // heads
    key_heads = key.size(0) // dim
    gamma = _gamma(max_logits.view(key_heads, -1).amax(dim=1), threshold)
    query.view(key_heads, -1, query.size(1)).mul_((gamma**alpha).to(query.dtype)[:, None, None])
    key.view(key_heads, dim, key.size(1)).mul_((gamma ** (1 - alpha)).to(key.dtype)[:, None, None])
    return gamma


@torch.no_grad()
def qk_clip_latent_(
    query: Tensor,
    key_value: Tensor,
    max_logits: Tensor,
    *,
    content_dim: int,
    rotary_dim: int,
    value_dim: int,
    threshold: float = 100.0,
    alpha: float = 0.5,
) -> Tensor:
    """QK-clip for multi-head latent attention (DeepSeek, Kimi), in place.

    The rotary part of the query takes all of gamma, since the rotary key is shared by all heads and stays; values stay.

    Args:
        query: (heads x (content_dim + rotary_dim), rank or width), each head with its content rows first.
        key_value: (heads x (content_dim + value_dim), rank), each head with its key rows first.
        max_logits: (heads,), see `qk_clip_`.
        content_dim: Rows of a head without rotary position.
        rotary_dim: Rows of a head with it.
        value_dim: Value rows of a head.
        threshold: Logits above it are clipped.
        alpha: Share of the query's content rows.

    Returns:
        gamma of each head.

    Raises:
        RecipeError: Shapes that do not fit.

    Example:
        >>> import torch
        >>> query, key_value = torch.ones(3, 1), torch.ones(4, 1)
        >>> gamma = qk_clip_latent_(
        ...     query, key_value, torch.tensor([400.0]), content_dim=2, rotary_dim=1, value_dim=2
        ... )
        >>> query.flatten(), key_value.flatten()
        (tensor([0.5000, 0.5000, 0.2500]), tensor([0.5000, 0.5000, 1.0000, 1.0000]))
    """
    heads = max_logits.numel()
    expected = (heads * (content_dim + rotary_dim), heads * (content_dim + value_dim))
    if (query.size(0), key_value.size(0)) != expected:
        raise RecipeError(
            [
                f"query and key_value: {query.size(0)} and {key_value.size(0)} rows, for {heads} heads {expected} are due."
            ]
        )
    gamma = _gamma(max_logits, threshold)
    q = query.view(heads, content_dim + rotary_dim, -1)
    q[:, :content_dim].mul_((gamma**alpha).to(query.dtype)[:, None, None])
    q[:, content_dim:].mul_(gamma.to(query.dtype)[:, None, None])
    kv = key_value.view(heads, content_dim + value_dim, -1)
    kv[:, :content_dim].mul_((gamma ** (1 - alpha)).to(key_value.dtype)[:, None, None])
    return gamma


def qk_clip_modules(module: nn.Module, *, threshold: float = 100.0, alpha: float = 0.5) -> dict[str, Tensor]:
    """`qk_clip_` for every submodule that exposes its logits: call it after optimizer.step().

    A module takes part if it has `max_attention_logits`, a tensor (heads,) of the last forward, and linear layers
    `q_proj` and `k_proj`, or `query` and `key`. Where torch.distributed runs, the maxima are taken over all
    processes first (in place). Leave it out on a skipped step.

    Args:
        module: The model.
        threshold: See `qk_clip_`.
        alpha: See `qk_clip_`.

    Returns:
        Name of each module -> gamma of its key heads.

    Raises:
        RecipeError: No module exposes its logits, or one lacks the layers.

    Example:
        >>> import torch
        >>> attention = torch.nn.Module()
        >>> attention.q_proj, attention.k_proj = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
        >>> attention.max_attention_logits = torch.tensor([10.0, 200.0])
        >>> qk_clip_modules(torch.nn.Sequential(attention))
        {'0': tensor([1.0000, 0.5000])}
    """
    clipped, problems, found = {}, [], []
    for name, part in module.named_modules():
        logits = getattr(part, "max_attention_logits", None)
        if not isinstance(logits, Tensor):
            continue
        layers = next(
            ((getattr(part, q), getattr(part, k)) for q, k in _LAYERS if hasattr(part, q) and hasattr(part, k)), None
        )
        if layers is None:
            problems.append(f"{name}: has max_attention_logits but no q_proj and k_proj, or query and key.")
            continue
        found.append((name, logits.detach(), layers))
    if not found and not problems:
        problems.append("module: no part has max_attention_logits, the largest logit of each head. Set it in forward.")
    if problems:
        raise RecipeError(problems)
    for name, logits, (query, key) in found:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(logits, op=torch.distributed.ReduceOp.MAX)
        clipped[name] = qk_clip_(query.weight, key.weight, logits, threshold=threshold, alpha=alpha)
        for layer, power in ((query, alpha), (key, 1 - alpha)):
            # A bias is part of the query or key as well.
            if layer.bias is not None:
                rows = layer.bias.data.view(clipped[name].numel(), -1)
                rows.mul_((clipped[name] ** power).to(rows.dtype)[:, None])
    return clipped


_LAYERS = (("q_proj", "k_proj"), ("query", "key"))


def _gamma(max_logits: Tensor, threshold: float) -> Tensor:
    return (threshold / max_logits.clamp_min(threshold)).to(torch.promote_types(max_logits.dtype, torch.float32))
