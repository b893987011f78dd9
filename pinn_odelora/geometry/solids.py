"""Solids, their combinations, and the surfaces that bound them, with outward unit normals.

    plate = Box(x=(0, 1), y=(0, 1)) - Ball(0.25, x=0.5, y=0.5)
    plate.boundary()                                             columns x, y and the normal nx, ny
    plate.boundary(lambda p: (p.x - 0.5).hypot(p.y - 0.5) < 0.3) of the hole alone
    (plate * Box(t=(0, 1))).face(t=0.0)                          at the start of a time interval

A solid tells which points are inside. Unions A | B, intersections A & B and differences A - B are solids again
(constructive solid geometry; Requicha, 1980). Their points are those of the bounding box that lie inside. Their surface
is a part of the surfaces of the primitives: the points x with normal n where x + εn and x - εn lie on different sides.
There n is the normal, reversed where x + εn is inside. Where the surfaces of two primitives coincide, the points of the
first one count.

All points are images of a sequence in the unit cube, uniform by volume or by area, so that an even sequence gives even
points and the same sequence the same points.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pinn_odelora.errors import InputError
from pinn_odelora.points import Points

Uniform = Callable[[int, int], Tensor]
"""``uniform(n, d)``: n points in [0, 1)^d, (n, d)."""
Keep = Callable[[Points], Tensor]
"""Which of n points belong: a column (n, 1) of truth values."""

STEP = 1e-6
"""ε, relative to the largest extent."""
DOUBLINGS = 12


class Patch(NamedTuple):
    """A piece of a surface.

    Attributes:
        area: its area; length in the plane, one for a point on the line.
        numbers: k, how many numbers in [0, 1) give a point.
        place: maps (m, k) to positions and outward unit normals, (m, d) each; uniform by area.
    """

    area: float
    numbers: int
    place: Callable[[Tensor], tuple[Tensor, Tensor]]


class Spatial(ABC):
    """A region that can be extended along further coordinates."""

    coords: tuple[str, ...]

    @abstractmethod
    def drawn(self, n: int, uniform: Uniform, beside: int) -> tuple[Points, Tensor]:
        """n points, columns (n, 1), and further numbers in [0, 1) that belong to them, (n, beside)."""

    def sample(self, n: int, uniform: Uniform) -> Points:
        """n points, columns (n, 1)."""
        return self.drawn(n, uniform, 0)[0]

    def __mul__(self, interval: Any) -> Product:
        """The product with a box of other coordinates, such as a time interval ``Box(t=(0, 1))``."""
        return Product(self, interval)


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


class Pieces(Spatial):
    """Patches side by side, sampled uniformly by area.

    Args:
        coords: names of the coordinates.
        patches: the pieces.
        keep: chooses from their points.
    """

    interior = False

    def __init__(self, coords: Sequence[str], patches: Sequence[Patch], keep: Keep | None = None) -> None:
        self.coords, self.pieces, self.keep = tuple(coords), list(patches), keep

    def drawn(self, n: int, uniform: Uniform, beside: int) -> tuple[Points, Tensor]:
        k = max(1, *(patch.numbers for patch in self.pieces))
        return accepted(n, uniform, k, beside, self._candidates, "The surface")

    def _candidates(self, unit: Tensor) -> tuple[Points, Tensor]:
        which, unit = chosen([patch.area for patch in self.pieces], unit)
        places, normals = unit.new_empty(2, len(unit), len(self.coords))
        for i, patch in enumerate(self.pieces):
            places[which == i], normals[which == i] = patch.place(unit[which == i, : patch.numbers])
        normals, belongs = self.oriented(places, normals, which)
        p = with_normals(self.coords, places, normals)
        return p, belongs if self.keep is None else belongs & self.keep(p)[:, 0]

    def oriented(self, places: Tensor, normals: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        """The outward normals of candidates, and which of these belong to the surface."""
        return normals, torch.ones_like(which, dtype=torch.bool)


class Surface(Pieces):
    """The surface of a solid, see the module's docstring.

    Args:
        solid: what it bounds.
        keep: chooses from its points.
    """

    def __init__(self, solid: Solid, keep: Keep | None = None) -> None:
        self.solid = solid
        self.parts = solid.primitives()
        patches = [[_reordered(patch, part.coords, solid.coords) for patch in part.patches()] for part in self.parts]
        super().__init__(solid.coords, [patch for own in patches for patch in own], keep)
        self.part_of = torch.tensor([i for i, own in enumerate(patches) for _ in own])
        self.step = STEP * max(high - low for part in self.parts for low, high in part.bounds.values())

    def oriented(self, places: Tensor, normals: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        if len(self.parts) == 1:
            return super().oriented(places, normals, which)
        outer, inner = (Points.from_rows(self.coords, places + side * self.step * normals) for side in (1, -1))
        ahead, behind = self.solid.contains(outer), self.solid.contains(inner)
        belongs = ahead != behind
        for i, part in enumerate(self.parts):
            belongs &= (self.part_of[which] <= i) | (part.contains(outer) == part.contains(inner))
        return torch.where(ahead[:, None], -normals, normals), belongs


def _reordered(patch: Patch, given: Sequence[str], wanted: Sequence[str]) -> Patch:
    """The patch with its coordinates in another order."""
    order = [given.index(name) for name in wanted]
    return patch._replace(place=lambda unit: tuple(x[:, order] for x in patch.place(unit)))


class Product(Spatial):
    """A solid or surface times a box of other coordinates, such as a time interval.

    Args:
        space: the solid or surface.
        interval: a box of the other coordinates; one of length zero fixes a coordinate.

    Raises:
        InputError: if a coordinate occurs in both.
    """

    def __init__(self, space: Any, interval: Any) -> None:
        if twice := [name for name in interval.bounds if name in space.coords]:
            raise InputError(f"{twice[0]} is a coordinate of both factors of a product; they must have different ones.")
        self.space, self.interval = space, interval
        self.coords = (*space.coords, *interval.bounds)

    @property
    def interior(self) -> bool:
        """Whether it has full dimension."""
        return self.space.interior and self.interval.interior

    def face(self, **fixed: float) -> Product:
        """The part on which further coordinates have the given values, for instance ``face(t=0.0)``."""
        return Product(self.space, self.interval.face(**fixed))

    def boundary(self, *args: Any, **kwargs: Any) -> Product:
        """The boundary of the solid, times the box; arguments as there."""
        return Product(self.space.boundary(*args, **kwargs), self.interval)

    def drawn(self, n: int, uniform: Uniform, beside: int) -> tuple[Points, Tensor]:
        free = sum(low < high for low, high in self.interval.bounds.values())
        p, unit = self.space.drawn(n, uniform, free + beside)
        rest = self.interval.sample(n, lambda n, d: unit[:, :d])
        # The normal of a surface in space is that of the product too.
        known = rest if self.space.interior else {name: rest[name] for name in self.interval.bounds}
        return Points(p | known), unit[:, free:]


def with_normals(coords: Sequence[str], places: Tensor, normals: Tensor) -> Points:
    """Points of a surface from positions and normals, (N, d) each."""
    return Points(Points.from_rows(coords, places) | Points.from_rows([f"n{c}" for c in coords], normals))


def chosen(measures: Sequence[float] | Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
    """One of several pieces for each row, in proportion to their measures, by the first number of the row.

    Args:
        measures: of the pieces, positive.
        unit: numbers in [0, 1), (m, k), k ≥ 1.

    Returns:
        The pieces (m,), and the rows with the first number stretched to [0, 1) within its piece, (m, k).
    """
    measures = torch.as_tensor(measures, dtype=unit.dtype)
    ends = torch.cumsum(measures, dim=0)
    s = unit[:, 0] * ends[-1]
    which = torch.searchsorted(ends[:-1].contiguous(), s.contiguous(), right=True)
    fraction = (1 - (ends[which] - s) / measures[which]).clamp(0, 1 - torch.finfo(unit.dtype).eps)
    return which, torch.cat([fraction[:, None], unit[:, 1:]], dim=1)


def accepted(
    n: int,
    uniform: Uniform,
    k: int,
    beside: int,
    candidates: Callable[[Tensor], tuple[Points, Tensor]],
    what: str,
) -> tuple[Points, Tensor]:
    """The first n candidates that belong, from a sequence that is doubled until it contains so many.

    Args:
        n: number of points.
        uniform: the sequence.
        k: how many numbers give a candidate.
        beside: how many further numbers belong to a point.
        candidates: maps (m, k) to m points and to flags (m,) that mark those that belong.
        what: for the message.

    Returns:
        The points, and their further numbers (n, beside).

    Raises:
        InputError: if next to nothing belongs.
    """
    for m in (n << doubling for doubling in range(DOUBLINGS)):
        unit = uniform(m, k + beside)
        p, belongs = candidates(unit[:, :k])
        rows = torch.nonzero(belongs).flatten()[:n]
        if len(rows) == n:
            return Points({name: x[rows] for name, x in p.items()}), unit[rows, k:]
    raise InputError(f"{what} is empty, or fills less than a thousandth of what encloses it.")
