"""How 1-bit Adam writes a tensor: one bit a number, and one scale."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def compressed(c: Tensor) -> tuple[Tensor, Tensor]:
    """A tensor by its signs and its root mean square.

    Args:
        c: (...), float32 or float64.

    Returns:
        What is sent: bytes with the signs as bits, first number lowest, and then the bytes of the scale; and what it
        means, in the shape of `c`.

    Example:
        >>> message, meaning = compressed(torch.tensor([3.0, -4.0, 0.0]))
        >>> len(message), meaning
        (5, tensor([ 2.8868, -2.8868,  2.8868]))
    """
    scale = c.norm() / math.sqrt(c.numel()) if c.numel() else c.new_zeros(())
    positive = c >= 0
    bits = torch.nn.functional.pad(positive.flatten().to(torch.uint8), (0, -c.numel() % 8))
    shifts = torch.arange(8, dtype=torch.uint8, device=c.device)
    packed = (bits.view(-1, 8) << shifts).sum(dim=1, dtype=torch.uint8)
    return torch.cat([packed, scale.reshape(1).view(torch.uint8)]), torch.where(positive, scale, -scale)


def decompressed(message: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """What a message of `compressed` means.

    Example:
        >>> message, meaning = compressed(torch.tensor([3.0, -4.0, 0.0]))
        >>> torch.equal(decompressed(message, (3,), torch.float32), meaning)
        True
    """
    packed, last = message[: -dtype.itemsize], message[-dtype.itemsize :]
    scale = last.clone().view(dtype).squeeze(0)
    shifts = torch.arange(8, dtype=torch.uint8, device=message.device)
    bits = (packed.unsqueeze(1) >> shifts) & 1
    positive = bits.flatten()[: math.prod(shape)].view(*shape).bool()
    return torch.where(positive, scale, -scale)


def take(queues: list[Tensor], process: int, param: Tensor) -> Tensor:
    """The next tensor in a process's queue of messages, which loses it, in the shape of `param`.

    Example:
        >>> queues = [compressed(torch.tensor([3.0, -4.0]))[0]]
        >>> take(queues, 0, torch.zeros(2)), len(queues[0])
        (tensor([ 3.5355, -3.5355]), 0)
    """
    dtype = compute_dtype(param)
    size = -(-param.numel() // 8) + dtype.itemsize
    message, queues[process] = queues[process][:size], queues[process][size:]
    return decompressed(message, param.shape, dtype)


def compute_dtype(param: Tensor) -> torch.dtype:
    """The dtype of momenta and errors while they are compressed.

    Example:
        >>> compute_dtype(torch.zeros(2, dtype=torch.bfloat16))
        torch.float32
    """
    return param.dtype if param.dtype == torch.float64 else torch.float32
