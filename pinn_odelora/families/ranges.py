"""The parameters of a family: each over an interval, in a coordinate in which the solution changes evenly.

A parameter μ in [a, b] has the coordinate  x = (g(μ) - g(a)) / (g(b) - g(a))  in [0, 1], with g = log for a positive
interval whose ends differ by more than a factor of three, as viscosities do, and g the identity otherwise. Distances
between parameters, and interpolation, are meant in these coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pinn_odelora.errors import InputError, RefusedValueError, unknown
from pinn_odelora.families.settings import SCALE
from pinn_odelora.formulation import Problem
from pinn_odelora.rules import number

RATIO = 3.0
"""From which ratio of the ends on a positive interval has the coordinate log μ."""
MOST = 2
"""Parameters of a family that can be solved."""
STEP = 1e-4
"""Of central differences, so that neither their error nor rounding matters beside that of a solution."""
ROUNDING = 1e-9
"""By so much a coordinate may leave [0, 1]: an end is read back from a file or a table."""
Values = Mapping[str, float]


@dataclass(frozen=True)
class Interval:
    """One parameter's interval, low < high, and whether its coordinate is the logarithm.

    Raises:
        InputError: if an end is no finite number, the ends are equal, or a logarithm is asked of an end that has none.
    """

    name: str
    low: float
    high: float
    scale: Literal["log", "linear"]

    @classmethod
    def of(cls, name: str, ends: Sequence[float], scale: str = "auto") -> Interval:
        """From two ends in either order; ``scale`` is ``log``, ``linear`` or ``auto``."""
        SCALE.check("scale", scale)
        if isinstance(ends, str) or not isinstance(ends, Sequence | np.ndarray) or len(ends) != 2:
            raise RefusedValueError(name, ends, "the two ends of its range, as in (0.05, 0.005)")
        low, high = sorted(float(number().check(name, end)) for end in ends)
        if low == high:
            raise RefusedValueError(name, tuple(ends), "a range with two different ends")
        if scale == "log" and low <= 0:
            raise RefusedValueError(name, tuple(ends), "a range of positive numbers where scale is log")
        logarithmic = scale == "log" or (scale == "auto" and low > 0 and high > RATIO * low)
        return cls(name, low, high, "log" if logarithmic else "linear")

    def coordinate(self, value: float) -> float:
        """x of a value."""
        g = math.log if self.scale == "log" else float
        return (g(value) - g(self.low)) / (g(self.high) - g(self.low))

    def value(self, x: float) -> float:
        """The value of a coordinate; the ends exactly."""
        if x in (0.0, 1.0):
            return (self.low, self.high)[int(x)]
        if self.scale == "log":
            return self.low * (self.high / self.low) ** x
        return self.low + (self.high - self.low) * x


@dataclass(frozen=True)
class Ranges:
    """The intervals of all parameters of a family, in order."""

    intervals: tuple[Interval, ...]

    @classmethod
    def of(cls, problem: Problem, ends: Mapping[str, Sequence[float]], scale: str = "auto") -> Ranges:
        """Those of a problem's parameters.

        Raises:
            InputError: if there is none or there are too many, one is no parameter of the problem or no real number, or
                its bound lies inside the range.
        """
        declared = problem.parameters()
        allowed = [name for name, p in declared.items() if not (p.integer or p.choices)]
        if not ends:
            raise InputError(
                f"A family needs the range of at least one parameter, as in {allowed[0] if allowed else 'nu'}=(1, 2); "
                f"{type(problem).__name__} has {', '.join(allowed) or 'none that is a real number'}."
            )
        for name in ends:
            if name not in allowed:
                raise unknown(f"parameter of {type(problem).__name__} for a family:", name, allowed)
        if len(ends) > MOST:
            raise InputError(f"A family has one or two parameters, not {len(ends)}: {', '.join(ends)}.")
        intervals = tuple(Interval.of(name, given, scale) for name, given in ends.items())
        for interval in intervals:
            declared[interval.name].rule.check(interval.name, interval.low)
        return cls(intervals)

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters in order."""
        return tuple(interval.name for interval in self.intervals)

    def coordinates(self, values: Values, extrapolate: bool = False) -> NDArray:
        """x of a point, (parameters,).

        Args:
            values: one for each parameter.
            extrapolate: whether it may lie outside.

        Raises:
            InputError: if a value is missing, unknown or no number, or lies outside the range.
        """
        for name in values:
            if name not in self.names:
                raise unknown("parameter of the family:", name, self.names)
        for name in self.names:
            if name not in values:
                raise InputError(f"The family depends on {', '.join(self.names)}, but {name} is not given.")
        return np.array([self._coordinate(i, values[i.name], extrapolate) for i in self.intervals])

    def _coordinate(self, interval: Interval, value: float, extrapolate: bool) -> float:
        value = float(number().check(interval.name, value))
        if interval.scale == "log" and value <= 0:
            raise RefusedValueError(interval.name, value, "a number above 0")
        x = interval.coordinate(value)
        if not extrapolate and not -ROUNDING <= x <= 1 + ROUNDING:
            allowed = f"from {interval.low:g} to {interval.high:g} in this family, unless extrapolate=True"
            raise RefusedValueError(interval.name, value, allowed)
        return x

    def step(self, name: str, values: Values) -> float:
        """A small change of a parameter: relative to it where its coordinate is its logarithm, else to its range."""
        interval = next(interval for interval in self.intervals if interval.name == name)
        return STEP * (values[name] if interval.scale == "log" else interval.high - interval.low)

    def values(self, x: NDArray) -> dict[str, float]:
        """The point of coordinates (parameters,)."""
        return {interval.name: interval.value(float(c)) for interval, c in zip(self.intervals, x, strict=True)}
