"""Random numbers that are a pure function of (seed, index): no state, no generator, many indices at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniform(seed: int, indices: Sequence[int], count: int) -> NDArray[np.float64]:
    """`count` numbers in [0, 1) for each index, shape (len(indices), count); the same on any machine.

    An index keeps its numbers whatever else is asked for at the same time, and the first numbers of an index
    do not depend on `count`.

    Args:
        seed: A whole number of at least 0.
        indices: Whole numbers from 0 to 2**63 - 1.
        count: Numbers for each index.

    Source: splitmix64 (Steele, Lea and Flood, OOPSLA 2014), used as a counter-based generator: one chain of
    mixing for the seed, the index and the position.

    Example:
        >>> both, one = uniform(0, [3, 4], 5), uniform(0, [4], 2)
        >>> both.shape, bool((both[1, :2] == one[0]).all())
        ((2, 5), True)
    """
    key = _mix(np.array([seed], dtype=np.uint64) + _GOLDEN)
    streams = _mix(key + np.asarray(indices, dtype=np.uint64) * _GOLDEN)
    positions = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    bits = _mix(streams[:, None] + positions) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
