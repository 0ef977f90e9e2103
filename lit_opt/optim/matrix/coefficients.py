"""Coefficients (a, b, c) of the iteration X <- aX + (b XX' + c (XX')^2) X, and which of them are safe. No torch."""

from __future__ import annotations

import math
from functools import lru_cache

Triple = tuple[float, float, float]

# KellerJordan/Muon muon.py and torch.optim.Muon: largest slope at 0, does not converge to 1.
_JORDAN: Triple = (3.4445, -4.7750, 2.0315)
# leloykun's five steps, as in microsoft/dion newton_schulz and timm ("quintic").
_QUINTIC: tuple[Triple, ...] = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
# Polar Express (arXiv:2505.16932) for five steps, with a safety of 2 %: microsoft/dion polar_express.py and
# modded-nanogpt train_gpt.py.
_POLAR_EXPRESS: tuple[Triple, ...] = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
# The paper's own list, for any number of steps; all but the last are divided by a safety of 1 %.
_POLAR_EXPRESS_PAPER: tuple[Triple, ...] = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
)
# The limit of Polar Express: converges to 1 from anywhere near it.
_POLISH: Triple = (1.875, -1.25, 0.375)

# Preset -> what the start is divided by, beside its Frobenius norm.
SAFETY = {"polar_express": 1.02, "polar_express_paper": 1.01, "jordan": 1.0, "quintic": 1.0}
PRESETS = (*SAFETY, "svd")
MOST_STEPS = 20
# An update may be this much longer than an orthogonal one; rounding in bfloat16 adds less than 0.03.
_LARGEST = 1.22


def coefficients(preset: str, steps: int) -> tuple[Triple, ...]:
    """The triples of `steps` iterations.

    Example:
        >>> coefficients("jordan", 2)
        ((3.4445, -4.775, 2.0315), (3.4445, -4.775, 2.0315))
        >>> coefficients("polar_express", 6)[-1]
        (1.875, -1.25, 0.375)
    """
    if preset == "jordan":
        return (_JORDAN,) * steps
    if preset == "quintic":
        return (*_QUINTIC, *(_QUINTIC[-1],) * (steps - len(_QUINTIC)))[:steps]
    if preset == "polar_express":
        return (*_POLAR_EXPRESS, *(_POLISH,) * (steps - len(_POLAR_EXPRESS)))[:steps]
    safe = SAFETY[preset]
    paper = [(a / safe, b / safe**3, c / safe**5) for a, b, c in _POLAR_EXPRESS_PAPER]
    return (*paper, *(_POLISH,) * (steps - len(paper)))[:steps]


@lru_cache(maxsize=64)
def largest_singular_value(preset: str, steps: int) -> float:
    """The largest singular value that the iteration can leave, in exact arithmetic, from any matrix.

    The start has singular values in [0, 1 / safety]; each is followed through the polynomials on a fine grid.

    Example:
        >>> f"{largest_singular_value('polar_express', 5):.2f}, {largest_singular_value('polar_express', 4):.2f}"
        '1.14, 1.58'
    """
    highest = 1.0 / SAFETY[preset]
    points = [highest * i / 4000 for i in range(4001)] + [highest * 10 ** (-8 * i / 4000) for i in range(4001)]
    largest = 0.0
    for x in points:
        for a, b, c in coefficients(preset, steps):
            x *= a + b * x**2 + c * x**4
        largest = max(largest, x if math.isfinite(x) else math.inf)
    return largest


def check_preset(preset: object, steps: object, dtype: object, *, where: str = "") -> list[str]:
    """Problems of a combination of orthogonalize, ns_steps and ns_dtype, in words.

    Refused is what can leave a singular value above 1.25: an iteration that is cut short.

    Example:
        >>> check_preset("polar_express", 5, "auto")
        []
        >>> check_preset("polar_express", 4, "auto")[0][:60]
        "ns_steps: 4 with orthogonalize='polar_express' can leave sin"
    """
    if preset == "svd":
        if dtype == "bfloat16":
            return [
                f"{where}ns_dtype: 'bfloat16' with orthogonalize='svd'. There is no such decomposition; type "
                f"ns_dtype='float32'."
            ]
        return []
    if not isinstance(steps, int) or not 1 <= steps <= MOST_STEPS:
        return [f"{where}ns_steps: {steps!r} is out of bounds. Allowed: 1 to {MOST_STEPS}; usual: 5."]
    if not isinstance(preset, str) or largest_singular_value(preset, steps) <= _LARGEST:
        return []
    allowed = [n for n in range(1, 11) if largest_singular_value(preset, n) <= _LARGEST]
    return [
        f"{where}ns_steps: {steps} with orthogonalize={preset!r} can leave singular values of "
        f"{largest_singular_value(preset, steps):.2f} where 1 is meant: its list is made for more steps. Allowed: "
        f"{', '.join(map(str, allowed))}{' or more' if 10 in allowed else ''}."
    ]
