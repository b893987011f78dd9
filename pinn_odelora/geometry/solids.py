"""Solids, and their combinations.

    plate = Box(x=(0, 1), y=(0, 1)) - Ball(0.25, x=0.5, y=0.5)
    plate.boundary()                                             columns x, y and the normal nx, ny
    plate.boundary(lambda p: (p.x - 0.5).hypot(p.y - 0.5) < 0.3) of the hole alone

A solid tells which points are inside. Unions A | B, intersections A & B and differences A - B are solids again
(constructive solid geometry; Requicha, 1980). Their points are those of the bounding box that lie inside.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from pinn_odelora.errors import InputError
from pinn_odelora.geometry.spatial import Spatial, Uniform, accepted
from pinn_odelora.geometry.surfaces import Keep, Patch, Surface
from pinn_odelora.points import Points


class Solid(Spatial):
    """A set of full dimension in the coordinates ``coords``, within ``bounds``."""

    interior = True
    bounds: Mapping[str, tuple[float, float]]

    @abstractmethod
    def contains(self, p: Points) -> Tensor:
        """Which of N points are inside, (N,)."""

    @abstractmethod
    def primitives(self) -> list[Solid]:
        """The solids of which it is made, itself if it is none of several."""

    @abstractmethod
    def patches(self) -> list[Patch]:
        """Pieces that make up its surface; those of a primitive only."""

    def boundary(self, keep: Keep | None = None) -> Surface:
        """Its surface, or the part of it that ``keep`` chooses from its points."""
        return Surface(self, keep)

    def drawn(self, n: int, uniform: Uniform, beside: int) -> tuple[Points, Tensor]:
        low, high = torch.tensor([*self.bounds.values()], dtype=torch.float64).T
        within = lambda unit: Points.from_rows([*self.bounds], low + (high - low) * unit)
        return accepted(
            n, uniform, len(self.bounds), beside, lambda unit: ((p := within(unit)), self.contains(p)), "The solid"
        )

    def __or__(self, other: Solid) -> Solid:
        return Combination(self, other, torch.logical_or, lambda a, b: (min(a[0], b[0]), max(a[1], b[1])))

    def __and__(self, other: Solid) -> Solid:
        return Combination(self, other, torch.logical_and, lambda a, b: (max(a[0], b[0]), min(a[1], b[1])))

    def __sub__(self, other: Solid) -> Solid:
        return Combination(self, other, lambda a, b: a & ~b, lambda a, b: a)


class Combination(Solid):
    """Two solids by a rule for what is inside.

    Args:
        first, second: solids in the same coordinates.
        rule: from the insides of the two, (N,), to its own.
        extent: from the bounds of the two along a coordinate to its own.

    Raises:
        InputError: if the second is no solid, the coordinates differ, or nothing is inside.
    """

    def __init__(
        self,
        first: Solid,
        second: Solid,
        rule: Callable[[Tensor, Tensor], Tensor],
        extent: Callable[[tuple[float, float], tuple[float, float]], tuple[float, float]],
    ) -> None:
        for part in (first, second):
            if not isinstance(part, Solid) or not part.interior:
                raise InputError(f"{part!r} is no solid, but only solids can be combined: boxes, balls, combinations.")
        if {*first.coords} != {*second.coords}:
            names = " and ".join(", ".join(part.coords) for part in (first, second))
            raise InputError(f"Solids in {names} cannot be combined; they must have the same coordinates.")
        self.first, self.second, self.rule = first, second, rule
        self.coords = first.coords
        self.bounds = {c: extent(first.bounds[c], second.bounds[c]) for c in self.coords}
        if not all(low < high for low, high in self.bounds.values()):
            raise InputError("The intersection of the solids is empty.")

    def contains(self, p: Points) -> Tensor:
        return self.rule(self.first.contains(p), self.second.contains(p))

    def primitives(self) -> list[Solid]:
        return [*self.first.primitives(), *self.second.primitives()]

    def patches(self) -> list[Patch]:
        raise TypeError("a combination has the patches of its primitives")


class Ball(Solid):
    """The ball around a centre, in any number of dimensions: ``Ball(0.25, x=0.5, y=0.5)`` is a disk.

    Args:
        radius: positive.
        centre: each coordinate of the centre, by name.

    Raises:
        InputError: if the radius is not positive, or there is no coordinate.
    """

    def __init__(self, radius: float, /, **centre: float) -> None:
        if not 0 < radius < math.inf:
            raise InputError(f"The radius of a ball is {radius!r}, but it must be a positive number.")
        if not centre or not all(math.isfinite(x) for x in centre.values()):
            raise InputError("A ball needs the coordinates of its centre, as in Ball(0.25, x=0.5, y=0.5).")
        self.radius, self.centre = float(radius), {name: float(x) for name, x in centre.items()}
        self.coords = tuple(centre)
        self.bounds = {name: (x - self.radius, x + self.radius) for name, x in self.centre.items()}

    def __repr__(self) -> str:
        return f"Ball({self.radius:g}, {', '.join(f'{name}={x:g}' for name, x in self.centre.items())})"

    def contains(self, p: Points) -> Tensor:
        squares = sum((p[name] - x) ** 2 for name, x in self.centre.items())
        return squares[:, 0] < self.radius**2

    def primitives(self) -> list[Solid]:
        return [self]

    def patches(self) -> list[Patch]:
        d = len(self.coords)
        area = 2 * math.pi ** (d / 2) / math.gamma(d / 2) * self.radius ** (d - 1)

        def place(unit: Tensor) -> tuple[Tensor, Tensor]:
            n = direction(unit, d)
            return self._middle + self.radius * n, n

        return [Patch(area, _numbers(d), place)]

    def drawn(self, n: int, uniform: Uniform, beside: int) -> tuple[Points, Tensor]:
        d = len(self.coords)
        unit = uniform(n, 1 + _numbers(d) + beside)
        split = 1 + _numbers(d)
        places = self._middle + self.radius * unit[:, :1] ** (1 / d) * direction(unit[:, 1:split], d)
        return Points.from_rows(self.coords, places), unit[:, split:]

    @property
    def _middle(self) -> Tensor:
        return torch.tensor([*self.centre.values()], dtype=torch.float64)


def _numbers(d: int) -> int:
    """How many numbers in [0, 1) ``direction`` takes."""
    return max(1, d - 1) if d <= 3 else d


def direction(unit: Tensor, d: int) -> Tensor:
    """Unit vectors (m, d), uniform on the sphere, from numbers in [0, 1), (m, k).

    Signs on the line, angles in the plane, height and angle in space, where bands of equal height have equal area
    (Archimedes), and a normalised vector of normal variables in higher dimensions.
    """
    if d == 1:
        return torch.where(unit < 0.5, -1.0, 1.0).to(unit.dtype)
    if d > 3:
        normal = torch.special.ndtri(unit.clamp(1e-12, 1 - 1e-12))
        return normal / normal.norm(dim=1, keepdim=True)
    angle = 2 * math.pi * unit[:, -1:]
    circle = torch.cat([torch.cos(angle), torch.sin(angle)], dim=1)
    if d == 2:
        return circle
    height = 2 * unit[:, :1] - 1
    return torch.cat([torch.sqrt(1 - height**2) * circle, height], dim=1)
