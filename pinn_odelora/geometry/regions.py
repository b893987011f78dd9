"""The regions on which loss terms are defined: boxes, their faces, and clouds of given points.

A region maps points of the unit cube to its own, so that it can be sampled with any low-discrepancy sequence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pinn_odelora.errors import InputError, unknown
from pinn_odelora.points import Points

Uniform = Callable[[int, int], Tensor]
"""``uniform(n, d)``: n points in [0, 1)^d, (n, d)."""


class Region(Protocol):
    """A set that can be sampled uniformly."""

    interior: bool
    """Whether it has full dimension: such regions receive ``points.interior`` points, others ``points.boundary``."""

    def sample(self, n: int, uniform: Uniform) -> Points:
        """n points of the region, columns (n, 1).

        Args:
            n: number of points.
            uniform: source of points in the unit cube, (n, d) -> tensor (n, d).
        """
        ...


@dataclass(frozen=True, init=False)
class Box:
    """A product of intervals, ``Box(x=(-1, 1), t=(0, 1))``; an interval of length zero fixes that coordinate.

    Args:
        bounds: lower and upper end of each coordinate, by name; points have one column (n, 1) for each.

    Raises:
        InputError: if an interval is no pair of finite numbers in order.
    """

    bounds: Mapping[str, tuple[float, float]]

    def __init__(self, **bounds: tuple[float, float]) -> None:
        for name, interval in bounds.items():
            if not _is_interval(interval):
                raise InputError(
                    f"The interval of {name} is {interval!r}, but it must be a pair of finite numbers, the lower first."
                )
        object.__setattr__(self, "bounds", bounds)

    @property
    def interior(self) -> bool:
        """Whether no coordinate is fixed."""
        return all(low < high for low, high in self.bounds.values())

    def face(self, **fixed: float) -> Box:
        """The part on which the named coordinates have the given values, for instance ``face(t=0.0)``.

        Raises:
            InputError: if there is no such coordinate, or the value lies outside its interval.
        """
        for name, value in fixed.items():
            low, high = self._interval(name)
            slack = 1e-9 * (high - low)
            if not low - slack <= value <= high + slack:
                raise InputError(f"face({name}={value}) is outside the box, where {name} is from {low} to {high}.")
        return Box(**{**self.bounds, **{name: (value, value) for name, value in fixed.items()}})

    def boundary(self, *names: str) -> Union:
        """The faces at both ends of each named coordinate (of all coordinates if none is named).

        Raises:
            InputError: if there is no such coordinate.
        """
        return Union(*(self.face(**{name: end}) for name in names or self.bounds for end in self._interval(name)))

    def _interval(self, name: str) -> tuple[float, float]:
        if name not in self.bounds:
            raise unknown("coordinate of the box:", name, self.bounds)
        return self.bounds[name]

    def sample(self, n: int, uniform: Uniform) -> Points:
        """n points of the box, columns (n, 1)."""
        free = [name for name, (low, high) in self.bounds.items() if low < high]
        return self.place(Points.from_rows(free, uniform(n, len(free))), n)

    def place(self, unit: Points, n: int) -> Points:
        """Map columns (n, 1) in [0, 1) to the box; columns of fixed coordinates are added."""
        columns = {}
        for name, (low, high) in self.bounds.items():
            fixed = torch.full((n, 1), low, dtype=torch.float64)
            columns[name] = low + (high - low) * unit[name] if name in unit else fixed
        return Points(columns)


def _is_interval(interval: object) -> bool:
    try:
        low, high = map(float, interval)  # type: ignore[call-overload]
    except (TypeError, ValueError):
        return False
    return math.isfinite(low) and math.isfinite(high) and low <= high


class Union:
    """Several regions of lower dimension, each with an equal share of the points (at least one).

    Args:
        parts: regions with the same coordinates; points have one column (n, 1) for each coordinate.
    """

    interior = False

    def __init__(self, *parts: Region) -> None:
        self.parts = parts

    def sample(self, n: int, uniform: Uniform) -> Points:
        """n points, at least one of each part, columns (n, 1)."""
        share, rest = divmod(max(n, len(self.parts)), len(self.parts))
        samples = [part.sample(share + (i < rest), uniform) for i, part in enumerate(self.parts)]
        return Points({name: torch.cat([s[name] for s in samples]) for name in samples[0]})


@dataclass(frozen=True)
class Cloud:
    """Given points, such as those of measurements; every draw returns all of them.

    Args:
        points: columns (N, 1), the coordinates and any others that a residual reads.
        interior: whether they fill the domain, and thus count as interior points.
    """

    points: Points
    interior: bool = False

    def sample(self, n: int, uniform: Uniform) -> Points:
        """All N points, for any n."""
        return self.points
