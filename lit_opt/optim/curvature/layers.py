"""What a Linear or Conv2d layer's inputs and output gradients say of its weight's gradient, sample by sample.

For a sample n with positions t (tokens, pixels; one where there are none) the gradient of [weight, bias] is
sum_t g_nt abar_nt^T, with abar the layer's input (a patch of it under a convolution) and, with a bias, a one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Layer = nn.Linear | nn.Conv2d


def is_supported(layer: nn.Module) -> bool:
    """Whether it is a Linear or an ungrouped Conv2d that computes what its class says.

    Example:
        >>> is_supported(nn.Linear(2, 2)), is_supported(nn.Conv2d(2, 2, 3, groups=2)), is_supported(nn.LayerNorm(2))
        (True, False, False)
    """
    if isinstance(layer, nn.Linear):
        return type(layer).forward is nn.Linear.forward
    return isinstance(layer, nn.Conv2d) and type(layer).forward is nn.Conv2d.forward and layer.groups == 1


def inputs_of(layer: Layer, a: Tensor, bias: bool, dtype: torch.dtype) -> Tensor:
    """The rows that the weight is multiplied with.

    Args:
        layer: A supported layer.
        a: Its input: (..., features), or (samples, channels, height, width).
        bias: Append a one to each row.
        dtype: Of the result.

    Returns:
        (samples, positions, columns): columns as in `weight.flatten(1)`, and one more with a bias.

    Example:
        >>> inputs_of(nn.Conv2d(3, 8, 3, padding=1), torch.ones(2, 3, 5, 5), True, torch.float32).shape
        torch.Size([2, 25, 28])
    """
    a = a.to(dtype)
    if isinstance(layer, nn.Conv2d):
        a = a if a.ndim == 4 else a.unsqueeze(0)
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        padded = F.pad(a, _padding(layer), mode)
        rows = F.unfold(padded, layer.kernel_size, dilation=layer.dilation, stride=layer.stride).transpose(1, 2)
    else:
        rows = _by_sample(a)
    return torch.cat([rows, rows.new_ones(*rows.shape[:2], 1)], dim=2) if bias else rows


def output_gradients(layer: Layer, g: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient of the layer's output as (samples, positions, outputs).

    Example:
        >>> output_gradients(nn.Conv2d(3, 8, 3), torch.ones(2, 8, 3, 3), torch.float32).shape
        torch.Size([2, 9, 8])
    """
    g = g.to(dtype)
    if isinstance(layer, nn.Conv2d):
        return (g if g.ndim == 4 else g.unsqueeze(0)).flatten(2).transpose(1, 2)
    return _by_sample(g)


def _by_sample(x: Tensor) -> Tensor:
    if x.ndim == 1:
        x = x.unsqueeze(0)
    return x.reshape(x.shape[0], -1, x.shape[-1])


def _padding(layer: nn.Conv2d) -> list[int]:
    """As F.pad takes it: left, right, top, bottom."""
    if layer.padding == "valid":
        return [0, 0, 0, 0]
    if layer.padding == "same":
        totals = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        return [x for total in reversed(totals) for x in (total // 2, total - total // 2)]
    vertical, horizontal = (int(x) for x in layer.padding)
    return [horizontal, horizontal, vertical, vertical]
