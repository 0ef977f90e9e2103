"""ARO: the momentum is normalised in a rotated basis, and the rotation follows it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from lit_opt.averaging.shards import local
from lit_opt.optim.matrix.eigenbasis import ROUNDING, null_turn
from lit_opt.optim.matrix.engine import MatrixOptimizer
from lit_opt.optim.matrix.layout import blocks, shape_of
from lit_opt.optim.matrix.plan import Chunk, Slot
from lit_opt.optim.matrix.stages import Group, Stages

# Columns of a QR of which less than this many times the root of the rounding is their own follow those before them.
# With 16, one run of eight on gradients of low rank in float32 ends more than 0.1 of the way from another; with 64 none.
_DEPENDENT = 64
_OPTIONS = ("base", "sinkhorn", "sinkhorn_iters", "sinkhorn_eps", "qr_shift", "orientation", "update_rms")


def normalised(x: Tensor, options: Mapping[str, Any]) -> Tensor:
    """The base f: what is done to a matrix in the rotated basis.

    Args:
        x: (count, rows, cols).
        options: base: "sign"; "row" (every row to length 1); or "sinkhorn": `sinkhorn_iters` times every row and column
            to length 1, both at once or one after the other (`sinkhorn`), then a root mean square of 1. Squared lengths
            count as at least `sinkhorn_eps`.

    Example:
        >>> import torch
        >>> normalised(torch.tensor([[[3.0, 4.0], [0.0, 2.0]]]), {"base": "row"})
        tensor([[[0.6000, 0.8000],
                 [0.0000, 1.0000]]])
    """
    if options["base"] == "sign":
        return x.sign()
    if options["base"] == "row":
        return torch.nn.functional.normalize(x, dim=-1, eps=torch.finfo(x.dtype).tiny)
    least = options["sinkhorn_eps"]
    for _ in range(options["sinkhorn_iters"]):
        if options["sinkhorn"] == "simultaneous":
            x = x * _inverse_length(x, -1, least) * _inverse_length(x, -2, least)
        else:
            x = x * _inverse_length(x, -1, least) * math.sqrt(x.size(-1))
            x = x * _inverse_length(x, -2, least) * math.sqrt(x.size(-2))
    return _of_rms(x, 1.0)


def _inverse_length(x: Tensor, dim: int, least: float) -> Tensor:
    return x.square().sum(dim, keepdim=True).clamp_(min=least).rsqrt_()


def _of_rms(x: Tensor, rms: float) -> Tensor:
    size = x.square().mean((-2, -1), keepdim=True).sqrt_()
    return x * (rms / size).where(size != 0, 0.0)


def rotated(momentum: Tensor, rotation: Tensor, options: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """R' = Q of the QR decomposition of M f(R'M)'; the update is R' f(R''M), with the rows as the rotated side.

    The update does not depend on the signs of R's columns, so that any decomposition will do.

    Args:
        momentum: M, (count, rows, cols), rows <= cols for a well-posed rotation.
        rotation: R of the step before, (count, rows, rows), orthogonal.
        options: As in `normalised`; qr_shift: 0 for Householder's decomposition, else what is added to the diagonal of
            the Gram matrix before its Cholesky decomposition (faster on GPUs; absolute, so that it wants gradients of a
            usual size; where it fails, Householder's takes over).

    Returns:
        The update before its rescaling, and the new rotation.

    Example:
        >>> import torch
        >>> update, rotation = rotated(torch.eye(2)[None], torch.eye(2)[None], {"base": "row", "qr_shift": 0.0})
        >>> update.abs()
        tensor([[[1., 0.],
                 [0., 1.]]])
    """
    product = momentum @ normalised(_turned_by(rotation, momentum), options).mT
    rotation = orthonormalised(product, options["qr_shift"])
    return rotation @ normalised(_turned_by(rotation, momentum), options), rotation


def _turned_by(rotation: Tensor, momentum: Tensor) -> Tensor:
    """R'M, with zeros for what is rounding of its column: f would make full rows of it."""
    turned = rotation.mT @ momentum
    length = turned.square().sum(-2, keepdim=True).sqrt_()
    return turned.masked_fill_(turned.abs() <= length * torch.finfo(turned.dtype).eps ** ROUNDING, 0.0)


def orthonormalised(a: Tensor, shift: float) -> Tensor:
    """Q of A = Q R for (count, n, n), by Householder's method or by the Cholesky factor of A'A + shift.

    Householder's leaves the columns of Q that belong to dependent columns of A to rounding. Here these are the last, in
    a basis of their own that depends on the others alone.

    Example:
        >>> import torch
        >>> q = orthonormalised(torch.tensor([[[2.0, 1.0], [0.0, 1.0]]]), 0.0)
        >>> bool(torch.allclose(q.mT @ q, torch.eye(2), atol=1e-6))
        True
    """
    if not shift:
        return _householder(a)
    gram = a.mT @ a
    gram.diagonal(dim1=-2, dim2=-1).add_(shift)
    lower, failed = torch.linalg.cholesky_ex(gram)
    # A L^-T. Several public versions solve for A L^-1, which is not orthonormal.
    q = torch.linalg.solve_triangular(lower.mT, a, upper=True, left=False)
    return torch.where((failed != 0)[:, None, None], _householder(a), q) if bool(failed.any()) else q


def _householder(a: Tensor) -> Tensor:
    q, r = torch.linalg.qr(a)
    sizes = r.diagonal(dim1=-2, dim2=-1).abs()
    firm = sizes > r.square().sum(-2).sqrt_() * (_DEPENDENT * torch.finfo(a.dtype).eps ** 0.5)
    # Where there is none, as with full rank, this is one number that a CPU reads, and for which a GPU is waited for.
    for index in (~firm.all(-1)).nonzero().flatten().tolist():
        whole = torch.linalg.qr(a[index, :, firm[index]], mode="complete")[0]
        rest = whole[:, int(firm[index].sum()) :]
        rest.copy_(rest @ null_turn(rest))
        q[index] = whole
    return q


class Aro(MatrixOptimizer):
    """Adaptively rotated optimization: W <- (1 - lr weight_decay) W - lr R f(R'M), with a root mean square of 0.2.

    The update has the size of AdamW's, so its learning rates and decay fit. State: momentum and the rotation, of the
    smaller side's square. No official code was found; the rule is checked against the formula. Gradients of any size
    give the same update unless `qr_shift` is set. Where the momentum has fewer directions than rows, the formula
    leaves the rest of the rotation to rounding, and f makes full rows of what little lies there: runs that differ by
    rounding end as far apart as they have moved. Here that part of the rotation follows from the rest, and what is
    rounding in the rotated momentum is zero: such runs end within 0.03 of the way (float32, gradients of rank 2 to 6), and
    within 1e-5 where the rank is full.

    Args:
        params: As in `Muon`.
        lr: Learning rate, of AdamW's size.
        momentum: Decay of the moving average per step.
        weight_decay: Multiplied by lr.
        base: "sinkhorn", "row" or "sign", see `normalised`. The sign is ill-conditioned: it follows rounding.
        sinkhorn: "simultaneous" or "alternating".
        sinkhorn_iters: Iterations.
        sinkhorn_eps: Least squared length.
        qr_shift: See `rotated`.
        orientation: "smaller_side" rotates the shorter side. "rows" rotates the outputs; where there are more outputs
            than inputs the rotation is then partly arbitrary.
        update_rms: Root mean square of the update.
        layout: As in `Muon`.
        split_sizes: As in `Muon`.
        num_heads: As in `Muon`.
        fallback: As in `Muon`, with lr and weight_decay of the matrices.

    Raises:
        RecipeError: As in `Muon`.

    Source: arXiv:2602.09006, from the formula; conventions of krafton-ai/Megatron-Dion
    megatron/core/optimizer/aro/kernels.py.

    Example:
        >>> import torch
        >>> from lit_opt.optim import Aro
        >>> layer = torch.nn.Linear(4, 4, bias=False)
        >>> optimizer = Aro(layer.parameters(), lr=0.01, weight_decay=0.0)
        >>> layer(torch.eye(4)).square().sum().backward()
        >>> before = layer.weight.detach().clone()
        >>> optimizer.step()
        >>> print(f"{(layer.weight.detach() - before).square().mean().sqrt():.4f}")
        0.0020
    """

    name: ClassVar[str] = "aro"
    stages: ClassVar[Stages] = Stages(options=_OPTIONS, orthogonalises=False)

    def __init__(
        self,
        params: Any,
        lr: float,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
        base: str = "sinkhorn",
        sinkhorn: str = "simultaneous",
        sinkhorn_iters: int = 5,
        sinkhorn_eps: float = 1e-6,
        qr_shift: float = 0.0,
        orientation: str = "smaller_side",
        update_rms: float = 0.2,
        layout: str | None = None,
        split_sizes: list[int] | None = None,
        num_heads: int | None = None,
        fallback: Mapping[str, Any] | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": False,
            "weight_decay": weight_decay,
            "base": base,
            "sinkhorn": sinkhorn,
            "sinkhorn_iters": sinkhorn_iters,
            "sinkhorn_eps": sinkhorn_eps,
            "qr_shift": qr_shift,
            "orientation": orientation,
            "update_rms": update_rms,
            "layout": layout,
            "split_sizes": split_sizes,
            "num_heads": num_heads,
        }
        super().__init__(params, defaults, fallback)

    def _beside(self, chunk: Chunk) -> int:
        return self._side(chunk) ** 2

    def _directions(
        self, chunks: Sequence[Chunk], batches: Sequence[Tensor], kept: Sequence[Tensor | None]
    ) -> list[tuple[Tensor, Tensor | None]]:
        found: list[tuple[Tensor, Tensor | None]] = []
        for chunk, batch, rotations in zip(chunks, batches, kept, strict=True):
            assert rotations is not None
            update, turned = _update_of(_turned(chunk, batch), rotations, chunk.options)
            found.append((_turned(chunk, update).contiguous(), turned))
        return found

    def _side(self, chunk: Chunk) -> int:
        return min(chunk.shape[1:]) if _rotates_columns(chunk) else chunk.shape[1]

    def _kept(self, chunk: Chunk, slot: Slot) -> Tensor:
        """The slot's rotations, (count, side, side), a view of the state."""
        state = self.state[slot.param]
        group = self.param_groups[slot.group]
        key = f"rotation_{slot.block}" if slot.block else "rotation"
        if key not in state:
            whole = blocks(torch.empty(slot.param.shape, device="meta"), group)[slot.block]
            eye = torch.eye(self._side(chunk), dtype=chunk.dtype, device=local(slot.param).device)
            state[key] = eye.repeat(shape_of(whole)[0], 1, 1)
        return state[key] if slot.part is None else state[key][slot.part]

    def _factor(self, index: int, shape: Sequence[int], kernel: int) -> Any:
        return -self.param_groups[index]["lr"]


def _update_of(matrices: Tensor, rotations: Tensor, options: Group) -> tuple[Tensor, Tensor]:
    if not options["qr_shift"]:
        # By the largest entry, so that no square vanishes or overflows; f and the rotation know directions alone.
        largest = matrices.abs().amax((-2, -1), keepdim=True)
        matrices = matrices / largest.where(largest != 0, 1.0)
    update, rotations = rotated(matrices, rotations, options)
    return _of_rms(update, options["update_rms"]), rotations


def _turned(chunk: Chunk, batch: Tensor) -> Tensor:
    """With the side that is rotated as rows."""
    return batch.mT if _rotates_columns(chunk) else batch


def _rotates_columns(chunk: Chunk) -> bool:
    _, rows, cols = chunk.shape
    return bool(chunk.options["orientation"] == "smaller_side" and rows > cols)
