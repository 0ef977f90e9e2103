"""How a learning rate follows the batch, which batch is large, and which published value belongs to a model's size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

RULES = ("none", "linear", "sqrt", "linear_then_sqrt")


def batch_factor(batch: float, reference: float, rule: str, limit: float | None = None) -> float:
    """Factor of the learning rate at `batch`, relative to the `reference` batch.

    Args:
        batch: Global batch of the run, in the unit of `reference`.
        reference: The batch that the base learning rate belongs to.
        rule: "none", "linear" (arXiv:1706.02677), "sqrt" (arXiv:2205.10287) or "linear_then_sqrt".
        limit: For "linear_then_sqrt" the batch where the rule changes; otherwise the batch above which the
            rate stays.

    Raises:
        ValueError: Unknown rule, or a batch that is not positive.

    Example:
        >>> batch_factor(1024, 256, "linear"), batch_factor(4096, 256, "linear_then_sqrt", limit=1024)
        (4.0, 8.0)
    """
    if rule not in RULES:
        raise ValueError(f"rule: {rule!r} is unknown. Known: {', '.join(RULES)}.")
    if not (batch > 0 and reference > 0):
        raise ValueError(f"batch: {batch!r} and its reference {reference!r} have to be positive.")
    return _curve(batch, rule, limit) / _curve(reference, rule, limit)


def _curve(batch: float, rule: str, limit: float | None) -> float:
    """What the rate is proportional to; the same curve for run and reference, wherever the limit lies."""
    if rule == "none":
        return 1.0
    top = batch if limit is None else min(batch, limit)
    if rule == "linear_then_sqrt":
        return top * math.sqrt(batch / top)
    return top if rule == "linear" else math.sqrt(top)


def scale_lr(
    base: float,
    *,
    batch: float,
    reference: float,
    rule: str,
    unit: str = "samples",
    limit: float | None = None,
    down: bool = False,
    floor: float = 0.0,
) -> tuple[float, str]:
    """The peak learning rate at `batch`, and the arithmetic in words.

    Below the reference batch Adam-kind rates are kept (`down=False`) and SGD's falls no lower than `floor`:
    on a ViT at batch 64 a rate scaled down linearly reached 37.8 % where the kept one reached 62.8 %
    (digits, 600 steps, one seed).

    Example:
        >>> scale_lr(0.1, batch=512, reference=256, rule="linear")
        (0.2, '0.1 at 256 samples x 2 (linear) at 512')
        >>> scale_lr(2.5e-4, batch=64, reference=256, rule="linear")
        (0.00025, '0.00025 at 256 samples, not scaled down at 64')
    """
    factor = batch_factor(batch, reference, rule, limit)
    start = f"{base:g} at {reference:,} {unit}"
    if rule == "none":
        return base, f"{start}, not scaled"
    if batch == reference:
        return base, start
    if factor < 1.0 and (not down or base <= floor):
        return base, f"{start}, not scaled down at {batch:,}"
    words = f"{start} x {factor:.4g} ({rule.replace('_', ' ')}) at {batch:,}"
    if factor < 1.0 and base * factor < floor:
        return floor, f"{words}, held at the low end {floor:g}"
    if limit is not None and rule != "linear_then_sqrt" and batch > limit:
        words += f", the rule ends at {limit:,}"
    return base * factor, words


def pick_row(size: float, rows: Sequence[tuple[float, T]]) -> T:
    """The value of the first row (largest size, value) that `size` does not pass.

    Example:
        >>> pick_row(100, [(100, "small"), (float("inf"), "large")])
        'small'
    """
    return next(value for largest, value in rows if size <= largest)


@dataclass
class NoiseScale:
    """The batch above which more samples a step save few steps: tr(Sigma) / |G|^2, estimated from gradients.

    G is the mean gradient and Sigma the covariance of the gradients of single samples. The mean gradient of B samples has
    E |G_B|^2 = |G|^2 + tr(Sigma) / B, so the squared norms at two batch sizes give unbiased estimates of both parts. Each
    is averaged by itself, since their ratio is not unbiased.

    Args:
        decay: Of the averages, per update.
        squared_gradient: The average of |G|^2 so far, times 1 - decay^updates.
        trace: The average of tr(Sigma) so far, times the same.
        updates: Number of estimates in the averages.

    Source: https://arxiv.org/abs/1812.06162, appendix A.1.

    Example:
        >>> noise = NoiseScale(decay=0.9)
        >>> noise.update(small=5.0, big=2.0, small_batch=1, big_batch=4)
        >>> round(noise.value, 6)
        4.0
    """

    decay: float = 0.99
    squared_gradient: float = 0.0
    trace: float = 0.0
    updates: int = 0

    def update(self, *, small: float, big: float, small_batch: float, big_batch: float) -> None:
        """Take in one step.

        Args:
            small: Mean squared norm of the gradients of the parts.
            big: Squared norm of their mean.
            small_batch: Samples of a part.
            big_batch: Samples of all parts, more than `small_batch`.

        Raises:
            ValueError: The batches do not differ.
        """
        if not 0 < small_batch < big_batch:
            raise ValueError(f"small_batch: {small_batch!r} has to lie between 0 and big_batch ({big_batch!r}).")
        squared = (big_batch * big - small_batch * small) / (big_batch - small_batch)
        trace = (small - big) / (1 / small_batch - 1 / big_batch)
        self.squared_gradient = self.decay * self.squared_gradient + (1 - self.decay) * squared
        self.trace = self.decay * self.trace + (1 - self.decay) * trace
        self.updates += 1

    @property
    def value(self) -> float | None:
        """tr(Sigma) / |G|^2 in samples; None where the noise hides the gradient (its estimate is not above 0)."""
        if self.updates == 0 or self.squared_gradient <= 0:
            return None
        return max(self.trace, 0.0) / self.squared_gradient
