"""Eigenvectors and inverse roots of gradient statistics, with a null space that does not depend on rounding.

After few gradients the statistic G G^T of a rectangular matrix has a numerical null space, in which LAPACK returns an
arbitrary basis. A method that normalises each component (Adam's square root, the sign) makes weights of it: in the
official codes of SOAP and SPlus a relative change of 1e-12 in the gradients moves the weights by 1e-2 to 1e-1 within
ten steps. Here the null space gets a basis of its own, and components that are rounding alone are zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Eigenvalues up to this many roundings of the largest are rounding (measured: 1 to 2, for sides of 8 to 512).
_NULL = 8
# Rotated numbers up to this power of the rounding, beside their largest, are rounding: rotation by eigenvectors of a
# squared matrix has errors of some hundred roundings (measured up to 2,600).
ROUNDING = 0.75
# Columns of a QR whose diagonal is below this many times that bound are next to dependent.
DEPENDENT = 32


def rounding_floor(values: Tensor) -> Tensor:
    """What eigenvalues have to exceed to be more than rounding of the largest.

    Args:
        values: (count, side), of positive semidefinite matrices.

    Returns:
        (count, 1).

    Example:
        >>> import torch
        >>> values = torch.tensor([[1.0, 1e-3, 1e-8]])
        >>> values > rounding_floor(values)
        tensor([[ True,  True, False]])
    """
    return values.amax(-1, keepdim=True) * (_NULL * torch.finfo(values.dtype).eps)


def eigenbasis(factor: Tensor) -> Tensor:
    """Orthonormal eigenvectors in columns, of falling eigenvalues; the null space in its own basis.

    Args:
        factor: (count, side, side), symmetric and positive semidefinite, float32 or float64; the lower triangle is read.

    Returns:
        (count, side, side).

    Example:
        >>> import torch
        >>> eigenbasis(torch.tensor([[[1.0, 0.0], [0.0, 4.0]]])).abs()
        tensor([[[0., 1.],
                 [1., 0.]]])
    """
    values, vectors = eigh(factor)
    nulls = (values <= rounding_floor(values)).sum(-1)
    vectors = vectors.flip(-1)
    for index, null in enumerate(nulls.tolist()):
        if null:
            space = vectors[index, :, -null:]
            vectors[index, :, -null:] = space @ null_turn(space)
    return vectors


def power_step(product: Tensor, factor: Tensor) -> Tensor:
    """Orthonormal columns of F Q: one step from an eigenbasis Q of an older F, by QR.

    Columns that are next to dependent on those before them have no direction of their own. Their space gets the
    eigenvectors of F within it, and its null space a basis as in `eigenbasis`.

    Args:
        product: F Q with columns of falling Rayleigh quotient q^T F q, (count, side, side).
        factor: F.

    Returns:
        (count, side, side). The signs of columns are arbitrary.

    Example:
        >>> import torch
        >>> power_step(torch.tensor([[[2.0, 0.0], [2.0, 0.0]]]), torch.ones(1, 2, 2)).abs()
        tensor([[[0.7071, 0.7071],
                 [0.7071, 0.7071]]])
    """
    reflectors = torch.geqrf(product)  # torch.linalg.qr without the copies of R
    sizes = reflectors[0].diagonal(dim1=-2, dim2=-1).abs()
    basis = torch.linalg.householder_product(*reflectors)
    firm = (sizes > rounding_floor(sizes) * DEPENDENT).cumprod(-1).sum(-1)
    for index, first in enumerate(firm.tolist()):
        if first < sizes.size(-1):
            rest = basis[index, :, first:]
            basis[index, :, first:] = rest @ _inner_basis(rest.mT @ factor[index] @ rest, rest, sizes[index].amax())
    return basis


def _inner_basis(inner: Tensor, space: Tensor, largest: Tensor) -> Tensor:
    """Eigenvectors of F within a space, (side, n) -> (n, n), those of its null space as in `eigenbasis`."""
    values, turn = eigh((inner + inner.mT) / 2)
    turn = turn.flip(-1)
    null = int((values <= rounding_floor(largest[None])).sum())
    if null:
        turn[:, turn.size(-1) - null :] = turn[:, turn.size(-1) - null :] @ null_turn(space @ turn[:, -null:])
    return turn


def null_turn(space: Tensor) -> Tensor:
    """What turns any basis of a space into one that depends on the space alone, but for signs.

    Args:
        space: N, (side, n), orthonormal columns.

    Returns:
        (n, n), eigenvectors of N^T diag(1 ... side) N.

    Example:
        >>> import torch
        >>> null_turn(torch.eye(3)[:, [2, 0]]).abs()
        tensor([[0., 1.],
                [1., 0.]])
    """
    weights = torch.arange(1, space.size(0) + 1, device=space.device, dtype=space.dtype) / space.size(0)
    return eigh(space.mT @ (weights[:, None] * space))[1]


def inverse_root(factor: Tensor, exponent: float, eps: float) -> Tensor:
    """(F + eps)^-exponent, by eigenvectors; eigenvalues that are rounding alone count as zero.

    Where eps is below the rounding of the largest eigenvalue, that rounding takes its place in the null space, so that
    nothing is divided by noise.

    Args:
        factor: (count, side, side), symmetric and positive semidefinite, float32 or float64; the lower triangle is read.
        exponent: 0.25 for Shampoo of matrices.
        eps: Added to the eigenvalues.

    Returns:
        (count, side, side).

    Example:
        >>> import torch
        >>> inverse_root(torch.tensor([[[16.0, 0.0], [0.0, 1.0]]]), 0.25, 0.0)
        tensor([[[0.5000, 0.0000],
                 [0.0000, 1.0000]]])
    """
    values, vectors = eigh(factor)
    floor = rounding_floor(values)
    damped = torch.where(values > floor, values + eps, floor.clamp_min(eps))
    # A factor of zeros without eps has no inverse: it leaves alone what it is multiplied with, which is zero as well.
    damped = torch.where(damped > 0, damped, 1.0)
    return (vectors * damped.pow(-exponent).unsqueeze(-2)) @ vectors.mT


def eigh(factor: Tensor) -> tuple[Tensor, Tensor]:
    """torch.linalg.eigh, in float64 where float32 does not converge.

    Example:
        >>> import torch
        >>> eigh(torch.eye(2)[None])[0]
        tensor([[1., 1.]])
    """
    try:
        return torch.linalg.eigh(factor)
    except torch.linalg.LinAlgError:
        if factor.dtype == torch.float64:
            raise
        values, vectors = torch.linalg.eigh(factor.double())
        return values.to(factor.dtype), vectors.to(factor.dtype)


def without_rounding(rotated: Tensor) -> Tensor:
    """A rotated gradient whose components that are rounding of its largest one are zero; it may be written to.

    Args:
        rotated: (count, rows, cols).

    Example:
        >>> import torch
        >>> without_rounding(torch.tensor([[[1.0, 1e-9], [1e-3, 0.0]]]))
        tensor([[[1.0000, 0.0000],
                 [0.0010, 0.0000]]])
    """
    share = torch.finfo(rotated.dtype).eps ** ROUNDING
    if rotated.size(0) == 1 and rotated.device.type == "cpu":
        low, high = torch.aminmax(rotated)
        return torch.nn.functional.hardshrink(rotated, max(-low.item(), high.item()) * share)
    size = rotated.abs()
    return rotated.masked_fill_(size <= size.amax((-2, -1), keepdim=True) * share, 0.0)
