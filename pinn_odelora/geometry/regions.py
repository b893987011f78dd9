"""The regions on which loss terms are defined: boxes, their faces, and clouds of given points.

A region maps points of the unit cube to its own, so that it can be sampled with any low-discrepancy sequence. Points of
a boundary have the outward unit normal n as further columns, ``nx`` its component along x; components that are zero
everywhere are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from pinn_odelora.errors import InputError, unknown
from pinn_odelora.geometry.solids import Solid
from pinn_odelora.geometry.spatial import Uniform
from pinn_odelora.geometry.surfaces import Keep, Patch, Surface
from pinn_odelora.points import Points


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
class Box(Solid):
    """A product of intervals, ``Box(x=(-1, 1), t=(0, 1))``; an interval of length zero fixes that coordinate.

    Boxes and other solids combine, ``box | ball``, ``box & ball``, ``box - ball``.

    Args:
        bounds: lower and upper end of each coordinate, by name; points have one column (n, 1) for each.

    Raises:
        InputError: if an interval is no pair of finite numbers in order.
    """

    bounds: Mapping[str, tuple[float, float]]
    normal: Mapping[str, float] = field(compare=False, repr=False)
    """Of a face: its outward unit normal, components that are not zero."""

    def __init__(self, **bounds: tuple[float, float]) -> None:
        for name, interval in bounds.items():
            if isinstance(interval, tuple | list) and any(isinstance(x, Tensor) and x.requires_grad for x in interval):
                raise InputError(
                    f"The interval of {name} depends on an unknown parameter, but points cannot move with it: state "
                    f"the equation on a fixed interval, with {name} = l s and the length l as a coefficient."
                )
            if not _is_interval(interval):
                raise InputError(
                    f"The interval of {name} is {interval!r}, but it must be a pair of finite numbers, the lower first."
                )
        object.__setattr__(self, "bounds", bounds)
        object.__setattr__(self, "normal", {})

    @property
    def coords(self) -> tuple[str, ...]:
        """The names of the coordinates."""
        return tuple(self.bounds)

    @property
    def interior(self) -> bool:
        """Whether no coordinate is fixed."""
        return all(low < high for low, high in self.bounds.values())

    def face(self, **fixed: float) -> Box:
        """The part on which the named coordinates have the given values, for instance ``face(t=0.0)``.

        If a single one is named the points have a normal: outward at the ends, along the coordinate in between.

        Raises:
            InputError: if there is no such coordinate, or the value lies outside its interval.
        """
        for name, value in fixed.items():
            low, high = self._interval(name)
            slack = 1e-9 * (high - low)
            if not low - slack <= value <= high + slack:
                raise InputError(f"face({name}={value}) is outside the box, where {name} is from {low} to {high}.")
        return self._fixed(fixed, self._outward(**fixed))

    def held(self, **fixed: float) -> Box:
        """The points with these values, as points of the same face: they keep its normal."""
        return self._fixed(fixed, self.normal)

    def _fixed(self, fixed: Mapping[str, float], normal: Mapping[str, float]) -> Box:
        box = Box(**{**self.bounds, **{name: (value, value) for name, value in fixed.items()}})
        object.__setattr__(box, "normal", normal)
        return box

    def _outward(self, **fixed: float) -> dict[str, float]:
        if len(fixed) != 1:
            return {}
        ((name, value),) = fixed.items()
        low, high = self.bounds[name]
        if not low < high:
            return {}
        return {name: -1.0 if math.isclose(value, low, rel_tol=1e-12, abs_tol=1e-12 * (high - low)) else 1.0}

    def _interval(self, name: str) -> tuple[float, float]:
        if name not in self.bounds:
            raise unknown("coordinate of the box:", name, self.bounds)
        return self.bounds[name]

    def boundary(self, *names: str | Keep) -> Union | Surface:
        """The faces at both ends of each named coordinate (of all that are not fixed if none is named).

        A function in place of names chooses from the points of all faces, ``boundary(lambda p: p.x + p.y < 1)``.

        Raises:
            InputError: if there is no such coordinate, or a coordinate is fixed where a function chooses.
        """
        if len(names) == 1 and callable(keep := names[0]):
            if not self.interior:
                raise InputError("A function chooses from the boundary of a box, but not from that of a face.")
            return Surface(self, keep)
        free = [name for name, (low, high) in self.bounds.items() if low < high]
        return Union(*(self.face(**{name: end}) for name in names or free for end in self._interval(name)))

    def drawn(self, n: int, uniform: Uniform, beside: int) -> tuple[Points, Tensor]:
        free = [name for name, (low, high) in self.bounds.items() if low < high]
        unit = uniform(n, len(free) + beside)
        return self.place(Points.from_rows(free, unit[:, : len(free)]), n), unit[:, len(free) :]

    def place(self, unit: Points, n: int) -> Points:
        """Map columns (n, 1) in [0, 1) to the box; columns of fixed coordinates and of the normal are added."""
        columns = {}
        for name, (low, high) in self.bounds.items():
            fixed = torch.full((n, 1), low, dtype=torch.float64)
            columns[name] = low + (high - low) * unit[name] if name in unit else fixed
        for name, component in self.normal.items():
            columns[f"n{name}"] = torch.full((n, 1), component, dtype=torch.float64)
        return Points(columns)

    # As a part of a combination.

    def contains(self, p: Points) -> Tensor:
        within = [(low <= p[name]) & (p[name] <= high) for name, (low, high) in self.bounds.items()]
        return torch.cat(within, dim=1).all(dim=1)

    def primitives(self) -> list[Solid]:
        return [self]

    def patches(self) -> list[Patch]:
        return [self._patch(name, end) for name in self.bounds for end in self.bounds[name]]

    def _patch(self, name: str, end: float) -> Patch:
        face = self.face(**{name: end})
        others = [high - low for other, (low, high) in self.bounds.items() if other != name]

        def place(unit: Tensor) -> tuple[Tensor, Tensor]:
            p = face.sample(len(unit), lambda n, d: unit)
            normal = torch.tensor([face.normal.get(c, 0.0) for c in self.bounds], dtype=unit.dtype)
            return p.rows([*self.bounds]), normal.expand(len(unit), -1)

        return Patch(math.prod(others), len(others), place)


def _is_interval(interval: object) -> bool:
    try:
        if any(isinstance(x, str) for x in interval):  # type: ignore[attr-defined]
            return False
        low, high = map(float, interval)  # type: ignore[call-overload]
    except (TypeError, ValueError):
        return False
    return math.isfinite(low) and math.isfinite(high) and low <= high


class Union:
    """Several regions of lower dimension, each with an equal share of the points (at least one).

    Args:
        parts: regions with the same coordinates; points have one column (n, 1) for each coordinate, and a normal if
            those of all parts have one.
    """

    interior = False

    def __init__(self, *parts: Region) -> None:
        self.parts = parts

    def sample(self, n: int, uniform: Uniform) -> Points:
        """n points, at least one of each part, columns (n, 1)."""
        share, rest = divmod(max(n, len(self.parts)), len(self.parts))
        samples = [part.sample(share + (i < rest), uniform) for i, part in enumerate(self.parts)]
        of_normals = {f"n{c}" for s in samples for c in s.normals}
        columns = {name: torch.cat([s[name] for s in samples]) for name in samples[0] if name not in of_normals}
        # One part without a normal leaves all points without: zero would be no unit vector.
        for c in dict.fromkeys(c for s in samples for c in s.normals) if all(s.normals for s in samples) else ():
            columns[f"n{c}"] = torch.cat([s.normals.get(c, torch.zeros_like(s[c])) for s in samples])
        return Points(columns)


@dataclass(frozen=True)
class Cloud:
    """Given points, such as those of measurements; every draw returns all of them.

    Args:
        points: columns (N, 1), the coordinates and any others that a residual reads.
        interior: whether they fill the domain, and thus count as interior points.

    Raises:
        InputError: if the columns are not tensors (N, 1) with the same N ≥ 1.
    """

    points: Points
    interior: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.points, Points) or not self.points:
            raise InputError(
                f"The points of a cloud are a {type(self.points).__name__}, but they must be columns, "
                "po.Points(x=..., t=...)."
            )
        n = max(len(x) if isinstance(x, Tensor) and x.ndim else 0 for x in self.points.values())
        for name, x in self.points.items():
            if not isinstance(x, Tensor) or x.shape != (n, 1) or not n:
                said = f"a tensor {tuple(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
                raise InputError(
                    f"Column {name} of a cloud is {said}, but every column must be a tensor ({n or 'N'}, 1), with one "
                    "row for each point."
                )

    def sample(self, n: int, uniform: Uniform) -> Points:
        """All N points, for any n."""
        return self.points
