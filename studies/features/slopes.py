"""Slopes of logarithms with their 95 % confidence intervals, and what they say.

log change = a + b log n + noise over all widths and seeds, by least squares, b with Student's interval. The exponent at
finite widths is not that of the limit: corrections of relative size n^(−½) bend the line, and the interval does not
know of that. So intervals are given ``SLACK`` when they are held against a prediction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from scipy import stats

SLACK = 0.1
"""How far an interval may end from a predicted exponent that it agrees with."""
FLAT = 0.2
"""An exponent this near to 0 is none: a factor of 2 from width 64 to width 2,048."""
LOST = 0.1
"""The part of runs whose loss rose above its first value, beyond which a step size does not work."""

State = Literal["stable", "depends", "unstable", "open"]


class Slope(NamedTuple):
    """b with the ends of its interval; NaN of fewer than three finite points."""

    value: float
    low: float
    high: float

    def agrees(self, low: float, high: float) -> bool:
        """Whether the interval, with its slack, has a point between two exponents."""
        return self.low - SLACK <= high and self.high + SLACK >= low

    @property
    def flat(self) -> bool:
        return max(-self.low, self.high) <= FLAT

    @property
    def steep(self) -> bool:
        return self.low > FLAT or self.high < -FLAT


def slope(x: Sequence[float], y: Sequence[float]) -> Slope:
    """Of log y against log x."""
    points = [(math.log(a), math.log(b)) for a, b in zip(x, y, strict=True) if math.isfinite(b) and b > 0]
    if len(points) < 3 or len({a for a, _ in points}) < 2:
        return Slope(math.nan, math.nan, math.nan)
    if len({b for _, b in points}) == 1:
        return Slope(0.0, 0.0, 0.0)
    fit = stats.linregress(*zip(*points, strict=True))
    half = float(stats.t.ppf(0.975, len(points) - 2) * fit.stderr)
    return Slope(float(fit.slope), float(fit.slope) - half, float(fit.slope) + half)


def state(features: Slope, outputs: Slope, lost: float) -> State:
    """``stable``: both intervals within ``FLAT`` of 0; ``depends``: one lies outside; ``unstable``: more runs than
    ``LOST`` raised their loss above its first value; ``open``: the intervals are too wide to say.
    """
    if lost > LOST:
        return "unstable"
    if features.steep or outputs.steep:
        return "depends"
    return "stable" if features.flat and outputs.flat else "open"


VERDICT = {"stable": "confirmed", "depends": "not confirmed", "unstable": "not confirmed", "open": "not testable"}
"""What a state says to the claim that nothing depends on the width."""
