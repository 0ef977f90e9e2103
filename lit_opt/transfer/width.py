"""How rate, decay and epsilon follow the size of a parameter: one rule for each kind of optimizer and of parameter.

All of them are one demand (arXiv:2310.17813): a weight of m outputs and n inputs, and each of its updates, has a spectral
norm of the order of sqrt(m / n). Then the outputs change by the same amount at any width. What an optimizer's own step
already contains of that factor is divided out. Embeddings are read as having one input (one row is looked up), vectors
(norms, biases) as well.

The multipliers are relative to the small model, where all of them are 1: the number of classes or of bytes stays out of
them where it does not change.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lit_opt.optim.matrix.scale import FORMULAS, scale_factor
from lit_opt.optim.schema import OptimizerRow

MUP = "arXiv:2203.03466, table 3; spectral form arXiv:2310.17813"
SPECTRAL = "spectral condition, arXiv:2310.17813"
PRECONDITIONED = "arXiv:2512.05620"
DERIVED = "derived, no published evidence"

# Whose updates have entries of one size whatever the gradient's: 1 / fan-in. Those that muP's paper has, and others.
_ADAM = ("adam", "adamw", "amsgrad")
_LIKE_ADAM = (
    "nadam",
    "radam",
    "rmsprop",
    "lion",
    "signum",
    "adamw_8bit",
    "adamw_4bit",
    "adamw_fp8",
    "schedule_free_adamw",
)
_SGD = ("sgd", "nesterov")
_ORTHOGONAL = ("muon", "normuon", "mars_m", "teon")
# Whose epsilon is beside the root of averaged squared gradients.
_EPS = {"adam", "adamw", "amsgrad", "nadam", "radam", "rmsprop", "adamw_8bit", "adamw_4bit", "adamw_fp8",
        "schedule_free_adamw", "soap"}  # fmt: skip
WITH_A_RULE = (*_ADAM, *_LIKE_ADAM, *_SGD, *_ORTHOGONAL, "scion", "soap", "splus", "shampoo")

KINDS = ("hidden", "head", "embedding", "vector")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sides:
    """A parameter's size as the rules read it.

    Args:
        outputs: m.
        inputs: n; 1 for embeddings and vectors.
        rows: Of the tensor itself, as its optimizer reads it.
        cols: Likewise.
        whole: Outputs of all matrices of the layer together: m, but for parts and groups that are taken alone.

    Example:
        >>> Sides.of("embedding", 256, 64)
        Sides(outputs=64, inputs=1, rows=256, cols=64, whole=64)
    """

    outputs: int
    inputs: int
    rows: int
    cols: int
    whole: int

    @staticmethod
    def of(kind: str, rows: int, cols: int, count: float = 1) -> Sides:
        """Of one matrix of that kind, of which a layer has `count` above one another; a vector has one column."""
        if kind == "embedding":
            return Sides(outputs=cols, inputs=1, rows=rows, cols=cols, whole=cols)
        inputs = 1 if kind == "vector" else cols
        return Sides(outputs=rows, inputs=inputs, rows=rows, cols=cols, whole=round(rows * count))


@dataclass(frozen=True, kw_only=True, slots=True)
class Multipliers:
    """What one parameter's numbers are multiplied by.

    Args:
        lr: Of the learning rate.
        weight_decay: Of the decay.
        eps: Of epsilon; 1 where the optimizer has none.
        rule: In words.
        formula: Of the rate, m outputs and n inputs.
        source: Where it was published, or that it was not.

    Example:
        >>> Multipliers(rule="1 / fan-in", formula="1 / n", source="-").numbers
        (1.0, 1.0, 1.0)
    """

    lr: float = 1.0
    weight_decay: float = 1.0
    eps: float = 1.0
    rule: str
    formula: str
    source: str

    @property
    def numbers(self) -> tuple[float, float, float]:
        """Of the rate, the decay and epsilon; equal ones share a group."""
        return (float(f"{self.lr:.12g}"), float(f"{self.weight_decay:.12g}"), float(f"{self.eps:.12g}"))


def no_rule(row: OptimizerRow, hyperparameters: Mapping[str, Any]) -> str:
    """Why an optimizer is refused, in a sentence; "" where it has a rule.

    Example:
        >>> from lit_opt.optim.registry import get_row
        >>> print(no_rule(get_row("lamb"), {}))
        transfer: no rule is known for lamb. Optimizers with one: adam, adamw, adamw_4bit, adamw_8bit, adamw_fp8, amsgrad, \
lion, mars_m, muon, nadam, nesterov, normuon, radam, rmsprop, schedule_free_adamw, scion, sgd, shampoo, signum, soap, splus, teon.
    """
    if row.name not in WITH_A_RULE:
        return f"transfer: no rule is known for {row.name}. Optimizers with one: {', '.join(sorted(WITH_A_RULE))}."
    if row.name == "shampoo" and hyperparameters.get("kl"):
        return "transfer: no rule is known for shampoo with kl=True. Leave kl out."
    if row.name == "scion" and hyperparameters.get("norm", "Auto") not in ("Auto", "Spectral", "SpectralConv"):
        return f"transfer: no rule is known for scion with norm={hyperparameters['norm']!r}. Leave norm out."
    return ""


def width_multipliers(
    kind: str,
    algorithm: str,
    options: Mapping[str, Any],
    base: Sides,
    target: Sides,
    *,
    weight_decay: str = "independent",
    width: bool = True,
    repeats: float = 1.0,
) -> Multipliers:
    """The multipliers of one parameter.

    Args:
        kind: "hidden", "head", "embedding" (also positions and learned tokens) or "vector" (everything else).
        algorithm: Registry name of the optimizer that takes it; "scion_sign" for Scion's heads and embeddings.
        options: Its hyperparameters.
        base: Size in the small model.
        target: Size in the large one.
        weight_decay: See `lit_opt.transfer.spec.Transfer`.
        width: Whether sizes count; without it only depth does.
        repeats: Blocks over the base's, for what lies in a block.

    Example:
        >>> small, large = Sides.of("hidden", 64, 64), Sides.of("hidden", 256, 256)
        >>> found = width_multipliers("hidden", "adamw", {}, small, large)
        >>> found.lr, found.weight_decay, found.eps
        (0.25, 4.0, 0.25)
        >>> width_multipliers("hidden", "muon", {"scale": "match_rms_adamw"}, small, large).lr
        0.5
        >>> width_multipliers("hidden", "muon", {"scale": "original"}, small, large).lr
        1.0
    """
    rule, formula, source = _rule(kind, algorithm, options)
    lr = eps = grown = own = 1.0
    if not width:
        rule, formula, source = "sizes are not asked for", "1", "-"
    else:
        lr = _rate(kind, algorithm, options, target) / _rate(kind, algorithm, options, base)
        eps = _epsilon(kind, algorithm, target) / _epsilon(kind, algorithm, base)
        grown = target.inputs / base.inputs if kind in ("hidden", "head") else target.outputs / base.outputs
        if algorithm == "splus" and kind == "hidden":
            own = _splus(options, target) / _splus(options, base)  # its decay has its rate's own factor
    if repeats != 1.0:
        power = 1 - 4 * options.get("exponent", 0.25) if algorithm == "shampoo" and not options.get("grafting") else 0.0
        lr *= repeats**power
        eps /= repeats**2 if algorithm == "shampoo" else repeats
        source += "; depth: CompleteP, arXiv:2505.01618, alpha = 1"
        source += "" if algorithm in _ADAM else f" for Adam; here {DERIVED}"
    share = {"independent": 1.0, "inverse_width": 1 / grown, "kept": lr * own}[weight_decay]
    has_eps = algorithm in _EPS or algorithm == "shampoo"
    return Multipliers(
        lr=lr, weight_decay=share / (lr * own), eps=eps if has_eps else 1.0, rule=rule, formula=formula, source=source
    )


def _rate(kind: str, algorithm: str, options: Mapping[str, Any], s: Sides) -> float:
    """What the rate has to be proportional to."""
    m, n = s.outputs, s.inputs
    if algorithm in _SGD:
        return s.whole / n  # entries of gradients are of the order of 1 / whole
    if algorithm == "scion_sign":
        return s.cols / n  # its step has 1 / cols
    if kind in ("embedding", "vector"):
        return 1.0
    wanted = math.sqrt(m / n)
    if algorithm in _ORTHOGONAL:
        return wanted / scale_factor(options.get("scale", "original"), s.rows, s.cols)
    if algorithm == "scion":
        return wanted / _scion(options, s)
    if algorithm == "splus":
        return 1 / n / _splus(options, s)
    if algorithm == "shampoo" and not options.get("grafting"):
        exponent, largest = options.get("exponent", 0.25), options.get("max_preconditioner_dim", 1024)
        blocks = math.ceil(s.rows / largest) * math.ceil(s.cols / largest)
        gradient = math.sqrt(m * n) / s.whole
        return float(wanted / gradient ** (1 - 4 * exponent) * blocks ** (-2 * exponent))
    return 1 / n


def _epsilon(kind: str, algorithm: str, s: Sides) -> float:
    """What epsilon has to be proportional to: the gradients' entries, for Shampoo the eigenvalues of its statistics.

    With 1 / blocks for what lies in one, this is CompleteP's (EleutherAI/nanoGPT-mup model.py, 3904404), but for the head:
    theirs divides its output by the width, which makes its gradients smaller.
    """
    if algorithm == "shampoo" and kind == "hidden":
        return s.inputs * s.outputs / s.whole**2
    return 1.0 if kind == "head" else 1 / s.whole


def _splus(options: Mapping[str, Any], s: Sides) -> float:
    return 1e-3 if max(s.rows, s.cols) > options.get("max_preconditioner_dim", 10000) else 2 / (s.rows + s.cols)


def _scion(options: Mapping[str, Any], s: Sides) -> float:
    given = options.get("norm_kwargs") or {}
    length = math.sqrt(s.rows / s.cols) if given.get("normalized", True) else math.sqrt(s.rows)
    return max(1.0, length) if given.get("max") else length


def _rule(kind: str, algorithm: str, options: Mapping[str, Any]) -> tuple[str, str, str]:
    """Rule, formula and source of the rate."""
    if algorithm in _SGD:
        return "fan-out / fan-in (SGD)", "m / n", MUP
    if algorithm == "scion_sign":
        if kind == "embedding":
            return "sign / cols of an embedding", "cols", f"{SPECTRAL}; {DERIVED}"
        return "constant: Scion's step has 1 / fan-in", "1", "arXiv:2502.07529"
    if kind in ("embedding", "vector"):
        words = "embeddings" if kind == "embedding" else "vectors"
        return f"constant for {words}", "1", MUP if algorithm in _ADAM else f"as for Adam ({MUP}); {DERIVED}"
    if algorithm in _ORTHOGONAL:
        scale = options.get("scale", "original")
        source = PRECONDITIONED if algorithm == "muon" else f"as for Muon ({PRECONDITIONED}); {DERIVED}"
        return (
            f"spectral condition, scale {scale} divided out",
            f"sqrt(m / n) / {FORMULAS[scale] if scale == 'unit' else f'({FORMULAS[scale]})'}",
            f"{SPECTRAL}; {source}",
        )
    if algorithm == "scion":
        return "spectral condition, Scion's own factor divided out", "sqrt(m / n) / own", "arXiv:2502.07529"
    if algorithm == "splus":
        return (
            "1 / fan-in, SPlus's 2 / (m + n) divided out",
            "(m + n) / n",
            f"arXiv:2506.07254; {DERIVED} for m / n that changes",
        )
    if algorithm == "shampoo" and not options.get("grafting"):
        return "Shampoo's exponents e and blocks b", "(m / n)^(1 - 2 e) b^(-2 e)", f"{SPECTRAL}; {PRECONDITIONED}"
    if algorithm in ("soap", "shampoo"):
        return "1 / fan-in", "1 / n", PRECONDITIONED
    if algorithm == "rmsprop":
        return "1 / fan-in", "1 / n", f"{MUP}; for RMSprop microsoft/mup mup/optim.py"
    return "1 / fan-in", "1 / n", MUP if algorithm in _ADAM else f"as for Adam ({MUP}); {DERIVED}"
