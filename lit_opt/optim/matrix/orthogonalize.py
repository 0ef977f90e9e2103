"""The nearest orthogonal matrix (polar factor) of each matrix of a batch, by Newton-Schulz or by decomposition.

Paths, all equal up to rounding (tests/optim/matrix/test_orthogonalize.py):
- standard: X <- aX + (b XX' + c (XX')^2) X, three products a step.
- Gram: from twice as wide as high, the same iteration on the small matrix XX' (Dao-AILab's Gram-Newton-Schulz). It
  loses precision with each step, so it starts anew from X: in float32 before steps 2, 5, ... (from 0), which keeps it
  within 1e-5 of the formula as the standard path is (on real momentum buffers, five steps; 2e-4 without, and with more
  steps singular values up to 6). In bfloat16 it does so every two steps, and polar_express gets a margin at step 2:
  where its polynomials touch the end of their interval, rounding leads beyond it. Without the margin 1 in 70 small or
  sparse matrices of the tests had singular values up to 100, with fewer restarts up to 1e9.
- On a CPU, symmetric products from 256 rows up are computed by blocks, each mirrored block once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from lit_opt.errors import RecipeError, nearest
from lit_opt.optim.matrix.coefficients import PRESETS, SAFETY, Triple, check_preset, coefficients

DTYPES = ("auto", "bfloat16", "float32", "float64")
# Rows, and entries of the left matrix, from which blocks win (measured with AVX512-BF16).
_BLOCKED_FROM = 256
_BLOCKED_SIZE = {torch.bfloat16: 400_000}
# Rows of the smallest block; 96 elsewhere.
_LEAST_BLOCK = {torch.bfloat16: 192}
_GRAM_FROM_RATIO = 2
_BFLOAT16_FROM = 64
# Shorter sides up to which batches of several shapes are iterated on together.
_TOGETHER_UP_TO = 64
# Norms whose squares neither vanish nor overflow in float32, with a wide margin.
_USUAL = (1e-10, 1e15)
# Gram path: (first restart, steps between two).
_RESTARTS = (2, 3)
# Presets that may take it in bfloat16, jordan for up to five steps. polar_express_paper and quintic may not at all: of
# 40,000 small matrices one or two came out with singular values of 20 and more.
_RESTARTS_BFLOAT16 = {"polar_express": (1, 2), "jordan": (2, 2)}
_GRAM_STEPS_BFLOAT16 = {"jordan": 5}
# What polar_express's step 2 is divided by there, for rounding. Of 150,000 small matrices the worst needed 1.10, of
# 500,000 1.13; each factor of ten more needs about 0.02 more.
_MARGIN = 1.2


@torch.no_grad()
def orthogonalize(matrices: Tensor, preset: str = "polar_express", ns_steps: int = 5, ns_dtype: str = "auto") -> Tensor:
    """The polar factor U V' of each matrix U S V', or what a few Newton-Schulz steps make of it.

    Args:
        matrices: (..., rows, cols), any real floating dtype. Not written to. Only directions matter: a factor of 1e-30
            or 1e30 changes nothing. A zero matrix gives zeros, a matrix with a NaN gives NaN and leaves the others.
        preset: "polar_express" (arXiv:2505.16932, as dion and modded-nanogpt have it), "polar_express_paper" (the
            paper's own list), "jordan" (KellerJordan/Muon, torch), "quintic" (dion, timm), or "svd" (exact).
        ns_steps: Iterations; for svd of no effect.
        ns_dtype: What the iteration computes in, see `compute_dtype`.

    Returns:
        (..., rows, cols) in the dtype of `matrices`.

    Raises:
        RecipeError: An unknown preset or dtype, or a combination that can leave singular values above 1.25.

    Example:
        >>> import torch
        >>> q = orthogonalize(torch.diag(torch.tensor([3.0, 2.0, 1.0])), "svd")
        >>> bool(torch.allclose(q, torch.eye(3), atol=1e-6))
        True
    """
    problems = []
    if preset not in PRESETS:
        problems.append(f"orthogonalize: {preset!r} is unknown.{nearest(preset, PRESETS)} Known: {', '.join(PRESETS)}.")
    if ns_dtype not in DTYPES:
        problems.append(f"ns_dtype: {ns_dtype!r} is unknown.{nearest(ns_dtype, DTYPES)} Known: {', '.join(DTYPES)}.")
    problems = problems or check_preset(preset, ns_steps, ns_dtype)
    if problems:
        raise RecipeError(problems)
    batch = matrices.reshape(math.prod(matrices.shape[:-2]), *matrices.shape[-2:])
    working = torch.promote_types(matrices.dtype, torch.float32)
    dtype = compute_dtype(preset, ns_dtype, working, matrices.device, min(matrices.shape[-2:]))
    batch = batch.to(working, copy=True)
    return orthogonalize_([batch], preset, ns_steps, dtype)[0].to(matrices.dtype).reshape(matrices.shape)


def compute_dtype(preset: str, ns_dtype: str, working: torch.dtype, device: torch.device, side: int) -> torch.dtype:
    """What the iteration computes in. "auto" never depends on timing, so that a resume repeats it.

    Args:
        preset: As in `orthogonalize`.
        ns_dtype: "auto" is float64 for float64 matrices; else bfloat16 where the hardware multiplies it natively (CUDA
            from Ampere; CPUs with AVX512-BF16 or AMX, there from 64 rows on); else float32. float16 is never used:
            it overflows, and CPUs emulate it.
        working: float32 or float64, the dtype of the matrices.
        device: Where they are.
        side: The smaller of rows and columns.

    Example:
        >>> import torch
        >>> compute_dtype("polar_express", "auto", torch.float64, torch.device("cpu"), 512)
        torch.float64
    """
    if ns_dtype != "auto":
        return {"bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}[ns_dtype]
    if working == torch.float64 or preset == "svd":
        return working
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        return torch.bfloat16
    return torch.bfloat16 if device.type == "cpu" and side >= _BFLOAT16_FROM and _native_bfloat16() else working


def _native_bfloat16() -> bool:
    cpu = torch.cpu
    probes = (getattr(cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(probe is not None and probe() for probe in probes)


def orthogonalize_(batches: Sequence[Tensor], preset: str, ns_steps: int, dtype: torch.dtype) -> list[Tensor]:
    """`orthogonalize` without checks, which uses the batches as scratch.

    Args:
        batches: (count, rows, cols) each, contiguous float32 or float64; their contents are lost. Several have the same
            shorter side, so that their small matrices are iterated on together.
        preset: As in `orthogonalize`.
        ns_steps: As in `orthogonalize`.
        dtype: What to compute in.

    Returns:
        (count, rows, cols) each, in `dtype`.

    Example:
        >>> import torch
        >>> orthogonalize_([torch.zeros(1, 2, 3)], "jordan", 5, torch.float32)[0].abs().sum()
        tensor(0.)
    """
    scaled = [_scaled(batch, SAFETY.get(preset, 1.0)).to(dtype) for batch in batches]
    return [_exact(x) for x in scaled] if preset == "svd" else newton_schulz(scaled, preset, ns_steps)


def _scaled(batch: Tensor, safety: float) -> Tensor:
    """In place to a norm of 1 / safety."""
    if batch.numel() == 0:
        return batch
    norm = _norms(batch)
    if not _are_usual(norm):
        usual = (norm > _USUAL[0]) & (norm < _USUAL[1])
        # By the largest entry first and then by the norm, so that no square overflows or vanishes.
        # Infinity norms are 25 times slower than this on a CPU (torch 2.15).
        largest = torch.maximum(batch.amax(dim=(-2, -1), keepdim=True), batch.amin(dim=(-2, -1), keepdim=True).neg_())
        batch.div_(largest.where(~usual & (largest != 0), 1.0))
        # Not below 1 unless the matrix is zero: the largest entry is 1 now. A NaN goes through.
        norm = norm.where(usual, _norms(batch).clamp_min_(1.0))
    return batch.mul_(norm.mul_(safety).reciprocal_())


def _norms(batch: Tensor) -> Tensor:
    return torch.linalg.vector_norm(batch, dim=(-2, -1), keepdim=True)


def _are_usual(norm: Tensor) -> bool:
    """Read on a CPU alone: elsewhere it would wait for the device."""
    if norm.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    low, high = torch.aminmax(norm)
    return _USUAL[0] < low.item() and high.item() < _USUAL[1]


def newton_schulz(xs: Sequence[Tensor], preset: str, ns_steps: int) -> list[Tensor]:
    """Iterate on batches (count, rows, cols), contiguous, with singular values in [0, 1 / safety], by the fastest path.

    The small side is multiplied where it is, so that nothing is transposed: in bfloat16 a CPU takes a thousand times
    longer to write a product into transposed strides.

    Args:
        xs: Of one shorter side and dtype; they may be written to.
        preset: As in `orthogonalize`.
        ns_steps: As in `orthogonalize`.

    Example:
        >>> import torch
        >>> newton_schulz([torch.eye(2)[None] / 2], "polar_express", 8)[0][0, 0, 0].round(decimals=4)
        tensor(1.)
    """
    triples, dtype = coefficients(preset, ns_steps), xs[0].dtype
    restarts = _RESTARTS_BFLOAT16.get(preset) if dtype == torch.bfloat16 else _RESTARTS
    if dtype == torch.bfloat16 and ns_steps > _GRAM_STEPS_BFLOAT16.get(preset, ns_steps):
        restarts = None
    iterate: Callable[[Sequence[Tensor], tuple[Triple, ...]], list[Tensor]] = _standard
    if restarts is not None and all(max(x.shape[1:]) >= _GRAM_FROM_RATIO * min(x.shape[1:]) for x in xs):
        iterate = partial(_gram, restarts=range(restarts[0], ns_steps, restarts[1]))
        if preset == "polar_express" and dtype == torch.bfloat16:
            triples = tuple((a / m, b / m, c / m) for (a, b, c), m in zip(triples, _margins(ns_steps), strict=True))
    if xs[0].device.type == "cpu" and min(xs[0].shape[1:]) >= _BLOCKED_FROM:
        for x in (matrix for batch in xs for matrix in batch):
            x.copy_(iterate([x], triples)[0])
        return list(xs)
    return iterate(xs, triples)


def companions(shape: Sequence[int]) -> int | None:
    """Batches for which this is the same number gain from being orthogonalised in one call; None for none.

    Their Gram matrices are small, and a product of three times as many takes twice as long.

    Args:
        shape: (count, rows, cols).

    Example:
        >>> companions((12, 64, 256)), companions((12, 192, 64)), companions((12, 64, 64))
        (64, 64, None)
    """
    short, long = sorted(shape[1:])
    return short if short <= _TOGETHER_UP_TO and long >= _GRAM_FROM_RATIO * short else None


def _standard(xs: Sequence[Tensor], triples: tuple[Triple, ...]) -> list[Tensor]:
    return [_standard_one(x, triples) for x in xs]


def _standard_one(x: Tensor, triples: tuple[Triple, ...]) -> Tensor:
    for a, b, c in triples:
        gram = _gram_matrix(x)
        polynomial = _symmetric(gram, gram, gram, b, c)
        x = _add_product(x, x, polynomial, a) if _is_tall(x) else _add_product(x, polynomial, x, a)
    return x


def _margins(steps: int) -> list[float]:
    return [_MARGIN if step == 2 else 1.0 for step in range(steps)]


def _gram(xs: Sequence[Tensor], triples: tuple[Triple, ...], restarts: range) -> list[Tensor]:
    """X_k = Q_k X_0 with Q_k a polynomial of R_0 = X_0 X_0'; R, Q and each step's polynomial are symmetric and commute."""
    r, q = _gram_matrices(xs), None
    for step, (a, b, c) in enumerate(triples):
        if step in restarts and q is not None:
            xs = _multiplied(xs, q)
            r, q = _gram_matrices(xs), None
        polynomial = _symmetric(r, r, r, b, c)
        polynomial.diagonal(dim1=-2, dim2=-1).add_(a)
        q = polynomial if q is None else _symmetric(q, polynomial)
        if step + 1 < len(triples) and step + 1 not in restarts:
            r = _symmetric(_symmetric(polynomial, r), polynomial)
    assert q is not None
    return _multiplied(xs, q)


def _gram_matrices(xs: Sequence[Tensor]) -> Tensor:
    return _gram_matrix(xs[0]) if len(xs) == 1 else torch.cat([_gram_matrix(x) for x in xs])


def _multiplied(xs: Sequence[Tensor], q: Tensor) -> list[Tensor]:
    """Each batch by its part of Q."""
    parts = [q] if len(xs) == 1 else q.split([len(x) for x in xs])
    return [_product(x, part) if _is_tall(x) else _product(part, x) for x, part in zip(xs, parts, strict=True)]


def _is_tall(x: Tensor) -> bool:
    return x.size(-2) > x.size(-1)


def _gram_matrix(x: Tensor) -> Tensor:
    """X X' or X' X, on the smaller side."""
    return _symmetric(x.mT, x) if _is_tall(x) else _symmetric(x, x.mT)


def _product(a: Tensor, b: Tensor) -> Tensor:
    # Not a @ b: for batches it takes 5 us more on a CPU, a tenth of a product of 12 matrices of 64 x 64.
    return (torch.mm if a.ndim == 2 else torch.bmm)(a, b)


def _add_product(c: Tensor, a: Tensor, b: Tensor, beta: float, alpha: float = 1.0) -> Tensor:
    return (torch.addmm if c.ndim == 2 else torch.baddbmm)(c, a, b, beta=beta, alpha=alpha)


def _symmetric(a: Tensor, b: Tensor, c: Tensor | None = None, beta: float = 0.0, alpha: float = 1.0) -> Tensor:
    """The product beta c + alpha a b, known to be symmetric up to rounding; large ones by blocks: 9/16 of the work.

    Rounding matters: a b' in place of a b, with b symmetric but for bfloat16, leaves singular values up to 2e4.
    """
    rows = a.size(-2)
    if a.ndim == 3 or rows < _BLOCKED_FROM or a.numel() < _BLOCKED_SIZE.get(a.dtype, 0):
        return _product(a, b) if c is None else _add_product(c, a, b, beta, alpha)
    out = a.new_empty(rows, rows)
    _symmetric_into(out, a, b, c, beta, alpha, 2 * _LEAST_BLOCK.get(a.dtype, 96))
    return out


def _symmetric_into(out: Tensor, a: Tensor, b: Tensor, c: Tensor | None, beta: float, alpha: float, least: int) -> None:
    """Write the product to a view: below `least` rows as it is, else the diagonal's quarters and one beside them."""
    if a.size(0) < least:
        _product_into(out, a, b, c, beta, alpha)
        return
    low, high = slice(None, a.size(0) // 2), slice(a.size(0) // 2, None)
    for part in (low, high):
        corner = None if c is None else c[part, part]
        _symmetric_into(out[part, part], a[part], b[:, part], corner, beta, alpha, least)
    _product_into(out[high, low], a[high], b[:, low], None if c is None else c[high, low], beta, alpha)
    out[low, high] = out[high, low].mT


def _product_into(out: Tensor, a: Tensor, b: Tensor, c: Tensor | None, beta: float, alpha: float) -> None:
    if c is None:
        torch.mm(a, b, out=out)
    else:
        torch.addmm(c, a, b, beta=beta, alpha=alpha, out=out)


def _exact(x: Tensor) -> Tensor:
    """U V' over the singular values that are not rounding: a partial isometry where the rank is lower."""
    finite = torch.isfinite(x).all(dim=-1, keepdim=True).all(dim=-2, keepdim=True)
    u, s, vh = torch.linalg.svd(x.where(finite, 0.0), full_matrices=False)
    kept = s > s[..., :1] * max(x.shape[-2:]) * torch.finfo(x.dtype).eps
    return ((u * kept.to(x.dtype)[..., None, :]) @ vh).where(finite, torch.nan)


def orthogonalization_flops(rows: int, cols: int, ns_steps: int) -> int:
    """Floating-point operations of the standard iteration for one matrix: what work is balanced by.

    Example:
        >>> orthogonalization_flops(768, 3072, 5)
        40768634880
    """
    short, long = min(rows, cols), max(rows, cols)
    return ns_steps * (4 * short * short * long + 2 * short**3)
