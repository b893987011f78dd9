"""The best of step sizes 2^j: the one with the smallest loss after so many steps, found by climbing from a guess."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable


def scanned(loss: Callable[[int], float], found: dict[int, float], where: Iterable[int]) -> int:
    """The best j of a coarse grid."""
    return min(where, key=lambda j: _asked(loss, found, j))


def climbed(loss: Callable[[int], float], start: int, found: dict[int, float], most: int = 40) -> int:
    """The j whose neighbours on both sides are not better; below those that fail.

    Args:
        loss: of a step size 2^j; not finite where the run failed.
        start: where to begin.
        found: losses by j; what is there is not asked again, what is asked is put there.
        most: losses asked for at most.
    """
    best = start
    while len(found) < most:
        # Of equals the smaller step: where all three fail, down is the way out.
        better = min((best - 1, best, best + 1), key=lambda j: (_asked(loss, found, j), j))
        if better == best:
            break
        best = better
    return best


def _asked(loss: Callable[[int], float], found: dict[int, float], j: int) -> float:
    if j not in found:
        value = loss(j)
        found[j] = value if math.isfinite(value) else math.inf
    return found[j]
