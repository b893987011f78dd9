"""What is read from a run: the linear part of its error and the rate there; intervals over seeds; exponents.

A rate is minus the slope of log error over steps, by least squares over the *linear part*: the second half of the steps
whose error is below a tenth of σ_r / ‖W*‖, where every direction of the target is found and curvature is small, and
above 1e-13, where rounding begins; at least 8 of them. Without so many there is no rate. Intervals have 95 % by
Student's t over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

FLOOR = 1e-13
"""An error below it is rounding."""
LEAST = 8
LINEAR = 0.1
"""The linear part begins below this part of σ_r / ‖W*‖."""


class Interval(NamedTuple):
    """A mean and the half width of its 95 % interval."""

    mean: float
    half: float

    def holds(self, value: float) -> bool:
        return abs(value - self.mean) <= self.half


class Line(NamedTuple):
    """A least-squares line, and the part of the variance that it explains."""

    slope: float
    explained: float


def line(x: Sequence[float], y: Sequence[float]) -> Line:
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    slope, intercept = np.polyfit(x, y, 1)
    left, all_of_it = ((y - slope * x - intercept) ** 2).sum(), ((y - y.mean()) ** 2).sum()
    return Line(float(slope), float(1 - left / all_of_it) if all_of_it else 1.0)


def linear_part(errors: Sequence[float], smallest: float) -> range | None:
    """The steps of the linear part; ``smallest`` is σ_r / ‖W*‖."""
    inside = [i for i, e in enumerate(errors) if FLOOR < e < LINEAR * smallest]
    if not inside or len(inside) < 2 * LEAST:
        return None
    return range(inside[len(inside) // 2], inside[-1] + 1)


def fitted(errors: Sequence[float], smallest: float) -> Line | None:
    """The rate per step as minus the slope, or None where there is no linear part."""
    part = linear_part(errors, smallest)
    if part is None or not all(errors[i] > 0 for i in part):
        return None
    found = line(part, [math.log(errors[i]) for i in part])
    return found._replace(slope=-found.slope)


def power(errors: Sequence[float]) -> float:
    """The exponent p of error ∝ stepᵖ over the second half of the steps."""
    part = range(max(1, len(errors) // 2), len(errors))
    return line([math.log(i) for i in part], [math.log(errors[i]) for i in part]).slope


def interval(values: Sequence[float]) -> Interval:
    """Over seeds; of infinite width for a single one."""
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return Interval(float(values.mean()) if len(values) else math.nan, math.inf)
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return Interval(float(values.mean()), float(half))


def exponent(table: Mapping[int, Mapping[float, float]]) -> Interval:
    """Of y ∝ xᵖ: p of every seed by least squares in logarithms, and their interval.

    Args:
        table: seed -> x -> y.
    """
    slopes = [
        line([math.log(x) for x in row], [math.log(y) for y in row.values()]).slope
        for row in table.values()
        if len(row) > 1
    ]
    return interval(slopes)
